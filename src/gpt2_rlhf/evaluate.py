"""Compare the answers of base, SFT and PPO model to the same held-out prompts.

All models get the same prompts and the same random numbers, so their differences are paired. PPO was trained to raise
the reward, so two measures that it was not trained on stand beside it where they exist: a judge (a second reward
model) and the data's utility. A policy that gains reward but loses either has exploited the reward model. The baseline
without training is best-of-n: of n SFT answers, the one with the highest reward. Each model's results are kept until
the stage is done, so a killed evaluation runs only the models that were not finished.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from gpt2_rlhf.config import as_command
from gpt2_rlhf.config.functions import load_utility
from gpt2_rlhf.config.settings import Settings
from gpt2_rlhf.evidence import toxicity
from gpt2_rlhf.evidence.answers import (
    EvaluationPrompts,
    Generations,
    Readings,
    RewardScores,
    read_answers,
    sample_and_score,
    score_answers,
    utilities,
)
from gpt2_rlhf.evidence.comparison import ALL, BEST_OF_N, best_of_kl_bound_nats, compare, shares
from gpt2_rlhf.evidence.measured import MEASURES, Measured
from gpt2_rlhf.evidence.refusals import is_refusal
from gpt2_rlhf.launch.stopwatch import Stopwatch
from gpt2_rlhf.models import loading, threads, tokens
from gpt2_rlhf.models.sampling import Answer
from gpt2_rlhf.models.scoring import distinct_2
from gpt2_rlhf.rows import tables
from gpt2_rlhf.rows.transcripts import HUMAN
from gpt2_rlhf.store import digests
from gpt2_rlhf.store.files import read_json, replacing, write_json
from gpt2_rlhf.store.stage import Outcome, Stage, manifest

EXAMPLES = (  # in the samples of every run, so that runs can be compared by eye; in no statistic
    "\n\nHuman: How can I improve my communication skills?\n\nAssistant:",
    "\n\nHuman: How can I learn machine learning effectively?\n\nAssistant:",
)
_SAMPLE_COLUMNS = ("ended", "tokens", *MEASURES, "refused", "toxic")  # of Measured, for each answer

Answers = Mapping[str, Sequence[Answer]]  # by model, then by prompt: the held-out ones, then the examples


def run(settings: Settings, stage: Stage) -> Outcome:
    """Sample, score and compare the models' answers; write samples.jsonl into the stage's directory.

    Raises:
        UserError: a reward or utility is not a finite number.
    """
    work = Stopwatch()
    rows = distinct_prompts(tables.load(stage.needs["data"].directory, "test"), settings.evaluate.prompts)
    texts = [*(row["prompt"] for row in rows), *EXAMPLES]
    tokenizer = tokens.load_base_tokenizer(settings.model, settings.data.template)
    prompts = EvaluationPrompts(settings.evaluate, tokenizer, texts, rows)
    utility = load_utility(settings.data.utility)
    with work.running():
        generations = _generations(settings, stage, prompts)
        answers = {name: generations[name].draws[0] for name in ("base", "sft", settings.method)}
        draws = {f"sft, draw {number}": draw for number, draw in enumerate(generations["sft"].draws, start=1)}
        scores = {"reward": _scores(stage, "reward", prompts, {**answers, **draws})}
        if len(draws) > 1:
            by_draw = np.array([scores["reward"].scores[name] for name in draws])
            best = by_draw.argmax(axis=0)  # the first of equals
            answers[BEST_OF_N] = [generations["sft"].draws[draw][place] for place, draw in enumerate(best)]
            scores["reward"].scores[BEST_OF_N] = by_draw.max(axis=0).tolist()
        if "judge" in stage.needs:
            scores["judge"] = _scores(stage, "judge", prompts, answers)
    measured = _measured(utility, prompts, answers, generations, scores)
    _write_samples(stage, prompts, answers, measured)
    return Outcome(_metrics(stage, prompts, measured, {**generations, **scores}), work.seconds)


def distinct_prompts(rows: Sequence[Mapping[str, Any]], most: int) -> list[Mapping[str, Any]]:
    """Return the first row of each of the first `most` distinct prompts, in file order."""
    first: dict[str, Mapping[str, Any]] = {}
    for row in rows:
        first.setdefault(row["prompt"], row)
    return list(first.values())[:most]


def prompt_groups(rows: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """Return masks over the prompts by subset of the data, then single-turn and multi-turn; none is empty."""
    subsets = np.array([row["subset"] for row in rows])
    turns = np.array([row["prompt"].count(HUMAN) for row in rows])
    groups = {name: subsets == name for name in sorted(set(subsets.tolist()))}
    for kind in ("harmless", "helpful"):  # Anthropic's data have several subsets of helpful prompts
        if len(of_kind := [name for name in groups if name.startswith(kind)]) > 1:
            groups[f"{kind}{ALL}"] = np.isin(subsets, of_kind)
    groups |= {"single-turn": turns <= 1, "multi-turn": turns > 1}
    return {name: prompts for name, prompts in groups.items() if prompts.any()}


def _generations(settings: Settings, stage: Stage, prompts: EvaluationPrompts) -> dict[str, Generations]:
    """Return what base, policy and SFT generated, with one model in memory at a time; two where they run in threads."""

    def policy(name: str) -> PreTrainedModel:
        if name == "base":
            return loading.on_device(loading.load_base(settings.model, settings.seed))
        return loading.on_device(loading.load_policy(str(stage.needs[name].model_dir)))

    def generated(name: str, draws: int = 1) -> Generations:
        kept = _load_or_compute(stage, name, lambda: sample_and_score(policy(name), name, prompts, draws))
        return Generations(**{**kept, "draws": [[Answer(**answer) for answer in draw] for draw in kept["draws"]]})

    found, sft = threads.both(
        lambda: {name: generated(name) for name in ("base", settings.method)},
        lambda: generated("sft", draws=settings.evaluate.best_of or 1),
        in_threads=True,
    )
    others = {name: one.draws[0] for name, one in found.items()}
    read = Readings(**_load_or_compute(stage, "kl", lambda: read_answers(policy("sft"), "sft", prompts, others)))
    found["sft"] = replace(
        sft,
        logps={**sft.logps, **read.logps},
        scored_tokens=sft.scored_tokens + read.scored_tokens,
        seconds=sft.seconds + read.seconds,
    )
    return found


def _scores(stage: Stage, name: str, prompts: EvaluationPrompts, answers: Answers) -> RewardScores:
    """Return the scores of the answers by the model of the stage `name` ("reward" or "judge")."""

    def compute() -> RewardScores:
        pad_token_id = tokens.pad_id(tokens.padding_copy(prompts.tokenizer, "right"))
        model = loading.load_reward(str(stage.needs[name].model_dir), pad_token_id)
        return score_answers(loading.on_device(model), name, prompts, answers)

    return RewardScores(**_load_or_compute(stage, name, compute))


def _load_or_compute(stage: Stage, name: str, compute: Callable[[], Readings | RewardScores]) -> dict[str, Any]:
    """Return one model's results as JSON, from the folder that a killed evaluation left or computed now.

    The hash in the directory's name covers all that decides the results, so a folder there holds results for these
    prompts. The folders are deleted with the directory of checkpoints when the stage is done.
    """
    folder = stage.checkpoints_dir / name
    if digests.seal_fault(folder) is not None:  # none yet, or damaged
        write_json(folder / "results.json", asdict(compute()))
        digests.seal(folder)
    return read_json(folder / "results.json")


def _measured(
    utility: Callable[[str, str], float] | None,
    prompts: EvaluationPrompts,
    answers: Answers,
    generations: Mapping[str, Generations],
    scores: Mapping[str, RewardScores],
) -> dict[str, Measured]:
    """Return each model's figures on all prompts; utilities and chosen answers are of the held-out ones alone."""
    count, measured = len(prompts.rows), dict[str, Measured]()
    for name, given in answers.items():
        policy = generations.get(name)  # None for best of n
        refused, toxic = _refused_and_toxic([answer.text for answer in given], prompts)
        measured[name] = Measured(
            reward=np.array(scores["reward"].scores[name]),
            judge_reward=np.array(scores["judge"].scores[name]) if "judge" in scores else None,
            utility=None if utility is None else utilities(utility, prompts.texts[:count], given[:count]),
            tokens=np.array([len(answer.ids) for answer in given]),
            ended=np.array([answer.ended for answer in given]),
            distinct_2=np.array([distinct_2(answer.ids) for answer in given]),
            kl_k1=None if policy is None else np.subtract(policy.logps[name], generations["sft"].logps[name]),
            chosen_nll_nats=None if policy is None else np.array(policy.chosen_nll_nats),
            chosen_tokens=None if policy is None else np.array(policy.chosen_tokens),
            refused=refused,
            toxic=toxic,
        )
    return measured


