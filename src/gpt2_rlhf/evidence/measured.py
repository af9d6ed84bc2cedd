"""Record what was measured of one policy prompt by prompt; keep PPO's records as files and summarise them for the log.

Nothing here imports torch, so that plots and the report can read the files without it.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gpt2_rlhf.evidence.intervals import bootstrap_mean
from gpt2_rlhf.store.files import read_json_lines, replacing

if TYPE_CHECKING:
    from gpt2_rlhf.models.sampling import Answer  # which imports torch

DIRECTORY = "heldout"  # within the PPO stage's


@dataclass(frozen=True, eq=False)
class Measured:
    """Figures of one policy's answers: arrays of shape (prompts,), None where a figure is unknown or does not apply.

    Rewards are unshaped scores, read at an EOS after the answer whether it was sampled or not. `ended`: whether EOS was
    sampled. `answer_tokens`: without EOS. KL is to the SFT model over the answer's tokens, EOS included, in nats at the
    sampling temperature: the estimates of scoring.Divergence (`kl_nats` is the exact one). `chosen_nll_nats`,
    `chosen_tokens`: the sum over the data's chosen answer and its EOS at temperature 1, and the number of those tokens.
    `refused`, `toxic`: whether refusals.py and toxicity.py find the answer to be so.
    """

    rewards: np.ndarray
    judge_rewards: np.ndarray | None
    utilities: np.ndarray | None
    answer_tokens: np.ndarray
    ended: np.ndarray
    distinct_2: np.ndarray
    kl_k1: np.ndarray | None
    kl_nats: np.ndarray | None = None
    kl_k3: np.ndarray | None = None
    chosen_nll_nats: np.ndarray | None = None
    chosen_tokens: np.ndarray | None = None
    refused: np.ndarray | None = None
    toxic: np.ndarray | None = None
    update: int = 0  # PPO updates before the measurement, set where PPO measures itself; 0 is the SFT model

    def at(self, prompts: np.ndarray) -> "Measured":
        """Return the figures of some of the prompts, given by a mask or by their numbers."""
        columns = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: one[prompts] for name, one in columns.items() if isinstance(one, np.ndarray)})


# keys of the files -> fields of Measured
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
    """Return what to log of one update: means over prompts, and the 95 % intervals of rewards and utility."""
    logged: dict[str, float] = {}
    for name in ("reward", "judge_reward", "utility"):
        values = getattr(measured, _COLUMNS[name])
        if values is not None:
            estimate = bootstrap_mean(values)
            logged |= {f"eval/{name}": estimate.mean, f"eval/{name}_low": estimate.low}
            logged[f"eval/{name}_high"] = estimate.high
    means = {
        "kl_nats": measured.kl_nats,
        "kl_k1": measured.kl_k1,
        "kl_k3": measured.kl_k3,
        "answer_tokens": measured.answer_tokens,
        "eos_rate": measured.ended,
        "distinct_2": measured.distinct_2,
    }
    return logged | {f"eval/{name}": float(values.mean()) for name, values in means.items() if values is not None}


def write(directory: Path, measured: Measured, prompts: Sequence[str], answers: Sequence["Answer"]) -> Path:
    """Write one JSON line per prompt to update-000004.jsonl (for update 4), and return its path."""
    path = directory / f"update-{measured.update:06d}.jsonl"
    columns = {key: getattr(measured, field) for key, field in _COLUMNS.items()}
    lists = {key: None if values is None else values.tolist() for key, values in columns.items()}
    with replacing(path) as file:
        for place, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
            figures = {key: None if values is None else values[place] for key, values in lists.items()}
            file.write(json.dumps({"prompt": prompt, "answer": answer.text, **figures}, ensure_ascii=False) + "\n")
    return path


def read(directory: Path, up_to_update: int) -> list[Measured]:
    """Return the records written for the updates up to this one, oldest first, equal to the bit."""
    numbered = [(int(path.stem.removeprefix("update-")), path) for path in directory.glob("update-*.jsonl")]
    return [_read_one(update, path) for update, path in sorted(numbered) if update <= up_to_update]


def _read_one(update: int, path: Path) -> Measured:
    rows = read_json_lines(path)

    def column(key: str) -> Any:
        values = [row[key] for row in rows]
        return None if values[0] is None else np.array(values)

    return Measured(**{field: column(key) for key, field in _COLUMNS.items()}, update=update)
