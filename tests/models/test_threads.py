import copy
import threading
from collections.abc import Callable

import pytest
import torch
from torch import nn

from gpt2_rlhf.models import threads
from helpers import ppo_tiny as tiny

pytestmark = pytest.mark.usefixtures("small_overheads")


def meeting() -> tuple[Callable[[], str], Callable[[], str]]:
    """Return two computations that each wait for the other, and give the name of their thread."""
    both_run = threading.Barrier(2, timeout=20)

    def meet() -> str:
        both_run.wait()
        return threading.current_thread().name

    return meet, meet


def test_both_run_at_the_same_time_and_the_first_in_the_callers_thread():
    first, second = threads.both(*meeting(), in_threads=True)
    assert first == threading.current_thread().name != second


@pytest.mark.parametrize(("in_threads", "threads_of_torch"), [(False, 1), (True, 2)])
def test_both_run_in_turn_in_the_callers_thread(in_threads: bool, threads_of_torch: int):
    torch.set_num_threads(threads_of_torch)
    order: list[str] = []

    def called(name: str) -> str:
        order.append(name)
        return threading.current_thread().name

    found = threads.both(lambda: called("first"), lambda: called("second"), in_threads)
    assert order == ["first", "second"]
    assert found == (threading.current_thread().name,) * 2


def torch_state() -> tuple[object, ...]:
    cast = torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_num_threads(), *cast


def test_the_second_computes_with_the_callers_gradient_mode_autocast_and_number_of_threads():
    modes = (
        torch.enable_grad(),
        torch.no_grad(),
        torch.inference_mode(),
        torch.autocast("cpu", torch.bfloat16),
        torch.autocast("cpu", torch.float16),
    )
    states = []
    for mode in modes:
        with mode:
            first, second = threads.both(torch_state, torch_state, in_threads=True)
            assert first == second == torch_state()
            states.append(first)
    assert len(set(states)) == len(modes)


@pytest.mark.parametrize("place", [0, 1])
def test_an_error_of_either_is_raised_once_the_other_has_ended(place: int):
    ended = threading.Event()

    def fail() -> None:
        raise ValueError("the scores are not finite")

    def go_on() -> None:
        ended.wait(0.2)
        ended.set()

    pair = (fail, go_on) if place == 0 else (go_on, fail)
    with pytest.raises(ValueError, match="the scores are not finite"):
        threads.both(*pair, in_threads=True)
    assert ended.is_set()


def test_models_are_apart_that_have_neither_a_weight_nor_a_config_in_common():
    one, other, third = tiny.policy(), tiny.scorer(1), tiny.scorer(2)
    assert threads.apart(one, other, third)
    assert not threads.apart(one, other, one)

    shares_weight = copy.deepcopy(third)
    shares_weight.transformer.wte = other.transformer.wte
    assert not threads.apart(one, other, shares_weight)

    shares_config = type(third)(other.config)
    assert not threads.apart(one, other, shares_config)
    assert threads.apart(nn.Linear(2, 2), nn.Linear(2, 2))  # without configs
