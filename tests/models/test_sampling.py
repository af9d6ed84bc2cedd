from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import GenerationConfig, GPT2LMHeadModel, GPT2Tokenizer

from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.models import sampling, tokens
from gpt2_rlhf.models.sampling import Answer, sample
from helpers import families
from helpers.tiny import POSITIONS, eos_prone, fixed_next_token, tiny_policy, tiny_tokenizer
from helpers.waits import Waits

PROMPTS = [
    "\n\nHuman: Tell me about the sea.\n\nAssistant:",
    "\n\nHuman: Hi\n\nAssistant:",
    "\n\nHuman: What is the best way to learn chess, and why?\n\nAssistant:",
    "\n\nHuman: bake?\n\nAssistant:",
    "\n\nHuman: Tell me about bread.\n\nAssistant:",
]


@pytest.fixture(scope="module")
def tokenizer() -> GPT2Tokenizer:
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def policy(tokenizer: GPT2Tokenizer) -> GPT2LMHeadModel:
    return tiny_policy(tokenizer)


def draw(
    model: GPT2LMHeadModel,
    tokenizer: GPT2Tokenizer,
    prompts: list[str],
    seed: int = 0,
    max_new_tokens: int = 12,
    temperature: float = 1.0,
    batch_size: int = 4,
) -> list[Answer]:
    return sample(
        model,
        tokenizer,
        prompts,
        seed=seed,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        batch_size=batch_size,
    )


def test_answers_do_not_depend_on_batch_size_or_on_the_other_prompts(tokenizer):
    model = eos_prone(tokenizer, eos_bias=2.5)  # some rows leave the batch before the last token
    together = draw(model, tokenizer, PROMPTS, batch_size=5)
    assert any(answer.ended for answer in together)
    assert not all(answer.ended for answer in together)
    assert draw(model, tokenizer, PROMPTS, batch_size=1) == together
    assert draw(model, tokenizer, PROMPTS[:2]) == together[:2]


def test_same_seed_gives_the_same_answers_and_another_seed_gives_others(policy, tokenizer):
    first = draw(policy, tokenizer, PROMPTS, seed=3)
    assert draw(policy, tokenizer, PROMPTS, seed=3) == first
    assert draw(policy, tokenizer, PROMPTS, seed=4) != first


def test_sampling_leaves_the_global_random_state_unchanged(policy, tokenizer):
    torch.manual_seed(11)
    before = torch.get_rng_state()
    draw(policy, tokenizer, PROMPTS)
    assert torch.equal(torch.get_rng_state(), before)


def test_sampling_near_temperature_zero_gives_the_greedy_answer_of_generate(policy, tokenizer):
    answers = draw(policy, tokenizer, PROMPTS, temperature=1e-4, max_new_tokens=20)
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        ids = tokenizer(prompt, return_tensors="pt")
        greedy = GenerationConfig(do_sample=False, max_new_tokens=20, pad_token_id=tokens.eos_id(tokenizer))
        expected = policy.generate(**ids, generation_config=greedy)[0, ids["input_ids"].shape[1] :].tolist()
        assert answer.ids == [token for token in expected if token != tokens.eos_id(tokenizer)]


def test_token_frequencies_are_their_probabilities_at_the_temperature(tokenizer):
    model = fixed_next_token(tokenizer, {7: 0.5, 8: 0.3, 9: 0.2})
    for temperature in (1.0, 0.5):
        answers = draw(model, tokenizer, PROMPTS[:1] * 400, max_new_tokens=5, temperature=temperature, batch_size=400)
        counts = np.bincount([token for answer in answers for token in answer.ids], minlength=10)
        powered = np.array([0.5, 0.3, 0.2]) ** (1 / temperature)
        expected = powered / powered.sum()
        # 2,000 draws: a standard deviation of at most 0.0112
        assert counts[7:10] / 2000 == pytest.approx(expected, abs=0.04)
        assert counts.sum() == counts[7:10].sum() == 2000


def test_draws_of_different_tokens_and_prompts_are_independent(tokenizer):
    model = fixed_next_token(tokenizer, {7: 0.5, 8: 0.5})
    first, second = np.array([answer.ids for answer in draw(model, tokenizer, PROMPTS[:1] * 400, max_new_tokens=2)]).T
    # 400 fair coins agree with 400 others in half of the cases, with a standard deviation of 0.025
    assert np.mean(first == second) == pytest.approx(0.5, abs=0.1)
    assert np.mean(first[:-1] == first[1:]) == pytest.approx(0.5, abs=0.1)


def test_a_draw_on_a_boundary_takes_the_next_token_of_nonzero_probability():
    logits = torch.tensor([[0.0, 0.25, 0.0, 0.75, 0.0]]).log().expand(4, -1)
    draws = torch.tensor([0.0, 0.2499, 0.25, 1 - 2**-53], dtype=torch.float64)
    assert sampling._invert_cdf(logits.softmax(-1), draws).tolist() == [1, 1, 3, 3]


