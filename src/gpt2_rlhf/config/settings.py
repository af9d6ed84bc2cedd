"""The settings of a run as frozen records; compose.py fills and checks them, and every stage reads them.

Defaults live in conf/ alone. A field here has none, so that a value that nobody set is an error.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

TABLES = ("sft", "reward", "judge", "ppo")  # what the training prompts are divided into, in this order


@dataclass(frozen=True)
class Model:
    """The base model: a Hub name with its revision, a local folder, or "embedded" for the bundled one."""

    name: str
    revision: str | None
    tokenizer: str | None  # a Hub name, folder or "embedded"; null: the tokenizer of `name`
    random: dict[str, int] | None  # GPT2Config sizes: random weights of this shape instead of trained ones


@dataclass(frozen=True)
class Data:
    """Preference pairs: a Hub dataset with its revision, a local file or folder, or "embedded"."""

    name: str
    revision: str | None
    path: str | None  # local file or folder, read instead of `name`
    subsets: list[str] | None  # folders of the source to read; null reads all
    train_pairs: int | None  # null takes all
    test_pairs: int | None
    shares: dict[str, float]  # of the training prompts, for each of TABLES
    disjoint: bool  # false: every stage gets all the training pairs, and there is no judge
    template: str | None  # "chat": prompts in the model's own chat template; null: as transcripts
    max_prompt_tokens: int
    max_answer_tokens: int
    seed: int
    utility: str | None  # import path "module:function" of the true quality, (prompt, answer) -> float; null: unknown

    @property
    def has_judge(self) -> bool:
        """Whether a second reward model is trained, on pairs that no other stage reads."""
        return self.disjoint and self.shares.get("judge", 0) > 0


@dataclass(frozen=True)
class Peft:
    """LoRA for one stage, as fields of PEFT's LoraConfig; rank 0 trains all weights."""

    r: int
    lora_alpha: int
    lora_dropout: float
    target_modules: Any  # names of modules, or all-linear; null: peft's default for the architecture
    modules_to_save: list[str] | None  # trained whole
    use_rslora: bool
    use_dora: bool


@dataclass(frozen=True)
class Training:
    """What every stage that trains has: `args` are fields of its config in TRL, such as SFTConfig."""

    args: dict[str, Any]
    peft: Peft


@dataclass(frozen=True)
class PpoReward:
    """The score that PPO maximises: first normalised, then clipped, then lowered by the penalty for a missing EOS."""

    function: str | None  # import path "module:function" of (prompts, answers) -> scores; null: the reward model
    normalise: bool  # by mean and standard deviation of the reward model's scores on held-out answers
    clip: float | None  # largest absolute value; null clips nothing


@dataclass(frozen=True)
class PpoKl:
    """Adaptive KL coefficient (Ziegler et al. 2019, arXiv:1909.08593, section 2.2), starting at `args.kl_coef`."""

    target_nats: float | None  # per answer; null keeps the coefficient fixed
    horizon_episodes: int


@dataclass(frozen=True)
class Heldout:
    """Measuring the policy while it trains, on prompts withheld from PPO, every `args.eval_steps` updates."""

    prompts: int
    best_by: str | None  # "reward", "judge" or "utility", highest is best; null: judge if there is one, else reward
    hand_on: str  # "last" or "best": the policy that the PPO stage saves


@dataclass(frozen=True)
class Guard:
    """Limits on the held-out prompts. Past one of them PPO stops and saves the best policy measured so far."""

    enabled: bool
    max_kl_nats: float  # to SFT, mean per answer
    min_eos_rate: float
    min_distinct_2: float  # distinct bigrams over all bigrams, mean per answer
    max_length_ratio: float  # mean answer tokens over those of the SFT model


@dataclass(frozen=True)
class Ppo(Training):
    """PPO: `args` are fields of TRL's PPOConfig."""

    seeds: list[int] | None  # one policy for each, of any method, from one SFT and reward model; null: one, with `seed`
    reward: PpoReward
    kl: PpoKl
    heldout: Heldout
    guard: Guard
    rollout_cache: str | None  # of keys and values while sampling: "static" or "compiled" (CUDA graphs); null: it grows

    @property
    def withheld_prompts(self) -> int:
        """How many prompts are withheld from training to measure on; 0 if nothing is measured."""
        return self.heldout.prompts if self.args["eval_strategy"] != "no" else 0


@dataclass(frozen=True)
class Rloo(Training):
    """RLOO: `args` are fields of TRL's RLOOConfig. Prompts and reward are PPO's: `ppo.heldout`, `ppo.reward`."""

    episodes: int  # answers sampled in all
    missing_eos_penalty: float  # subtracted from the score of an answer without EOS


