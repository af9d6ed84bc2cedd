"""Measure a trained model on held-out rows: the loss of the SFT model, the accuracy of a reward model."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gpt2_rlhf.evidence.calibration import calibration, length_bias
from gpt2_rlhf.evidence.intervals import Estimate, bootstrap_mean, bootstrap_ratio, wilson_of_wins
from gpt2_rlhf.launch.progress_line import shown
from gpt2_rlhf.models import tokens
from gpt2_rlhf.models.scoring import answer_nll, score


def heldout_loss(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Mapping[str, Any]], batch_size: int
) -> Estimate:
    """Return the mean negative log-likelihood per token of `chosen` and its EOS, in nats; rows are resampled whole."""
    return bootstrap_ratio(*answer_nll(model, tokens.encode_sft(tokenizer, rows), batch_size, shown("held-out loss")))


def reward_report(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Mapping[str, Any]],
    batch_size: int,
    seed: int,
) -> dict[str, Any]:
    """Return how often the reward model prefers `chosen`, with the baselines to beat; ready for JSON.

    `tokenizer` is the saved one. Accuracies are shares of pairs with Wilson's interval; a tie counts one half.
    `longer_answer_wins` compares lengths in tokens. `best_reachable` is the accuracy of the labels' own probabilities,
    null unless every pair has one. `margin` is the mean score difference with a bootstrap interval from `seed`.
    `score_mean` and `score_std` (population) are over both answers of all pairs; PPO normalises rewards with them.
    """
    encoded = tokens.encode_reward(tokenizer, rows)
    pad_token_id = tokens.pad_id(tokens.padding_copy(tokenizer, "right"))
    sequences = [row[side] for side in ("chosen_ids", "rejected_ids") for row in encoded]
    scores = score(model, pad_token_id, sequences, batch_size, shown("held-out pairs"))
    margins = scores[: len(rows)] - scores[len(rows) :]
    longer = np.array([len(row["chosen_ids"]) - len(row["rejected_ids"]) for row in encoded])
    subsets = np.array([row["subset"] for row in rows])
    known = np.array([row["chosen_probability"] for row in rows if row["chosen_probability"] is not None])
    return {
        "accuracy": wilson_of_wins(margins),
        "baselines": {
            "chance": 0.5,
            "longer_answer_wins": wilson_of_wins(longer),
            "best_reachable": float(np.mean(np.maximum(known, 1 - known))) if known.size == len(rows) else None,
        },
        "by_subset": {
            name: {
                "accuracy": wilson_of_wins(margins[subsets == name]),
                "longer_answer_wins": wilson_of_wins(longer[subsets == name]),
            }
            for name in sorted(set(subsets.tolist()))
        },
        "margin": bootstrap_mean(margins, seed),
        "calibration": calibration(margins, seed),
        "length_bias": length_bias(margins, longer, seed),
        "score_mean": float(scores.mean()),
        "score_std": float(scores.std()),
        "pairs": len(rows),
    }
