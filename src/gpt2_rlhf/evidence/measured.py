"""Keep what was measured of one policy on held-out prompts: the record, its file, and the figures to log.

Apart from ppo_heldout, which measures, because the files are read where no model is: in plots and in the report.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gpt2_rlhf.evidence.intervals import bootstrap_mean

if TYPE_CHECKING:
    from gpt2_rlhf.models.sampling import Answer  # which imports torch

DIRECTORY = "heldout"  # within the PPO stage's


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


def write(directory: Path, measured: Measured, prompts: Sequence[str], answers: Sequence["Answer"]) -> Path:
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
