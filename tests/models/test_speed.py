import pytest

from gpt2_rlhf.models import speed
from gpt2_rlhf.models.speed import Machine


@pytest.fixture(autouse=True)
def one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "_LONG_ENOUGH_S", 0.0)


def test_every_part_takes_time_and_more_rows_take_more() -> None:
    machine = Machine(width=64, inner=256, heads=4, half=False)
    assert machine.weights == 64 * (4 * 64 + 2 * 256)
    parts = (machine.read(2, 5), machine.learn(2, 5), machine.generate(2, 5), machine.logits(4, 100, True))
    assert min(*parts, machine.step(), machine.call()) > 0
    assert machine.read(10**9, 5) > 1e6 * machine.read(2, 5)


def test_a_large_layer_is_timed_as_a_smaller_one() -> None:
    machine = Machine(width=8192, inner=28672, heads=64, half=False)
    assert machine.weights <= speed._NUMBERS
    assert machine.weights * machine.scale == 8192 * (4 * 8192 + 2 * 28672)


def test_a_part_is_timed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(width=64, inner=256, heads=4, half=False)
    first = machine.read(2, 5)
    monkeypatch.setattr(machine, "_done", lambda work: pytest.fail("timed again"))
    assert machine.read(2, 5) == first
