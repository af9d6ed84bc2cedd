"""Turn the policy of one update into figures on prompts that PPO never trains on, and keep them with the answers.

The same prompts, seed and draws at every update, so that two updates differ by their policies and not by luck. The
files are the history: after a resume it is read back from them, to the bit, and nothing about it is in checkpoints.
"""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gpt2_rlhf import ppo_reward, scoring, tokens
from gpt2_rlhf.errors import UserError
from gpt2_rlhf.generation import Answer, sample
from gpt2_rlhf.intervals import bootstrap_mean
from gpt2_rlhf.ppo_reward import ScoreFunction

DIRECTORY = "heldout"  # within the PPO stage's

# (prompts, their answers) -> float64 scores of shape (answers,)
Scorer = Callable[[Sequence[str], Sequence[Answer]], np.ndarray]


@dataclass(frozen=True, eq=False)
class Measured:
    """The policy after `update` updates (0: the SFT model), prompt by prompt: arrays of shape (prompts,).

    Rewards are unshaped scores with EOS after every answer, written or not. KL is to the SFT model over the answer's
    tokens, EOS included, in nats at the sampling temperature, as scoring.Divergence has it. Lengths are without EOS.
    """

    update: int
    rewards: np.ndarray
    judge_rewards: np.ndarray | None
    utilities: np.ndarray | None
    kl_nats: np.ndarray
    kl_k1: np.ndarray
    kl_k3: np.ndarray
    answer_tokens: np.ndarray
    ended: np.ndarray
    distinct_2: np.ndarray


# Measured's arrays under the names that they have in the files
_COLUMNS = {
    "reward": "rewards",
    "judge_reward": "judge_rewards",
    "utility": "utilities",
    "kl_nats": "kl_nats",
    "kl_k1": "kl_k1",
    "kl_k3": "kl_k3",
    "tokens": "answer_tokens",
    "ended": "ended",
    "distinct_2": "distinct_2",
}


def by_model(name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_size: int) -> Scorer:
    """Scores by a reward model, on its device; `name` is its stage, "reward" or "judge". `tokenizer` is the saved one.

    Raises, when called:
        UserError: a score is not finite.
    """
    pad_token_id = tokens.pad_id(tokens.padding_copy(tokenizer, "right"))

    def scores(prompts: Sequence[str], answers: Sequence[Answer]) -> np.ndarray:
        prompt_ids = _prompt_ids(tokenizer, prompts)
        eos = tokens.eos_id(tokenizer)
        sequences = [[*ids, *answer.ids, eos] for ids, answer in zip(prompt_ids, answers, strict=True)]
        values = scoring.score(model, pad_token_id, sequences, batch_size)
        if not np.isfinite(values).all():
            raise UserError(
                f"ppo.heldout: the {name} model gives held-out answers scores that are not finite; its training "
                "diverged: lower reward.args.learning_rate"
            )
        return values

    return scores


def by_function(function: ScoreFunction) -> Scorer:
    """Scores by the function that PPO maximises in a reward model's place.

    Raises, when called:
        UserError: it gives another number of scores, or one that is not finite.
    """

    def scores(prompts: Sequence[str], answers: Sequence[Answer]) -> np.ndarray:
        texts = [answer.text for answer in answers]
        values = ppo_reward.scores_of(function, prompts, texts).double().numpy()
        _check_finite("ppo.reward.function", values, texts)
        return values

    return scores


