"""Turn the finished models into evidence: the answers of base, SFT and PPO to the same held-out prompts, measured.

Same prompts, same seed and the same draws for the three models, so that their differences are paired. Every figure is
a mean over prompts with its 95 % bootstrap interval. The reward model judges each answer with EOS after it, the only
place where it was trained to be read; whether the model wrote that EOS itself is the EOS rate. Where the data's true
utility is known it stands beside the reward: a policy that gains reward and loses utility has fooled the reward model.
"""

import itertools
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gpt2_rlhf import data, models, pipeline, tokens
from gpt2_rlhf.errors import UserError
from gpt2_rlhf.generation import Answer, sample
from gpt2_rlhf.intervals import bootstrap_mean
from gpt2_rlhf.scoring import distinct_2, score, sequence_logprobs
from gpt2_rlhf.settings import Evaluate, Settings
from gpt2_rlhf.stage import Outcome, Stage
from gpt2_rlhf.stopwatch import Stopwatch
from gpt2_rlhf.truth import load_utility

NAMES = ("base", "sft", "ppo")
SAMPLES_FILE = "samples.jsonl"


@dataclass(frozen=True)
class Judged:
    """One model's answers with what was measured on each; arrays of shape (prompts,).

    `kl_to_sft_nats` is the k1 estimate, sum of log p_model - log p_sft over the answer's tokens (EOS included) at the
    sampling temperature: positive on average, though a single answer may fall below zero; zero for SFT itself.
    """

    answers: list[Answer]
    rewards: np.ndarray
    utilities: np.ndarray | None
    kl_to_sft_nats: np.ndarray


def run(settings: Settings, stage: Stage) -> Outcome:
    """Sample, judge and compare the three models; writes samples.jsonl into the stage's directory.

    Raises:
        UserError: a reward or utility is not a finite number.
    """
    rows = distinct_prompts(data.load(stage.needs["data"].directory, "test"), settings.evaluate.prompts)
    utility = load_utility(settings.data.utility)
    tokenizer = models.load_base_tokenizer(settings.model)
    work = Stopwatch()
    answers, kl_to_sft_nats = _sample_all(settings, stage, tokenizer, [row["prompt"] for row in rows], work)
    rewards = _rewards(settings.evaluate, stage, tokenizer, rows, answers, work)
    judged = {
        name: Judged(answers[name], rewards[name], _utilities(utility, rows, answers[name]), kl_to_sft_nats[name])
        for name in NAMES
    }
    _write_samples(stage, rows, judged)
    return Outcome(metrics=compare(judged, settings.evaluate), work_s=work.seconds)


def distinct_prompts(rows: Sequence[Mapping[str, Any]], most: int) -> list[Mapping[str, Any]]:
    """The first row of each of the first `most` distinct prompts, in file order; fewer where there are fewer."""
    first = {row["prompt"]: row for row in reversed(rows)}
    kept = [row for row in rows if first[row["prompt"]] is row]
    return kept[:most]


def compare(judged: Mapping[str, Judged], evaluate: Evaluate) -> dict[str, Any]:
    """The metrics of the evaluate stage, ready for JSON: every estimate is {mean, low, high, n} over prompts.

    Win rates compare rewards prompt by prompt, a tie counting one half; null against itself. Lengths are tokens
    without EOS. Utilities are null where unknown. `paired` holds mean differences on the same prompts.
    """

    def estimate(values: np.ndarray) -> dict[str, Any]:
        return asdict(bootstrap_mean(values, evaluate.seed))

    def difference(left: np.ndarray | None, right: np.ndarray | None) -> dict[str, Any] | None:
        return None if left is None or right is None else estimate(left - right)

    def win_rate(name: str, rival: str) -> dict[str, Any] | None:
        if name == rival:
            return None
        return estimate(0.5 + 0.5 * np.sign(judged[name].rewards - judged[rival].rewards))

    by_model = {
        name: {
            "reward": estimate(one.rewards),
            "utility": None if one.utilities is None else estimate(one.utilities),
            "win_rate_vs_base": win_rate(name, "base"),
            "win_rate_vs_sft": win_rate(name, "sft"),
            "answer_tokens": estimate(np.array([len(answer.ids) for answer in one.answers])),
            "eos_rate": estimate(np.array([answer.ended for answer in one.answers])),
            "distinct_2": estimate(np.array([distinct_2(answer.ids) for answer in one.answers])),
            "kl_to_sft_nats": estimate(one.kl_to_sft_nats),
        }
        for name, one in judged.items()
    }
    paired = {
        f"{later}_minus_{earlier}": {
            "reward": difference(judged[later].rewards, judged[earlier].rewards),
            "utility": difference(judged[later].utilities, judged[earlier].utilities),
        }
        for earlier, later in itertools.pairwise(NAMES)
    }
    return {
        "prompts": len(judged["base"].answers),
        "seed": evaluate.seed,
        "temperature": evaluate.temperature,
        "max_new_tokens": evaluate.max_new_tokens,
        "models": by_model,
        "paired": paired,
    }


