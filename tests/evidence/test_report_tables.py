from gpt2_rlhf.evidence import report_tables
from gpt2_rlhf.evidence.report_tables import Row, cell, look_up, shown, text
from helpers import report_run

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


def test_a_key_is_the_path_of_a_figure_and_ends_in_nothing_where_nothing_is_known():
    assert look_up(SOURCES, "one/list/0/count") == 3
    assert look_up(SOURCES, "one/none/win") is None
    assert look_up(SOURCES, "one/missing") is None


def test_a_row_s_n_is_its_first_estimate_s():
    row = Row("label", [cell(SOURCES, "one/none"), cell(SOURCES, "one/share", "share")])
    assert row.n == 16
    assert Row("label", [cell(SOURCES, "one/list/0/count", "count")]).n is None


def test_what_is_shown_is_kept_by_key():
    row = Row("label", [cell(SOURCES, "one/share"), cell(SOURCES, "one/none")])
    assert shown([report_tables.Table("t", "T", ["a", "b"], [row], "prompts")], [], SOURCES) == {
        "one/share": SHARE,
        "one/none": None,
    }


def test_each_column_has_the_figures_of_what_its_header_names(tmp_path):
    records, summary = report_run.write(tmp_path)
    models, paired, *_ = report_tables.results({**summary, "manifests": records})
    assert list(models.columns) == ["Base", "SFT", "PPO", "Best of n"]
    assert [one.key for one in models.rows[0].cells] == [
        f"evaluation/models/{name}/reward" for name in ("base", "sft", "ppo", "best_of_n")
    ]
    assert paired.columns[0] == "PPO - SFT"
    rows = {row.label: row.cells[0].key for row in paired.rows}
    assert rows["Utility"] == "evaluation/paired/ppo_minus_sft/utility"
    assert rows["Got worse: reward fell"] == "evaluation/paired/ppo_minus_sft/got_worse"
    assert rows["Loss by the judge"] == "evaluation/paired/ppo_minus_sft/by_judge/loss"
