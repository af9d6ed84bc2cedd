"""The run's settings as frozen records: what every stage reads, once config.py has composed and checked it.

Defaults live in conf/ alone; a field here has none, so that a value nobody set is an error and not a surprise.
"""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Model:
    """The base model: a Hub name with its revision, a local folder, or "embedded" for the bundled one."""

    name: str
    revision: str | None
    tokenizer: str | None  # where the tokenizer comes from when not from `name`
    random: dict[str, int] | None  # GPT2Config sizes: random weights of that shape instead of trained ones


@dataclass(frozen=True)
class Data:
    """Preference pairs: a Hub dataset with its revision, a local file or folder, or "embedded"."""

    name: str
    revision: str | None
    path: str | None  # local file or folder; wins over `name`
    subsets: list[str] | None  # folders of the source to read; null reads every one there
    train_pairs: int | None  # null takes all
    test_pairs: int | None
    shares: dict[str, float]  # of the training prompts: sft, reward, judge, ppo
    disjoint: bool  # false: every stage gets all the training pairs, and there is no judge
    max_prompt_tokens: int
    max_answer_tokens: int
    seed: int
    utility: str | None  # import path "module:function" of a (prompt, answer) -> float that is the truth

    @property
    def has_judge(self) -> bool:
        """Whether a second reward model is trained, on pairs that nothing else sees."""
        return self.disjoint and self.shares.get("judge", 0) > 0


@dataclass(frozen=True)
class Peft:
    """LoRA for one stage; rank 0 trains all weights."""

    r: int
    lora_alpha: int
    lora_dropout: float
    target_modules: list[str] | None  # null: peft's default for the architecture


@dataclass(frozen=True)
class Sft:
    """Supervised fine-tuning: `args` are fields of TRL's SFTConfig."""

    args: dict[str, Any]
    peft: Peft


@dataclass(frozen=True)
class Reward:
    """The reward model: `args` are fields of TRL's RewardConfig."""

    args: dict[str, Any]
    peft: Peft


@dataclass(frozen=True)
class PpoReward:
    """What PPO maximises: a score, normalised, then clipped; the penalty for a missing EOS comes after."""

    function: str | None  # import path "module:function" of (prompts, answers) -> scores; null: the reward model
    normalise: bool  # by the mean and standard deviation that the reward stage measured on held-out answers
    clip: float | None  # largest absolute value; null clips nothing


@dataclass(frozen=True)
class PpoKl:
    """The adaptive KL coefficient of Ziegler et al. 2019 (arXiv:1909.08593, section 2.2), from `args.kl_coef` on."""

    target_nats: float | None  # per answer; null keeps the coefficient fixed
    horizon_episodes: int


@dataclass(frozen=True)
class Heldout:
    """The policy measured while it trains, on prompts withheld from PPO, every `args.eval_steps` updates."""

    prompts: int
    best_by: str | None  # "reward", "judge" or "utility", the highest is best; null: judge, or reward without a judge
    hand_on: str  # "last" or "best": which policy the stage leaves


@dataclass(frozen=True)
class Guard:
    """What stops PPO on the held-out prompts; the best policy measured so far is then handed on."""

    enabled: bool
    max_kl_nats: float  # to SFT, mean per answer
    min_eos_rate: float
    min_distinct_2: float  # distinct bigrams over all bigrams, mean per answer
    max_length_ratio: float  # mean answer tokens over those of the SFT model


@dataclass(frozen=True)
class Ppo:
    """PPO: `args` are fields of TRL's PPOConfig."""

    args: dict[str, Any]
    peft: Peft
    seeds: list[int] | None  # a policy each, on the same SFT and reward model; null: one, with the run's seed
    reward: PpoReward
    kl: PpoKl
    heldout: Heldout
    guard: Guard

    @property
    def withheld_prompts(self) -> int:
        """How many prompts are kept from training to measure on; none where nothing is measured."""
        return self.heldout.prompts if self.args["eval_strategy"] != "no" else 0


@dataclass(frozen=True)
class Evaluate:
    """The comparison of base, SFT and PPO on held-out prompts."""

    prompts: int
    batch_size: int
    temperature: float
    max_new_tokens: int
    seed: int
    best_of: int | None  # SFT answers per prompt that the best is taken of; null or 1: no such yardstick


@dataclass(frozen=True)
class Publish:
    """Where the final policy and the reward model go on the Hub; null leaves them on disk."""

    repo_id: str | None
    reward_repo_id: str | None
    private: bool
    revision: str | None  # branch to push to, made where there is none; null is main
    dry_run: bool  # show what would be pushed, and push nothing


@dataclass(frozen=True)
class Card:
    """What a model card says that no run can measure."""

    author: str | None  # of the citation; null: no entry for the model
    year: int | None  # of the citation; null is the year in which the run was finished
    license: str  # of the weights, an identifier of the Hub's list


@dataclass(frozen=True)
class Launch:
    """How a training stage is started: one process, or several under torchrun or accelerate."""

    processes: int
    accelerate_config: str | None


@dataclass(frozen=True)
class Settings:
    """Everything one run is made of."""

    seed: int
    output_dir: str
    force: bool  # go on where a gate between two stages would stop
    model: Model
    data: Data
    sft: Sft
    reward: Reward
    ppo: Ppo
    evaluate: Evaluate
    publish: Publish
    card: Card
    launch: Launch
