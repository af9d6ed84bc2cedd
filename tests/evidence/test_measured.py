import json
from pathlib import Path

import numpy as np
import pytest

from gpt2_rlhf.evidence.intervals import bootstrap_mean
from gpt2_rlhf.evidence.measured import Measured, read, summary, write
from helpers.tiny import assert_same_figures

PROMPTS = [f"\n\nHuman: {question}\n\nAssistant:" for question in ("Hi", "bake bread?", "Tell me about the sea.")]


def made_up(update: int, judge: bool = True) -> Measured:
    generator = np.random.default_rng(update)
    return Measured(
        update=update,
        reward=generator.normal(size=3),
        judge_reward=generator.normal(size=3) if judge else None,
        utility=None,
        kl_nats=generator.normal(size=3) / 3,
        kl_k1=generator.normal(size=3),
        kl_k3=generator.normal(size=3),
        tokens=np.array([2, 0, 1]),
        ended=np.array([True, True, False]),
        distinct_2=np.array([1.0, 1.0, 1 / 3]),
    )


ANSWERS = [" line\u2028separator\n", "", " \ufffd"]


@pytest.mark.parametrize("judge", [True, False])
def test_figures_read_back_from_a_file_are_equal_to_the_bit(tmp_path: Path, judge: bool):
    write(tmp_path / "heldout", made_up(4, judge), PROMPTS, ANSWERS)
    (found,) = read(tmp_path / "heldout", 4)
    assert_same_figures(found, made_up(4, judge))


def test_a_line_of_the_file_holds_prompt_answer_and_figures(tmp_path: Path):
    measured = made_up(4)
    path = write(tmp_path, measured, PROMPTS, ANSWERS)
    assert path == tmp_path / "update-000004.jsonl"
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    last = json.loads(path.read_text(encoding="utf-8").split("\n")[2])
    assert measured.judge_reward is not None
    assert measured.kl_nats is not None
    assert measured.kl_k1 is not None
    assert measured.kl_k3 is not None
    assert last == {
        "prompt": PROMPTS[2],
        "answer": " \ufffd",
        "ended": False,
        "tokens": 1,
        "reward": measured.reward[2],
        "judge_reward": measured.judge_reward[2],
        "utility": None,
        "kl_nats": measured.kl_nats[2],
        "kl_k1": measured.kl_k1[2],
        "kl_k3": measured.kl_k3[2],
        "distinct_2": 1 / 3,
    }


def test_the_history_is_in_order_and_ends_at_the_given_update(tmp_path: Path):
    for update in (12, 0, 4, 1000000, 8):
        write(tmp_path, made_up(update), PROMPTS, ANSWERS)
    (tmp_path / ".update-000004.jsonl.123").write_text('{"cut off')
    assert [one.update for one in read(tmp_path, 8)] == [0, 4, 8]
    assert [one.update for one in read(tmp_path, 2000000)] == [0, 4, 8, 12, 1000000]
    assert read(tmp_path / "none", 8) == []


def test_the_summary_has_means_and_the_intervals_of_rewards_and_utility():
    measured = made_up(4)
    found = summary(measured)
    expected = bootstrap_mean(measured.reward)
    assert (found["eval/reward"], found["eval/reward_low"], found["eval/reward_high"]) == (
        expected["mean"],
        expected["low"],
        expected["high"],
    )
    assert measured.judge_reward is not None
    assert measured.kl_nats is not None
    assert measured.kl_k1 is not None
    assert measured.kl_k3 is not None
    assert found["eval/judge_reward"] == pytest.approx(sum(measured.judge_reward) / 3)
    assert not any(name.startswith("eval/utility") for name in found)
    assert found["eval/kl_nats"] == pytest.approx(sum(measured.kl_nats) / 3)
    assert found["eval/kl_k1"] == pytest.approx(sum(measured.kl_k1) / 3)
    assert found["eval/kl_k3"] == pytest.approx(sum(measured.kl_k3) / 3)
    assert found["eval/answer_tokens"] == 1
    assert found["eval/eos_rate"] == pytest.approx(2 / 3)
    assert found["eval/distinct_2"] == pytest.approx(7 / 9)
    assert json.loads(json.dumps(found)) == found