def _refused_and_toxic(answers: Sequence[str], prompts: EvaluationPrompts) -> tuple[np.ndarray, np.ndarray | None]:
    refused = np.array([is_refusal(answer) for answer in answers])
    return refused, toxicity.are_toxic(answers) if prompts.settings.toxicity else None


def _write_samples(
    stage: Stage, prompts: EvaluationPrompts, answers: Answers, measured: Mapping[str, Measured]
) -> None:
    """Write one JSON line per prompt, the examples first: each model's answer and its scores."""

    def record(name: str, place: int) -> dict[str, Any]:
        columns = {key: getattr(measured[name], key) for key in _SAMPLE_COLUMNS}
        figures = {
            key: None if values is None or place >= values.size else values[place].item()
            for key, values in columns.items()
        }
        return {"answer": answers[name][place].text, **figures}

    heldout = range(len(prompts.rows))
    examples = range(len(heldout), len(prompts.texts))
    with replacing(stage.directory / "samples.jsonl") as file:
        for place in [*examples, *heldout]:
            line = {
                "group": "heldout" if place in heldout else "example",
                "prompt": prompts.texts[place],
                "subset": prompts.rows[place]["subset"] if place in heldout else None,
                "answers": {name: record(name, place) for name in answers},
            }
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def _metrics(
    stage: Stage,
    prompts: EvaluationPrompts,
    measured: Mapping[str, Measured],
    parts: Mapping[str, Generations | RewardScores],
) -> dict[str, Any]:
    """Return the settings, the cost, and the comparison on the held-out prompts."""
    evaluate = prompts.settings
    heldout = {name: one.at(np.arange(len(prompts.rows))) for name, one in measured.items()}
    score_std = manifest(stage.needs["reward"])["metrics"]["score_std"]
    groups = prompt_groups(prompts.rows)
    compared = compare(heldout, groups, score_std, evaluate.seed)
    # the baseline of the models' rates
    refused, toxic = _refused_and_toxic([row["chosen"] for row in prompts.rows], prompts)
    compared["chosen"] = shares(refused, toxic, evaluate.seed)
    for name, at in groups.items():
        compared["by_subset"][name]["chosen"] = shares(refused[at], None if toxic is None else toxic[at], evaluate.seed)
    if evaluate.best_of is not None and BEST_OF_N in measured:
        compared["models"][BEST_OF_N]["kl_bound_nats"] = best_of_kl_bound_nats(evaluate.best_of)
    return {
        "prompts": len(prompts.rows),
        "seed": evaluate.seed,
        "temperature": evaluate.temperature,
        "max_new_tokens": evaluate.max_new_tokens,
        "best_of": evaluate.best_of,
        "toxicity": toxicity.classifier() if evaluate.toxicity else None,
        "cost": {
            "generated_tokens": sum(part.generated_tokens for part in parts.values() if isinstance(part, Generations)),
            "scored_tokens": sum(part.scored_tokens for part in parts.values()),
            "by_part_s": {name: part.seconds for name, part in parts.items()},
        },
        **compared,
    }


if __name__ == "__main__":
    as_command.run("evaluate")
