"""Sample and score answers for the evaluation with one model at a time; what a model gave can be kept as JSON.

A policy samples answers and gives log-probabilities of texts: its own and other models' answers (for the KL), and the
data's chosen answers (for the perplexity). A reward model scores each answer at an EOS after it, sampled or not, since
it was trained to be read at EOS.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.config.settings import Evaluate
from gpt2_rlhf.launch.progress_line import shown
from gpt2_rlhf.launch.stopwatch import Stopwatch
from gpt2_rlhf.models import tokens
from gpt2_rlhf.models.sampling import Answer, sample
from gpt2_rlhf.models.scoring import Show, answer_nll, score, sequence_logprobs


@dataclass(frozen=True, eq=False)
class EvaluationPrompts:
    """The prompts that every model answers, the held-out ones first, and the held-out rows."""

    settings: Evaluate
    tokenizer: PreTrainedTokenizerBase  # the saved one
    texts: list[str]
    rows: list[Mapping[str, Any]]


@dataclass(frozen=True)
class Readings:
    """A policy's log-probabilities of models' first draws; lists by prompt or by row, nats summed over an answer."""

    logps: dict[str, list[float]]  # by model, at the sampling temperature, EOS included
    scored_tokens: int
    seconds: float


@dataclass(frozen=True)
class Generations(Readings):
    """A policy's answers as well, and how likely it finds the chosen answers of the data."""

    draws: list[list[Answer]]  # by draw, then by prompt; several draws only for best-of-n
    chosen_nll_nats: list[float]
    chosen_tokens: list[int]
    generated_tokens: int


@dataclass(frozen=True)
class RewardScores:
    """A reward model's scores by name of the answers, then by prompt."""

    scores: dict[str, list[float]]
    scored_tokens: int
    seconds: float


def sample_and_score(model: PreTrainedModel, name: str, prompts: EvaluationPrompts, draws: int) -> Generations:
    """Sample `draws` answers per prompt, and score the first draw and the chosen answers.

    The first draw depends on `evaluate.seed` alone, so more draws do not change it and all models share its random
    numbers.
    """
    settings, count, work = prompts.settings, len(prompts.texts), Stopwatch()
    chosen = tokens.encode_sft(prompts.tokenizer, prompts.rows)
    answers_to = partial(
        sample,
        model,
        prompts.tokenizer,
        max_new_tokens=settings.max_new_tokens,
        temperature=settings.temperature,
        batch_size=settings.batch_size,
        show=shown(f"answers of {name}"),
    )
    with work.running():
        first = answers_to(prompts.texts, seed=settings.seed)
        more = answers_to(prompts.texts * (draws - 1), seed=settings.seed + 1)
        nll_nats, chosen_tokens = answer_nll(model, chosen, settings.batch_size, shown(f"{name} reads answers"))
    own = read_answers(model, name, prompts, {name: first})
    return Generations(
        draws=[first, *(more[start : start + count] for start in range(0, len(more), count))],
        logps=own.logps,
        chosen_nll_nats=nll_nats.tolist(),
        chosen_tokens=chosen_tokens.tolist(),
        generated_tokens=sum(len(answer.ids) + answer.ended for answer in [*first, *more]),
        scored_tokens=own.scored_tokens + sum(len(row["input_ids"]) for row in chosen),
        seconds=work.seconds + own.seconds,
    )


def read_answers(
    model: PreTrainedModel, name: str, prompts: EvaluationPrompts, answers: Mapping[str, Sequence[Answer]]
) -> Readings:
    """Return the log-probabilities that policy `name` gives to models' answers to all prompts."""
    settings, eos, work = prompts.settings, tokens.eos_id(prompts.tokenizer), Stopwatch()
    prompt_ids = tokens.encode_prompts(prompts.tokenizer, prompts.texts)
    sampled_ids = {whose: [answer.sampled_ids(eos) for answer in given] for whose, given in answers.items()}
    reading = shown(f"{name} reads answers")
    with work.running():
        logps = {
            whose: sequence_logprobs(model, prompt_ids, ids, settings.temperature, settings.batch_size, reading)
            for whose, ids in sampled_ids.items()
        }
    scored = [*prompt_ids * len(sampled_ids), *(row for ids in sampled_ids.values() for row in ids)]
    return Readings(
        {whose: [float(row.sum()) for row in by_token] for whose, by_token in logps.items()},
        sum(map(len, scored)),
        work.seconds,
    )


def score_answers(
    model: PreTrainedModel, name: str, prompts: EvaluationPrompts, answers: Mapping[str, Sequence[Answer]]
) -> RewardScores:
    """Score every model's answers with reward model `name` ("reward" or "judge").

    Equal answers to a prompt are scored once: batches round differently, and equal answers must tie.

    Raises:
        UserError: a score is not finite.
    """
    work = Stopwatch()
    sequences = {whose: scored_sequences(prompts.tokenizer, prompts.texts, given) for whose, given in answers.items()}
    distinct = list(dict.fromkeys(one for by_prompt in sequences.values() for one in by_prompt))
    with work.running():
        scoring = shown(f"scores of the {name} model")
        scores = finite_scores("evaluate", name, model, distinct, prompts.settings.batch_size, scoring)
    by_sequence = dict(zip(distinct, scores.tolist(), strict=True))
    return RewardScores(
        scores={whose: [by_sequence[one] for one in by_prompt] for whose, by_prompt in sequences.items()},
        scored_tokens=sum(map(len, distinct)),
        seconds=work.seconds,
    )


def scored_sequences(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], answers: Sequence[Answer]
) -> list[tuple[int, ...]]:
    """Return the token ids that a reward model reads: prompt, answer and EOS."""
    eos, prompt_ids = tokens.eos_id(tokenizer), tokens.encode_prompts(tokenizer, prompts)
    return [(*ids, *answer.ids, eos) for ids, answer in zip(prompt_ids, answers, strict=True)]


def finite_scores(
    where: str,
    name: str,
    model: PreTrainedModel,
    sequences: Sequence[Sequence[int]],
    batch_size: int,
    show: Show = iter,
) -> np.ndarray:
    """Return the scores of reward model `name`, shape (sequences,); `where` is the part of the run for the error.

    Raises:
        UserError: a score is not finite.
    """
    scores = score(model, model.config.pad_token_id, sequences, batch_size, show)
    if not np.isfinite(scores).all():
        raise UserError(
            f"{where}: the {name} model gave {(~np.isfinite(scores)).sum()} of {scores.size} answers scores that are "
            "not finite; expected finite numbers; its training diverged: lower reward.args.learning_rate"
        )
    return scores


def utilities(utility: Callable[[str, str], float], prompts: Sequence[str], answers: Sequence[Answer]) -> np.ndarray:
    """Return the data's utility of each answer, shape (answers,).

    Raises:
        UserError: a utility is not finite.
    """
    values = np.array([float(utility(prompt, answer.text)) for prompt, answer in zip(prompts, answers, strict=True)])
    refuse_not_finite("data.utility", values, [answer.text for answer in answers])
    return values


def refuse_not_finite(key: str, values: np.ndarray, texts: Sequence[str]) -> None:
    """Raise a UserError that names the first text whose value is not finite; `key` is the function's setting."""
    if not np.isfinite(values).all():
        bad = int(np.argmin(np.isfinite(values)))
        raise UserError(
            f"{key}: the function gave {values[bad]} for the answer {texts[bad][:60]!r}; expected a finite number; "
            "correct the function"
        )