def _device() -> torch.device:
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def _load_policy(name: str, settings: Settings, stage: Stage) -> PreTrainedModel:
    if name == "base":
        return models.load_base(settings.model, settings.seed)
    return models.load_policy(str(stage.needs[name].model_dir))


def _sample_all(
    settings: Settings,
    stage: Stage,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    work: Stopwatch,
) -> tuple[dict[str, list[Answer]], dict[str, np.ndarray]]:
    """Answers and k1 KL to SFT by model, with one model in memory at a time."""
    evaluate = settings.evaluate
    prompt_ids = [tokens.encode_ppo(tokenizer, {"prompt": prompt})["input_ids"] for prompt in prompts]
    answers: dict[str, list[Answer]] = {}
    own_logps: dict[str, np.ndarray] = {}
    sft_logps: dict[str, np.ndarray] = {}

    def answer_logps(model: PreTrainedModel, name: str) -> np.ndarray:
        sampled = [[*a.ids, tokens.eos_id(tokenizer)] if a.ended else a.ids for a in answers[name]]
        by_token = sequence_logprobs(model, prompt_ids, sampled, evaluate.temperature, evaluate.batch_size)
        return np.array([row.sum() for row in by_token])

    for name in ("base", "ppo", "sft"):  # SFT last: it also reads what the other two wrote
        model = _load_policy(name, settings, stage).to(_device())  # type: ignore[arg-type]
        with work.running():
            answers[name] = sample(
                model,
                tokenizer,
                prompts,
                seed=evaluate.seed,
                max_new_tokens=evaluate.max_new_tokens,
                temperature=evaluate.temperature,
                batch_size=evaluate.batch_size,
            )
            own_logps[name] = answer_logps(model, name)
            if name == "sft":
                sft_logps = {read: answer_logps(model, read) for read in ("base", "ppo")}
        del model
    sft_logps["sft"] = own_logps["sft"]
    return answers, {name: own_logps[name] - sft_logps[name] for name in answers}


def _rewards(
    evaluate: Evaluate,
    stage: Stage,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Mapping[str, Any]],
    answers: Mapping[str, list[Answer]],
    work: Stopwatch,
) -> dict[str, np.ndarray]:
    """The reward model's scores by model, shape (prompts,) each."""
    pad_token_id = tokens.pad_id(tokens.padding_copy(tokenizer, "right"))
    model = models.load_reward(str(stage.needs["reward"].model_dir), pad_token_id)
    model.to(_device())  # type: ignore[arg-type]
    prompt_ids = [tokens.encode_ppo(tokenizer, row)["input_ids"] for row in rows]
    rewards = {}
    for name, given in answers.items():
        sequences = [
            [*prompt, *answer.ids, tokens.eos_id(tokenizer)] for prompt, answer in zip(prompt_ids, given, strict=True)
        ]
        with work.running():
            rewards[name] = score(model, pad_token_id, sequences, evaluate.batch_size)
        if not np.isfinite(rewards[name]).all():
            raise UserError(
                f"evaluate: the reward model gives {name} answers scores that are not finite; its training diverged: "
                "lower reward.args.learning_rate"
            )
    return rewards


def _utilities(
    utility: Callable[[str, str], float] | None, rows: Sequence[Mapping[str, Any]], answers: list[Answer]
) -> np.ndarray | None:
    if utility is None:
        return None
    values = np.array([utility(row["prompt"], answer.text) for row, answer in zip(rows, answers, strict=True)])
    if not np.isfinite(values).all():
        bad = answers[int(np.argmin(np.isfinite(values)))].text
        raise UserError(f"data.utility: it gave no finite number for the answer {bad[:60]!r}; mend the function")
    return values


def _write_samples(stage: Stage, rows: Sequence[Mapping[str, Any]], judged: Mapping[str, Judged]) -> None:
    """One JSON line per prompt: prompt, subset, and under `answers` what each model wrote and how it was judged."""
    stage.directory.mkdir(parents=True, exist_ok=True)
    unfinished = stage.directory / f".{SAMPLES_FILE}.tmp"
    with unfinished.open("w", encoding="utf-8") as file:
        for place, row in enumerate(rows):
            by_model = {name: _sample_record(one, place) for name, one in judged.items()}
            line = {"prompt": row["prompt"], "subset": row["subset"], "answers": by_model}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    os.replace(unfinished, stage.directory / SAMPLES_FILE)


def _sample_record(judged: Judged, place: int) -> dict[str, Any]:
    answer = judged.answers[place]
    return {
        "answer": answer.text,
        "ended": answer.ended,
        "tokens": len(answer.ids),
        "reward": float(judged.rewards[place]),
        "utility": None if judged.utilities is None else float(judged.utilities[place]),
    }


if __name__ == "__main__":
    pipeline.main(sys.argv[1:], last="evaluate")
