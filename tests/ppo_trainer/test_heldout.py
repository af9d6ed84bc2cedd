import dataclasses
import functools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import GPT2ForSequenceClassification, GPT2LMHeadModel, GPT2Tokenizer, PreTrainedModel

from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.evidence.intervals import bootstrap_mean
from gpt2_rlhf.evidence.measured import Measured, read, summary, write
from gpt2_rlhf.models import scoring, tokens
from gpt2_rlhf.models.sampling import Answer
from gpt2_rlhf.ppo_trainer import heldout
from gpt2_rlhf.ppo_trainer.heldout import by_function, by_model, measure
from helpers.tiny import tiny_policy, tiny_reward, tiny_tokenizer

PROMPTS = [f"\n\nHuman: {question}\n\nAssistant:" for question in ("Hi", "bake bread?", "Tell me about the sea.")]
TEMPERATURE = 0.8


@pytest.fixture(scope="module")
def tokenizer() -> GPT2Tokenizer:
    return tiny_tokenizer()


def eos_prone(tokenizer: GPT2Tokenizer, seed: int = 0) -> GPT2LMHeadModel:
    """A policy whose answers sometimes end before their limit."""
    model = tiny_policy(tokenizer, seed)
    model.lm_head.bias = torch.nn.Parameter(torch.zeros(len(tokenizer)))
    with torch.no_grad():
        model.lm_head.bias[tokens.eos_id(tokenizer)] = 4.0
    return model


@functools.cache
def scorer(seed: int) -> GPT2ForSequenceClassification:
    return tiny_reward(tiny_tokenizer(), seed)


def measure_tiny(
    tokenizer: GPT2Tokenizer, policy: PreTrainedModel, reference: PreTrainedModel | None, update: int = 4, seed: int = 0
) -> tuple[Measured, list[Answer]]:
    return measure(
        update,
        policy,
        reference,
        tokenizer,
        PROMPTS,
        reward=by_model("reward", scorer(1), tokenizer, 2),
        judge=by_model("judge", scorer(2), tokenizer, 2),
        utility=lambda prompt, answer: len(prompt) - len(answer),
        seed=seed,
        max_new_tokens=12,
        temperature=TEMPERATURE,
        batch_size=2,
    )


def test_each_prompt_is_measured_on_its_own_answer(tokenizer):
    policy, reference = eos_prone(tokenizer), tiny_policy(tokenizer, 3)
    found, answers = measure_tiny(tokenizer, policy, reference)
    assert found.update == 4
    assert {answer.ended for answer in answers} == {True, False}
    eos = tokens.eos_id(tokenizer)
    for place, (prompt, answer) in enumerate(zip(PROMPTS, answers, strict=True)):
        prompt_ids = tokenizer(prompt)["input_ids"]
        whole = torch.tensor([[*prompt_ids, *answer.ids, eos]])  # EOS after every answer, written or not
        with torch.no_grad():
            assert found.rewards[place] == pytest.approx(tiny_reward(tokenizer, 1)(whole).logits.item(), abs=1e-5)
            assert found.judge_rewards is not None
            assert found.judge_rewards[place] == pytest.approx(tiny_reward(tokenizer, 2)(whole).logits.item(), abs=1e-5)
        assert found.utilities is not None
        assert found.utilities[place] == len(prompt) - len(answer.text)
        assert found.answer_tokens[place] == len(answer.ids)
        assert found.ended[place] == answer.ended
        assert found.distinct_2[place] == scoring.distinct_2(answer.ids)
        sampled = [*answer.ids, eos] if answer.ended else answer.ids  # only an EOS that was sampled has a KL
        kl = scoring.kl_by_row(policy, reference, [prompt_ids], [sampled], TEMPERATURE, 1)
        assert (found.kl_nats[place], found.kl_k1[place], found.kl_k3[place]) == pytest.approx(
            (kl.exact[0], kl.k1[0], kl.k3[0]), rel=1e-3
        )


def test_measuring_twice_gives_the_same_and_leaves_generators_and_mode_alone(tokenizer):
    policy, reference = eos_prone(tokenizer).train(), tiny_policy(tokenizer, 3)
    for one in (1, 2):  # built before: drawing their weights sets the generator
        scorer(one)
    torch.manual_seed(7)
    before = torch.get_rng_state()
    first, answers = measure_tiny(tokenizer, policy, reference)
    again, answers_again = measure_tiny(tokenizer, policy, reference)
    assert torch.equal(torch.get_rng_state(), before)
    assert policy.training
    assert answers_again == answers
    assert_equal(again, first)
    assert measure_tiny(tokenizer, policy, reference, seed=1)[1] != answers


# peft reads an attribute that transformers has deprecated (peft_model.py)
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_a_lora_policy_is_compared_with_itself_without_its_adapter(tokenizer):
    lora = LoraConfig(r=2, fan_in_fan_out=True, init_lora_weights=False, task_type="CAUSAL_LM")
    adapted: PreTrainedModel = get_peft_model(tiny_policy(tokenizer), lora)  # type: ignore[assignment]
    with_itself, _ = measure_tiny(tokenizer, adapted, None)
    with_base, _ = measure_tiny(tokenizer, adapted, tiny_policy(tokenizer))
    assert with_itself.kl_nats.min() > 0.01
    assert with_itself.kl_nats == pytest.approx(with_base.kl_nats, rel=1e-5)


