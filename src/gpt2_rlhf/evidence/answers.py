"""Ask one model everything that the evaluation wants of it, while it is in memory; what it said can be kept as JSON.

A policy writes answers and reads texts: its own answers and other models' (for KL), and the data's chosen ones (for
perplexity). A reward model scores answers with EOS after them, the only place where it was trained to be read; whether
the answer wrote that EOS itself is the EOS rate.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gpt2_rlhf.config.settings import Evaluate
from gpt2_rlhf.launch.stopwatch import Stopwatch
from gpt2_rlhf.models import tokens
from gpt2_rlhf.models.sampling import Answer, sample
from gpt2_rlhf.models.scoring import answer_nll, score, sequence_logprobs


@dataclass(frozen=True, eq=False)
class Questions:
    """What every model is asked: the prompts, and the rows whose chosen answers it reads."""

    evaluate: Evaluate
    tokenizer: PreTrainedTokenizerBase  # the saved one
    prompts: list[str]
    rows: list[Mapping[str, Any]]

    @property
    def prompt_ids(self) -> list[list[int]]:
        """Token ids by prompt."""
        return [tokens.encode_ppo(self.tokenizer, {"prompt": prompt})["input_ids"] for prompt in self.prompts]


@dataclass(frozen=True)
class PolicySaid:
    """What a policy wrote and read; lists by prompt or by row, log-probabilities in nats summed over an answer."""

    draws: list[list[Answer]]  # several answers per prompt, by draw, where best-of-n is asked for
    logps: dict[str, list[float]]  # of the first draw of each model read, at the sampling temperature, EOS included
    chosen_nll_nats: list[float]
    chosen_tokens: list[int]
    generated_tokens: int
    scored_tokens: int
    seconds: float


@dataclass(frozen=True)
class Scores:
    """A reward model's scores by name of the answers, then by prompt."""

    scores: dict[str, list[float]]
    scored_tokens: int
    seconds: float


def ask_policy(
    model: PreTrainedModel,
    name: str,
    questions: Questions,
    draws: int,
    others: Mapping[str, Sequence[Answer]],
    work: Stopwatch,
) -> PolicySaid:
    """Sample `draws` answers per prompt, and read them, the other models' answers and the chosen ones.

    The first draw depends on `evaluate.seed` alone, so that asking for more changes nothing in it and models that are
    asked for different numbers of draws share their luck there.
    """
    evaluate, seconds_before = questions.evaluate, work.seconds
    eos_token_id = tokens.eos_id(questions.tokenizer)

    def write(prompts: list[str], seed: int) -> list[Answer]:
        return sample(
            model,
            questions.tokenizer,
            prompts,
            seed=seed,
            max_new_tokens=evaluate.max_new_tokens,
            temperature=evaluate.temperature,
            batch_size=evaluate.batch_size,
        )

    def read(answers: Sequence[Answer]) -> tuple[list[float], int]:
        sampled = [[*a.ids, eos_token_id] if a.ended else a.ids for a in answers]
        prompt_ids = questions.prompt_ids
        by_token = sequence_logprobs(model, prompt_ids, sampled, evaluate.temperature, evaluate.batch_size)
        return [float(row.sum()) for row in by_token], sum(map(len, prompt_ids)) + sum(map(len, sampled))

    chosen = [tokens.encode_sft(questions.tokenizer, row) for row in questions.rows]
    count = len(questions.prompts)
    with work.running():
        first = write(questions.prompts, evaluate.seed)
        more = write(questions.prompts * (draws - 1), evaluate.seed + 1)
        by_model = {whose: read(answers) for whose, answers in {name: first, **others}.items()}
        nll_nats, chosen_tokens = answer_nll(model, chosen, evaluate.batch_size)
    return PolicySaid(
        draws=[first, *(more[start : start + count] for start in range(0, len(more), count))],
        logps={whose: logps for whose, (logps, _) in by_model.items()},
        chosen_nll_nats=nll_nats.tolist(),
        chosen_tokens=chosen_tokens.tolist(),
        generated_tokens=sum(len(answer.ids) + answer.ended for answer in [*first, *more]),
        scored_tokens=sum(seen for _, seen in by_model.values()) + sum(len(row["input_ids"]) for row in chosen),
        seconds=work.seconds - seconds_before,
    )


def ask_reward(
    model: PreTrainedModel, questions: Questions, answers: Mapping[str, Sequence[Answer]], work: Stopwatch
) -> Scores:
    """Score the answers of each name. Equal answers to a prompt are scored once: batches round, and a tie is a tie."""
    seconds_before, prompt_ids = work.seconds, questions.prompt_ids
    eos_token_id = tokens.eos_id(questions.tokenizer)
    sequences = {
        name: [(*prompt, *answer.ids, eos_token_id) for prompt, answer in zip(prompt_ids, given, strict=True)]
        for name, given in answers.items()
    }
    distinct = list(dict.fromkeys(one for of_name in sequences.values() for one in of_name))
    with work.running():
        scores = score(model, model.config.pad_token_id, distinct, questions.evaluate.batch_size)
    by_sequence: dict[tuple[int, ...], float] = dict(zip(distinct, np.asarray(scores).tolist(), strict=True))
    return Scores(
        scores={name: [by_sequence[one] for one in of_name] for name, of_name in sequences.items()},
        scored_tokens=sum(map(len, distinct)),
        seconds=work.seconds - seconds_before,
    )


def policy_said(kept: Mapping[str, Any]) -> PolicySaid:
    """A PolicySaid from its JSON (dataclasses.asdict)."""
    return PolicySaid(**{**kept, "draws": [[Answer(**answer) for answer in draw] for draw in kept["draws"]]})
