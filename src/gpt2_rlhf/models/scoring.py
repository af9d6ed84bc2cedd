"""Score token sequences: reward-model scores, log-probabilities, KL, and the loss on given answers.

Everything runs in batches of similar length, without gradients or dropout, and returns results in the order of the
input. Rows are padded on the right, where causal attention hides padding from every real token, so a batch gives the
results of single rows.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from peft import PeftModel
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from gpt2_rlhf.models.shape import LOGITS_AT_ONCE

Show = Callable[[list[list[int]]], Iterable[list[int]]]  # yields the same batches, and shows how many are done


@contextmanager
def inference(model: torch.nn.Module) -> Iterator[torch.device]:
    """Switch dropout and gradients off inside, and restore the mode after; yield the device of the weights."""
    was_training, device = model.training, next(model.parameters()).device
    model.eval()
    # in inference mode autocast keeps no converted weights, so each pass would convert all of them again
    is_cast = torch.is_autocast_enabled(device.type)
    try:
        with torch.no_grad() if is_cast else torch.inference_mode():
            yield device
    finally:
        model.train(was_training)


def by_length(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Return row numbers in batches of similar length, longest first, so that memory fails at once or never."""
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def score(
    model: PreTrainedModel,
    pad_token_id: int,
    sequences: Sequence[Sequence[int]],
    batch_size: int,
    show: Show = iter,
) -> np.ndarray:
    """Return the reward model's score of each sequence (prompt + answer + EOS), shape (sequences,), float64.

    Raises:
        ValueError: the model pads with another token, so it would read its scores at the wrong position.
    """
    if model.config.pad_token_id != pad_token_id:
        raise ValueError(f"pad_token_id: {pad_token_id}; expected {model.config.pad_token_id}, the model's own")
    scores = np.empty(len(sequences))
    with inference(model) as device:
        for batch in show(by_length([len(ids) for ids in sequences], batch_size)):
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
    show: Show = iter,
) -> list[np.ndarray]:
    """Return the log-probability in nats of each answer token given all tokens before it, at the temperature.

    One array of shape (answer tokens,) per row. An answer that ended has EOS as its last token.

    Raises:
        ValueError: a prompt has no tokens, so nothing predicts the first token of its answer.
    """
    logprobs: list[np.ndarray] = [np.empty(0)] * len(answer_ids)
    with inference(model) as device:
        for batch in _answer_batches(prompt_ids, answer_ids, model.config.vocab_size, batch_size, show):
            ids = batch.ids.to(device)
            logits = _answer_logits(model, batch, temperature)
            chosen = logits.gather(-1, ids[:, batch.first :, None])[..., 0] - logits.logsumexp(-1)
            for row, values in batch.of_answers(chosen):
                logprobs[row] = values
    return logprobs


@dataclass(frozen=True, eq=False)
class Divergence:
    """KL(policy || reference) of answers sampled from the policy, in nats per answer; arrays of shape (answers,).

    Three estimates with the same expectation (http://joschu.net/blog/kl-approx.html). `exact` sums over the vocabulary
    at each token of the answer and has the least variance. k1, the sum of log p - log q of the sampled tokens, may be
    negative. k3, the sum of exp(d) - 1 - d with d = log q - log p, may not.
    """

    exact: np.ndarray
    k1: np.ndarray
    k3: np.ndarray


def kl_by_row(
    policy: PreTrainedModel,
    reference: PreTrainedModel | None,
    prompt_ids: Sequence[Sequence[int]],
    answer_ids: Sequence[Sequence[int]],
    temperature: float,
    batch_size: int,
) -> Divergence:
    """Return the KL of the policy to the reference on each answer (EOS included where sampled), at the temperature.

    reference: None means the policy with its LoRA adapter switched off. Both models must be on one device.
    """
    kl = Divergence(*(np.zeros(len(answer_ids)) for _ in range(3)))
    vocabulary = 2 * policy.config.vocab_size  # the logits of both models are held at once
    other = policy if reference is None else reference
    with inference(policy) as device, inference(other):
        for batch in _answer_batches(prompt_ids, answer_ids, vocabulary, batch_size):
            ids = batch.ids.to(device)
            logps = _answer_logits(policy, batch, temperature).log_softmax(-1)
            with cast(PeftModel, policy).disable_adapter() if reference is None else nullcontext():
                log_ratio = _answer_logits(other, batch, temperature).log_softmax(-1).sub_(logps)
            chosen = log_ratio.gather(-1, ids[:, batch.first :, None])[..., 0]
            for row, d in batch.of_answers(chosen):
                kl.k1[row] = -d.sum()
                kl.k3[row] = (np.expm1(d) - d).sum()
            for row, values in batch.of_answers(-logps.exp_().mul_(log_ratio).sum(-1)):
                kl.exact[row] = values.sum()
    return kl


