"""The table of a sweep: what is called best, and what is said of the comparison."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from gpt2_rlhf.config import compose
from gpt2_rlhf.evidence import sweep_report
from gpt2_rlhf.evidence.sweep_report import Built
from gpt2_rlhf.store.run import Run
from gpt2_rlhf.store.stage import Stage, write_manifest

PROMPTS = 40
COMPOSED = compose.load([])


def estimate(mean: float) -> dict[str, Any]:
    return {"mean": mean, "low": mean - 0.1, "high": mean + 0.1, "n": PROMPTS}


def point(
    root: Path,
    label: str,
    judged: Sequence[float] | None,
    judge: str = "judge-1",
    stopped: str | None = None,
    prompt: str = "prompt",
    refusals: float | None = None,
) -> Built:
    """A point whose PPO answers have these judge's rewards, one a prompt; None: it failed."""
    stages = {
        name: Stage(name, root / (judge if name == "judge" else f"{name}-{label}"), {"seed": 0}, {})
        for name in ("reward", "judge", "ppo", "evaluate")
    }
    run = Run(COMPOSED.settings, (f"seed={label}",), COMPOSED.values, (stages,))
    if judged is None:
        return Built(label, run, "ppo: out of memory")
    evaluate = stages["evaluate"].directory
    evaluate.mkdir(parents=True)
    with (evaluate / "samples.jsonl").open("w") as file:
        for number, value in enumerate(judged):
            answer = {"judge_reward": value, "reward": 2 * value, "utility": None}
            sample = {"group": "heldout", "prompt": f"{prompt} {number}", "answers": {"ppo": answer}}
            file.write(json.dumps(sample, ensure_ascii=False) + "\n")
    mean = sum(judged) / len(judged)
    figures = {"judge_reward": estimate(mean), "reward": estimate(2 * mean), "utility": None, "kl_k1": estimate(3)}
    figures["refusal_rate"] = None if refusals is None else estimate(refusals)
    write_manifest(stages["evaluate"], {"metrics": {"models": {"ppo": figures}}})
    stages["ppo"].directory.mkdir(parents=True)
    write_manifest(stages["ppo"], {"metrics": {"stopped": stopped}})
    return Built(label, run, None)


def noise(number: int) -> float:
    return (number * 7 % 11 - 5) / 10  # mean near 0, far from constant


LOW = [noise(number) for number in range(PROMPTS)]
HIGH = [value + 1.0 for value in LOW]
NEAR = [value + 0.99 + noise(3 * number) for number, value in enumerate(LOW)]


def found(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "sweep.json").read_text())


def test_refusals_have_a_table_of_their_own_beside_the_measures(tmp_path: Path) -> None:
    points = [point(tmp_path, "a", LOW, refusals=0.25), point(tmp_path, "b", HIGH, refusals=0.5)]
    text = " ".join(sweep_report.write(tmp_path / "sweep", points, None).split())
    assert "| Point | Refusals |" in text
    assert "| 2 | 50.0 % [40.0, 60.0] |" in text
    assert [one["ppo"]["refusal_rate"]["mean"] for one in found(tmp_path / "sweep")["points"]] == [0.25, 0.5]
    alone = sweep_report.write(tmp_path / "none", [point(tmp_path, "c", LOW), point(tmp_path, "d", HIGH)], None)
    assert "Refusals" not in alone


def test_the_best_point_is_named_with_each_difference_paired_by_prompt(tmp_path: Path) -> None:
    points = [point(tmp_path, "a", LOW), point(tmp_path, "b", HIGH)]
    text = sweep_report.write(tmp_path / "sweep", points, None)
    assert "Best of 2 points by judge's reward: point 2, above all others." in text.replace("\n", " ")
    first, second = found(tmp_path / "sweep")["points"]
    assert first["best_minus_this"] == {
        "mean": pytest.approx(1),
        "low": pytest.approx(1),
        "high": pytest.approx(1),
        "n": 40,
    }
    assert second["best_minus_this"] is None
    assert "2: b  best" in text
    assert (tmp_path / "sweep" / "sweep.png").stat().st_size > 0
    assert (tmp_path / "sweep" / "sweep.md").read_text() == text


def test_a_point_that_may_be_as_good_is_named_and_intervals_widen_with_the_number_of_points(tmp_path: Path) -> None:
    pair = [point(tmp_path / "1", "a", NEAR), point(tmp_path / "1", "b", HIGH)]
    text = sweep_report.write(tmp_path / "two", pair, "judge")
    assert "not distinguishable from point" in text
    many = [*pair, *(point(tmp_path / "2", f"c{number}", LOW) for number in range(8))]
    sweep_report.write(tmp_path / "ten", many, "judge")

    def width(directory: str) -> float:
        rows = found(tmp_path / directory)["points"][:2]
        (difference,) = [one["best_minus_this"] for one in rows if one["best_minus_this"] is not None]
        return difference["high"] - difference["low"]

    # 95 % against 1 - 0.05 / 9 = 99.44 %: quantiles of the normal 1.96 and 2.77
    assert width("ten") / width("two") == pytest.approx(2.77 / 1.96, rel=0.1)


def test_a_point_that_failed_or_was_stopped_is_a_row_that_says_so(tmp_path: Path) -> None:
    points = [point(tmp_path, "a", LOW, stopped="KL 60"), point(tmp_path, "b", None), point(tmp_path, "c", HIGH)]
    text = sweep_report.write(tmp_path / "sweep", points, None)
    assert "1: a  stopped by the guard: KL 60" in text
    assert "2: b  failed: ppo: out of memory" in text
    assert "3: c  best" in text
    assert found(tmp_path / "sweep")["points"][1]["ppo"] is None


