import dataclasses

from gpt2_rlhf.config import compose, metrics
from gpt2_rlhf.config.metrics import Metric
from gpt2_rlhf.evidence import card, report, results, tables, terminal
from gpt2_rlhf.evidence import summary as summaries
from gpt2_rlhf.evidence.tables import Cell, Row, Table, cell, look_up, text
from helpers import card_run, report_run

SHARE = {"mean": 0.5, "low": 0.25, "high": 0.625, "n": 16}
SOURCES = {"one": {"share": SHARE, "list": [{"count": 3}], "none": None, "seconds": 12.345}}


def test_one_function_writes_every_kind_of_figure():
    assert text(SHARE, "points") == "0.50 [0.25, 0.62]"
    assert text(SHARE, "share") == "50.0 % [25.0, 62.5]"
    assert text(0.831, "share") == "83.1 %"
    assert text(12.345, "seconds") == "12.3 s"
    assert text(512.4, "MiB") == "512 MiB"
    assert text(0.636, "points") == "0.64"
    assert text(3, "count") == "3"
    assert text("cpu", "count") == "cpu"
    assert text(None, "share") == "-"


def test_a_name_out_of_the_data_cannot_control_a_terminal_or_a_page():
    table = Table("t", "Sub\x1bset", {"a": "\x1b[2J"}, [Row("help\x1b[31mful <img src=x>\n", [Cell("\x9b1m")])])
    for print_table in (tables.plain, tables.markdown):
        printed = print_table(table)
        assert not {"\x1b", "\x9b"} & set(printed)
        assert "help\\x1b[31mful" in printed
        assert printed.count("\n") == 2
    assert "<img" not in tables.markdown(table)


def test_a_figure_that_rounds_to_zero_has_no_minus_sign():
    assert text(-0.004) == text(-0.0) == text(0.004) == "0.00"
    assert text({"mean": -0.004, "low": -0.0049, "high": -0.0, "n": 9}) == "0.00 [0.00, 0.00]"
    assert text({"mean": -0.0004, "low": -0.006, "high": 0.0, "n": 9}, "share") == "0.0 % [-0.6, 0.0]"
    assert text({"mean": -0.4, "low": -1200.0, "high": 0.0, "n": 9}) == "0 [-1200, 0]"
    assert text(-0.04, "seconds") == "0.0 s"
    assert text(-0.006) == "-0.01"


def test_a_key_is_the_path_of_a_figure_and_ends_in_nothing_where_nothing_is_known():
    assert look_up(SOURCES, "one/list/0/count") == 3
    assert look_up(SOURCES, "one/none/win") is None
    assert look_up(SOURCES, "one/missing") is None


def test_a_rows_n_is_one_number_where_its_estimates_agree_and_else_a_number_for_each():
    share, unknown = cell(SOURCES, "one/share", "share"), cell(SOURCES, "one/none")
    other = Cell("", "", {**SHARE, "n": 15})
    assert Row("label", [unknown, share, share]).n == "16"
    assert Row("label", [unknown, share, other]).n == "-, 16, 15"
    assert Row("label", [cell(SOURCES, "one/list/0/count", "count")]).n == "-"


def test_a_table_of_some_columns_has_no_rows_of_which_they_know_nothing():
    rows = [
        Row("both", [cell(SOURCES, "one/share"), cell(SOURCES, "one/seconds", "seconds")]),
        Row("first", [cell(SOURCES, "one/share"), cell(SOURCES, "one/none")]),
    ]
    second = Table("t", "T", {"a": "A", "b": "B"}, rows).only("b")
    assert second.columns == {"b": "B"}
    assert [(row.label, [one.text for one in row.cells]) for row in second.rows] == [("both", ["12.3 s"])]


def test_terminal_and_card_print_the_same_cells():
    row = Row("one | two", [cell(SOURCES, "one/share", "share"), cell(SOURCES, "one/none")])
    table = Table("t", "Title", {"a": "A", "b": "B"}, [row], "prompts")
    assert tables.markdown(table) == (  # a column of which nothing is known would tell a reader of a card nothing
        "| Title | A | n |\n| --- | --- | --- |\n| one \\| two | 50.0 % [25.0, 62.5] | 16 |"
    )
    assert tables.plain(table).splitlines() == [
        "| Title     |                   A | B |  n |",
        "|-----------|---------------------|---|----|",
        "| one | two | 50.0 % [25.0, 62.5] | - | 16 |",
    ]
    assert "n" not in tables.plain(table, with_n=False).splitlines()[0]


def test_a_metric_that_the_evaluation_computes_is_printed_everywhere_once_the_catalogue_describes_it(
    tmp_path, monkeypatch
):
    added = Metric("words", "Length", "words", "higher", over_seeds=True, hub_type="mean_words")
    monkeypatch.setattr(metrics, "OF_MODEL", (*metrics.OF_MODEL, added))
    records, summary = report_run.write(tmp_path)
    for one in records["evaluate"]["metrics"]["models"].values():  # as an evaluation that computes it would
        one["words"] = {"mean": 7.5, "low": 6.0, "high": 9.0, "n": report_run.PROMPTS}
    settings = compose.load([]).settings
    ppo = {"seed": 4, "metrics": records["ppo"]["metrics"]}
    with_seeds = dataclasses.replace(settings.ppo, seeds=[4, 5])
    spread = summaries.spread(with_seeds, [{**records, "ppo": ppo}] * 2)
    summary |= {"evaluation": records["evaluate"]["metrics"], "seeds": spread}
    figure = "7.50 [6.00, 9.00]"
    page = report.write(tmp_path, settings, records, summary).read_text(encoding="utf-8")
    card_records = card_run.records()
    card_records["evaluate"]["metrics"] = records["evaluate"]["metrics"]
    text_of_card = card.render(
        settings, card.CardSources("make pipeline", card_records, spread, card_run.samples(), [], "gpt2")
    )
    assert f"| Length, words | {figure} | {figure} | {figure} | {figure} | 14 |" in text_of_card
    assert f"Length, words: {figure}, n = 14" in text_of_card
    assert "mean_words" in text_of_card
    assert f"| Length, words | {figure} | {figure} | {figure} |" in " ".join(terminal.tables(summary).split())
    assert "| Length, words | 7.50 | 0.00 | 7.50 | 7.50 | 2 |" in text_of_card
    assert page.count('data-better="higher">Length, words</th>') == 3  # of the models, by seed, and over seeds
    assert page.count("7.50\n[6.00, 9.00]") == 4 + 2


def test_each_column_has_the_figures_of_what_its_header_names(tmp_path):
    records, summary = report_run.write(tmp_path)
    sources = {**summary, "manifests": records}
    models, paired = results.models(sources), results.paired(sources)
    assert list(models.columns.values()) == ["Base", "SFT", "PPO", "Best of 4"]
    assert [one.key for one in models.rows[0].cells] == [
        f"evaluation/models/{name}/utility" for name in ("base", "sft", "ppo", "best_of_n")
    ]
    assert next(iter(paired.columns.values())) == "PPO - SFT"
    rows = {row.label: row.cells[0].key for row in paired.rows}
    assert rows["Utility"] == "evaluation/paired/ppo_minus_sft/utility"
    assert rows["Reward fell"] == "evaluation/paired/ppo_minus_sft/by_reward/loss"
    assert rows["Judge: fell"] == "evaluation/paired/ppo_minus_sft/by_judge/loss"