def test_the_sft_model_has_no_kl_to_itself(tokenizer):
    found, _ = measure_tiny(tokenizer, tiny_policy(tokenizer), tiny_policy(tokenizer), update=0)
    assert [found.kl_nats.tolist(), found.kl_k1.tolist(), found.kl_k3.tolist()] == [[0.0] * 3] * 3


def test_a_function_scores_in_place_of_the_reward_model():
    answers = [Answer(" a", [1], True), Answer(" bcd", [2, 3], False)]
    scores = by_function(lambda prompts, texts: [len(text) for text in texts])(PROMPTS[:2], answers)
    assert scores.tolist() == [2.0, 4.0]


def test_scores_that_are_not_finite_are_refused_with_their_origin(tokenizer):
    answers = [Answer(" a", [1], True), Answer(" bcd", [2, 3], False)]
    broken = tiny_reward(tokenizer)
    with torch.no_grad():
        broken.score.weight.fill_(math.nan)
    with pytest.raises(UserError, match=r"the judge model gives held-out answers scores that are not finite"):
        by_model("judge", broken, tokenizer, 2)(PROMPTS[:2], answers)
    with pytest.raises(UserError, match=r"ppo\.reward\.function: it gave no finite number for the answer ' bcd'"):
        by_function(lambda prompts, texts: [0.0, math.inf])(PROMPTS[:2], answers)
    with pytest.raises(UserError, match=r"data\.utility: it gave no finite number for the answer ' a'"):
        heldout._utilities(lambda prompt, answer: math.nan, PROMPTS[:2], answers)


def assert_equal(one: Measured, other: Measured) -> None:
    for field in dataclasses.fields(Measured):
        left, right = getattr(one, field.name), getattr(other, field.name)
        if isinstance(left, np.ndarray):
            assert left.dtype == right.dtype
            left, right = left.tolist(), right.tolist()
        assert left == right, field.name


def made_up(update: int, judge: bool = True) -> Measured:
    generator = np.random.default_rng(update)
    return Measured(
        update=update,
        rewards=generator.normal(size=3),
        judge_rewards=generator.normal(size=3) if judge else None,
        utilities=None,
        kl_nats=generator.normal(size=3) / 3,
        kl_k1=generator.normal(size=3),
        kl_k3=generator.normal(size=3),
        answer_tokens=np.array([2, 0, 1]),
        ended=np.array([True, True, False]),
        distinct_2=np.array([1.0, 1.0, 1 / 3]),
    )


ANSWERS = [Answer(" line\u2028separator\n", [1, 2], True), Answer("", [], True), Answer(" \ufffd", [3], False)]


@pytest.mark.parametrize("judge", [True, False])
def test_what_is_read_back_equals_what_was_measured_to_the_bit(tmp_path: Path, judge: bool):
    write(tmp_path / "heldout", made_up(4, judge), PROMPTS, ANSWERS)
    (found,) = read(tmp_path / "heldout", 4)
    assert_equal(found, made_up(4, judge))


def test_a_line_holds_prompt_answer_and_figures(tmp_path: Path):
    measured = made_up(4)
    path = write(tmp_path, measured, PROMPTS, ANSWERS)
    assert path == tmp_path / "update-000004.jsonl"
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    last = json.loads(path.read_text(encoding="utf-8").split("\n")[2])
    assert measured.judge_rewards is not None
    assert last == {
        "prompt": PROMPTS[2],
        "answer": " \ufffd",
        "ended": False,
        "tokens": 1,
        "reward": measured.rewards[2],
        "judge_reward": measured.judge_rewards[2],
        "utility": None,
        "kl_nats": measured.kl_nats[2],
        "kl_k1": measured.kl_k1[2],
        "kl_k3": measured.kl_k3[2],
        "distinct_2": 1 / 3,
    }


def test_the_history_is_in_order_and_ends_with_the_update_resumed_from(tmp_path: Path):
    for update in (12, 0, 4, 1000000, 8):
        write(tmp_path, made_up(update), PROMPTS, ANSWERS)
    (tmp_path / ".update-000004.jsonl.tmp").write_text('{"cut off')
    assert [one.update for one in read(tmp_path, 8)] == [0, 4, 8]
    assert [one.update for one in read(tmp_path, 2000000)] == [0, 4, 8, 12, 1000000]
    assert read(tmp_path / "none", 8) == []


def test_the_summary_has_means_and_the_intervals_of_what_is_judged():
    measured = made_up(4)
    found = summary(measured)
    expected = bootstrap_mean(measured.rewards)
    assert (found["eval/reward"], found["eval/reward_low"], found["eval/reward_high"]) == (
        expected.mean,
        expected.low,
        expected.high,
    )
    assert measured.judge_rewards is not None
    assert found["eval/judge_reward"] == pytest.approx(sum(measured.judge_rewards) / 3)
    assert not any(name.startswith("eval/utility") for name in found)
    assert found["eval/kl_nats"] == pytest.approx(sum(measured.kl_nats) / 3)
    assert found["eval/kl_k1"] == pytest.approx(sum(measured.kl_k1) / 3)
    assert found["eval/kl_k3"] == pytest.approx(sum(measured.kl_k3) / 3)
    assert found["eval/answer_tokens"] == 1
    assert found["eval/eos_rate"] == pytest.approx(2 / 3)
    assert found["eval/distinct_2"] == pytest.approx(7 / 9)
    assert json.loads(json.dumps(found)) == found
