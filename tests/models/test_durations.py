"""The arithmetic, with parts of a model that take a second each or none, so that a stage's seconds count its passes."""

import pytest
import torch

from gpt2_rlhf.config import compose
from gpt2_rlhf.models import durations, shape
from gpt2_rlhf.models.memory import Lengths
from helpers.overrides import changed

SIZES = "model.random={vocab_size: 100, n_positions: 64, n_embd: 32, n_layer: 3, n_head: 4}"
TINY = compose.load(["model=gpt2_random", SIZES]).settings
SFT = Lengths(rows=85, prompt=20.0, answer=10.0, longest=50, spread=0.0)
TEST = Lengths(rows=6, prompt=20.0, answer=10.0, longest=50, spread=0.0)
TABLES = {"sft": SFT, "reward": SFT, "judge": SFT, "ppo": SFT, "test": TEST}
LAYERS = 3


class Stopped:
    """A machine on which nothing takes time but one part."""

    part = ""

    def __init__(self, width: int, inner: int, heads: int, half: bool) -> None:
        self.device, self.weights, self.scale = torch.device("cpu"), 1, 1.0

    def call(self) -> float:
        return float(self.part == "call")

    def learn(self, rows: int, columns: int) -> float:
        return float(self.part == "learn")

    def read(self, rows: int, columns: int) -> float:
        return float(self.part == "read")

    def generate(self, rows: int, past: int) -> float:
        return float(self.part == "generate")

    def logits(self, tokens: int, vocabulary: int, draws: bool) -> float:
        return float(self.part == "logits")

    def step(self) -> float:
        return float(self.part == "step")


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(durations, "Machine", Stopped)


def seconds(name: str, part: str, *overrides: str, processes: int = 1) -> float:
    Stopped.part = part
    settings = changed(TINY, *overrides)
    return durations.Durations(settings, shape.of(settings.model), TABLES, processes).seconds(name)


def updates(name: str, *overrides: str, processes: int = 1) -> int:
    return durations.updates(name, changed(TINY, *overrides), SFT.rows, processes)


def test_updates_of_each_stage() -> None:
    assert updates("sft", "sft.args.per_device_train_batch_size=8") == 11  # 85 rows; the last batch is not full
    assert updates("sft", "sft.args.per_device_train_batch_size=8", "sft.args.num_train_epochs=2") == 22
    assert updates("sft", "sft.args.per_device_train_batch_size=8", "sft.args.num_train_epochs=0.5") == 6
    assert updates("sft", "sft.args.per_device_train_batch_size=8", processes=2) == 6
    assert updates("judge", "reward.args.max_steps=5") == 5
    batch = ("ppo.args.per_device_train_batch_size=4", "ppo.args.gradient_accumulation_steps=2")
    assert updates("ppo", *batch, "ppo.heldout.prompts=5", "ppo.args.total_episodes=60") == 8  # of 8 episodes
    assert updates("ppo", *batch, "ppo.args.max_steps=3") == 3


def test_passes_of_sft_and_the_reward_model() -> None:
    steps = "sft.args.max_steps=4"
    assert seconds("sft", "learn", steps) == 4 * LAYERS
    assert seconds("sft", "learn", steps, "sft.args.gradient_accumulation_steps=2") == 8 * LAYERS
    assert seconds("sft", "learn", steps, "sft.args.activation_checkpointing=true") == pytest.approx(16 / 3 * LAYERS)
    assert seconds("sft", "learn", steps, processes=2) == 8 * LAYERS  # two processes share the cores
    assert seconds("sft", "read", steps) == 2 * LAYERS  # all test rows at once, before and after
    assert seconds("sft", "read", steps, "evaluate.batch_size=2") == 2 * 3 * LAYERS
    assert seconds("sft", "read", steps, "evaluate.batch_size=2", "evaluate.pairs=4") == 2 * 2 * LAYERS
    assert seconds("reward", "logits", "reward.args.max_steps=4") == 0


def test_starting_a_stage_and_a_step_take_time_of_their_own() -> None:
    start = seconds("reward", "call", "reward.args.max_steps=0", "reward.args.num_train_epochs=0")
    assert start > 0
    steps = [seconds("reward", "call", f"reward.args.max_steps={count}") - start for count in (1, 3)]
    assert steps[1] == 3 * steps[0] > 0
    assert seconds("sft", "step", "sft.args.max_steps=4") == 4 * shape.of(TINY.model).weights


def test_passes_of_ppo() -> None:
    batch = ("ppo.args.per_device_train_batch_size=4", "ppo.args.gradient_accumulation_steps=4")
    chosen = (*batch, "ppo.args.num_ppo_epochs=3", "ppo.args.num_mini_batches=2", "ppo.args.max_steps=5")
    unmeasured = (*chosen, "ppo.args.eval_strategy='no'", "ppo.args.response_length=7")
    # 16 episodes an update in 4 batches of a policy and a critic, three times
    assert seconds("ppo", "learn", *unmeasured) == 5 * 3 * 4 * 2 * LAYERS
    assert seconds("ppo", "generate", *unmeasured, "ppo.args.local_rollout_forward_batch_size=8") == 5 * 2 * 7 * LAYERS
    # the prompts, then reference, critic and reward model, in two parts each
    assert seconds("ppo", "read", *unmeasured, "ppo.args.local_rollout_forward_batch_size=8") == 5 * 2 * 4 * LAYERS
    threads = "launch.threads=1"  # the critic learns beside the policy, and the reference reads beside two models
    assert seconds("ppo", "learn", *unmeasured, threads) == 5 * 3 * 4 * LAYERS
    assert seconds("ppo", "read", *unmeasured, threads) == 5 * 3 * LAYERS
    two = [seconds("ppo", "learn", *unmeasured, *one, processes=2) for one in ((), (threads,))]
    assert two[0] == two[1] > 0
    measured = (*chosen, "ppo.args.response_length=7", "ppo.heldout.prompts=8", "ppo.args.eval_steps=2")
    # before the first update, and after 2, 4 and 5
    assert seconds("ppo", "generate", *measured) - seconds("ppo", "generate", *unmeasured) == 4 * 7 * LAYERS


def test_the_evaluation_samples_each_model_and_the_sft_model_again_for_best_of_n() -> None:
    chosen = ("evaluate.prompts=4", "evaluate.batch_size=4", "evaluate.max_new_tokens=5")
    assert seconds("evaluate", "generate", *chosen, "evaluate.best_of=null") == 3 * 5 * LAYERS
    assert seconds("evaluate", "generate", *chosen, "evaluate.best_of=4") == 6 * 5 * LAYERS


def test_rloo_samples_once_for_all_steps_of_a_batch_of_answers_and_dpo_reads_each_pair_with_its_reference() -> None:
    batch = "rloo.args.per_device_train_batch_size=2", "rloo.args.steps_per_generation=4", "rloo.episodes=17"
    rloo = ("method=rloo", "rloo.args.gradient_accumulation_steps=1", "rloo.args.max_completion_length=5", *batch)
    assert updates("rloo", *rloo) == 3 * 4  # 17 episodes fill three batches of 8
    assert seconds("rloo", "step", *rloo) == pytest.approx(12 * shape.of(TINY.model).weights)
    assert seconds("rloo", "generate", *rloo) == pytest.approx(17 / 8 * 5 * LAYERS)
    dpo = ("method=dpo", "dpo.args.per_device_train_batch_size=5", "dpo.args.gradient_accumulation_steps=1")
    assert updates("dpo", *dpo) == 17
    assert seconds("dpo", "learn", *dpo) == seconds("dpo", "read", *dpo) == 17 * LAYERS
