import json
import math
import sys
import types
import weakref
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from gpt2_rlhf import evaluate, models, settings, tokens
from gpt2_rlhf.errors import UserError
from gpt2_rlhf.evaluate import Judged, compare, distinct_prompts
from gpt2_rlhf.generation import Answer
from gpt2_rlhf.stage import Outcome, Stage
from tiny import tiny_policy, tiny_reward, tiny_tokenizer

QUESTIONS = ["Hi", "bake bread?", "Tell me about the sea.", "What is the best way to learn chess?", "Why?"]


def rows() -> list[dict]:
    """Each question twice in a row, as the pairs of a prompt stand in a file."""
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


EVALUATE = settings.Evaluate(prompts=4, batch_size=3, temperature=0.9, max_new_tokens=10, seed=5)


@pytest.fixture
def utility_module(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A module whose `count` makes an answer worth the number of its characters."""
    module = types.ModuleType("tiny_truth")
    module.count = lambda prompt, answer: float(len(answer))  # type: ignore[attr-defined]
    module.nan = lambda prompt, answer: math.nan  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tiny_truth", module)
    return module


@pytest.fixture
def needs(tmp_path: Path) -> dict[str, Stage]:
    """Finished stages: test rows as parquet, and tiny SFT, PPO and reward models, all of different weights."""
    tokenizer = tiny_tokenizer()
    needs = {name: Stage(name, tmp_path / name, {}, {}) for name in ("data", "sft", "reward", "ppo", "base")}
    needs["data"].directory.mkdir()
    schema = pa.schema([(key, pa.string()) for key in ("prompt", "chosen", "rejected", "subset", "row")])
    schema = schema.append(pa.field("chosen_probability", pa.float64()))
    pq.write_table(pa.Table.from_pylist(rows(), schema=schema), needs["data"].directory / "test.parquet")
    for seed, name in enumerate(("base", "sft", "ppo")):
        save(tiny_policy(tokenizer, seed), needs[name].model_dir)
    save(tiny_reward(tokenizer), needs["reward"].model_dir)
    return needs


def save(model: torch.nn.Module, folder: Path) -> None:
    model.save_pretrained(folder)  # type: ignore[operator]
    tiny_tokenizer().save_pretrained(folder)


def run_evaluation(needs: dict[str, Stage], utility: str | None = None) -> tuple[Outcome, list[dict]]:
    """The outcome and the lines of samples.jsonl."""
    folder = needs["data"].directory.parent
    stage = Stage("evaluate", folder / "evaluate", {}, {name: needs[name] for name in ("data", "sft", "reward", "ppo")})
    outcome = evaluate.run(run_settings(str(needs["base"].model_dir), utility), stage)
    lines = (stage.directory / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    assert [path.name for path in stage.directory.iterdir()] == ["samples.jsonl"]
    return outcome, [json.loads(line) for line in lines]


def run_settings(base: str, utility: str | None) -> settings.Settings:
    peft = settings.Peft(r=0, lora_alpha=16, lora_dropout=0.0, target_modules=None)
    return settings.Settings(
        seed=1,
        output_dir="outputs",
        force=False,
        model=settings.Model(name=base, revision=None, tokenizer=None, random=None),
        data=settings.Data(
            name="none",
            revision=None,
            path=None,
            subsets=None,
            train_pairs=None,
            test_pairs=None,
            shares={"sft": 0.3, "reward": 0.4, "judge": 0.0, "ppo": 0.3},
            disjoint=True,
            max_prompt_tokens=60,
            max_answer_tokens=20,
            seed=0,
            utility=utility,
        ),
        sft=settings.Sft({}, peft),
        reward=settings.Reward({}, peft),
        ppo=settings.Ppo(
            {},
            peft,
            None,
            settings.PpoReward(None, False, None),
            settings.PpoKl(None, 1),
            settings.Heldout(1, None, "last"),
            settings.Guard(False, 1, 0, 0, 2),
        ),
        evaluate=EVALUATE,
        publish=settings.Publish(None, True),
        launch=settings.Launch(1, None),
    )


def test_three_models_answer_the_first_distinct_prompts(needs, utility_module):
    outcome, lines = run_evaluation(needs, "tiny_truth:count")
    assert [line["prompt"] for line in lines] == [f"\n\nHuman: {q}\n\nAssistant:" for q in QUESTIONS[:4]]
    assert [line["subset"] for line in lines] == ["harmless", "helpful", "helpful", "helpful"]
    metrics = outcome.metrics
    assert {key: metrics[key] for key in ("prompts", "seed", "temperature", "max_new_tokens")} == {
        "prompts": 4,
        "seed": 5,
        "temperature": 0.9,
        "max_new_tokens": 10,
    }
    for name in ("base", "sft", "ppo"):
        figures = metrics["models"][name]
        answers = [line["answers"][name] for line in lines]
        for key, field in (
            ("reward", "reward"),
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


def test_rewards_are_read_at_eos_whether_or_not_the_answer_ended(needs, monkeypatch):
    tokenizer, reward = tiny_tokenizer(), tiny_reward(tiny_tokenizer())
    answer = Answer(text="x", ids=[5, 9, 14], ended=False)
    monkeypatch.setattr(evaluate, "sample", lambda model, tokenizer, prompts, **_: [answer] * len(prompts))
    _, lines = run_evaluation(needs)
    for line in lines:
        ids = [*tokenizer(line["prompt"])["input_ids"], *answer.ids, tokens.eos_id(tokenizer)]
        with torch.no_grad():
            expected = reward(input_ids=torch.tensor([ids])).logits.item()
        assert line["answers"]["ppo"]["reward"] == pytest.approx(expected, abs=1e-5)


def test_equal_models_tie_and_have_no_kl(needs):
    for name in ("base", "ppo"):
        save(tiny_policy(tiny_tokenizer(), 1), needs[name].model_dir)  # SFT's weights
    outcome, lines = run_evaluation(needs)
    for line in lines:
        assert line["answers"]["base"] == line["answers"]["sft"] == line["answers"]["ppo"]
    for name in ("base", "sft", "ppo"):
        assert outcome.metrics["models"][name]["kl_to_sft_nats"]["mean"] == pytest.approx(0.0, abs=1e-4)
    assert outcome.metrics["models"]["ppo"]["win_rate_vs_sft"] == {"mean": 0.5, "low": 0.5, "high": 0.5, "n": 4}
    assert outcome.metrics["paired"]["ppo_minus_sft"]["reward"]["mean"] == pytest.approx(0.0, abs=1e-5)


def test_kl_is_log_p_of_the_model_less_log_p_of_sft_on_its_own_answer(needs, monkeypatch):
    tokenizer = tiny_tokenizer()
    answer = Answer(text="x", ids=[5, 9, 14], ended=True)
    monkeypatch.setattr(evaluate, "sample", lambda model, tokenizer, prompts, **_: [answer] * len(prompts))
    outcome, lines = run_evaluation(needs)
    expected = []
    for line in lines:
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


def test_same_settings_give_the_same_evidence(needs):
    first, second = run_evaluation(needs), run_evaluation(needs)
    assert first[0].metrics == second[0].metrics
    assert first[1] == second[1]


def test_unknown_utility_is_null_everywhere(needs):
    outcome, lines = run_evaluation(needs)
    assert all(figures["utility"] is None for figures in outcome.metrics["models"].values())
    assert all(pair["utility"] is None for pair in outcome.metrics["paired"].values())
    assert all(answer["utility"] is None for line in lines for answer in line["answers"].values())


def test_one_model_at_a_time_is_in_memory(needs, monkeypatch):
    alive: list[weakref.ref] = []
    most_others_alive = []

    def watched(load):
        def load_and_count(*args):
            most_others_alive.append(sum(model() is not None for model in alive))
            model = load(*args)
            alive.append(weakref.ref(model))
            return model

        return load_and_count

    monkeypatch.setattr(models, "load_policy", watched(models.load_policy))
    monkeypatch.setattr(models, "load_reward", watched(models.load_reward))
    run_evaluation(needs)
    assert most_others_alive == [0, 0, 0, 0]


def test_a_reward_model_that_diverged_is_named_in_one_line(needs):
    broken = tiny_reward(tiny_tokenizer())
    with torch.no_grad():
        broken.score.weight.fill_(math.nan)
    save(broken, needs["reward"].model_dir)
    with pytest.raises(UserError, match=r"reward model gives .* not finite; .* reward\.args\.learning_rate"):
        run_evaluation(needs)


def test_a_utility_that_gives_no_number_is_named(needs, utility_module):
    with pytest.raises(UserError, match=r"data\.utility: it gave no finite number for the answer"):
        run_evaluation(needs, "tiny_truth:nan")


def judged(rewards: list[float], ids: list[list[int]] | None = None, utilities: list[float] | None = None) -> Judged:
    ids = [[1, 2, 3]] * len(rewards) if ids is None else ids
    return Judged(
        answers=[Answer(text="", ids=one, ended=len(one) < 3) for one in ids],
        rewards=np.array(rewards),
        utilities=None if utilities is None else np.array(utilities),
        kl_to_sft_nats=np.zeros(len(rewards)),
    )


def test_win_rates_are_paired_by_prompt_with_ties_one_half():
    by_model = {"base": judged([1.0, 1.0, 1.0, 5.0]), "sft": judged([2.0, 1.0, 3.0, 1.0]), "ppo": judged([9.0] * 4)}
    figures = compare(by_model, EVALUATE)["models"]
    assert figures["sft"]["win_rate_vs_base"]["mean"] == 2.5 / 4  # won, tied, won, lost
    assert figures["base"]["win_rate_vs_sft"]["mean"] == 1.5 / 4
    assert figures["ppo"]["win_rate_vs_sft"] == {"mean": 1.0, "low": 1.0, "high": 1.0, "n": 4}
    assert figures["base"]["win_rate_vs_base"] is None
    assert figures["sft"]["win_rate_vs_sft"] is None


def test_paired_difference_has_a_smaller_interval_than_the_means():
    generator = np.random.default_rng(0)
    shared = generator.normal(0, 5, 200)
    by_model = {
        "base": judged(list(shared), utilities=list(shared)),
        "sft": judged(list(shared + 1), utilities=list(shared + 2)),
        "ppo": judged(list(shared + 1.5), utilities=list(shared + 1)),
    }
    metrics = compare(by_model, EVALUATE)
    means = {
        name: {key: estimate["mean"] for key, estimate in pair.items()} for name, pair in metrics["paired"].items()
    }
    assert means == {
        "sft_minus_base": {"reward": pytest.approx(1), "utility": pytest.approx(2)},
        "ppo_minus_sft": {"reward": pytest.approx(0.5), "utility": pytest.approx(-1)},
    }
    gain = metrics["paired"]["sft_minus_base"]["reward"]
    reward = metrics["models"]["sft"]["reward"]
    assert gain["high"] - gain["low"] < 0.01 < reward["high"] - reward["low"]


def test_lengths_and_eos_rate_are_means_over_prompts():
    one = judged([0.0] * 3, ids=[[], [4], [4, 4, 4]])
    figures = compare({"base": one, "sft": one, "ppo": one}, EVALUATE)["models"]["base"]
    assert figures["answer_tokens"]["mean"] == pytest.approx(4 / 3)
    assert figures["eos_rate"]["mean"] == pytest.approx(2 / 3)
    assert figures["distinct_2"]["mean"] == pytest.approx((1 + 1 + 1 / 2) / 3)


def test_distinct_prompts_keep_file_order_and_the_first_row():
    kept = distinct_prompts([{"prompt": p, "row": i} for i, p in enumerate("abacb")], 10)
    assert [(row["prompt"], row["row"]) for row in kept] == [("a", 0), ("b", 1), ("c", 3)]