def measure(
    update: int,
    policy: PreTrainedModel,
    reference: PreTrainedModel | None,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    reward: Scorer,
    judge: Scorer | None,
    utility: Callable[[str, str], float] | None,
    seed: int,
    max_new_tokens: int,
    temperature: float,
    batch_size: int,
) -> tuple[Measured, list[Answer]]:
    """Sample one answer per prompt and measure it; no global random state is read or changed.

    reference: the SFT model; None where it is the policy with its LoRA adapter switched off. `tokenizer` is the
    saved one.

    Raises:
        UserError: a reward or utility is not finite, or an answer does not fit the model.
    """
    answers = sample(
        policy,
        tokenizer,
        prompts,
        seed=seed,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        batch_size=batch_size,
    )
    eos = tokens.eos_id(tokenizer)
    sampled = [[*answer.ids, eos] if answer.ended else answer.ids for answer in answers]
    kl = scoring.kl_by_row(policy, reference, _prompt_ids(tokenizer, prompts), sampled, temperature, batch_size)
    measured = Measured(
        update=update,
        rewards=reward(prompts, answers),
        judge_rewards=None if judge is None else judge(prompts, answers),
        utilities=None if utility is None else _utilities(utility, prompts, answers),
        kl_nats=kl.exact,
        kl_k1=kl.k1,
        kl_k3=kl.k3,
        answer_tokens=np.array([len(answer.ids) for answer in answers]),
        ended=np.array([answer.ended for answer in answers]),
        distinct_2=np.array([scoring.distinct_2(answer.ids) for answer in answers]),
    )
    return measured, answers


def summary(measured: Measured) -> dict[str, float]:
    """What to log of one update: means over prompts, rewards and utility with the ends of their 95 % intervals."""
    found: dict[str, float] = {}
    judged = {"reward": measured.rewards, "judge_reward": measured.judge_rewards, "utility": measured.utilities}
    for name, values in judged.items():
        if values is not None:
            estimate = bootstrap_mean(values)
            found[f"eval/{name}"] = estimate.mean
            found[f"eval/{name}_low"] = estimate.low
            found[f"eval/{name}_high"] = estimate.high
    means = {
        "kl_nats": measured.kl_nats,
        "kl_k1": measured.kl_k1,
        "kl_k3": measured.kl_k3,
        "answer_tokens": measured.answer_tokens,
        "eos_rate": measured.ended,
        "distinct_2": measured.distinct_2,
    }
    return found | {f"eval/{name}": float(values.mean()) for name, values in means.items()}


def write(directory: Path, measured: Measured, prompts: Sequence[str], answers: Sequence[Answer]) -> Path:
    """One JSON line per prompt in update-000004.jsonl, whole or not at all; gives its path."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"update-{measured.update:06d}.jsonl"
    columns = {key: getattr(measured, field) for key, field in _COLUMNS.items()}
    lists = {key: None if values is None else values.tolist() for key, values in columns.items()}
    part = directory / f".{path.name}.tmp"
    with part.open("w", encoding="utf-8") as file:
        for place, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
            figures = {key: None if values is None else values[place] for key, values in lists.items()}
            file.write(json.dumps({"prompt": prompt, "answer": answer.text, **figures}, ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
    return path


def read(directory: Path, up_to_update: int) -> list[Measured]:
    """What was written of the updates up to this one, oldest first, equal to the bit; empty without the folder."""
    numbered = [(int(path.stem.removeprefix("update-")), path) for path in directory.glob("update-*.jsonl")]
    return [_read_one(update, path) for update, path in sorted(numbered) if update <= up_to_update]


def _read_one(update: int, path: Path) -> Measured:
    # not str.splitlines, which also splits at line separators that answers may contain
    with path.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]

    def column(key: str) -> Any:
        values = [row[key] for row in rows]
        return None if values[0] is None else np.array(values)

    return Measured(update=update, **{field: column(key) for key, field in _COLUMNS.items()})


def _prompt_ids(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> list[list[int]]:
    return [tokens.encode_ppo(tokenizer, {"prompt": prompt})["input_ids"] for prompt in prompts]


def _utilities(utility: Callable[[str, str], float], prompts: Sequence[str], answers: Sequence[Answer]) -> np.ndarray:
    values = np.array([float(utility(prompt, answer.text)) for prompt, answer in zip(prompts, answers, strict=True)])
    _check_finite("data.utility", values, [answer.text for answer in answers])
    return values


def _check_finite(key: str, values: np.ndarray, texts: Sequence[str]) -> None:
    if not np.isfinite(values).all():
        bad = texts[int(np.argmin(np.isfinite(values)))]
        raise UserError(f"{key}: it gave no finite number for the answer {bad[:60]!r}; mend the function")