def test_the_generation_config_of_the_model_is_ignored(tokenizer):
    model = tiny_policy(tokenizer)
    before = draw(model, tokenizer, PROMPTS)
    model.generation_config.update(
        repetition_penalty=50.0, top_k=1, suppress_tokens=list(range(100)), max_new_tokens=2, temperature=0.01
    )
    assert draw(model, tokenizer, PROMPTS) == before


def test_an_answer_excludes_eos_and_records_that_it_ended(tokenizer):
    model = fixed_next_token(tokenizer, {tokens.eos_id(tokenizer): 0.5, 64: 0.5})
    answers = draw(model, tokenizer, PROMPTS[:1] * 64, max_new_tokens=4, batch_size=64)
    for answer in answers:
        assert tokens.eos_id(tokenizer) not in answer.ids
        assert answer.ended == (len(answer.ids) < 4)
        assert answer.text == tokenizer.decode(answer.ids)
    lengths = [len(answer.ids) for answer in answers]
    assert min(lengths) == 0
    assert max(lengths) == 4


def test_eos_as_the_last_allowed_token_counts_as_ended(tokenizer):
    model = fixed_next_token(tokenizer, {tokens.eos_id(tokenizer): 1.0})
    assert draw(model, tokenizer, PROMPTS[:1], max_new_tokens=1) == [Answer(text="", ids=[], ended=True)]


def test_a_next_turn_that_the_model_writes_stays_in_the_text(tokenizer):
    turn = tokenizer("\n\nHuman: and?")["input_ids"]
    model = tiny_policy(tokenizer)

    steps = iter(turn)
    original = model.forward

    def forward(**inputs):
        output = original(**inputs)
        output.logits = torch.full_like(output.logits, -1e4)  # type: ignore[arg-type]  # optional in the stub
        output.logits[..., next(steps)] = 0.0
        return output

    model.forward = forward  # type: ignore[method-assign]  # a test double
    (answer,) = draw(model, tokenizer, PROMPTS[:1], max_new_tokens=len(turn))
    assert answer == Answer(text="\n\nHuman: and?", ids=turn, ended=False)


def test_dropout_is_off_while_sampling_and_the_mode_is_restored(tokenizer):
    model = tiny_policy(tokenizer)
    without_dropout = draw(model, tokenizer, PROMPTS)
    model.train()
    assert draw(model, tokenizer, PROMPTS) == without_dropout
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_prompt_and_answer_beyond_the_positions_are_refused_in_one_line(policy, tokenizer):
    prompt_tokens = len(tokenizer(PROMPTS[0])["input_ids"])
    draw(policy, tokenizer, PROMPTS[:1], max_new_tokens=POSITIONS - prompt_tokens)
    with pytest.raises(
        UserError, match=f"{POSITIONS - prompt_tokens + 1} after a prompt of {prompt_tokens} tokens"
    ) as caught:
        draw(policy, tokenizer, PROMPTS[:1], max_new_tokens=POSITIONS - prompt_tokens + 1)
    assert "\n" not in str(caught.value)


def test_no_prompts_give_no_answers(policy, tokenizer):
    assert draw(policy, tokenizer, []) == []


