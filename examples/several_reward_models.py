"""Several reward models as one reward: the mean of their scores, or the lowest.

    make reward seed=1
    make reward seed=2
    make pipeline ppo.reward.function=examples.several_reward_models:mean

Members are all reward models in outputs/stages, so `make pipeline` adds its own. The PPO stage is named by this file's
text alone: to use other members, write their folders below. Coste et al. 2023 (arXiv:2310.02743) found that such a
reward is harder to exploit. With members that share their base model docs/evidence.md did not find that.
"""

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from gpt2_rlhf.models import loading, scoring, tokens

STAGES = Path("outputs/stages")
AT_ONCE = 64  # rows


def mean(prompts: Sequence[str], answers: Sequence[str]) -> list[float]:
    """Return the mean score of each answer."""
    return _scores(prompts, answers).mean(0).tolist()


def lowest(prompts: Sequence[str], answers: Sequence[str]) -> list[float]:
    """Return the lowest score of each answer."""
    return _scores(prompts, answers).min(0).tolist()


def _scores(prompts: Sequence[str], answers: Sequence[str]) -> np.ndarray:
    """Return scores of shape (members, answers), each member's with mean 0 and deviation 1 over held-out answers."""
    rows = [{"prompt": one, "chosen": answer, "rejected": ""} for one, answer in zip(prompts, answers, strict=True)]
    scores = []
    for model, tokenizer, center, deviation in _members():
        sequences = [row["chosen_ids"] for row in tokens.encode_reward(tokenizer, rows)]
        scores.append((scoring.score(model, model.config.pad_token_id, sequences, AT_ONCE) - center) / deviation)
    return np.array(scores)


@cache
def _members() -> list[tuple[Any, Any, float, float]]:
    """Return each member's model and tokenizer, and mean and deviation of its scores; not before PPO trains."""
    members = []
    for manifest in sorted(STAGES.glob("reward-*/manifest.json")):
        folder = str(manifest.parent / "model")
        tokenizer = tokens.load_tokenizer(folder, None)
        model = loading.load_reward(folder, tokens.pad_id(tokens.padding_copy(tokenizer, "right")))
        found = json.loads(manifest.read_text(encoding="utf-8"))["metrics"]
        members.append((loading.on_device(model), tokenizer, found["score_mean"], found["score_std"]))
    return members
