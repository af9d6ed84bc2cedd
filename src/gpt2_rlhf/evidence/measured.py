"""Record what was measured of one policy prompt by prompt; keep PPO's records as files and summarise them for the log.

Nothing here imports torch, so that plots and the report can read the files without it.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from gpt2_rlhf.evidence.intervals import bootstrap_mean
from gpt2_rlhf.store.files import read_json_lines, replacing

DIRECTORY = "heldout"  # within the PPO stage's


@dataclass(frozen=True, eq=False)
class Measured:
    """Figures of one policy's answers: arrays of shape (prompts,), None where a figure is unknown or does not apply.

    Rewards are unshaped scores, read at an EOS after the answer whether it was sampled or not. `ended`: whether EOS was
    sampled. `tokens`: without EOS. KL is to the SFT model over the answer's tokens, EOS included, in nats at the
    sampling temperature: the estimates of scoring.Divergence (`kl_nats` is the exact one). `chosen_nll_nats`,
    `chosen_tokens`: the sum over the data's chosen answer and its EOS at temperature 1, and the number of those tokens.
    `refused`, `toxic`: whether refusals.py and toxicity.py find the answer to be so.
    """

    reward: np.ndarray
    judge_reward: np.ndarray | None
    utility: np.ndarray | None
    tokens: np.ndarray
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
        return replace(self, **{name: one[prompts] for name, one in vars(self).items() if isinstance(one, np.ndarray)})


MEASURES = ("reward", "judge_reward", "utility")
_COLUMNS = (*MEASURES, "kl_nats", "kl_k1", "kl_k3", "tokens", "ended", "distinct_2")  # of the files
_LOGGED_AS = {"tokens": "answer_tokens", "ended": "eos_rate"}


def summary(measured: Measured) -> dict[str, float]:
    """Return what to log of one update: means over prompts, and the 95 % intervals of rewards and utility."""
    logged: dict[str, float] = {}
    for key in _COLUMNS:
        name, values = f"eval/{_LOGGED_AS.get(key, key)}", getattr(measured, key)
        if values is not None and key in MEASURES:
            estimate = bootstrap_mean(values)
            logged |= {name: estimate["mean"], f"{name}_low": estimate["low"], f"{name}_high": estimate["high"]}
        elif values is not None:
            logged[name] = float(values.mean())
    return logged


def write(directory: Path, measured: Measured, prompts: Sequence[str], answers: Sequence[str]) -> Path:
    """Write one JSON line per prompt to update-000004.jsonl (for update 4), and return its path."""
    path = directory / f"update-{measured.update:06d}.jsonl"
    columns = (getattr(measured, key) for key in _COLUMNS)
    lists = [[None] * len(prompts) if values is None else values.tolist() for values in columns]
    with replacing(path) as file:
        for prompt, answer, *figures in zip(prompts, answers, *lists, strict=True):
            line = {"prompt": prompt, "answer": answer, **dict(zip(_COLUMNS, figures, strict=True))}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    return path


def read(directory: Path, up_to_update: int) -> list[Measured]:
    """Return the records written for the updates up to this one, oldest first, equal to the bit."""
    numbered = [(int(path.stem.removeprefix("update-")), path) for path in directory.glob("update-*.jsonl")]
    return [_read_one(update, path) for update, path in sorted(numbered) if update <= up_to_update]


def _read_one(update: int, path: Path) -> Measured:
    rows = read_json_lines(path)
    columns = {key: [row[key] for row in rows] for key in _COLUMNS}
    known: dict[str, Any] = {key: None if values[0] is None else np.array(values) for key, values in columns.items()}
    return Measured(**known, update=update)
