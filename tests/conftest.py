"""Set what libraries read from the environment when they are imported, and mark whole files as slow."""

import gc
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import gpt2_rlhf  # noqa: F401 - sets the rest of the environment

gc.disable()  # until all is imported
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it, and so do its children
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"  # the models are too small for two, and tests may share the machine

TESTS = Path(__file__).parent
SLOW_FILES = (  # most tests in them start processes, train or run a local Hub; other files mark single tests
    "benchmarks/test_bench.py",
    "config/test_values_in_force.py",
    "embedded/test_build.py",
    "evidence/test_product.py",
    "evidence/test_report.py",
    "examples/test_own_data_and_reward.py",
    "examples/test_ppo_alone.py",
    "hub/test_publish_faults.py",
    "launch/test_training.py",
    "models/test_loading.py",
    "ppo_trainer/test_families.py",
    "ppo_trainer/test_resume.py",
    "ppo_trainer/test_trainer.py",
    "ppo_trainer/test_watch.py",
    "rows/test_feedback_page.py",
    "test_bad_input.py",
    "test_chat.py",
    "test_evaluate.py",
    "test_publish.py",
)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Return one worker more than cores, since slow tests wait for processes; fast ones only for their own imports."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return cores if config.getoption("markexpr") == "not slow" else cores + 1


@pytest.hookimpl(tryfirst=True)  # before pytest deselects by marker
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of SLOW_FILES, which must exist, of clusters and of GPUs as slow; their files go first."""
    missing = [name for name in SLOW_FILES if not (TESTS / name).is_file()]
    if missing:
        raise pytest.UsageError(f"SLOW_FILES in {__file__}: {missing} do not exist; correct the list")
    for item in items:
        if item.path.relative_to(TESTS).as_posix() in SLOW_FILES or any(
            map(item.get_closest_marker, ("cluster", "gpu"))
        ):
            item.add_marker("slow")
    slow = {item.path for item in items if item.get_closest_marker("slow") is not None}
    places = {path: place for place, path in enumerate(dict.fromkeys(item.path for item in items))}
    # slow files first, from the last (those of whole runs take longest), so that no core is idle at the end
    items.sort(key=lambda item: (item.path not in slow, -places[item.path]))


def pytest_collection_finish() -> None:
    """Look for garbage from now on, and not among what was imported."""
    gc.enable()
    gc.freeze()


@pytest.fixture
def small_overheads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Remove costs that are large beside a tiny model's training.

    TRL collects garbage twice per update, which takes 0.3 s where training takes 0.1 s; threads wait for each other on
    a busy CPU.
    """
    import torch  # takes seconds, which only tests that train should spend

    monkeypatch.setattr(gc, "collect", lambda: 0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
