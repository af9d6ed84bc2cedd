"""Turn token sequences into figures: reward-model scores, log-probabilities, held-out loss, the reward report.

Everything here runs in batches of similar length, without gradients and without dropout, and gives back the results
in the order of the input. Rows are padded on the right, where causal attention keeps padding out of every real
token's sight, so a batch gives what one row at a time would.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gpt2_rlhf import tokens
from gpt2_rlhf.intervals import Estimate, bootstrap_mean, bootstrap_ratio, wilson

_LOGITS_AT_ONCE = 2**26  # 256 MiB of float32; with GPT-2's vocabulary 8 rows of 160 tokens


@contextmanager
def inference(model: torch.nn.Module) -> Iterator[torch.device]:
    """Dropout and gradients off inside, the model's mode restored after; gives the device that its weights are on."""
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield next(model.parameters()).device
    finally:
        model.train(was_training)


def by_length(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Row numbers in batches of similar length, longest first: memory runs out at once or not at all."""
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def score(model: PreTrainedModel, pad_token_id: int, sequences: Sequence[Sequence[int]], batch_size: int) -> np.ndarray:
    """The reward model's score of each sequence (prompt + answer + EOS), shape (sequences,), float64.

    Raises:
        ValueError: the model takes another token for padding, and would read its scores at the wrong place.
    """
    if model.config.pad_token_id != pad_token_id:
        raise ValueError(f"padding with {pad_token_id}, but the model looks for {model.config.pad_token_id}")
    scores = np.empty(len(sequences))
    with inference(model) as device:
        for batch in by_length([len(ids) for ids in sequences], batch_size):
            ids, mask = _right_padded([sequences[row] for row in batch], pad_token_id)
            output = model(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False)
            scores[batch] = output.logits[:, 0].float().cpu().numpy()
    return scores


def sequence_logprobs(
    model: PreTrainedModel,
    prompt_ids: Sequence[Sequence[int]],
    answer_ids: Sequence[Sequence[int]],
    temperature: float,
    batch_size: int,
) -> list[np.ndarray]:
    """Log-probability in nats of each answer token given all before it, at the sampling temperature.

    An answer that ended carries its EOS as last token. Gives one array of shape (answer tokens,) per row; a prompt
    needs at least one token, for the first answer token has nothing to be predicted from otherwise.
    """
    sequences = [[*prompt, *answer] for prompt, answer in zip(prompt_ids, answer_ids, strict=True)]
    starts = [len(prompt) for prompt in prompt_ids]
    if min(starts, default=1) < 1:
        raise ValueError("an empty prompt: nothing predicts the first answer token")
    logprobs: list[np.ndarray] = [np.empty(0)] * len(sequences)
    lengths = [len(ids) for ids in sequences]
    logits_per_row = model.config.vocab_size * max(lengths, default=1)
    with inference(model) as device:
        for batch in by_length(lengths, min(batch_size, max(1, _LOGITS_AT_ONCE // logits_per_row))):
            first = min(starts[row] for row in batch)
            ids, mask = _right_padded([sequences[row] for row in batch], 0)
            ids, mask = ids.to(device), mask.to(device)
            # the logits that predict columns first.. are those at the columns before
            predicting = torch.arange(first - 1, ids.shape[1] - 1, device=device)
            output = model(input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=predicting)
            logits = output.logits.float().div_(temperature)
            chosen = logits.gather(-1, ids[:, first:, None])[..., 0] - logits.logsumexp(-1)
            for row, values in zip(batch, chosen.cpu().numpy(), strict=True):
                logprobs[row] = values[starts[row] - first : len(sequences[row]) - first].astype(np.float64)
    return logprobs


def answer_nll(
    model: PreTrainedModel, rows: Sequence[Mapping[str, Sequence[int]]], batch_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Negative log-likelihood of the labelled tokens in nats, summed by row, and the number of those tokens.

    Rows are `tokens.encode_sft` output: `input_ids` and `labels`, -100 up to the answer. Both results: shape (rows,).
    """
    starts = [_answer_start(row["labels"]) for row in rows]
    prompts = [row["input_ids"][:start] for row, start in zip(rows, starts, strict=True)]
    answers = [row["input_ids"][start:] for row, start in zip(rows, starts, strict=True)]
    logprobs = sequence_logprobs(model, prompts, answers, temperature=1.0, batch_size=batch_size)
    return np.array([-row.sum() for row in logprobs]), np.array([row.size for row in logprobs])


def heldout_loss(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Mapping[str, Any]],
    batch_size: int,
) -> Estimate:
    """Mean negative log-likelihood per token of `chosen` and its EOS, in nats; the interval resamples whole rows."""
    encoded = [tokens.encode_sft(tokenizer, row) for row in rows]
    return bootstrap_ratio(*answer_nll(model, encoded, batch_size))


def reward_report(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Mapping[str, Any]],
    batch_size: int,
    seed: int,
) -> dict[str, Any]:
    """How often the reward model prefers `chosen`, over every pair, beside what it has to beat; ready for JSON.

    `tokenizer` is the saved one. Accuracies are shares with Wilson's interval, a tie counting one half;
    "longer answer wins" compares lengths in tokens. `best_reachable` is the accuracy of the labels' own probabilities,
    null unless every pair has one. `margin` is the mean score difference with a bootstrap interval from `seed`;
    `score_mean` and `score_std` (population) are over both answers of all pairs, to normalise rewards with.
    """
    encoded = [tokens.encode_reward(tokenizer, row) for row in rows]
    pad_token_id = tokens.pad_id(tokens.padding_copy(tokenizer, "right"))
    sequences = [row[side] for side in ("chosen_ids", "rejected_ids") for row in encoded]
    scores = score(model, pad_token_id, sequences, batch_size)
    margins = scores[: len(rows)] - scores[len(rows) :]
    longer = np.array([len(row["chosen_ids"]) - len(row["rejected_ids"]) for row in encoded])
    subsets = np.array([row["subset"] for row in rows])
    known = [row["chosen_probability"] for row in rows if row["chosen_probability"] is not None]
    return {
        "accuracy": _positive_share(margins),
        "baselines": {
            "chance": 0.5,
            "longer_answer_wins": _positive_share(longer),
            "best_reachable": _best_share(known) if len(known) == len(rows) else None,
        },
        "by_subset": {
            name: {
                "accuracy": _positive_share(margins[subsets == name]),
                "longer_answer_wins": _positive_share(longer[subsets == name]),
            }
            for name in sorted(set(subsets.tolist()))
        },
        "margin": asdict(bootstrap_mean(margins, seed)),
        "score_mean": float(scores.mean()),
        "score_std": float(scores.std()),
        "pairs": len(rows),
    }


def _best_share(chosen_probabilities: Sequence[float]) -> float:
    return float(np.mean([max(p, 1 - p) for p in chosen_probabilities]))


def _positive_share(differences: np.ndarray) -> dict[str, float]:
    wins = float((differences > 0).sum() + 0.5 * (differences == 0).sum())
    return asdict(wilson(wins, differences.size))


def _answer_start(labels: Sequence[int]) -> int:
    return next(place for place, label in enumerate(labels) if label != -100)


def _right_padded(sequences: Sequence[Sequence[int]], pad_token_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask, both of shape (sequences, longest)."""
    longest = max(len(ids) for ids in sequences)
    ids = torch.tensor([[*row, *[pad_token_id] * (longest - len(row))] for row in sequences])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in sequences])
    return ids, mask
