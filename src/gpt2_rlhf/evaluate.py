"""Turn the finished models into evidence: the answers of base, SFT and PPO to the same held-out prompts, measured.

Same prompts, same seed and the same draws for the three models, so that their differences are paired. Beside the reward
model, which PPO was trained to please, stand a judge that it was not and the data's true utility, where there are
such: a policy that gains reward and loses either has fooled the reward model. The best of n SFT answers by the reward
model is the yardstick: it gains reward by choice alone, without training. What a model said is kept until the stage
is done, so an evaluation that was killed asks only the models that it had not yet asked.
"""

import json
import os
import runpy
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.config.functions import load_utility
from gpt2_rlhf.config.settings import Settings
from gpt2_rlhf.evidence.answers import PolicySaid, Questions, Scores, ask_policy, ask_reward, policy_said
from gpt2_rlhf.evidence.comparison import BEST_OF_N, Measured, best_of, best_of_kl_bound_nats, compare
from gpt2_rlhf.launch.stopwatch import Stopwatch
from gpt2_rlhf.models import loading, tokens
from gpt2_rlhf.models.sampling import Answer
from gpt2_rlhf.models.scoring import distinct_2
from gpt2_rlhf.rows import tables
from gpt2_rlhf.rows.transcripts import HUMAN
from gpt2_rlhf.store.files import write_json
from gpt2_rlhf.store.stage import Outcome, Stage, manifest

SAMPLES_FILE = "samples.jsonl"
EXAMPLES = (  # in the samples of every run, so that runs can be read side by side; in no statistic
    "\n\nHuman: How can I improve my communication skills?\n\nAssistant:",
    "\n\nHuman: How can I learn machine learning effectively?\n\nAssistant:",
)

ByModel = Mapping[str, Sequence[float]]  # a figure by prompt, the held-out ones first


def run(settings: Settings, stage: Stage) -> Outcome:
    """Ask the models, compare what they said; writes samples.jsonl into the stage's directory.

    Raises:
        UserError: a reward or utility is not a finite number.
    """
    evaluate = settings.evaluate
    rows = distinct_prompts(tables.load(stage.needs["data"].directory, "test"), evaluate.prompts)
    prompts = [row["prompt"] for row in rows]
    utility = load_utility(settings.data.utility)
    questions = Questions(evaluate, loading.load_base_tokenizer(settings.model), [*prompts, *EXAMPLES], rows)
    work = Stopwatch()

    policies = _ask_policies(settings, stage, questions, work)
    answers = {name: policies[name].draws[0] for name in ("base", "sft", "ppo")}
    draws = {f"sft, draw {number}": draw for number, draw in enumerate(policies["sft"].draws, start=1)}
    reward_model = _ask_reward(stage, "reward", questions, {**answers, **draws}, work)
    rewards = {name: reward_model.scores[name] for name in answers}
    if len(draws) > 1:
        by_draw = np.array([reward_model.scores[name] for name in draws])
        answers[BEST_OF_N] = [policies["sft"].draws[draw][place] for place, draw in enumerate(best_of(by_draw))]
        rewards[BEST_OF_N] = by_draw.max(axis=0).tolist()
    judge = _ask_reward(stage, "judge", questions, answers, work) if "judge" in stage.needs else None
    judge_rewards = None if judge is None else judge.scores
    utilities = None if utility is None else {name: _utilities(utility, prompts, answers[name]) for name in answers}

    _write_samples(stage, questions, answers, rewards, judge_rewards, utilities)
    measured = {
        name: _measured(len(rows), name, given, policies, rewards, judge_rewards, utilities)
        for name, given in answers.items()
    }
    groups = prompt_groups(prompts, [row["subset"] for row in rows])
    score_std = manifest(stage.needs["reward"])["metrics"]["score_std"]
    compared = compare(measured, groups, score_std, evaluate.seed)
    if BEST_OF_N in answers:
        compared["models"][BEST_OF_N]["kl_bound_nats"] = best_of_kl_bound_nats(len(draws))
    parts = {**policies, "reward": reward_model, **({} if judge is None else {"judge": judge})}
    return Outcome(
        metrics={
            "prompts": len(rows),
            "seed": evaluate.seed,
            "temperature": evaluate.temperature,
            "max_new_tokens": evaluate.max_new_tokens,
            "best_of": evaluate.best_of,
            "cost": {
                "generated_tokens": sum(policy.generated_tokens for policy in policies.values()),
                "scored_tokens": sum(part.scored_tokens for part in parts.values()),
                "by_part_s": {name: part.seconds for name, part in parts.items()},
            },
            **compared,
        },
        work_s=work.seconds,
    )


def distinct_prompts(rows: Sequence[Mapping[str, Any]], most: int) -> list[Mapping[str, Any]]:
    """The first row of each of the first `most` distinct prompts, in file order; fewer where there are fewer."""
    first = {row["prompt"]: row for row in reversed(rows)}
    kept = [row for row in rows if first[row["prompt"]] is row]
    return kept[:most]


def prompt_groups(prompts: Sequence[str], subsets: Sequence[str]) -> dict[str, np.ndarray]:
    """Masks over the prompts: by subset of the data, then prompts of one Human turn and of several; none is empty."""
    turns = np.array([prompt.count(HUMAN) for prompt in prompts])
    of_subset = np.array(subsets)
    groups = {name: of_subset == name for name in sorted(set(subsets))}
    groups |= {"single-turn": turns <= 1, "multi-turn": turns > 1}
    return {name: prompts for name, prompts in groups.items() if prompts.any()}