def test_points_with_different_judges_and_no_utility_have_no_best(tmp_path: Path) -> None:
    points = [point(tmp_path, "a", LOW, "judge-1"), point(tmp_path, "b", HIGH, "judge-2")]
    text = sweep_report.write(tmp_path / "sweep", points, None)
    assert "No point is called the best: the points have different judges" in text
    assert found(tmp_path / "sweep")["best"] is None


def test_a_measure_that_a_point_lacks_names_no_best(tmp_path: Path) -> None:
    text = sweep_report.write(tmp_path / "sweep", [point(tmp_path, "a", LOW), point(tmp_path, "b", HIGH)], "utility")
    assert "not every point has a utility" in text


def test_one_point_with_figures_is_not_compared(tmp_path: Path) -> None:
    points = [point(tmp_path, "a", LOW), point(tmp_path, "b", None)]
    assert "1 of 2 points have figures" in sweep_report.write(tmp_path / "sweep", points, None)


def test_the_table_fits_a_terminal(tmp_path: Path) -> None:
    points = [point(tmp_path, "a", LOW), point(tmp_path, "b", HIGH)]
    for one in points:
        assert dataclasses.is_dataclass(one)
    text = sweep_report.write(tmp_path / "sweep", points, None)
    assert max(map(len, text.splitlines())) <= 100


def test_a_prompt_with_a_line_separator_is_one_prompt(tmp_path: Path) -> None:
    points = [point(tmp_path, name, judged, prompt="a\u2028b") for name, judged in (("a", LOW), ("b", HIGH))]
    assert "point 2, above all others" in sweep_report.write(tmp_path / "sweep", points, None).replace("\n", " ")


def test_a_point_with_other_prompts_is_not_said_to_be_worse(tmp_path: Path) -> None:
    points = [point(tmp_path, "a", LOW, prompt="other"), point(tmp_path, "b", HIGH)]
    text = sweep_report.write(tmp_path / "sweep", points, None).replace("\n", " ")
    assert "point 2, not distinguishable from point 1" in text


def seeded(root: Path, method: str, judged: Sequence[Sequence[float]], work_s: float) -> Built:
    """A point of a method whose answers have these judge's rewards, one a prompt, for each seed."""
    plans = []
    for seed, values in enumerate(judged):
        stages = {
            name: Stage(
                name, root / f"{name}-{method if name in (method, 'evaluate') else ''}-{seed}", {"seed": seed}, {}
            )
            for name in ("reward", "judge", method, "evaluate")
        } | {name: Stage(name, root / name, {}, {}) for name in ("reward", "judge")}
        for name in (method, "evaluate"):
            stages[name].directory.mkdir(parents=True)
        answers = [{"judge_reward": value, "reward": 2 * value, "utility": None} for value in values]
        lines = [
            {"group": "heldout", "prompt": str(number), "answers": {method: one}} for number, one in enumerate(answers)
        ]
        samples = "".join(f"{json.dumps(line)}\n" for line in lines)
        (stages["evaluate"].directory / "samples.jsonl").write_text(samples)
        mean = sum(values) / len(values)
        of_method = {"judge_reward": estimate(mean), "reward": estimate(2 * mean), "utility": None}
        # scores of the same answers round by the batch that they are in
        models = {method: of_method, "best_of_n": {"judge_reward": estimate(0.25 + 1e-9 * len(method))}}
        write_manifest(stages["evaluate"], {"metrics": {"models": models}})
        took = {"ppo": {"episodes": 96, "episodes_per_update": 48}, "rloo": {"episodes": 96, "generated_tokens": 700}}
        write_manifest(stages[method], {"metrics": {"stopped": None, **took[method]}, "work_s": work_s + seed})
        logged = '{"step": 1, "answer/tokens": 5.0}\n{"step": 2, "answer/tokens": 7.0}\n'
        (stages[method].directory / "metrics.jsonl").write_text(logged)
        plans.append(stages)
    settings = dataclasses.replace(COMPOSED.settings, method=method)
    return Built(f"method={method}", Run(settings, (), COMPOSED.values, tuple(plans)), None)


def test_methods_are_compared_by_the_mean_over_their_seeds_beside_what_they_took_and_best_of_n(tmp_path: Path) -> None:
    low, high = [0.0] * 20, [1.0] * 20
    points = [seeded(tmp_path, "ppo", [low, high], 10.0), seeded(tmp_path, "rloo", [high, high], 20.0)]
    text = sweep_report.write(tmp_path / "sweep", points, None)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    table = {row[0]: row[1:] for row in rows}
    assert table["Judge's reward: PPO"] == ["0.50 [0.00, 1.00]", "0.71", "2"]  # SD of 0 and 1: sqrt(1/2)
    assert table["Judge's reward: best of n"][0] == "0.25 [0.15, 0.35]"
    assert table["Tokens sampled: PPO"][0] == str(48 * 5 + 48 * 7)
    assert table["Tokens sampled: RLOO"][0] == "700"
    assert table["Training: PPO"][0] == "10.5 s"
    ppo, rloo = found(tmp_path / "sweep")["points"]
    assert ppo["best_minus_this"]["mean"] == pytest.approx(0.5)
    assert rloo["best_minus_this"] is None
    assert rloo["cost"]["work_s"] == 20.5
    assert rloo["rloo"]["judge_reward"]["sd"] == 0