def answer_nll(
    model: PreTrainedModel, rows: Sequence[Mapping[str, Sequence[int]]], batch_size: int, show: Show = iter
) -> tuple[np.ndarray, np.ndarray]:
    """Return the negative log-likelihood of the labelled tokens, summed by row in nats, and the number of those tokens.

    Rows are `tokens.encode_sft` output: `input_ids` and `labels`, -100 up to the answer. Both results: shape (rows,).
    """
    starts = [next(place for place, label in enumerate(row["labels"]) if label != -100) for row in rows]
    prompts = [row["input_ids"][:start] for row, start in zip(rows, starts, strict=True)]
    answers = [row["input_ids"][start:] for row, start in zip(rows, starts, strict=True)]
    logprobs = sequence_logprobs(model, prompts, answers, temperature=1.0, batch_size=batch_size, show=show)
    return np.array([-row.sum() for row in logprobs]), np.array([row.size for row in logprobs])


def distinct_2(ids: Sequence[int]) -> float:
    """Return distinct bigrams over all bigrams of one answer (Li et al. 2016, arXiv:1510.03055).

    1 where nothing repeats, and for an answer of fewer than two tokens, which has no bigram.
    """
    bigrams = list(itertools.pairwise(ids))
    return len(set(bigrams)) / len(bigrams) if bigrams else 1.0


@dataclass(frozen=True, eq=False)
class _AnswerBatch:
    """Prompts with their answers, padded on the right; `first` is the column of the earliest answer token."""

    rows: list[int]
    starts: list[int]  # column of each row's first answer token
    ends: list[int]
    ids: torch.Tensor
    mask: torch.Tensor
    first: int

    def of_answers(self, values: torch.Tensor) -> Iterator[tuple[int, np.ndarray]]:
        """Yield each row's number and the values at its answer's tokens; `values`: (rows, columns from `first`)."""
        on_cpu = values.cpu().numpy().astype(np.float64)
        for row, start, end, of_row in zip(self.rows, self.starts, self.ends, on_cpu, strict=True):
            yield row, of_row[start - self.first : end - self.first]


def _answer_batches(
    prompt_ids: Sequence[Sequence[int]],
    answer_ids: Sequence[Sequence[int]],
    logits_per_token: int,
    batch_size: int,
    show: Show = iter,
) -> Iterator[_AnswerBatch]:
    """Yield the rows in batches whose logits stay within LOGITS_AT_ONCE, with at least one row each."""
    sequences = [[*prompt, *answer] for prompt, answer in zip(prompt_ids, answer_ids, strict=True)]
    starts, lengths = [len(prompt) for prompt in prompt_ids], [len(ids) for ids in sequences]
    if min(starts, default=1) < 1:
        raise ValueError("an empty prompt; expected at least one token, which predicts the first token of the answer")
    most_rows = max(1, LOGITS_AT_ONCE // (logits_per_token * max(lengths, default=1)))
    for rows in show(by_length(lengths, min(batch_size, most_rows))):
        ids, mask = _right_padded([sequences[row] for row in rows], 0)
        of_rows = [starts[row] for row in rows]
        yield _AnswerBatch(rows, of_rows, [lengths[row] for row in rows], ids, mask, min(of_rows))


def _answer_logits(model: PreTrainedModel, batch: _AnswerBatch, temperature: float) -> torch.Tensor:
    """Return float32 logits over the temperature, of the tokens in columns `batch.first` onwards."""
    ids, mask = batch.ids.to(model.device), batch.mask.to(model.device)
    # the logits at a column predict the next one
    predicting = torch.arange(batch.first - 1, ids.shape[1] - 1, device=model.device)
    output = model(input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=predicting)
    return output.logits.float().div_(temperature)


def _right_padded(sequences: Sequence[Sequence[int]], pad_token_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return token ids and attention mask, both of shape (sequences, longest)."""
    rows = [torch.tensor(row, dtype=torch.long) for row in sequences]
    mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    return pad_sequence(rows, batch_first=True, padding_value=pad_token_id), mask