def _ask_policies(settings: Settings, stage: Stage, questions: Questions, work: Stopwatch) -> dict[str, PolicySaid]:
    """What base, PPO and SFT said, with one model in memory at a time."""
    said: dict[str, PolicySaid] = {}

    def ask(name: str) -> PolicySaid:
        if name == "base":
            model = loading.load_base(settings.model, settings.seed)
        else:
            model = loading.load_policy(str(stage.needs[name].model_dir))
        model.to(_device())  # type: ignore[arg-type]
        is_sft = name == "sft"
        read_too = {whose: said[whose].draws[0] for whose in said} if is_sft else {}
        draws = (settings.evaluate.best_of or 1) if is_sft else 1
        return ask_policy(model, name, questions, draws, read_too, work)

    for name in ("base", "ppo", "sft"):  # SFT last: it also reads what the other two wrote
        said[name] = policy_said(_kept(stage, name, lambda name=name: ask(name)))
    return said


def _ask_reward(
    stage: Stage, name: str, questions: Questions, answers: Mapping[str, Sequence[Answer]], work: Stopwatch
) -> Scores:
    """The scores that the model of the stage `name` (reward or judge) gives to the answers."""

    def ask() -> Scores:
        pad_token_id = tokens.pad_id(tokens.padding_copy(questions.tokenizer, "right"))
        model = loading.load_reward(str(stage.needs[name].model_dir), pad_token_id)
        model.to(_device())  # type: ignore[arg-type]
        scores = ask_reward(model, questions, answers, work)
        for whose, values in scores.scores.items():
            if not np.isfinite(values).all():
                raise UserError(
                    f"evaluate: the {name} model gives answers of {whose} scores that are not finite; its training "
                    "diverged: lower reward.args.learning_rate"
                )
        return scores

    return Scores(**_kept(stage, name, ask))


def _kept(stage: Stage, name: str, ask: Callable[[], PolicySaid | Scores]) -> dict[str, Any]:
    """What a model said, as JSON, from the file in which an evaluation that was killed has left it, or asked now.

    The stage's directory is named by all that decides the answers, so a file there is an answer to these questions.
    The files go with the directory of checkpoints, once the stage has its manifest.
    """
    path = stage.checkpoints_dir / f"{name}.json"
    if not path.exists():
        write_json(path, asdict(ask()))
    return json.loads(path.read_text(encoding="utf-8"))


def _device() -> torch.device:
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def _utilities(utility: Callable[[str, str], float], prompts: Sequence[str], answers: Sequence[Answer]) -> list[float]:
    """By held-out prompt. The examples come after those, and a utility need not know what it was not written for."""
    values = [float(utility(prompt, answer.text)) for prompt, answer in zip(prompts, answers, strict=False)]
    for value, answer in zip(values, answers, strict=False):
        if not np.isfinite(value):
            raise UserError(
                f"data.utility: it gave no finite number for the answer {answer.text[:60]!r}; mend the function"
            )
    return values


def _measured(
    prompts: int,
    name: str,
    answers: Sequence[Answer],
    policies: Mapping[str, PolicySaid],
    rewards: ByModel,
    judge_rewards: ByModel | None,
    utilities: ByModel | None,
) -> Measured:
    """One model's figures on the first so many prompts, which are those held out."""
    policy = policies.get(name)  # best of n is none
    kl_to_sft_nats = None if policy is None else np.subtract(policy.logps[name], policies["sft"].logps[name])
    heldout = answers[:prompts]
    return Measured(
        rewards=np.array(rewards[name][:prompts]),
        judge_rewards=None if judge_rewards is None else np.array(judge_rewards[name][:prompts]),
        utilities=None if utilities is None else np.array(utilities[name]),
        answer_tokens=np.array([len(answer.ids) for answer in heldout]),
        ended=np.array([answer.ended for answer in heldout]),
        distinct_2=np.array([distinct_2(answer.ids) for answer in heldout]),
        kl_to_sft_nats=None if kl_to_sft_nats is None else kl_to_sft_nats[:prompts],
        chosen_nll_nats=None if policy is None else np.array(policy.chosen_nll_nats),
        chosen_tokens=None if policy is None else np.array(policy.chosen_tokens),
    )


def _write_samples(
    stage: Stage,
    questions: Questions,
    answers: Mapping[str, Sequence[Answer]],
    rewards: ByModel,
    judge_rewards: ByModel | None,
    utilities: ByModel | None,
) -> None:
    """One JSON line per prompt, the examples first: what each model wrote, and how it was judged."""

    def record(name: str, place: int) -> dict[str, Any]:
        answer = answers[name][place]
        by_prompt = [] if utilities is None else utilities[name]
        return {
            "answer": answer.text,
            "ended": answer.ended,
            "tokens": len(answer.ids),
            "reward": rewards[name][place],
            "judge_reward": None if judge_rewards is None else judge_rewards[name][place],
            "utility": by_prompt[place] if place < len(by_prompt) else None,
        }

    stage.directory.mkdir(parents=True, exist_ok=True)
    unfinished = stage.directory / f".{SAMPLES_FILE}.tmp"
    heldout = list(enumerate(questions.rows))
    examples = [(place, {"subset": None}) for place in range(len(heldout), len(questions.prompts))]
    with unfinished.open("w", encoding="utf-8") as file:
        for group, places in (("example", examples), ("heldout", heldout)):
            for place, row in places:
                line = {
                    "group": group,
                    "prompt": questions.prompts[place],
                    "subset": row["subset"],
                    "answers": {name: record(name, place) for name in answers},
                }
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
    os.replace(unfinished, stage.directory / SAMPLES_FILE)


if __name__ == "__main__":  # `python -m gpt2_rlhf.evaluate` is `python -m gpt2_rlhf evaluate`
    sys.argv[1:1] = ["evaluate"]
    runpy.run_module("gpt2_rlhf", run_name="__main__")