def draws(rows: int, new_tokens: int = 20) -> torch.Tensor:
    return torch.rand(rows, new_tokens, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


def sampled(model: Any, tokenizer: GPT2Tokenizer, **options: Any) -> tuple[list[list[int]], list[list[float]]]:
    prompts = tokens.encode_prompts(tokenizer, PROMPTS)
    eos = tokens.eos_id(tokenizer)
    given = {"temperature": 1.0, "eos_token_id": eos, "never_token_id": 3, "batch_size": 4, **options}
    return sampling.sample_ids(model, prompts, draws(len(prompts)), **given)


@pytest.mark.parametrize("tokens_a_check", [1, 3, 8, 100])
@pytest.mark.parametrize("cache", [None, "static"])
def test_answers_do_not_depend_on_how_often_their_end_is_looked_for_nor_on_the_cache(
    tokens_a_check: int, cache: str | None, tokenizer: GPT2Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = eos_prone(tokenizer)
    expected_ids, expected = sampled(model, tokenizer)
    assert 1 < min(map(len, expected_ids)) < max(map(len, expected_ids))
    monkeypatch.setattr(sampling, "_tokens_a_check", lambda _: tokens_a_check)
    ids, logprobs = sampled(model, tokenizer, cache=cache)
    assert ids == expected_ids
    for ours, theirs in zip(logprobs, expected, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-5)


@pytest.mark.parametrize(("cache", "bf16"), [(None, False), ("static", False), ("static", True)])
@pytest.mark.parametrize("family", ["llama", "mistral"])  # a window of 4 tokens
def test_other_families_give_the_same_answers_with_either_cache_and_rare_checks(
    family: str, cache: str | None, bf16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [[5, 6, 7, 8, 9, 10], [11], [12, 13, 14]]

    def answers(cache: str | None) -> list[list[int]]:
        given = {"temperature": 1.0, "eos_token_id": 20, "never_token_id": None, "batch_size": 3, "cache": cache}
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            ids, _ = sampling.sample_ids(model, prompts, draws(3), **given)
        return [row[:1] for row in ids] if bf16 else ids  # rounding may change the later tokens

    model = families.policy(family)
    expected = answers(None)
    monkeypatch.setattr(sampling, "_tokens_a_check", lambda _: 8)
    assert answers(cache) == expected


@pytest.mark.parametrize("cache", [None, "static"])
@pytest.mark.parametrize("family", ["gpt2", "llama", "mistral"])
def test_an_accelerator_is_waited_for_at_the_checks_only(
    family: str, cache: str | None, tokenizer: GPT2Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "_tokens_a_check", lambda _: 8)
    model: Any = tiny_policy(tokenizer) if family == "gpt2" else families.policy(family)
    prompts = torch.randint(21, 100, (3, 6)).tolist()
    prompts[0] = prompts[0][:2]
    counts = {}
    for new_tokens in (7, 15, 31):
        given = (draws(3, new_tokens).clamp(0.3, 0.7), 1.0, 0, None, cache)  # the first token, EOS, is never drawn
        with torch.inference_mode(), Waits() as waits:
            list(sampling._sample_batch(model.eval(), prompts, *given))
        counts[new_tokens] = waits.count
    assert counts[15] - counts[7] == 1
    assert counts[31] - counts[15] == 2


def test_an_answer_that_ended_is_padded_until_the_next_check(
    tokenizer: GPT2Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "_tokens_a_check", lambda _: 100)
    eos = tokens.eos_id(tokenizer)
    model = fixed_next_token(tokenizer, {64: 0.5, eos: 0.5}).eval()
    chosen = torch.full((2, 5), 0.1, dtype=torch.float64)
    chosen[1, 1] = 0.9  # EOS
    with torch.inference_mode():
        *_, (ids, logprobs) = sampling._sample_batch(model, [[5, 6], [7]], chosen, 1.0, eos, None, None)
    assert ids.tolist() == [[64] * 5, [64, eos, eos, eos, eos]]
    half = np.log(0.5)
    assert logprobs.numpy() == pytest.approx(np.array([[half] * 5, [half, half, 0, 0, 0]]), abs=1e-5)


def test_a_streamed_answer_grows_by_a_token_and_ends_as_the_sampled_one(
    tokenizer: GPT2Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = eos_prone(tokenizer).train()
    for tokens_a_check in (1, 100):  # as on a CPU, and as on an accelerator, which pads answers that ended
        monkeypatch.setattr(sampling, "_tokens_a_check", lambda _, value=tokens_a_check: value)
        seen = []
        for answers in sampling.stream(model, tokenizer, PROMPTS[0], draws(3), 1.0):
            seen.append(answers)
            assert not torch.is_inference_mode_enabled()
            assert model.training
        lengths = [[len(answer.ids) + answer.ended for answer in answers] for answers in seen]
        expected_ids, _ = sampling.sample_ids(
            model,
            tokens.encode_prompts(tokenizer, [PROMPTS[0]] * 3),
            draws(3),
            temperature=1.0,
            eos_token_id=tokens.eos_id(tokenizer),
            never_token_id=None,
            batch_size=3,
        )
        assert [answer.sampled_ids(tokens.eos_id(tokenizer)) for answer in seen[-1]] == expected_ids
        ends = [len(ids) for ids in expected_ids]
        assert min(ends) < max(ends)
        assert lengths == [[min(count, end) for end in ends] for count in range(1, len(seen) + 1)]


def test_one_streamed_answer_is_that_of_the_evaluation_with_the_same_seed(
    policy: GPT2LMHeadModel, tokenizer: GPT2Tokenizer
) -> None:
    (expected,) = draw(policy, tokenizer, PROMPTS[:1], seed=5)
    *_, answers = sampling.stream(policy, tokenizer, PROMPTS[0], draws(1, new_tokens=12), 1.0)
    assert answers == [expected]


class Converted(TorchDispatchMode):
    """Counts within the block how often each matrix of weights is converted to another type."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.counts = {weight.data_ptr(): 0 for weight in model.parameters() if weight.dim() == 2}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket is torch.ops.aten._to_copy and args[0].data_ptr() in self.counts:
            self.counts[args[0].data_ptr()] += 1
        return func(*args, **(kwargs or {}))


def test_under_autocast_weights_are_converted_once_and_not_for_each_token(policy, tokenizer):
    with torch.autocast("cpu", torch.bfloat16), Converted(policy) as converted:
        ids, _ = sampled(policy, tokenizer)
    assert min(map(len, ids)) > 1
    assert set(converted.counts.values()) == {0, 1}  # embeddings alone are looked up as they are
