import copy
from typing import Any

import pytest

from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.evidence.terminal import found, story, tables
from gpt2_rlhf.evidence.verdict import verdict


def estimate(mean: float, half_width: float = 0.1, n: int = 256) -> dict[str, float]:
    return {"mean": mean, "low": mean - half_width, "high": mean + half_width, "n": n}


def model(reward: float, rival: float | None, kl: float) -> dict[str, Any]:
    wins = None if rival is None else estimate(rival, 0.05)
    return {
        "reward": estimate(reward),
        "judge_reward": estimate(reward + 0.5),
        "utility": estimate(reward - 1),
        **{f"win_rate_vs_{rival}{by}": wins for rival in ("base", "sft") for by in ("", "_by_judge", "_by_utility")},
        "answer_tokens": estimate(31.5, 1.25),
        "eos_rate": estimate(0.875, 0.03125),
        "distinct_2": estimate(0.9, 0.05),
        "kl_to_sft_nats": estimate(kl),
        "chosen_perplexity": estimate(8.5, 0.25),
    }


def outcomes(win: float) -> dict[str, Any]:
    return {"win": estimate(win, 0.05), "tie": estimate(0.1, 0.05), "loss": estimate(0.9 - win, 0.05)}


def pair(reward: float, win: float) -> dict[str, Any]:
    return {
        "reward": estimate(reward),
        "reward_sd": estimate(reward / 2, 0.05),
        "judge_reward": estimate(reward - 0.25),
        "utility": estimate(-reward),
        "by_reward": outcomes(win),
        "by_judge": outcomes(win - 0.1),
        "length_matched": {**outcomes(win - 0.2), "pairs": 31},
    }


def in_subset(reward: float, prompts: int) -> dict[str, Any]:
    means = {"reward": reward, "judge_reward": reward - 0.25, "utility": -reward}
    return {name: estimate(mean, n=prompts) for name, mean in means.items()}


def reward_model(accuracy: float) -> dict[str, Any]:
    return {
        "accuracy": {"mean": accuracy, "low": 0.683, "high": 0.761, "n": 512},
        "baselines": {
            "chance": 0.5,
            "longer_answer_wins": {"mean": 0.551, "low": 0.508, "high": 0.594, "n": 512},
            "best_reachable": 0.843,
        },
        "by_subset": {
            "helpful": {"accuracy": estimate(0.7, n=300), "longer_answer_wins": estimate(0.6, n=300)},
            "harmless": {"accuracy": estimate(0.8, n=212), "longer_answer_wins": estimate(0.4, n=212)},
        },
        "margin": estimate(1.0, n=512),
        "calibration": {"bins": [], "expected_error": estimate(0.0625, 0.03125, n=512)},
        "length_bias": {
            "correlation": estimate(0.4, n=512),
            "accuracy_chosen_longer": estimate(0.875, 0.0625, n=280),
            "accuracy_chosen_shorter": estimate(0.5, 0.0625, n=200),
        },
        "score_mean": 0.0,
        "score_std": 1.0,
        "pairs": 512,
        "test_pairs": 512,
    }


SUMMARY: dict[str, Any] = {
    "run": "quickstart",
    "seed": 7,
    "stages": {
        "sft": {"directory": "outputs/stages/sft-0123456789ab", "wall_s": 20.25, "work_s": 18.5, "reused": True},
        "evaluate": {
            "directory": "outputs/stages/evaluate-abcdef012345",
            "wall_s": 1234.5,
            "work_s": 8.0,
            "reused": False,
        },
    },
    "sft": {
        "heldout_loss_before": estimate(3.25, n=512),
        "heldout_loss_after": estimate(1.75, n=512),
        "test_pairs": 512,
    },
    "reward_model": reward_model(0.724),
    "judge": reward_model(0.71),
    "ppo": {
        "prompts": 1000,
        "episodes": 1536,
        "updates": 24,
        "kept_update": 24,
        "stopped": None,
        "heldout": None,
        "forced": [],
        "judge_fault": None,
    },
    "seeds": None,
    "evaluation": {
        "prompts": 256,
        "seed": 3,
        "temperature": 0.7,
        "max_new_tokens": 48,
        "best_of": 4,
        "models": {
            "base": model(-0.5, None, 4.0),
            "sft": model(0.75, 0.8, 0.0),
            "ppo": model(1.5, 0.9, 6.5),
            "best_of_n": {**model(1.25, 0.85, 0.0), "kl_to_sft_nats": None, "kl_bound_nats": 0.636},
        },
        "paired": {
            "sft_minus_base": pair(1.25, 0.7),
            "ppo_minus_sft": pair(0.75, 0.6),
            "ppo_minus_base": pair(2.0, 0.8),
            "ppo_minus_best_of_n": pair(0.25, 0.5),
        },
        "by_subset": {
            "helpful": {"prompts": 188, "ppo_minus_sft": in_subset(0.5, 188)},
            "multi-turn": {"prompts": 51, "ppo_minus_sft": in_subset(1.0, 51)},
        },
    },
}


