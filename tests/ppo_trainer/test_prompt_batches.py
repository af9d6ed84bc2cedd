import numpy as np

from gpt2_rlhf.ppo_trainer.prompt_batches import PromptBatches


def batches(position: int, count: int, **changes: int) -> list[list[int]]:
    loader = PromptBatches(**{"prompts": range(10), "rows": 2, "seed": 5, "rank": 0, "world_size": 2, **changes})
    return [loader.batch(position + place) for place in range(count)]


def test_the_order_from_any_position_is_the_tail_of_the_order_from_the_start():
    whole = batches(0, 7)
    assert all(batches(start, 7 - start) == whole[start:] for start in range(7))


def test_a_pass_gives_each_prompt_to_one_process_once_and_passes_have_different_orders():
    passes = []
    for first in (0, 2):  # 10 prompts in batches of 2 x 2: two batches in a pass, two prompts left out
        rows = [row for rank in (0, 1) for batch in batches(first, 2, rank=rank) for row in batch]
        assert len(rows) == len(set(rows)) == 8
        passes.append(rows)
    assert passes[0] != passes[1]
    assert batches(0, 2, seed=6) != batches(0, 2)


def test_the_global_generator_does_not_change_the_order():
    np.random.seed(1)
    first = batches(0, 3)
    np.random.seed(2)
    assert batches(0, 3) == first