@dataclass(frozen=True)
class Evaluate:
    """The comparison of base, SFT and PPO on held-out prompts, and what SFT and the reward models are measured on."""

    prompts: int
    pairs: int  # of the test table, drawn: SFT's held-out loss, the accuracy of the reward models
    batch_size: int
    temperature: float
    max_new_tokens: int
    seed: int
    best_of: int | None  # SFT answers per prompt, of which the best counts; null or 1: no best-of-n baseline
    toxicity: bool  # whether alt-profanity-check, which pip install 'gpt2-rlhf[safety]' brings, reads the answers


@dataclass(frozen=True)
class ChatModels:
    """Models to talk to instead of those of a run: Hub names (NAME or NAME@REVISION) or folders; null: not there."""

    base: str | None
    sft: str | None
    ppo: str | None
    rloo: str | None
    dpo: str | None
    reward: str | None  # it and the judge score the answers of the others
    judge: str | None


@dataclass(frozen=True)
class Chat:
    """Talking to models; no stage reads it."""

    run: str | None  # the hash of the run, or its beginning; null: the newest
    models: ChatModels
    seed: int | None  # null: new random numbers for each question
    best_of: int  # SFT answers, of which the reward model chooses one; 1: no such column
    temperature: float | None  # null: that of the run's evaluation
    max_new_tokens: int | None  # as well
    preferences: str | None  # JSON lines, with the pairs that the user made; null: in output_dir
    web: bool
    share: bool  # through Gradio's servers

    @property
    def named_models(self) -> dict[str, str]:
        """Where the models are that are named."""
        return {name: place for name, place in asdict(self.models).items() if place is not None}


@dataclass(frozen=True)
class Publish:
    """The Hub repositories of the final policy and the reward model; null: it stays on disk."""

    repo_id: str | None
    reward_repo_id: str | None
    private: bool
    revision: str | None  # branch to push to, created if it does not exist; null is main
    keep: list[str]  # files of the repository, as patterns, that stay although they are not of the run
    dry_run: bool  # show what would be pushed; push nothing


@dataclass(frozen=True)
class Card:
    """Facts on the model card that no run can measure."""

    author: str | None  # of the citation; null: the card has no citation entry for the model
    year: int | None  # of the citation; null: the year in which the run finished
    license: str  # of the weights, an identifier from the Hub's list


@dataclass(frozen=True)
class Launch:
    """How a training stage is started: one process, or several that share its batches."""

    processes: int
    threads: int | None  # of the CPU for each process; stages run side by side on the other cores. null: all cores
    accelerate_config: str | None
    sharded: bool  # each process holds a share of weights, gradients and optimizer (FSDP2), not all of them
    slurm: dict[str, Any] | None  # what each stage, as a job, asks the cluster for; null: stages run on this machine


@dataclass(frozen=True)
class Sweep:
    """How the points of a sweep are built and compared; other commands do not read it."""

    parallel: int
    best_by: str | None  # "judge", "reward" or "utility"; null: judge, or utility if the points have different judges


@dataclass(frozen=True)
class Settings:
    """All settings of one run."""

    seed: int
    output_dir: str
    force: bool  # train PPO although a gate before it fails, and stages that may not fit in memory
    dry_run: bool  # print what each stage would take; build and write nothing
    method: str  # that trains the policy: "ppo", "rloo" or "dpo"
    model: Model
    data: Data
    sft: Training
    reward: Training
    ppo: Ppo
    rloo: Rloo
    dpo: Training
    evaluate: Evaluate
    chat: Chat
    publish: Publish
    card: Card
    launch: Launch
    sweep: Sweep

    @property
    def preferences_file(self) -> Path:
        """Where the chat keeps the pairs that the user made."""
        return Path(self.chat.preferences or Path(self.output_dir, "preferences.jsonl")).expanduser()

    @property
    def training(self) -> dict[str, Training]:
        """The settings with which models are trained, by their key: SFT, the reward models and the policy."""
        return {"sft": self.sft, "reward": self.reward, self.method: getattr(self, self.method)}

    def trained_by(self, stage: str) -> Training:
        """Return the settings with which a stage (sft, reward, judge or the method) trains."""
        return self.training["reward" if stage == "judge" else stage]


def with_value(node: Any, key: str, value: Any) -> Any:
    """Return settings, or a part of them, with another value under a dotted key."""
    name, _, rest = key.partition(".")
    if isinstance(node, dict):
        return {**node, name: with_value(node[name], rest, value) if rest else value}
    return replace(node, **{name: with_value(getattr(node, name), rest, value) if rest else value})


def flat(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each value of nested settings with its dotted key."""
    for name, value in node.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
