import copy
import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import pytest
import yaml
from huggingface_hub import ModelCard

from gpt2_rlhf import pipeline, publish
from gpt2_rlhf.config import compose
from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.evidence import card, card_training, summary, verdict
from helpers import card_run
from helpers.local_hub import card_rules

NUMBER = r"-?\d+(?:\.\d+)?"
FIGURE = re.compile(rf"({NUMBER})( %)? \[({NUMBER}), ({NUMBER})\]")
MEANS = {"Utility": "utility", "Judge's reward": "judge_reward", "Reward": "reward"}  # first what PPO does not train on
WINS_VS_SFT, WINS_VS_BASE = (
    {
        f"Wins vs {label} by utility": f"win_rate_vs_{rival}_by_utility",
        f"Wins vs {label} by judge": f"win_rate_vs_{rival}_by_judge",
        f"Wins vs {label} by reward": f"win_rate_vs_{rival}",
    }
    for label, rival in (("SFT", "sft"), ("base", "base"))
)
HUB = ["experiment=gpt2_hh_500"]


@pytest.fixture(scope="module")
def records() -> dict[str, Any]:
    return card_run.records()


@pytest.fixture(scope="module")
def cards(records: dict[str, Any]) -> dict[str, str]:
    """The three cards of the bundled run, by folder."""
    return {
        folder: card.render(compose.load([]).settings, card_run.run(records), folder) for folder in card.folders("ppo")
    }


def table(text: str, header: str) -> dict[str, list[str]]:
    """Cells by row of the table whose first header this is, the header's own row included."""
    lines = iter(text.splitlines())
    rows = [next(line for line in lines if line.startswith(f"| {header} |"))]
    for line in lines:
        if not line.startswith("|"):
            break
        rows.append(line)
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows]
    return {first: rest for first, *rest in cells if first != "---"}


def assert_shows(cell: str, estimate: Mapping[str, float] | None) -> None:
    """The cell has the estimate's mean and both ends, to the decimals that it has."""
    if estimate is None:
        assert cell == "-"
        return
    found = FIGURE.fullmatch(cell)
    assert found is not None, cell
    for text, key in ((found[1], "mean"), (found[3], "low"), (found[4], "high")):
        decimals = len(text.partition(".")[2])
        value = estimate[key] * (100 if found[2] else 1)
        assert float(text) == pytest.approx(value, abs=0.5001 * 10**-decimals)


def one_line(text: str) -> str:
    return " ".join(text.split())


def with_ppo(records: dict[str, Any], **metrics: Any) -> dict[str, Any]:
    changed = copy.deepcopy(records)
    changed["ppo"]["metrics"] |= metrics
    return changed


def test_the_cards_of_a_model_with_a_chat_template_use_it(records: dict[str, Any]) -> None:
    chat = copy.deepcopy(records)
    chat["data"]["metrics"]["answers"] = {"start": " ", "end": "</s>"}
    settings = compose.load(["data.template=chat"]).settings
    model, reward = (card.render(settings, card_run.run(chat), folder) for folder in ("model", "reward_model"))
    for text in (model, reward):
        assert "prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)" in text
        assert "add_special_tokens=False" in text  # the template has its own
        assert 'prompt = "\\n\\nHuman' not in text
    assert 'for answer in (" Listen first, then ask a question.", " No."):' in reward
    (asked,) = ModelCard(model).data.to_dict()["widget"][0]["messages"]
    assert asked == {"role": "user", "content": "example 1"}