def cells(text: str, label: str) -> list[str]:
    """The cells of the first row that starts with `label`, the label left out."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if "|" in line]
    return next(rest for first, *rest in rows if first == label)


def test_no_line_is_wider_than_100_columns_even_for_wide_figures():
    wide = copy.deepcopy(SUMMARY)
    for figures in wide["evaluation"]["models"].values():
        figures["reward"] = estimate(-123.456, 10)
        figures["answer_tokens"] = estimate(255.5, 10)
        figures["chosen_perplexity"] = estimate(50257.25, 1000)
    for figures in wide["evaluation"]["paired"].values():
        figures["reward"] = figures["judge_reward"] = estimate(-123.456, 10)
    long_name = {"helpful-rejection-sampled": wide["evaluation"]["by_subset"]["helpful"]}
    long_name["helpful-rejection-sampled"]["ppo_minus_sft"]["reward"] = estimate(-123.456, 10)
    wide["evaluation"]["by_subset"] |= long_name
    for text in (tables(SUMMARY), tables(wide)):
        assert max(map(len, text.splitlines())) <= 100
        assert "\u2026" not in text  # nothing cut short
    assert cells(tables(wide), "Reward")[0] == "-123.5 [-133.5, -113.5]"
    assert cells(tables(wide), "Perplexity")[0] == "50257 [49257, 51257]"


def test_text_is_plain_ascii_for_any_terminal_and_log(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "40")
    text = tables(SUMMARY) + story(SUMMARY)
    assert text.isascii()
    assert "\x1b" not in text
    assert text == tables(SUMMARY) + story(SUMMARY)


def test_each_model_has_its_column_of_mean_and_interval():
    text = tables(SUMMARY, "models")
    assert cells(text, "Mean per answer") == ["Base", "SFT", "PPO"]
    assert cells(text, "Reward") == ["-0.50 [-0.60, -0.40]", "0.75 [0.65, 0.85]", "1.50 [1.40, 1.60]"]
    assert cells(text, "Utility")[2] == "0.50 [0.40, 0.60]"
    assert cells(text, "Wins vs base by reward") == ["-", "80.0 % [75.0, 85.0]", "90.0 % [85.0, 95.0]"]
    assert cells(text, "Length, tokens")[0] == "31.50 [30.25, 32.75]"
    assert cells(text, "Ended with EOS")[0] == "87.5 % [84.4, 90.6]"
    assert cells(text, "Distinct bigrams")[1] == "90.0 % [85.0, 95.0]"
    assert cells(text, "KL to SFT, nats")[2] == "6.50 [6.40, 6.60]"
    assert cells(text, "Judge's reward")[0] == "0.00 [-0.10, 0.10]"
    assert cells(text, "Perplexity") == ["8.50 [8.25, 8.75]"] * 3


def labels(text: str, start: str) -> list[str]:
    """The labels that start so, in the order of the rows."""
    return [one for line in text.splitlines() if (one := line.strip("|").split("|")[0].strip()).startswith(start)]


def test_win_rates_are_side_by_side_and_first_the_one_that_ppo_was_not_trained_on():
    known = copy.deepcopy(SUMMARY)
    del known["evaluation"]["models"]["best_of_n"], known["evaluation"]["paired"]["ppo_minus_best_of_n"]
    by_all = [f"Wins vs SFT by {by}" for by in ("utility", "judge", "reward")]
    assert labels(tables(known), "Wins vs SFT") == by_all
    assert labels(tables(known), "Wins vs base") == [label.replace("SFT", "base") for label in by_all]
    for unknown, left in (("utility", by_all[1:]), ("judge", by_all[2:])):
        for figures in known["evaluation"]["models"].values():
            figures |= {f"win_rate_vs_{rival}_by_{unknown}": None for rival in ("base", "sft")}
        assert labels(tables(known), "Wins vs SFT") == left
    for figures in known["evaluation"]["models"].values():  # of an evaluation by an older version
        for rival in ("base", "sft"):
            del figures[f"win_rate_vs_{rival}_by_judge"], figures[f"win_rate_vs_{rival}_by_utility"]
    assert labels(tables(known), "Wins vs SFT") == by_all[2:]


def test_reward_model_accuracy_stands_beside_its_baselines():
    text = tables(SUMMARY)
    rows = text[text.index("| Held-out pairs ") :]
    assert cells(rows, "Reward model") == ["72.4 % [68.3, 76.1]", "55.1 % [50.8, 59.4]", "50.0 %", "84.3 %", "512"]
    assert cells(rows, "Judge")[::4] == ["71.0 % [68.3, 76.1]", "512"]
    assert cells(rows, "Reward model: harmless")[::4] == ["80.0 % [70.0, 90.0]", "212"]


def test_the_reward_models_confidence_and_length_bias_are_told_with_their_pairs():
    text = tables(SUMMARY)
    rows = text[text.index("| Calibration and length bias ") :]
    assert cells(rows, "Calibration and length bias") == ["Reward model", "Judge", "n"]
    assert cells(rows, "Calibration error")[::2] == ["6.2 % [3.1, 9.4]", "512"]
    assert cells(rows, "Correlation of score and length")[0] == "0.40 [0.30, 0.50]"
    assert cells(rows, "Accuracy, chosen answer longer")[::2] == ["87.5 % [81.2, 93.8]", "280"]
    assert cells(rows, "Accuracy, chosen answer shorter")[::2] == ["50.0 % [43.8, 56.2]", "200"]


def test_what_is_unknown_of_one_model_is_a_dash_and_of_all_has_no_row():
    unknown = copy.deepcopy(SUMMARY)
    unknown["reward_model"]["baselines"]["best_reachable"] = None
    unknown["reward_model"]["length_bias"] = dict.fromkeys(unknown["reward_model"]["length_bias"])
    unknown["judge"] = None
    for figures in unknown["evaluation"]["models"].values():
        figures["utility"] = figures["judge_reward"] = None
    for one in unknown["evaluation"]["paired"].values():
        one["utility"] = one["judge_reward"] = one["by_judge"] = one["length_matched"] = one["reward_sd"] = None
    text = tables(unknown)
    assert cells(text[text.index("| Held-out pairs ") :], "Reward model")[3] == "-"
    assert cells(text, "Wins vs base by reward")[0] == "-"
    for label in (
        "Judge",
        "Utility",
        "Judge's reward",
        "Reward, in SD",
        "Judge: rose",
        "Matched: rose",
        "Matched pairs",
    ):
        assert f"| {label} " not in text


def test_stages_say_seconds_and_whether_they_ran():
    text = tables(SUMMARY)
    assert cells(text, "sft")[:3] == ["20.2 s", "18.5 s", "re-used"]
    assert cells(text, "evaluate") == ["1234.5 s", "8.0 s", "ran", "evaluate-abcdef012345"]


def test_differences_are_paired_by_prompt():
    text = tables(SUMMARY)
    rows = text[text.index("| Paired difference") :]
    assert cells(rows, "Paired difference") == ["PPO - SFT", "SFT - base", "PPO - base"]
    assert cells(rows, "Reward") == ["0.75 [0.65, 0.85]", "1.25 [1.15, 1.35]", "2.00 [1.90, 2.10]"]
    assert cells(rows, "Reward, in SD")[1] == "0.62 [0.57, 0.68]"
    assert cells(rows, "Utility")[0] == "-0.75 [-0.85, -0.65]"
    assert cells(rows, "Reward rose")[0] == "60.0 % [55.0, 65.0]"
    assert cells(rows, "Reward fell")[0] == "30.0 % [25.0, 35.0]"
    assert cells(rows, "Judge: rose")[0] == "50.0 % [45.0, 55.0]"
    assert cells(rows, "Matched: rose")[0] == "40.0 % [35.0, 45.0]"
    assert cells(rows, "Matched pairs") == ["31", "31", "31"]


def test_best_of_n_is_compared_with_ppo_where_it_was_evaluated():
    text = tables(SUMMARY)
    best, pair = (text[text.rindex(f"| {title} ") :] for title in ("Mean per answer", "Paired difference"))
    assert cells(best, "Mean per answer")[0] == "Best of 4"
    assert cells(best, "Reward")[0] == "1.25 [1.15, 1.35]"
    assert cells(best, "KL bound, nats")[0] == "0.64"
    assert cells(pair, "Paired difference")[0] == "PPO - best of 4"
    assert cells(pair, "Reward")[0] == "0.25 [0.15, 0.35]"
    assert cells(pair, "Reward rose")[0] == "50.0 % [45.0, 55.0]"
    without = copy.deepcopy(SUMMARY)
    del without["evaluation"]["models"]["best_of_n"], without["evaluation"]["paired"]["ppo_minus_best_of_n"]
    assert "est of 4" not in tables(without)


def test_each_subset_says_how_many_prompts_it_has():
    text = tables(SUMMARY)
    rows = text[text.index("| Subset ") :]
    assert cells(rows, "helpful") == ["0.50 [0.40, 0.60]", "0.25 [0.15, 0.35]", "188"]
    assert cells(rows, "multi-turn")[-1] == "51"
    by_utility = rows[rows.index("| Subset ", 1) :]
    assert cells(by_utility, "helpful") == ["-0.50 [-0.60, -0.40]", "188"]


def test_seed_prompts_and_kind_of_interval_are_stated():
    text = " ".join(tables(SUMMARY).split())
    assert "Run quickstart, seed 7" in text
    assert "the same 256 held-out prompts: n = 256 for each figure without another" in text
    assert "sampled with seed 3, temperature 0.7, at most 48 tokens" in text
    assert "95 % intervals: bootstrap over prompts" in text
    assert cells(tables(SUMMARY), "Loss, nats per token") == ["3.25 [3.15, 3.35]", "1.75 [1.65, 1.85]", "512"]


@pytest.mark.parametrize(("stage", "key"), [("sft", "sft"), ("reward", "reward_model")])
def test_a_figure_on_some_of_the_test_pairs_says_how_many(stage: str, key: str):
    line = found(stage, {**SUMMARY[key], "test_pairs": 8552})
    assert line.endswith(" (512 of 8552 pairs)")


def test_length_alone_is_the_better_of_longer_and_shorter() -> None:
    report = SUMMARY["reward_model"]
    shorter = {**report, "baselines": {**report["baselines"], "longer_answer_wins": {"mean": 0.375}}}
    assert "length alone on 62.5 %" in found("reward", shorter)


def test_each_stage_says_in_one_line_of_80_columns_what_it_found():
    sides = {
        "train": {"kept": 99954, "dropped": {"same": 30, "empty": 1}},
        "test": {"kept": 8552, "dropped": {"same": 9}},
    }
    lines = {
        "data": found("data", sides),
        "sft": found("sft", SUMMARY["sft"]),
        "reward": found("reward", SUMMARY["reward_model"]),
        "evaluate": found("evaluate", SUMMARY["evaluation"]),
    }
    assert lines == {
        "data": "99954 training, 8552 test pairs; 40 left out (`make data`)",
        "sft": "held-out loss 3.25 -> 1.75 nats per token",
        "reward": "right on 72.4 % of held-out pairs, length alone on 55.1 %",
        "evaluate": "4 models answered 256 held-out prompts",
    }
    ppo = {"episodes": 1536, "updates": 12, "heldout": None}
    assert found("ppo", ppo) == "12 updates"
    unknown = {"judge_reward": None, "utility": None}
    heldout = {"start": {"reward": estimate(0.5), **unknown}, "kept": {"reward": estimate(1.5), **unknown}}
    assert found("ppo", {**ppo, "heldout": heldout}) == "held-out reward 0.50 -> 1.50"
    with_judge = {name: {**one, "judge_reward": estimate(-0.5)} for name, one in heldout.items()}
    of_both = found("ppo", {**ppo, "heldout": with_judge})
    assert of_both == "held-out judge's reward -0.50 -> -0.50, reward 0.50 -> 1.50"
    assert found("ppo", {**ppo, "heldout": {**heldout, "kept": None}}) == "12 updates"
    for name, line in {**lines, "ppo": of_both}.items():
        assert len(f"{name} done in 999 s: {line}") <= 80


def test_faults_stand_in_the_story_below_the_verdict():
    forced = {"forced": ["reward: no better than chance; give it more pairs"]}
    stopped = {"stopped": "update 12: KL too high", "kept_update": 8}
    text = " ".join(story({**SUMMARY, "ppo": {**SUMMARY["ppo"], **forced, **stopped}}).split())
    assert "A gate failed, and force=true continued the run: no better than chance." in text
    assert "The guard stopped PPO: update 12: KL too high. The policy of update 8 was handed on." in text
    assert not {"force=true", "guard", "collapsed"} & set(story(SUMMARY).split())


def test_the_story_is_the_verdict_and_one_table_of_at_most_eight_rows_in_80_columns():
    text = story(SUMMARY)
    assert " ".join(text.split()).startswith(verdict(SUMMARY))
    assert max(map(len, text.splitlines())) <= 80
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) <= 2 + 8
    assert cells(text, "Utility, true quality") == ["-1.50", "-0.25", "0.50", "-0.75 [-0.85, -0.65]"]
    assert cells(text, "PPO's answer is better")[-1] == "90.0 % [85.0, 95.0]"
    assert cells(text, "Answers that end")[2] == "87.5 %"


def test_an_interval_in_the_story_is_never_broken_over_two_lines():
    for length in range(40):  # of what comes before
        reason = f"{'x' * length} reward 1.00 [-0.25, 1.25]"
        text = story({**SUMMARY, "ppo": {**SUMMARY["ppo"], "stopped": reason, "kept_update": 8}})
        assert "[-0.25, 1.25]" in text


def test_one_table_can_be_chosen_and_an_unknown_name_lists_the_names():
    chosen = tables(SUMMARY, "reward_model")
    assert cells(chosen, "Reward model")[4] == "512"
    assert "Paired difference" not in chosen
    with pytest.raises(UserError, match="table: there is no 'x'; expected one of overview, stages, sft, reward_model,"):
        tables(SUMMARY, "x")


def test_several_seeds_are_a_table_of_their_spread_and_a_line_on_those_that_failed():
    over = {"mean": 1.5, "sd": 0.25, "min": 1.25, "max": 1.75, "n": 2}
    share = {"mean": 0.75, "sd": 0.05, "min": 0.7, "max": 0.8, "n": 2}
    seeds = {
        "by_seed": [
            {"seed": 0, "collapsed": None, "stopped": None, "kept_update": 24},
            {"seed": 4, "collapsed": "EOS rate 0.010", "stopped": "update 12: KL too high", "kept_update": 8},
        ],
        "collapsed": [4],
        "stopped": [4],
        "over_seeds": {"reward": over, "utility": None, "win_rate_vs_sft": share},
    }
    text = tables({**SUMMARY, "seeds": seeds})
    rows = text[text.index("PPO over seeds") :]
    assert cells(rows, "Reward") == ["1.50", "0.25", "1.25", "1.75", "2"]
    assert cells(rows, "Wins vs SFT by reward") == ["75.0 %", "5.0 %", "70.0 %", "80.0 %", "2"]
    assert "| Utility" not in rows
    line = "1 of 2 seeds collapsed. Seed 4 collapsed: EOS rate 0.010. Seed 4: the guard stopped PPO and kept update 8."
    assert line in " ".join(story({**SUMMARY, "seeds": seeds}).split())
