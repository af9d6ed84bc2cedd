import json
import math
import sys
import types
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import PreTrainedModel

from gpt2_rlhf import evaluate
from gpt2_rlhf.config import compose, settings
from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.evaluate import distinct_prompts, prompt_groups
from gpt2_rlhf.evidence import answers
from gpt2_rlhf.evidence.model_reports import heldout_loss
from gpt2_rlhf.launch import progress_line
from gpt2_rlhf.models import loading, tokens
from gpt2_rlhf.models.sampling import Answer
from gpt2_rlhf.store.files import write_json
from gpt2_rlhf.store.stage import Outcome, Stage
from helpers import pairs
from helpers.tiny import tiny_policy, tiny_reward, tiny_tokenizer

QUESTIONS = ["Hi", "bake bread?", "Tell me about the sea.", "What is the best way to learn chess?", "Why?"]


def rows() -> list[dict]:
    """Return two rows for each question, like a file with two pairs for each prompt."""
    return [
        {
            "prompt": f"\n\nHuman: {question}\n\nAssistant:",
            "chosen": " Yes.",
            "rejected": " No.",
            "subset": "harmless" if question == "Hi" else "helpful",
            "row": f"test.jsonl:{place}",
            "chosen_probability": None,
        }
        for question in QUESTIONS
        for place in (1, 2)
    ]


EVALUATE = settings.Evaluate(
    prompts=4, pairs=9, batch_size=3, temperature=0.9, max_new_tokens=10, seed=5, best_of=3, toxicity=False
)
POLICIES = ("base", "sft", "ppo")


@pytest.fixture
def utility_module(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """Return an importable module; its `count` is the number of characters of an answer."""
    module = types.ModuleType("tiny_truth")
    vars(module).update(count=lambda prompt, answer: float(len(answer)), nan=lambda prompt, answer: math.nan)
    monkeypatch.setitem(sys.modules, "tiny_truth", module)
    return module


@pytest.fixture
def needs(tmp_path: Path) -> dict[str, Stage]:
    """Return finished stages: test rows as parquet, and tiny models that all have different weights."""
    tokenizer = tiny_tokenizer()
    needs = {name: Stage(name, tmp_path / name, {}, {}) for name in ("data", "sft", "reward", "judge", "ppo", "base")}
    needs["data"].directory.mkdir()
    schema = pa.schema([(key, pa.string()) for key in ("prompt", "chosen", "rejected", "subset", "row")])
    schema = schema.append(pa.field("chosen_probability", pa.float64()))
    pq.write_table(pa.Table.from_pylist(rows(), schema=schema), needs["data"].directory / "test.parquet")
    for seed, name in enumerate(("base", "sft", "ppo")):
        save(tiny_policy(tokenizer, seed), needs[name].model_dir)
    save(tiny_reward(tokenizer), needs["reward"].model_dir)
    write_json(needs["reward"].directory / "manifest.json", {"metrics": {"score_std": 2.0}})
    save(tiny_reward(tokenizer, seed=1), needs["judge"].model_dir)
    return needs


def save(model: PreTrainedModel, folder: Path) -> None:
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)