@pytest.mark.parametrize("folder", card.folders("ppo"))
def test_the_own_classes_of_the_hub_read_the_card(cards: dict[str, str], folder: str, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(cards[folder], encoding="utf-8")
    data = ModelCard.load(tmp_path / "README.md").data
    assert (data.license, data.library_name) == ("mit", "transformers")  # type: ignore[attr-defined]
    assert {"rlhf", "reinforcement-learning-from-human-feedback", "human-preferences"} < set(data.tags)  # type: ignore[attr-defined]
    assert (card_rules.errors(cards[folder]), card_rules.warnings(cards[folder])) == ([], [])
    assert ("ppo" in data.tags) == (folder == "model")  # type: ignore[attr-defined]
    assert data.pipeline_tag == ("text-classification" if folder == "reward_model" else "text-generation")  # type: ignore[attr-defined]


def test_the_model_index_holds_the_manifests_figures_unrounded(cards: dict[str, str], records: dict[str, Any]) -> None:
    sft, ppo = (records["evaluate"]["metrics"]["models"][name] for name in ("sft", "ppo"))
    expected = {
        "model": [
            *((label, ppo[key]) for label, key in (MEANS | WINS_VS_SFT | WINS_VS_BASE).items()),
            ("KL to SFT, nats", ppo["kl_to_sft_nats"]),
        ],
        "sft_model": [
            ("Loss on chosen answers, nats per token", records["sft"]["metrics"]["heldout_loss_after"]),
            *((label, sft[key]) for label, key in (MEANS | WINS_VS_BASE).items()),
        ],
        "reward_model": [("Accuracy on held-out pairs", records["reward"]["metrics"]["accuracy"])],
    }
    for folder, figures in expected.items():
        found = ModelCard(cards[folder]).data.eval_results  # type: ignore[attr-defined]
        assert [one.metric_name.partition(": ")[0] for one in found] == [name for name, _ in figures]
        for one, (_, estimate) in zip(found, figures, strict=True):
            assert {"mean": one.metric_value, **one.metric_args} == estimate
            shown, _, n = one.metric_name.partition(": ")[2].partition(", n = ")
            assert_shows(shown, estimate)
            assert int(n) == estimate["n"]
            assert (one.dataset_type, one.dataset_split, one.verified) == ("generated", "test", None)


def test_every_mean_in_the_card_is_that_of_the_manifest(cards: dict[str, str], records: dict[str, Any]) -> None:
    models = records["evaluate"]["metrics"]["models"]
    rows = table(cards["model"], "Mean per answer")
    assert rows.pop("Mean per answer") == ["Base", "SFT", "PPO", "Best of 4", "n"]
    keys = {
        **MEANS,
        **WINS_VS_SFT,
        **WINS_VS_BASE,
        "Length, tokens": "answer_tokens",
        "Ended with EOS": "eos_rate",
        "Distinct bigrams": "distinct_2",
        "Refusals": "refusal_rate",
        "KL to SFT, nats": "kl_to_sft_nats",
        "Perplexity": "chosen_perplexity",
    }
    assert rows.pop("KL bound, nats") == ["-", "-", "-", "0.64", "-"]  # log 4 - 3/4 = 0.636
    assert list(rows) == list(keys)
    for label, cells in rows.items():
        for cell, name in zip(cells, ("base", "sft", "ppo", "best_of_n"), strict=False):
            assert_shows(cell, models[name][keys[label]])
        assert cells[-1] == str(card_run.PROMPTS)


def test_every_difference_in_the_card_is_that_of_the_manifest(cards: dict[str, str], records: dict[str, Any]) -> None:
    paired = records["evaluate"]["metrics"]["paired"]
    rows = table(cards["model"], "Paired difference")
    assert rows.pop("Paired difference") == ["PPO - SFT", "SFT - base", "PPO - base", "PPO - best of 4", "n"]
    pairs = [paired[f"{name}"] for name in ("ppo_minus_sft", "sft_minus_base", "ppo_minus_base", "ppo_minus_best_of_n")]
    matched = [str(pair["length_matched"]["pairs"]) for pair in pairs]
    assert rows.pop("Matched pairs") == [*matched, "-"]
    paths = {
        "Utility": ("utility",),
        "Judge's reward": ("judge_reward",),
        "Reward": ("reward",),
        "Reward, in SD": ("reward_sd",),
    }
    for by, key in (("Judge:", "by_judge"), ("Reward", "by_reward"), ("Matched:", "length_matched")):
        paths |= {f"{by} rose": (key, "win"), f"{by} unchanged": (key, "tie"), f"{by} fell": (key, "loss")}
    paths |= {"Refusals": ("refusal_rate",)}
    assert list(rows) == list(paths)
    for label, cells in rows.items():
        estimates = []
        for pair in pairs:
            found = pair
            for key in paths[label]:
                found = found[key]
            estimates.append(found)
        for cell, estimate in zip(cells, estimates, strict=False):
            assert_shows(cell, estimate)
        counts = [str(estimate["n"]) for estimate in estimates]
        assert cells[-1] == (counts[0] if len(set(counts)) == 1 else ", ".join(counts))


def test_subsets_are_those_of_the_manifest_also_with_a_name_that_would_break_the_table(
    cards: dict[str, str], records: dict[str, Any]
) -> None:
    rows = table(cards["model"], "Subset")
    for name, row in (("help|ful", "help\\|ful"), ("harmless", "harmless")):
        subset = records["evaluate"]["metrics"]["by_subset"][name]
        assert_shows(rows[row][0], subset["models"]["sft"]["reward"])
        assert_shows(rows[row][1], subset["models"]["ppo"]["reward"])
        assert_shows(rows[row][2], subset["ppo_minus_sft"]["reward"])
        assert_shows(rows[row][3], subset["ppo_minus_sft"]["judge_reward"])
    assert [rows[row][-1] for row in ("help\\|ful", "harmless")] == ["10", "30"]


@pytest.mark.parametrize("folder", ["model", "reward_model"])
def test_the_accuracy_of_the_reward_model_stands_beside_its_baselines(
    cards: dict[str, str], records: dict[str, Any], folder: str
) -> None:
    rows = table(cards[folder], "Held-out pairs")
    for label, stage in (("Reward model", "reward"), ("Judge", "judge")):
        found = records[stage]["metrics"]
        assert_shows(rows[label][0], found["accuracy"])
        assert_shows(rows[label][1], found["baselines"]["longer_answer_wins"])
        assert rows[label][2:] == ["50.0 %", "84.0 %", "50"]
    assert_shows(rows["Reward model: help\\|ful"][0], records["reward"]["metrics"]["by_subset"]["help|ful"]["accuracy"])
    bias = table(cards[folder], "Calibration and length bias")
    for place, stage in enumerate(("reward", "judge")):
        found = records[stage]["metrics"]
        assert_shows(bias["Calibration error"][place], found["calibration"]["expected_error"])
        assert_shows(bias["Correlation of score and length"][place], found["length_bias"]["correlation"])
        assert_shows(bias["Accuracy, chosen answer longer"][place], found["length_bias"]["accuracy_chosen_longer"])
        assert_shows(bias["Accuracy, chosen answer shorter"][place], found["length_bias"]["accuracy_chosen_shorter"])


def test_the_card_of_the_reward_model_has_its_calibration_and_what_a_score_means(
    cards: dict[str, str], records: dict[str, Any]
) -> None:
    rows = table(cards["reward_model"], "Confidence of the reward model")
    bins = records["reward"]["metrics"]["calibration"]["bins"]
    assert len(rows) == 1 + len(bins)
    for cells, one in zip(list(rows.values())[1:], bins, strict=True):
        assert cells[0] == f"{100 * one['predicted']:.1f} %"
        assert_shows(cells[1], one["observed"])
        assert cells[2] == str(one["observed"]["n"])
    text = " ".join(cards["reward_model"].split())
    assert "Its 100 scores of held-out answers have mean -0.62 and standard deviation 1.75" in text  # two a pair
    assert "Only the difference between two answers to the same prompt has a meaning" in text


def test_the_sft_card_has_the_loss_before_and_after(cards: dict[str, str], records: dict[str, Any]) -> None:
    cells = table(cards["sft_model"], "SFT, held-out answers")["Loss, nats per token"]
    assert_shows(cells[0], records["sft"]["metrics"]["heldout_loss_before"])
    assert_shows(cells[1], records["sft"]["metrics"]["heldout_loss_after"])
    assert cells[2] == "9"
    assert table(cards["sft_model"], "Mean per answer")["Mean per answer"] == ["Base", "SFT", "n"]


def test_limits_come_before_results_and_each_stage_has_a_section(cards: dict[str, str]) -> None:
    common = ["Model description", "Limitations", "Training", "Results"]
    end = ["Use", "Technical details", "Reproduce", "Citation and acknowledgements"]
    stages = ["Stage 1: supervised fine-tuning", "Stage 2: reward model", "Stage 3: PPO"]
    assert re.findall(r"^## (.*)$", cards["model"], flags=re.MULTILINE) == [*common, "Samples", *end]
    for folder, shown in (("model", stages), ("sft_model", stages[:1]), ("reward_model", stages[:2])):
        assert re.findall(r"^### (Stage .*)$", cards[folder], flags=re.MULTILINE) == shown
    for folder in ("sft_model", "reward_model"):
        assert re.findall(r"^## (.*)$", cards[folder], flags=re.MULTILINE) == [*common, *end]


def test_tags_and_language_are_those_that_are_true_of_the_run(records: dict[str, Any]) -> None:
    always = {
        "rlhf",
        "reinforcement-learning-from-human-feedback",
        "chatgpt-style-training",
        "ppo",
        "supervised-fine-tuning",
        "human-preferences",
        "ai-alignment",
        "transformers",
    }
    cases: tuple[tuple[list[str], str, set[str], str | None], ...] = (
        (HUB, "gpt2", {"gpt2", "anthropic-hh-rlhf"}, "en"),
        (["model.name=/home/me/my-model", "data.path=/home/me/x.jsonl"], "llama", set(), None),
        ([], "gpt2", {"gpt2"}, "en"),
    )
    for overrides, model_type, more, language in cases:
        sources = dataclasses.replace(card_run.run(records), model_type=model_type)
        data = ModelCard(card.render(compose.load(overrides).settings, sources)).data
        assert set(data.tags) == always | more | {"trl"}  # type: ignore[attr-defined]
        assert data.language == language  # type: ignore[attr-defined]


def test_the_snippet_of_another_family_has_the_classes_that_load_it(records: dict[str, Any]) -> None:
    llama = dataclasses.replace(card_run.run(records), model_type="llama")
    text = card.render(compose.load(["model.name=/home/me/my-model"]).settings, llama)
    assert "from transformers import AutoModelForCausalLM, AutoTokenizer\n" in text
    assert "GPT2" not in text
    assert "radford2019language" not in text


def test_the_owner_s_four_claims_are_measured_or_said_not_to_be(cards: dict[str, str], records: dict[str, Any]) -> None:
    rows = table(cards["model"], "Performance")
    found = records["evaluate"]["metrics"]
    assert list(rows) == ["Performance", "Reward", "Wins against base", "Safety", "Helpfulness"]
    assert_shows(rows["Reward"][1], found["paired"]["ppo_minus_base"]["reward_sd"])
    assert_shows(rows["Wins against base"][1], found["models"]["ppo"]["win_rate_vs_base_by_utility"])
    harmless = found["by_subset"]["harmless"]
    assert_shows(rows["Safety"][1], harmless["ppo_minus_sft"]["utility"])
    for place, model in enumerate(("sft", "ppo"), start=2):
        assert_shows(rows["Safety"][place], harmless["models"][model]["refusal_rate"])
    assert rows["Helpfulness"] == ["the data have no subset for it", "not measured", "-", "-", "-"]


def test_safety_and_helpfulness_have_one_row_each_also_where_several_subsets_are_helpful(
    records: dict[str, Any],
) -> None:
    changed = copy.deepcopy(records)
    by_subset = changed["evaluate"]["metrics"]["by_subset"]
    by_subset |= {name: copy.deepcopy(by_subset["harmless"]) for name in ("helpful-base", "helpful-online")}
    by_subset["helpful, all"] = by_subset.pop("help|ful")
    rows = table(card.render(compose.load([]).settings, card_run.run(changed)), "Performance")
    assert list(rows) == ["Performance", "Reward", "Wins against base", "Safety", "Helpfulness"]
    assert rows["Helpfulness"][0] == "Utility, PPO - SFT, on prompts of helpful, all"
    assert_shows(rows["Helpfulness"][1], by_subset["helpful, all"]["ppo_minus_sft"]["utility"])


def test_refusals_of_each_model_stand_beside_those_of_the_chosen_answers(records: dict[str, Any]) -> None:
    changed = copy.deepcopy(records)
    found = changed["evaluate"]["metrics"]
    found["by_subset"]["helpful"] = found["by_subset"].pop("help|ful")
    text = card.render(compose.load([]).settings, card_run.run(changed))
    rows = table(text, "Share of answers")
    assert rows["Share of answers"][:-1] == ["Base", "SFT", "PPO", "Best of 4", "Chosen answers", "PPO - SFT"]
    places = {"Refusals": found, **{f"Refusals: {name}": found["by_subset"][name] for name in ("harmless",)}}
    places |= {"Over-refusals: helpful": found["by_subset"]["helpful"]}
    assert list(rows)[1:] == list(places)
    for label, at in places.items():
        change = at["paired"]["ppo_minus_sft"] if at is found else at["ppo_minus_sft"]
        estimates = [*(at["models"][name] for name in ("base", "sft", "ppo", "best_of_n")), at["chosen"], change]
        for shown, figures in zip(rows[label], estimates, strict=False):
            assert_shows(shown, figures["refusal_rate"])
    assert "Refusals are found by a list of English phrases" in one_line(text)
    assert "Toxic language" not in text
    found["toxicity"], found["models"]["ppo"]["toxic_rate"] = "some-classifier 1.0", card_run.estimate(0.5)
    assert "Toxic language is what some-classifier 1.0 finds" in one_line(
        card.render(compose.load([]).settings, card_run.run(changed))
    )


def test_the_card_of_a_run_that_was_evaluated_before_refusals_were_counted_has_no_table_of_them(
    records: dict[str, Any],
) -> None:
    changed = json.loads(json.dumps(records))
    found = changed["evaluate"]["metrics"]
    for figures in [*found["models"].values(), *found["paired"].values()]:
        del figures["refusal_rate"], figures["toxic_rate"]
    for subset in found["by_subset"].values():
        for figures in [*subset["models"].values(), subset["ppo_minus_sft"]]:
            del figures["refusal_rate"], figures["toxic_rate"]
        del subset["chosen"]
    del found["chosen"]
    text = card.render(compose.load([]).settings, card_run.run(changed))
    assert "| Share of answers |" not in text
    assert_shows(table(text, "Performance")["Safety"][1], found["by_subset"]["harmless"]["ppo_minus_sft"]["utility"])


def test_no_claim_is_measured_by_a_judge_at_chance(records: dict[str, Any]) -> None:
    changed = with_ppo(records, judge_fault="it is right on 50 % of pairs")
    found = changed["evaluate"]["metrics"]
    for figures in [*found["paired"].values(), *(one["ppo_minus_sft"] for one in found["by_subset"].values())]:
        figures["utility"] = None
    found["models"]["ppo"]["win_rate_vs_base_by_utility"] = None
    text = card.render(compose.load([]).settings, card_run.run(changed))
    rows = table(text, "Performance")
    assert rows["Wins against base"][0] == "Wins vs base by reward"
    assert_shows(rows["Wins against base"][1], found["models"]["ppo"]["win_rate_vs_base"])
    assert rows["Safety"][0] == "Reward, PPO - SFT, on prompts of harmless"
    assert "three of the held-out prompts by the change of reward" in one_line(text)


def test_technical_details_have_the_owner_s_five_values_and_link_the_base_model_at_its_commit() -> None:
    settings = compose.load(HUB).settings
    rows = table(card.render(settings, card_run.run(card_run.records(HUB))), "Technical details")
    assert rows["Learning rates"] == ["SFT 5e-05, reward model 1e-05, PPO 1e-05"]
    assert (rows["KL coefficient"], rows["Clip range"]) == (["0.1"], ["0.2"])
    name, commit = settings.model.name, settings.model.revision
    assert rows["Base model"] == [f"[{name} (revision {commit})](https://huggingface.co/{name}/tree/{commit})"]


def test_a_column_of_which_nothing_is_known_is_left_out(records: dict[str, Any]) -> None:
    changed = copy.deepcopy(records)
    for subset in changed["evaluate"]["metrics"]["by_subset"].values():
        subset["ppo_minus_sft"] |= {"utility": None, "judge_reward": None}
    rows = table(card.render(compose.load([]).settings, card_run.run(changed)), "Subset")
    assert rows["Subset"] == ["Reward, SFT", "Reward, PPO", "Reward, PPO - SFT", "n"]


def test_the_cards_of_the_two_models_link_each_other_at_the_branch(records: dict[str, Any]) -> None:
    both = ["publish.repo_id=ada/policy", "publish.reward_repo_id=ada/scorer", "publish.revision=seed-1"]
    settings = compose.load(both).settings
    for folder, other in (("model", "ada/scorer"), ("reward_model", "ada/policy"), ("sft_model", "ada/policy")):
        text = card.render(settings, card_run.run(records), folder)
        assert f"[{other}](https://huggingface.co/{other}/tree/seed-1)" in text
    assert "Of the same run" not in card.render(compose.load(both[:1]).settings, card_run.run(records))


def test_the_picture_of_the_training_is_among_the_results_and_the_others_are_folded(records: dict[str, Any]) -> None:
    pictures = [
        {"file": f"report/{name}.png", "title": f"Title of {name}", "alt": f"{name} rose by 1.00 [0.50, 1.50]"}
        for name in ("training", "one", "two")
    ]
    text = card.render(compose.load([]).settings, dataclasses.replace(card_run.run(records), pictures=pictures))
    images = [f"![{one['alt']}]({one['file']})\n*{one['title']}*" for one in pictures]
    fold = text.index("<details>\n<summary>More pictures")
    assert text.index("## Results") < text.index(images[0]) < fold < text.index(images[1]) < text.index(images[2])
    assert text.index(images[2]) < text.index("</details>", fold) < text.index("## Samples")
    alone = card.render(compose.load([]).settings, dataclasses.replace(card_run.run(records), pictures=pictures[:1]))
    assert images[0] in alone
    assert alone.count("<details>") == alone.count("</details>") == text.count("</details>") - 1


def test_the_results_begin_with_the_verdict_of_the_report(cards: dict[str, str], records: dict[str, Any]) -> None:
    found = summary.findings(records, None)
    assert f"## Results\n\n{verdict.verdict(found)}\n" in cards["model"]


def test_the_hub_shows_the_examples_as_the_model_of_the_card_answered_them(cards: dict[str, str]) -> None:
    examples = [one for one in card_run.samples() if one["group"] == "example"]
    for folder, stage in (("model", "ppo"), ("sft_model", "sft")):
        shown = ModelCard(cards[folder]).data.to_dict()["widget"]
        assert [one["text"] for one in shown] == [one["prompt"] for one in examples]
        answers = [f" {stage} on example {number}\\u2028" for number in (1, 2)]  # a control character as an escape
        assert [one["output"]["text"] for one in shown] == answers
    assert "widget" not in ModelCard(cards["reward_model"]).data.to_dict()


@pytest.mark.parametrize(
    "answer",
    [
        "\n---\n# no card",
        "'\": {a: b}, [c] # d",
        "\ufeff\uffff\ud800 \U0001f600",
        "",
        "  \n\n x: |",
        "- *a &b !c %d @e",
    ],
)
def test_no_answer_of_a_model_breaks_the_front_matter(records: dict[str, Any], answer: str) -> None:
    samples = card_run.samples()
    for one in samples:
        one["answers"]["ppo"]["answer"] = answer
    text = card.render(compose.load([]).settings, dataclasses.replace(card_run.run(records), samples=samples))
    data = ModelCard(text).data.to_dict()
    assert [one["output"]["text"] for one in data["widget"]] == [answer.replace("\ud800", "\\ud800")] * 2
    assert (data["license"], card_rules.errors(text)) == ("mit", [])


def test_a_model_whose_training_was_tracked_with_trackio_has_its_tag(records: dict[str, Any]) -> None:
    for given, has_tag in ((["trackio", "tensorboard"], True), ("trackio", True), ("none", False), (None, False)):
        changed = copy.deepcopy(records)
        changed["ppo"]["report_to"] = given
        tags = ModelCard(card.render(compose.load([]).settings, card_run.run(changed))).data.tags  # type: ignore[attr-defined]
        assert ("trackio" in tags) == has_tag


def test_all_whom_the_owner_thanks_are_acknowledged(records: dict[str, Any]) -> None:
    text = card.render(compose.load(HUB).settings, card_run.run(records))
    end = one_line(text[text.index("## Citation and acknowledgements") :])
    for name in (
        "Anthropic",
        "OpenAI",
        "Hugging Face",
        "the AI alignment community",
        "@techreport{radford2019language",
    ):
        assert name in end


def test_no_card_has_empty_lines_in_a_row_or_is_left_unfilled(cards: dict[str, str]) -> None:
    for text in cards.values():
        assert "\n\n\n" not in text.partition("\n---\n")[2]  # an example in the front matter may have some
        assert not re.search(r"\{\{|\{%|None|nan", text)


def test_settings_and_sizes_are_what_the_stages_were_given(cards: dict[str, str]) -> None:
    given = card_run.records(
        ["ppo.args.kl_coef=0.123", "sft.peft.r=4", "reward.args.max_steps=17", "ppo.kl.target_nats=6"]
    )
    text = card.render(compose.load(["ppo.args.kl_coef=0.9"]).settings, card_run.run(given))
    rows = table(text, "Stage")
    assert rows["SFT"][0] == "31 chosen answers"
    assert "learning rate 0.001" in rows["SFT"][1]
    assert "batch 16 x 1 accumulated x 2 processes = 32" in rows["SFT"][1]
    assert "LoRA rank 4, alpha 16, merged" in rows["SFT"][1]
    assert rows["Reward model"][0] == "32 pairs"
    assert "steps at most 17" in rows["Reward model"][1]
    assert "epochs" not in rows["Reward model"][1]
    assert rows["PPO"][0] == "its own answers to 33 prompts"
    assert "KL coefficient 0.123" in rows["PPO"][1]
    assert "adapted to 6 nats over 10000 episodes" in rows["PPO"][1]
    assert "batch 32 x 2 accumulated x 2 processes = 128" in rows["PPO"][1]
    assert [row[2] for row in list(rows.values())[1:]] == ["7", "8", "8", "12"]
    assert table(text, "Rows of the data") == {
        "Rows of the data": ["Training", "Test"],
        "Read": ["120", "61"],
        "Dropped: empty answer": ["3", "0"],
        "Dropped: prompts differ": ["2", "1"],
        "Kept": ["115", "60"],
        "With turns cut from the prompt": ["4", "4"],
    }
    assert "sft 31 pairs of 30 prompts" in text
    assert list(table(cards["sft_model"], "Stage")) == ["Stage", "SFT"]


def test_a_stage_s_settings_are_one_line(records: dict[str, Any]) -> None:
    rows = table(card.render(compose.load([]).settings, card_run.run(records)), "Stage")
    for name, label in (("sft", "SFT"), ("reward", "Reward model"), ("judge", "Judge"), ("ppo", "PPO")):
        line = card_training.settings_text(name, records[name]["inputs"])
        assert line == rows[label][1]
        assert line.startswith("learning rate ")
        assert "\n" not in line


def test_the_batch_of_ppo_is_the_one_that_was_fitted_to_the_data(records: dict[str, Any]) -> None:
    args = records["ppo"]["inputs"]["ppo"]["args"]
    product = 2 * args["per_device_train_batch_size"] * args["gradient_accumulation_steps"]  # two processes
    for episodes, shown in ((24, "batch 24 episodes, fitted to the data"), (product, f"2 processes = {product}")):
        fitted = card.render(compose.load([]).settings, card_run.run(with_ppo(records, episodes_per_update=episodes)))
        assert shown in table(fitted, "Stage")["PPO"][1]
        of_inputs = {**records["ppo"]["inputs"], "episodes_per_update": episodes}
        assert shown in card_training.settings_text("ppo", of_inputs)


def test_a_reward_function_of_the_user_is_not_described_as_the_reward_model(cards: dict[str, str]) -> None:
    text = card.render(compose.load([]).settings, card_run.run(card_run.records(["ppo.reward.function=mine:score"])))
    assert "PPO, which raises another score (by `mine:score`) of its own answers" in one_line(text)
    assert "reward by mine:score" in table(text, "Stage")["PPO"][1]
    assert "PPO, which raises that score of its own answers" in one_line(cards["model"])


def test_the_card_has_what_the_guard_did_and_which_gates_were_forced(records: dict[str, Any]) -> None:
    def text(**metrics: Any) -> str:
        return one_line(card.render(compose.load([]).settings, card_run.run(with_ppo(records, **metrics))))

    assert "on 5 withheld prompts and did not stop it. The policy of update 12 of 12 was handed on." in text()
    stopped = text(stopped="update 8: EOS rate 0.010", kept_update=4)
    assert "The guard stopped PPO: update 8: EOS rate 0.010. The policy of update 4 of 12 was handed on." in stopped
    assert "No guard watched PPO." in text(heldout=None)
    assert "The judge scored nothing: it is no better than chance." in text(judge_fault="it is no better than chance")
    chosen = "The judge also chose the policy that was handed on, so its figures for PPO are optimistic."
    assert chosen in text(chosen_by="judge")
    assert "also chose" not in text(chosen_by=None)
    assert "also chose" not in text()
    forced = text(forced=["reward: the reward model is right on 51 %; give it more pairs"])
    limits = forced[forced.index("## Limitations") : forced.index("## Training")]
    assert limits.endswith("force=true continued the run: the reward model is right on 51 %. ")


def test_the_card_of_the_bundled_model_says_that_it_is_a_demonstration(
    cards: dict[str, str], records: dict[str, Any]
) -> None:
    for text in cards.values():
        assert text.index("This is a demonstration") < text.index("## Limitations")
    assert "This is a demonstration" not in card.render(compose.load(HUB).settings, card_run.run(records))


def test_base_model_and_data_of_the_hub_are_linked_and_local_ones_are_named(records: dict[str, Any]) -> None:
    hub = card.render(compose.load([*HUB, "data.subsets=[harmless-base]"]).settings, card_run.run(records))
    data = ModelCard(hub).data
    assert data.base_model == "openai-community/gpt2"  # type: ignore[attr-defined]
    assert data.datasets == ["Anthropic/hh-rlhf"]  # type: ignore[attr-defined]
    first = data.eval_results[0]  # type: ignore[attr-defined]
    assert (first.dataset_type, first.dataset_config) == ("Anthropic/hh-rlhf", "harmless-base")
    assert first.dataset_revision == compose.load(HUB).settings.data.revision
    assert "@article{bai2022hh" in hub
    local = ["model.name=/home/me/my-model", "data=hh_rlhf", 'data.path="/home/me/yes: no #1.jsonl"']
    text = card.render(compose.load(local).settings, card_run.run(records))
    data = ModelCard(text).data
    assert data.base_model is None  # type: ignore[attr-defined]
    assert data.datasets is None  # type: ignore[attr-defined]
    first = data.eval_results[0]  # type: ignore[attr-defined]
    assert (first.dataset_type, first.dataset_name) == ("local", "local files (yes: no #1.jsonl)")
    assert "/home/me" not in text
    assert "bai2022hh" not in text


def test_the_card_says_how_to_repeat_the_run_and_with_what(cards: dict[str, str]) -> None:
    for folder, stage in card.folders("ppo").items():
        assert "```bash\nmake pipeline seed=3\n```" in cards[folder]
        rows = table(cards[folder], "Finished")
        assert rows["Seconds, all stages"] == ["60"]  # six stages of ten
        assert rows["Seeds"] == ["data 3, sft 3, reward 3, judge 4, ppo 3, evaluate 3"]
        assert rows["gpt2-rlhf at commit"] == ["c0ffee"]
        assert rows["trl"] == ["1.12.0"]
        assert rows["sha256 of model.safetensors"] == [f"digest-of-{stage}"]


def test_stages_built_with_other_versions_or_outside_git_are_told_apart(records: dict[str, Any]) -> None:
    changed = copy.deepcopy(records)
    changed["ppo"] |= {"libraries": {"trl": "1.12.0", "torch": "2.14.0"}, "git_commit": None}
    rows = table(card.render(compose.load([]).settings, card_run.run(changed)), "Finished")
    assert rows["torch"] == ["2.13.0, 2.14.0"]
    assert rows["gpt2-rlhf at commit"] == ["c0ffee, unknown"]


def test_the_citation_has_author_and_year_of_the_settings(records: dict[str, Any]) -> None:
    def text(*overrides: str) -> str:
        return card.render(compose.load(list(overrides)).settings, card_run.run(records))

    author = 'card.author="Lovelace, Ada"'
    cited = text(author, "card.year=1843", "publish.repo_id=ada/my_model")
    assert (
        "  author = {Lovelace, Ada},\n  year   = {1843},\n  url    = {https://huggingface.co/ada/my_model}\n}" in cited
    )
    assert "  title  = {ada/my\\_model}" in cited
    assert "  year   = {2031}" in text(author)  # the manifest's
    assert "@misc" not in text()
    assert "@software{vonwerra2020trl" in text()


def test_a_card_names_the_repository_that_its_folder_is_pushed_to(records: dict[str, Any]) -> None:
    settings = compose.load(["publish.repo_id=ada/policy", "publish.reward_repo_id=ada/scorer"]).settings
    for folder, name in (("model", "ada/policy"), ("reward_model", "ada/scorer")):
        text = card.render(settings, card_run.run(records), folder)
        assert f"\n# {name}\n" in text
        assert text.count(f'from_pretrained("{name}")') == 2
        assert ModelCard(text).data.model_name == name  # type: ignore[attr-defined]
    sft = card.render(settings, card_run.run(records), "sft_model")
    assert sft.count('from_pretrained("outputs/latest/sft_model")') == 2


def test_the_license_is_the_settings(records: dict[str, Any]) -> None:
    text = card.render(compose.load(["card.license=apache-2.0"]).settings, card_run.run(records))
    assert yaml.safe_load(text.split("---\n")[1])["license"] == "apache-2.0"


def test_without_a_judge_and_a_utility_the_card_has_no_rows_of_them(records: dict[str, Any]) -> None:
    bare = {name: copy.deepcopy(record) for name, record in records.items() if name != "judge"}
    metrics = bare["evaluate"]["metrics"]
    for model in metrics["models"].values():
        model |= {"judge_reward": None, "utility": None}
        model |= {f"win_rate_vs_{rival}_by_{by}": None for rival in ("base", "sft") for by in ("judge", "utility")}
    for pair in metrics["paired"].values():
        pair |= {"judge_reward": None, "utility": None, "by_judge": None}
    for subset in metrics["by_subset"].values():
        subset["ppo_minus_sft"] |= {"judge_reward": None, "utility": None}
    text = card.render(compose.load([]).settings, card_run.run(bare))
    assert "No second reward model (judge) was trained." in text
    assert "Compare the samples below, which" in text
    for name in ("Mean per answer", "Paired difference", "Held-out pairs", "Stage"):
        assert not {"Judge", "Judge's reward", "Utility", "Judge: rose"} & set(table(text, name))
    assert [row for row in table(text, "Mean per answer") if row.startswith("Wins vs SFT")] == ["Wins vs SFT by reward"]
    names = [one.metric_name for one in ModelCard(text).data.eval_results]  # type: ignore[attr-defined]
    assert len(names) == 4


def test_several_seeds_are_shown_with_their_spread(records: dict[str, Any]) -> None:
    over = {"mean": 1.25, "sd": 0.5, "min": 0.75, "max": 1.75, "n": 2}
    keys = ("reward", "utility", "win_rate_vs_sft", "kl_to_sft_nats", "answer_tokens", "eos_rate", "distinct_2")
    spread = {
        "by_seed": [
            {"seed": 3, "collapsed": None, "stopped": None},
            {"seed": 8, "collapsed": "EOS rate 0.010", "stopped": None},
        ],
        "collapsed": [8],
        "over_seeds": {**dict.fromkeys(keys), "reward": over, "eos_rate": {**over, "mean": 0.5, "sd": None}},
    }
    run = card.CardSources("make pipeline", records, spread, card_run.samples(), [], "gpt2")
    text = card.render(compose.load([]).settings, run)
    rows = table(text, "PPO over seeds")
    assert rows["Reward"] == ["1.25", "0.50", "0.75", "1.75", "2"]
    assert rows["Ended with EOS"][:2] == ["50.0 %", "-"]
    assert "1 of 2 seeds collapsed. Seed 8 collapsed: EOS rate 0.010." in text
    assert "with PPO's seeds 3, 8" in text


def test_a_field_without_a_value_is_an_error(
    records: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(card, "TEMPLATES", tmp_path)
    (tmp_path / "policy.md").write_text("---\n{{ card_data }}\n---\n{{ nobody_fills_this }}")
    with pytest.raises(jinja2.UndefinedError, match="nobody_fills_this"):
        card.render(compose.load([]).settings, card_run.run(records))
    (tmp_path / "policy.md").write_text("---\n{{ card_data }}\n---\n{{ seeds }}")  # null without seeds
    with pytest.raises(ValueError, match="no value"):
        card.render(compose.load([]).settings, card_run.run(records))


def test_a_front_matter_that_the_hub_would_read_differently_is_an_error(
    records: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(card, "TEMPLATES", tmp_path)
    (tmp_path / "policy.md").write_text("---\n{{ card_data }}\nlicense: other\n---\n")
    with pytest.raises(ValueError, match="front matter"):
        card.render(compose.load([]).settings, card_run.run(records))


def test_cards_of_a_run_that_is_not_finished_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"card: data, .*evaluate not built; run `make pipeline`"):
        publish.write_cards(pipeline.plan(compose.load([f"output_dir={tmp_path}"])))
