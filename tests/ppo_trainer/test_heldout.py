import functools
import math

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import GPT2ForSequenceClassification, GPT2Tokenizer, PreTrainedModel

from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.evidence import answers as evidence_answers
from gpt2_rlhf.evidence.measured import Measured
from gpt2_rlhf.models import scoring, tokens
from gpt2_rlhf.models.sampling import Answer
from gpt2_rlhf.ppo_trainer.heldout import by_function, by_model, measure
from helpers.tiny import assert_same_figures, eos_prone, tiny_policy, tiny_reward, tiny_tokenizer

PROMPTS = [f"\n\nHuman: {question}\n\nAssistant:" for question in ("Hi", "bake bread?", "Tell me about the sea.")]
TEMPERATURE = 0.8


@pytest.fixture(scope="module")
def tokenizer() -> GPT2Tokenizer:
    return tiny_tokenizer()


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
    assert found.kl_nats is not None
    assert found.kl_k1 is not None
    assert found.kl_k3 is not None
    assert {answer.ended for answer in answers} == {True, False}
    eos = tokens.eos_id(tokenizer)
    for place, (prompt, answer) in enumerate(zip(PROMPTS, answers, strict=True)):
        prompt_ids = tokenizer(prompt)["input_ids"]
        whole = torch.tensor([[*prompt_ids, *answer.ids, eos]])  # EOS after every answer, written or not
        with torch.no_grad():
            assert found.reward[place] == pytest.approx(tiny_reward(tokenizer, 1)(whole).logits.item(), abs=1e-5)
            assert found.judge_reward is not None
            assert found.judge_reward[place] == pytest.approx(tiny_reward(tokenizer, 2)(whole).logits.item(), abs=1e-5)
        assert found.utility is not None
        assert found.utility[place] == len(prompt) - len(answer.text)
        assert found.tokens[place] == len(answer.ids)
        assert found.ended[place] == answer.ended
        assert found.distinct_2[place] == scoring.distinct_2(answer.ids)
        sampled = [*answer.ids, eos] if answer.ended else answer.ids  # only an EOS that was sampled has a KL
        kl = scoring.kl_by_row(policy, reference, [prompt_ids], [sampled], TEMPERATURE, 1)
        assert (found.kl_nats[place], found.kl_k1[place], found.kl_k3[place]) == pytest.approx(
            (kl.exact[0], kl.k1[0], kl.k3[0]), rel=1e-3
        )


def test_measuring_is_repeatable_and_leaves_random_state_and_mode_unchanged(tokenizer):
    policy, reference = eos_prone(tokenizer).train(), tiny_policy(tokenizer, 3)
    for one in (1, 2):  # built here, since drawing their weights changes the random state
        scorer(one)
    torch.manual_seed(7)
    before = torch.get_rng_state()
    first, answers = measure_tiny(tokenizer, policy, reference)
    again, answers_again = measure_tiny(tokenizer, policy, reference)
    assert torch.equal(torch.get_rng_state(), before)
    assert policy.training
    assert answers_again == answers
    assert_same_figures(again, first)
    assert measure_tiny(tokenizer, policy, reference, seed=1)[1] != answers


# peft reads an attribute that transformers has deprecated (peft_model.py)
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_the_kl_of_a_lora_policy_is_to_itself_without_its_adapter(tokenizer):
    lora = LoraConfig(r=2, fan_in_fan_out=True, init_lora_weights=False, task_type="CAUSAL_LM")
    adapted: PreTrainedModel = get_peft_model(tiny_policy(tokenizer), lora)  # type: ignore[assignment]  # acts as one
    with_itself, _ = measure_tiny(tokenizer, adapted, None)
    with_base, _ = measure_tiny(tokenizer, adapted, tiny_policy(tokenizer))
    assert with_itself.kl_nats is not None
    assert with_itself.kl_nats.min() > 0.01
    assert with_itself.kl_nats == pytest.approx(with_base.kl_nats, rel=1e-5)


def test_the_sft_model_has_zero_kl_to_itself(tokenizer):
    found, _ = measure_tiny(tokenizer, tiny_policy(tokenizer), tiny_policy(tokenizer), update=0)
    for kl in (found.kl_nats, found.kl_k1, found.kl_k3):
        assert kl is not None
        assert kl.tolist() == [0.0] * 3


def test_a_function_can_score_in_place_of_the_reward_model():
    answers = [Answer(" a", [1], True), Answer(" bcd", [2, 3], False)]
    scores = by_function(lambda prompts, texts: [len(text) for text in texts])(PROMPTS[:2], answers)
    assert scores.tolist() == [2.0, 4.0]


def test_scores_that_are_not_finite_are_refused_and_their_source_is_named(tokenizer):
    answers = [Answer(" a", [1], True), Answer(" bcd", [2, 3], False)]
    broken = tiny_reward(tokenizer)
    with torch.no_grad():
        broken.score.weight.fill_(math.nan)
    with pytest.raises(
        UserError, match=r"ppo\.heldout: the judge model gave 2 of 2 answers scores that are not finite"
    ):
        by_model("judge", broken, tokenizer, 2)(PROMPTS[:2], answers)
    with pytest.raises(UserError, match=r"ppo\.reward\.function: the function gave inf for the answer ' bcd'"):
        by_function(lambda prompts, texts: [0.0, math.inf])(PROMPTS[:2], answers)
    with pytest.raises(UserError, match=r"data\.utility: the function gave nan for the answer ' a'"):
        evidence_answers.utilities(lambda prompt, answer: math.nan, PROMPTS[:2], answers)
