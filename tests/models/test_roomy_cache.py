from typing import Any

import pytest
import torch
from transformers import DynamicCache

from gpt2_rlhf.models import roomy_cache, sampling
from helpers import families, ppo_tiny

ROWS, COLUMNS, HEADS, WIDTH = 5, 12, 2, 3


def states(rows: int, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(rows, HEADS, tokens, WIDTH), torch.randn(rows, HEADS, tokens, WIDTH)


def test_a_cache_with_room_holds_what_one_without_holds():
    torch.manual_seed(0)
    plain, roomy = DynamicCache(), DynamicCache()
    prompts = states(ROWS, 4)
    for cache in (plain, roomy):
        cache.update(*prompts, 0)
    roomy_cache.give_room(roomy, COLUMNS)
    kept = {1: [0, 2, 3, 4], 3: [1, 3]}
    rows = ROWS
    for token in range(COLUMNS - 4):
        if token in kept:
            for cache in (plain, roomy):
                cache.batch_select_indices(torch.tensor(kept[token]))
            rows = len(kept[token])
        new = states(rows, 1)
        found = [cache.update(*new, 0) for cache in (plain, roomy)]
        assert found[0][0].shape == (rows, HEADS, 5 + token, WIDTH)
        assert torch.equal(found[0][0], found[1][0])
        assert torch.equal(found[0][1], found[1][1])
        assert plain.get_seq_length() == roomy.get_seq_length() == 5 + token


def test_a_token_is_written_in_place():
    cache = DynamicCache()
    cache.update(*states(ROWS, 4), 0)
    roomy_cache.give_room(cache, COLUMNS)
    places = {tuple(part.data_ptr() for part in cache.update(*states(ROWS, 1), 0)) for _ in range(4, COLUMNS)}
    assert len(places) == 1


@pytest.mark.parametrize("family", ["gpt2", "llama", "mistral", "gemma2", "bloom"])
def test_sampled_tokens_and_log_probabilities_are_equal_to_the_bit_with_and_without_room(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model: Any = ppo_tiny.often_stopping_policy(3) if family == "gpt2" else families.policy(family)
    prompt_ids = [list(prompt) for prompt in ppo_tiny.prompts(6)["input_ids"]]
    new_tokens = 16
    draws = torch.rand(len(prompt_ids), new_tokens, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    stop = ppo_tiny.EOS_ID if family == "gpt2" else 7
    given: list[Any] = []

    def sampled() -> tuple[list[list[int]], list[list[float]]]:
        return sampling.sample_ids(
            model, prompt_ids, draws, temperature=1.0, eos_token_id=stop, never_token_id=None, batch_size=6
        )

    give_room = roomy_cache.give_room
    monkeypatch.setattr(roomy_cache, "give_room", lambda cache, columns: given.append(give_room(cache, columns)))
    with_room = sampled()
    assert len(given) == 1
    monkeypatch.setattr(roomy_cache, "give_room", lambda *_: None)
    assert sampled() == with_room
    if family == "gpt2":
        assert len({len(answer) for answer in with_room[0]}) > 1  # rows have left the cache