def run_evaluation(
    needs: dict[str, Stage],
    utility: str | None = None,
    *,
    judged: bool = True,
    evaluation: settings.Evaluate = EVALUATE,
    place: str = "evaluate",
) -> tuple[Outcome, list[dict]]:
    """Return the outcome and the lines of samples.jsonl; another `place` starts without kept results."""
    folder = needs["data"].directory.parent
    built_on = ("data", "sft", "reward", *(["judge"] if judged else []), "ppo")
    stage = Stage("evaluate", folder / place, {}, {name: needs[name] for name in built_on})
    outcome = evaluate.run(replace(run_settings(str(needs["base"].model_dir), utility), evaluate=evaluation), stage)
    lines = (stage.directory / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    assert sorted(path.name for path in stage.directory.iterdir()) == ["checkpoints", "samples.jsonl"]
    return outcome, [json.loads(line) for line in lines]


def heldout(lines: list[dict]) -> list[dict]:
    return [line for line in lines if line["group"] == "heldout"]


def run_settings(base: str, utility: str | None) -> settings.Settings:
    return replace(
        compose.load([]).settings,
        seed=1,
        model=settings.Model(name=base, revision=None, tokenizer=None, random=None),
        data=replace(pairs.PAIRS, path=None, max_prompt_tokens=60, max_answer_tokens=20, utility=utility),
        evaluate=EVALUATE,
    )


def test_every_model_answers_the_first_distinct_prompts(needs, utility_module):
    outcome, lines = run_evaluation(needs, "tiny_truth:count")
    lines = heldout(lines)
    assert [line["prompt"] for line in lines] == [f"\n\nHuman: {q}\n\nAssistant:" for q in QUESTIONS[:4]]
    assert [line["subset"] for line in lines] == ["harmless", "helpful", "helpful", "helpful"]
    metrics = outcome.metrics
    assert {key: metrics[key] for key in ("prompts", "seed", "temperature", "max_new_tokens", "best_of")} == {
        "prompts": 4,
        "seed": 5,
        "temperature": 0.9,
        "max_new_tokens": 10,
        "best_of": 3,
    }
    assert list(metrics["models"]) == [*POLICIES, "best_of_n"]
    for name, figures in metrics["models"].items():
        answers = [line["answers"][name] for line in lines]
        for key, field in (
            ("reward", "reward"),
            ("judge_reward", "judge_reward"),
            ("utility", "utility"),
            ("answer_tokens", "tokens"),
            ("eos_rate", "ended"),
        ):
            assert figures[key]["mean"] == pytest.approx(np.mean([answer[field] for answer in answers]))
            assert figures[key]["n"] == 4
            assert figures[key]["low"] <= figures[key]["mean"] <= figures[key]["high"]
        assert [answer["utility"] for answer in answers] == [len(answer["answer"]) for answer in answers]
    json.dumps(metrics, allow_nan=False)
    assert outcome.work_s > 0


def test_examples_come_first_in_the_samples_and_enter_no_figure(needs, utility_module, monkeypatch):
    with_examples = run_evaluation(needs, "tiny_truth:count")
    assert [line["group"] for line in with_examples[1]] == ["example"] * 2 + ["heldout"] * 4
    assert [line["prompt"] for line in with_examples[1][:2]] == [
        "\n\nHuman: How can I improve my communication skills?\n\nAssistant:",
        "\n\nHuman: How can I learn machine learning effectively?\n\nAssistant:",
    ]
    example = with_examples[1][0]["answers"]["ppo"]
    assert isinstance(example["reward"], float)
    assert example["utility"] is None  # the data's utility covers only its own prompts
    monkeypatch.setattr(evaluate, "EXAMPLES", ())
    without = replace(EVALUATE, best_of=None)  # further draws would be for other prompts
    figures = run_evaluation(needs, evaluation=without, place="none")[0].metrics["models"]
    for name in POLICIES:
        assert figures[name]["reward"]["mean"] == pytest.approx(
            with_examples[0].metrics["models"][name]["reward"]["mean"], abs=1e-5
        )


def test_rewards_are_read_at_eos_whether_or_not_the_answer_ended(needs, monkeypatch):
    tokenizer = tiny_tokenizer()
    answer = Answer(text="x", ids=[5, 9, 14], ended=False)
    monkeypatch.setattr(answers, "sample", lambda model, tokenizer, prompts, **_: [answer] * len(prompts))
    _, lines = run_evaluation(needs)
    for line in lines:
        ids = [*tokenizer(line["prompt"])["input_ids"], *answer.ids, tokens.eos_id(tokenizer)]
        for seed, key in enumerate(("reward", "judge_reward")):
            with torch.no_grad():
                expected = tiny_reward(tokenizer, seed)(input_ids=torch.tensor([ids])).logits.item()
            assert line["answers"]["ppo"][key] == pytest.approx(expected, abs=1e-5)


def test_equal_models_tie_exactly_and_have_zero_kl(needs):
    for name in ("base", "ppo"):
        save(tiny_policy(tiny_tokenizer(), 1), needs[name].model_dir)  # SFT's weights
    outcome, lines = run_evaluation(needs)
    for line in lines:
        assert line["answers"]["base"] == line["answers"]["sft"] == line["answers"]["ppo"]
    for name in POLICIES:
        assert outcome.metrics["models"][name]["kl_to_sft_nats"]["mean"] == pytest.approx(0.0, abs=1e-4)
    assert outcome.metrics["models"]["ppo"]["win_rate_vs_sft"] == {"mean": 0.5, "low": 0.5, "high": 0.5, "n": 4}
    pair = outcome.metrics["paired"]["ppo_minus_sft"]
    assert pair["reward"] == pair["judge_reward"] == {"mean": 0.0, "low": 0.0, "high": 0.0, "n": 4}
    assert pair["by_reward"]["tie"]["mean"] == pair["by_judge"]["tie"]["mean"] == 1.0
    assert pair["length_matched"]["pairs"] == 4


def test_kl_is_log_p_of_the_model_less_log_p_of_sft_on_its_own_answer(needs, monkeypatch):
    tokenizer = tiny_tokenizer()
    answer = Answer(text="x", ids=[5, 9, 14], ended=True)
    monkeypatch.setattr(answers, "sample", lambda model, tokenizer, prompts, **_: [answer] * len(prompts))
    outcome, lines = run_evaluation(needs)
    expected = []
    for line in heldout(lines):
        prompt = tokenizer(line["prompt"])["input_ids"]
        taken = [*answer.ids, tokens.eos_id(tokenizer)]
        by_model = []
        for seed in (2, 1):  # PPO, SFT
            with torch.no_grad():
                logits = tiny_policy(tokenizer, seed)(input_ids=torch.tensor([prompt + taken])).logits[0] / 0.9
            places = range(len(prompt) - 1, len(prompt) + 3)
            by_model.append(
                sum(logits[at].log_softmax(-1)[token].item() for at, token in zip(places, taken, strict=True))
            )
        expected.append(by_model[0] - by_model[1])
    assert outcome.metrics["models"]["ppo"]["kl_to_sft_nats"]["mean"] == pytest.approx(np.mean(expected), abs=1e-3)
    assert outcome.metrics["models"]["sft"]["kl_to_sft_nats"] == {"mean": 0.0, "low": 0.0, "high": 0.0, "n": 4}


def test_perplexity_is_of_the_chosen_answers_to_the_same_prompts(needs):
    figures = run_evaluation(needs)[0].metrics["models"]
    for seed, name in enumerate(POLICIES):
        loss = heldout_loss(tiny_policy(tiny_tokenizer(), seed), tiny_tokenizer(), rows()[0:8:2], 4)
        assert figures[name]["chosen_perplexity"]["mean"] == pytest.approx(math.exp(loss["mean"]), rel=1e-4)
        assert figures[name]["chosen_perplexity"]["n"] == 4
    assert figures["best_of_n"]["chosen_perplexity"] is None


def test_best_of_n_is_the_sft_answer_with_the_highest_reward(needs, monkeypatch):
    drawn: dict[str, list[Answer]] = {}  # by prompt, every SFT answer

    def watched(model, name, prompts, *others):
        generations = sample_and_score(model, name, prompts, *others)
        if name == "sft":
            drawn.update({text: [draw[at] for draw in generations.draws] for at, text in enumerate(prompts.texts)})
        return generations

    sample_and_score = answers.sample_and_score
    monkeypatch.setattr(evaluate, "sample_and_score", watched)
    outcome, lines = run_evaluation(needs)
    tokenizer, reward = tiny_tokenizer(), tiny_reward(tiny_tokenizer())
    places = []
    for line in lines:
        ids = [
            [*tokenizer(line["prompt"])["input_ids"], *answer.ids, tokens.eos_id(tokenizer)]
            for answer in drawn[line["prompt"]]
        ]
        with torch.no_grad():
            scores = [reward(input_ids=torch.tensor([one])).logits.item() for one in ids]
        assert len(scores) == 3
        places.append(int(np.argmax(scores)))
        assert line["answers"]["best_of_n"]["answer"] == drawn[line["prompt"]][places[-1]].text
        assert line["answers"]["best_of_n"]["reward"] == pytest.approx(max(scores), abs=1e-4)
        assert line["answers"]["sft"]["answer"] == drawn[line["prompt"]][0].text
    assert len(set(places)) > 1  # not the same draw for all
    assert outcome.metrics["models"]["best_of_n"]["kl_to_sft_nats"] is None
    assert outcome.metrics["models"]["best_of_n"]["kl_bound_nats"] == pytest.approx(math.log(3) - 2 / 3)


def test_of_draws_with_the_same_reward_best_of_n_is_the_first(needs):
    indifferent = tiny_reward(tiny_tokenizer())
    with torch.no_grad():
        indifferent.score.weight.zero_()
    save(indifferent, needs["reward"].model_dir)
    for line in run_evaluation(needs)[1]:
        assert line["answers"]["best_of_n"]["answer"] == line["answers"]["sft"]["answer"]


@pytest.mark.parametrize("best_of", [None, 1])
def test_without_best_of_there_is_no_best_of_n(needs, best_of: int | None):
    outcome, lines = run_evaluation(needs, evaluation=replace(EVALUATE, best_of=best_of))
    assert set(outcome.metrics["models"]) == set(lines[0]["answers"]) == set(POLICIES)
    assert "ppo_minus_best_of_n" not in outcome.metrics["paired"]


def test_more_draws_do_not_change_the_other_figures(needs):
    many = run_evaluation(needs)[0].metrics["models"]
    none = run_evaluation(needs, evaluation=replace(EVALUATE, best_of=None), place="none")[0].metrics["models"]
    for name in POLICIES:
        assert many[name]["answer_tokens"] == none[name]["answer_tokens"]
        assert many[name]["reward"]["mean"] == pytest.approx(none[name]["reward"]["mean"], abs=1e-5)


def test_same_settings_give_the_same_metrics_and_samples(needs):
    first, second = run_evaluation(needs), run_evaluation(needs, place="again")
    for metrics in (first[0].metrics, second[0].metrics):
        assert all(seconds > 0 for seconds in metrics["cost"].pop("by_part_s").values())
    assert first[0].metrics == second[0].metrics
    assert first[1] == second[1]


def test_cost_counts_every_generated_and_every_scored_token(needs, monkeypatch):
    answer = Answer(text="x", ids=[5, 9, 14], ended=True)
    monkeypatch.setattr(answers, "sample", lambda model, tokenizer, prompts, **_: [answer] * len(prompts))
    cost = run_evaluation(needs)[0].metrics["cost"]
    tokenizer = tiny_tokenizer()
    heldout_prompts = [row["prompt"] for row in rows()[0:8:2]]
    prompts = sum(len(tokenizer(prompt)["input_ids"]) for prompt in [*heldout_prompts, *evaluate.EXAMPLES])
    chosen = sum(len(row["input_ids"]) for row in tokens.encode_sft(tokenizer, rows()[0:8:2]))
    # base and PPO once, SFT three times: 4 tokens for each of 6 prompts
    assert cost["generated_tokens"] == (1 + 1 + 3) * 6 * 4
    # base and PPO score their own answers, SFT those of all three; equal answers get one reward and one judge's score
    assert cost["scored_tokens"] == (1 + 1 + 3 + 1 + 1) * (prompts + 6 * 4) + 3 * chosen
    assert list(cost["by_part_s"]) == ["base", "ppo", "sft", "reward", "judge"]


@pytest.mark.parametrize(
    ("killed_at", "run_again"), [("sft", ["sft", "kl", "reward", "judge"]), ("judge", ["ppo", "judge"])]
)
def test_a_resumed_evaluation_runs_only_the_models_that_were_not_finished_or_are_damaged(
    needs, monkeypatch, killed_at: str, run_again: list[str]
):
    whole = run_evaluation(needs, place="whole")
    killed: list[str] = []
    computed: list[str] = []

    def load_or_interrupted_compute(stage, name, compute):
        def interrupted_compute():
            if name == killed_at and not killed:
                killed.append(name)
                raise KeyboardInterrupt
            computed.append(name)
            return compute()

        return load_or_compute(stage, name, interrupted_compute)

    load_or_compute = evaluate._load_or_compute
    monkeypatch.setattr(evaluate, "_load_or_compute", load_or_interrupted_compute)
    with pytest.raises(KeyboardInterrupt):
        run_evaluation(needs)
    if killed_at == "judge":  # "base" is whole, what PPO generated is damaged, and is generated again
        path = needs["data"].directory.parent / "evaluate" / "checkpoints" / "ppo" / "results.json"
        path.write_text(path.read_text().replace("1", "2"))
    computed.clear()
    resumed = run_evaluation(needs)
    assert computed == run_again
    for outcome, _ in (whole, resumed):
        del outcome.metrics["cost"]["by_part_s"]
    assert resumed[0].metrics == whole[0].metrics
    assert resumed[1] == whole[1]


def test_each_part_says_how_many_batches_are_done(needs, monkeypatch):
    told = []
    monkeypatch.setattr(progress_line, "_TOLD_EVERY_S", 0.0)
    monkeypatch.setattr(progress_line, "tell", lambda doing: told.append(doing.step) is None)
    run_evaluation(needs)
    # 4 held-out prompts and 2 examples in batches of 3; SFT samples two more draws of each
    for step in ("answers of base 2/2", "answers of sft 4/4", "ppo reads answers 2/2", "scores of the judge model 1/"):
        assert any(one.startswith(step) for one in told), step


def test_without_a_judge_the_figures_of_the_judge_are_null(needs):
    outcome, lines = run_evaluation(needs, judged=False)
    assert all(figures["judge_reward"] is None for figures in outcome.metrics["models"].values())
    assert all(pair["judge_reward"] is pair["by_judge"] is None for pair in outcome.metrics["paired"].values())
    assert all(answer["judge_reward"] is None for line in lines for answer in line["answers"].values())


def test_without_a_utility_its_figures_are_null(needs):
    outcome, lines = run_evaluation(needs)
    assert all(figures["utility"] is None for figures in outcome.metrics["models"].values())
    assert all(pair["utility"] is None for pair in outcome.metrics["paired"].values())
    assert all(answer["utility"] is None for line in lines for answer in line["answers"].values())


def test_refusals_of_the_models_and_of_the_chosen_answers_are_counted_in_all_and_by_subset(needs, monkeypatch):
    given = iter([" No.", " I can't help with that.", " Yes.", " I won't do that.", " No.", " No."])
    to_prompt = {}  # every model gives the same answers

    def sampled(model, tokenizer, prompts, **_):
        return [Answer(to_prompt.setdefault(one, next(given, "")), [5], True) for one in prompts]

    monkeypatch.setattr(answers, "sample", sampled)
    test_rows = [{**row, "chosen": " I'd rather not."} if "Hi" in row["prompt"] else row for row in rows()]
    monkeypatch.setattr(evaluate.tables, "load", lambda *_: test_rows)
    outcome, lines = run_evaluation(needs)
    assert [line["answers"]["ppo"]["refused"] for line in heldout(lines)] == [False, True, False, True]
    assert heldout(lines)[0]["answers"]["ppo"]["toxic"] is None
    found = outcome.metrics
    for name in (*POLICIES, "best_of_n"):
        assert found["models"][name]["refusal_rate"]["mean"] == 2 / 4
        assert found["by_subset"]["helpful"]["models"][name]["refusal_rate"]["mean"] == 2 / 3
    parts = (found, found["by_subset"]["harmless"], found["by_subset"]["helpful"])
    assert [part["chosen"]["refusal_rate"]["mean"] for part in parts] == [1 / 4, 1, 0]
    assert found["toxicity"] is found["chosen"]["toxic_rate"] is None


def test_toxic_language_is_measured_of_the_models_and_of_the_chosen_answers_where_it_is_asked_for(needs, monkeypatch):
    insult = Answer(" You are an idiot.", [5], True)
    monkeypatch.setattr(answers, "sample", lambda model, tokenizer, prompts, **_: [insult] * len(prompts))
    outcome, lines = run_evaluation(needs, evaluation=replace(EVALUATE, toxicity=True))
    assert all(line["answers"]["ppo"]["toxic"] for line in lines)
    assert outcome.metrics["models"]["ppo"]["toxic_rate"]["mean"] == 1
    assert outcome.metrics["paired"]["ppo_minus_sft"]["toxic_rate"]["mean"] == 0
    assert outcome.metrics["by_subset"]["helpful"]["chosen"]["toxic_rate"]["mean"] == 0
    assert outcome.metrics["toxicity"].startswith("alt-profanity-check 1.")
    json.dumps(outcome.metrics, allow_nan=False)


def test_figures_are_also_given_by_subset_and_by_turns(needs):
    by_subset = run_evaluation(needs)[0].metrics["by_subset"]
    assert {name: part["prompts"] for name, part in by_subset.items()} == {
        "harmless": 1,
        "helpful": 3,
        "single-turn": 4,
    }
    assert by_subset["helpful"]["models"]["ppo"]["reward"]["n"] == 3


def test_reward_differences_are_also_given_in_the_score_std_of_the_reward_stage(needs):
    pair = run_evaluation(needs)[0].metrics["paired"]["ppo_minus_base"]
    assert pair["reward_sd"]["mean"] == pytest.approx(pair["reward"]["mean"] / 2.0)


@pytest.mark.parametrize(("threads", "others"), [(2, 0), (1, 1)], ids=["all cores for each", "a core for each"])
def test_one_model_is_in_memory_for_each_that_computes(needs, monkeypatch, threads: int, others: int):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    alive: list[weakref.ref] = []
    most_others_alive = []

    def watched(load):
        def load_and_count(*args):
            most_others_alive.append(sum(model() is not None for model in alive))
            model = load(*args)
            alive.append(weakref.ref(model))
            return model

        return load_and_count

    monkeypatch.setattr(loading, "load_policy", watched(loading.load_policy))
    monkeypatch.setattr(loading, "load_reward", watched(loading.load_reward))
    run_evaluation(needs)
    assert len(most_others_alive) == 6  # base, PPO, SFT twice, reward model, judge
    assert max(most_others_alive) <= others


@pytest.mark.parametrize("name", ["reward", "judge"])
def test_a_diverged_reward_model_is_named_in_the_error(needs, name: str):
    broken = tiny_reward(tiny_tokenizer())
    with torch.no_grad():
        broken.score.weight.fill_(math.nan)
    save(broken, needs[name].model_dir)
    with pytest.raises(
        UserError, match=rf"evaluate: the {name} model gave .* not finite; .* reward\.args\.learning_rate"
    ):
        run_evaluation(needs)


def test_a_utility_that_is_not_finite_is_named_in_the_error(needs, utility_module):
    with pytest.raises(UserError, match=r"data\.utility: the function gave nan for the answer"):
        run_evaluation(needs, "tiny_truth:nan")


def test_distinct_prompts_keep_file_order_and_the_first_row():
    kept = distinct_prompts([{"prompt": p, "row": i} for i, p in enumerate("abacb")], 10)
    assert [(row["prompt"], row["row"]) for row in kept] == [("a", 0), ("b", 1), ("c", 3)]


def test_groups_are_the_subsets_and_the_turns_that_have_prompts():
    prompts = ["\n\nHuman: a", "\n\nHuman: b\n\nAssistant: c\n\nHuman: d", "\n\nHuman: e"]
    rows = [
        {"prompt": prompt, "subset": subset}
        for prompt, subset in zip(prompts, ("helpful", "harmless", "helpful"), strict=True)
    ]
    groups = prompt_groups(rows)
    assert {name: mask.tolist() for name, mask in groups.items()} == {
        "harmless": [False, True, False],
        "helpful": [True, False, True],
        "single-turn": [True, False, True],
        "multi-turn": [False, True, False],
    }
    assert list(prompt_groups(rows[:1])) == ["helpful", "single-turn"]


def test_several_subsets_of_helpful_prompts_are_also_one_group():
    subsets = ("helpful-base", "harmless-base", "helpful-online", "other")
    groups = prompt_groups([{"prompt": "\n\nHuman: a", "subset": subset} for subset in subsets])
    assert list(groups) == [*sorted(subsets), "helpful, all", "single-turn"]
    assert groups["helpful, all"].tolist() == [True, False, True, False]
