"""For each repair: TRL's trainer (stock) fails, ours does not. If stock no longer fails, the repair can go."""

import gc
import json
import re
import signal
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, TaskType
from transformers import AutoTokenizer, GPT2LMHeadModel, TrainerCallback

from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.models import packing, tokens
from gpt2_rlhf.ppo_trainer import PPOTrainer, checks, forward, rollouts
from helpers import ppo_tiny as tiny

pytestmark = pytest.mark.usefixtures("small_overheads")


def lora() -> LoraConfig:
    return LoraConfig(r=2, fan_in_fan_out=True, task_type=TaskType.CAUSAL_LM)


class AtUpdateEnd(TrainerCallback):
    """Keeps what `observe` returns after each update."""

    def __init__(self, observe: Any):
        self.observe = observe
        self.observed: list[Any] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.observed.append(self.observe())


@pytest.mark.parametrize(
    ("num_mini_batches", "stock_steps", "our_steps"),
    [
        (1, [2, 2, 8], [2, 2, 2]),  # 2 epochs x 1 step; the pass over the prompts ends with the third batch
        (4, [2, 2, 8], [8, 8, 8]),  # 2 epochs x 4 mini-batches
    ],
)
def test_stock_miscounts_optimizer_steps_and_ours_takes_one_per_mini_batch(
    tmp_path, num_mini_batches, stock_steps, our_steps
):
    args = {
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 4,
        "num_mini_batches": num_mini_batches,
        "total_episodes": 24,
    }

    def steps(build: Any) -> list[int]:
        count = 0

        def step(*_: Any) -> None:
            nonlocal count
            count += 1

        callback = AtUpdateEnd(lambda: count)
        trainer = build(tiny.arguments(tmp_path, **args), train_dataset=tiny.prompts(24), callbacks=[callback])
        trainer.optimizer.optimizer.register_step_post_hook(step)
        trainer.train()
        return np.diff([0, *callback.observed]).tolist()

    assert steps(tiny.stock) == stock_steps
    assert steps(tiny.ours) == our_steps


def gradient_norms_at_each_step(build: Any, args: Any) -> tuple[Any, list[float]]:
    trainer, norms = build(args), []
    trainer.optimizer.optimizer.register_step_pre_hook(
        lambda *_: norms.append(
            torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None]).norm().item()
        )
    )
    trainer.train()
    return trainer, norms


def test_stock_ignores_max_grad_norm_and_ours_clips_policy_and_value_together(tmp_path):
    args = tiny.arguments(tmp_path, max_grad_norm=0.01, total_episodes=4)
    _, stock_norms = gradient_norms_at_each_step(tiny.stock, args)
    _, our_norms = gradient_norms_at_each_step(tiny.ours, args)
    assert min(stock_norms) > 0.1
    assert our_norms == pytest.approx([0.01] * 2, rel=1e-3)


def test_grad_norm_is_logged_as_the_mean_over_steps_before_clipping(tmp_path):
    unclipped, norms = gradient_norms_at_each_step(tiny.ours, tiny.arguments(tmp_path, max_grad_norm=0))
    assert len(norms) == 4  # 2 updates x 2 epochs
    expected = [sum(norms[:2]) / 2, sum(norms[2:]) / 2]
    assert tiny.logged(unclipped, "grad_norm") == pytest.approx(expected, rel=1e-3)
    clipped = tiny.ours(tiny.arguments(tmp_path, max_grad_norm=1e-6, num_ppo_epochs=1, total_episodes=4))
    clipped.train()
    assert tiny.logged(clipped, "grad_norm") == pytest.approx(norms[:1], rel=1e-3)


def test_stock_hangs_on_too_few_prompts_and_ours_refuses_them(tmp_path):
    class Hangs(Exception):
        pass

    def out_of_time(signum: int, frame: FrameType | None) -> None:
        raise Hangs

    args = tiny.arguments(tmp_path)  # 4 prompts to an update
    trainer = tiny.stock(args, train_dataset=tiny.prompts(3))
    before = signal.signal(signal.SIGALRM, out_of_time)
    signal.setitimer(signal.ITIMER_REAL, 0.5)
    try:
        with pytest.raises(Hangs):
            trainer.train()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    with pytest.raises(UserError, match="3 prompts are fewer than one rollout batch of 4"):
        tiny.ours(args, train_dataset=tiny.prompts(3))


def test_episodes_that_do_not_fill_the_last_update_are_rounded_up_in_one_line(tmp_path, capsys):
    tiny.ours(tiny.arguments(tmp_path, total_episodes=8))
    assert capsys.readouterr().out == ""
    trainer = tiny.ours(tiny.arguments(tmp_path, total_episodes=9))
    assert capsys.readouterr().out == "ppo: total_episodes 9 is rounded up to 12: 3 updates of 4\n"
    assert trainer.args.num_total_batches == 3
    # 1.5 passes over 12 prompts are 18 episodes
    tiny.ours(tiny.arguments(tmp_path, total_episodes=None, num_train_epochs=1.5))
    assert capsys.readouterr().out == "ppo: total_episodes 18 is rounded up to 20: 5 updates of 4\n"


def test_a_pass_over_packed_rows_that_differs_from_sampling_is_refused_also_in_bf16(tmp_path, monkeypatch):
    right = forward.answer_logprobs

    def without_logit_scale(model: Any, rows: Any, temperature: float) -> Any:
        return right(model, rows, 2 * temperature)

    for bf16 in (False, True):
        trainer = tiny.ours(tiny.arguments(tmp_path, bf16=bf16, total_episodes=4))
        before = tiny.trained_digest(trainer)
        monkeypatch.setattr(forward, "answer_logprobs", without_logit_scale)
        with pytest.raises(UserError, match="ppo: gpt2: sampling gives a token") as fault:
            trainer.train()
        own, packed = map(float, re.findall(r"-\d+\.\d{4}", str(fault.value)))
        assert abs(own - packed) > 1e-3
        assert tiny.trained_digest(trainer) == before


def test_check_counts_the_prompts_of_all_processes(tmp_path):
    args = tiny.arguments(tmp_path)
    one_row = tiny.arguments(tmp_path, gradient_accumulation_steps=1, per_device_train_batch_size=1)
    checks.check(one_row, prompt_count=8, world_size=2)
    checks.check(args, prompt_count=8, world_size=2)
    with pytest.raises(UserError, match=r"7 prompts .* batch of 8 .* 2 processes"):
        checks.check(args, prompt_count=7, world_size=2)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"num_mini_batches": 3}, "ppo.args.num_mini_batches: 3 does not divide the 4 rollouts"),
        ({"whiten_rewards": True}, "ppo.args.whiten_rewards: needs mini-batches of 8 or more, not 4"),
        ({"gradient_accumulation_steps": 1, "per_device_train_batch_size": 1}, "needs 2 or more"),
        ({"ref_adapter_name": "other"}, "ppo.args.ref_adapter_name: 'other': .* pass another reference as ref_model"),
        ({"save_strategy": "epoch"}, "ppo.args.save_strategy: epoch: .* expected steps or no"),
    ],
)
def test_arguments_that_cannot_work_are_refused(tmp_path, changes, line):
    with pytest.raises(UserError, match=line):
        checks.check(tiny.arguments(tmp_path, **changes), prompt_count=100, world_size=1)


def test_stock_trains_on_a_wrong_ratio_under_right_padding_and_ours_refuses_it(tmp_path):
    right = tokens.padding_copy(tiny.tokenizer(), "right")
    args = tiny.arguments(tmp_path, learning_rate=0.0, total_episodes=4)
    trainer = tiny.stock(args, processing_class=right)
    trainer.train()
    assert tiny.logged(trainer, "policy/approxkl_avg")[0] > 1e-3  # 0 if rollout and update used the same distribution
    with pytest.raises(UserError, match="pads on the right"):
        tiny.ours(args, processing_class=right)


def test_stock_fails_on_empty_answers_with_eos_as_padding_and_ours_refuses_that_padding_and_trains_them(tmp_path):
    args = tiny.arguments(tmp_path, total_episodes=4)
    eos_padded = tiny.padding_tokenizer()
    eos_padded.pad_token = eos_padded.eos_token
    with pytest.raises(ValueError, match="sum of the mask is zero"):  # no token is left to train, not even EOS
        tiny.stock(args, processing_class=eos_padded, model=tiny.always_says(tiny.policy(), tiny.EOS_ID)).train()
    with pytest.raises(UserError, match="never trains the EOS"):
        tiny.ours(args, processing_class=eos_padded)

    trainer: Any = tiny.ours(args, model=tiny.always_says(tiny.policy(), tiny.EOS_ID))
    before = tiny.digest(trainer.value_model)
    trainer.train()
    assert tiny.digest(trainer.value_model) != before
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())


def test_stock_fails_inside_the_model_on_long_prompts_and_ours_names_the_prompt(tmp_path):
    rows = [{"input_ids": [5] * length} for length in (8, 8, tiny.POSITIONS - tiny.RESPONSE + 1, 8)]
    args = tiny.arguments(tmp_path)
    with pytest.raises(IndexError, match="out of range"):
        tiny.stock(args, train_dataset=Dataset.from_list(rows)).train()
    with pytest.raises(UserError, match="prompt 2 has 59 tokens and the answer may take 6, but the models have 64"):
        tiny.ours(args, train_dataset=Dataset.from_list(rows))


def test_stock_fails_on_text_columns_and_ours_leaves_them_out(tmp_path):
    prompts = tiny.prompts(4)
    with_text = prompts.add_column("prompt", ["some text"] * 4)  # type: ignore[call-arg]
    args = tiny.arguments(tmp_path, total_episodes=4)
    with pytest.raises(ValueError, match="Unable to create tensor"):
        tiny.stock(args, train_dataset=with_text).train()
    tiny.ours(args, train_dataset=with_text).train()


def test_prompts_without_tokens_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"train_dataset has columns \['prompt'\]; expected a Dataset with input_ids"):
        tiny.ours(tiny.arguments(tmp_path), train_dataset=Dataset.from_list([{"prompt": "x"}] * 4))


@pytest.mark.parametrize("peft_config", [None, lora()], ids=["full", "lora"])
def test_stock_samples_with_the_generation_config_of_the_policy_and_ours_with_ppo_arguments(tmp_path, peft_config):
    def first_ratio(build: Any) -> tuple[float, Any]:
        model = tiny.policy()
        model.generation_config.repetition_penalty = 1.5
        args = tiny.arguments(tmp_path, learning_rate=0.0, total_episodes=4)
        trainer = build(args, model=model, peft_config=peft_config)
        trainer.train()
        return tiny.logged(trainer, "val/ratio")[0], model

    stock_ratio, _ = first_ratio(tiny.stock)
    our_ratio, our_model = first_ratio(tiny.ours)
    assert abs(stock_ratio - 1) > 1e-3
    assert our_ratio == pytest.approx(1, abs=1e-6)
    assert our_model.generation_config.repetition_penalty == 1.5


def test_stock_without_a_stop_token_saves_a_policy_that_never_stops_and_ours_saves_the_eos(tmp_path):
    trainer = tiny.stock(tiny.arguments(tmp_path, stop_token=None))
    trainer.save_model(str(tmp_path / "stock"))
    assert GPT2LMHeadModel.from_pretrained(tmp_path / "stock").generation_config.eos_token_id is None

    model = tiny.policy()
    model.generation_config.eos_token_id = None
    trainer = tiny.ours(tiny.arguments(tmp_path, total_episodes=4), model=model)
    trainer.train()
    trainer.save_model(str(tmp_path / "ours"))
    saved = GPT2LMHeadModel.from_pretrained(tmp_path / "ours").generation_config
    assert saved.eos_token_id == saved.pad_token_id == tiny.EOS_ID


def test_stock_takes_a_sampled_padding_token_for_the_end_and_ours_never_samples_it(tmp_path):
    args = tiny.arguments(tmp_path, total_episodes=4, learning_rate=0.0)
    with pytest.raises(ValueError, match="sum of the mask is zero"):
        tiny.stock(args, model=tiny.always_says(tiny.policy(), tiny.PAD_ID)).train()

    trainer = tiny.ours(args, model=tiny.always_says(tiny.policy(), tiny.PAD_ID))
    trainer.train()
    assert tiny.logged(trainer, "answer/tokens")[0] > 1
    assert tiny.logged(trainer, "val/ratio")[0] == pytest.approx(1, abs=1e-6)
    assert tiny.logged(trainer, "objective/kl")[0] == pytest.approx(0, abs=1e-4)
    assert np.isfinite(tiny.logged(trainer, "policy/entropy_avg")[0])


def test_stock_keeps_all_rollout_logits_through_the_update_and_ours_does_not(tmp_path):
    rollout = 8 * tiny.RESPONSE * tiny.VOCABULARY

    def largest_logits_alive() -> int:
        tensors = [o for o in gc.get_objects() if type(o) is torch.Tensor and o.shape[-1:] == (tiny.VOCABULARY,)]
        return max((t.numel() for t in tensors), default=0)

    def alive_at_update_end(build: Any) -> list[int]:
        callback = AtUpdateEnd(largest_logits_alive)
        args = tiny.arguments(tmp_path, gradient_accumulation_steps=4, total_episodes=8)
        build(args, callbacks=[callback]).train()
        return callback.observed

    assert alive_at_update_end(tiny.stock) == [rollout]
    # the garbage collector may not yet have freed a reference pass over some rows
    assert alive_at_update_end(tiny.ours)[0] < rollout / 2


def test_stock_depends_on_the_state_of_numpy_and_ours_on_the_seed_only(tmp_path):
    def trained(build: Any, elsewhere: int) -> str:
        args = tiny.arguments(tmp_path)
        trainer = build(args)
        np.random.seed(elsewhere)  # as another library may do
        trainer.train()
        return tiny.trained_digest(trainer)

    assert trained(tiny.stock, 1) != trained(tiny.stock, 2)
    assert trained(tiny.ours, 1) == trained(tiny.ours, 2)


def test_adapter_weights_depend_on_the_seed_only(tmp_path):
    def adapters(elsewhere: int) -> str:
        parts = {"model": tiny.policy(), "reward_model": tiny.scorer(1), "value_model": tiny.scorer(2)}
        torch.manual_seed(elsewhere)  # after the parts, which seed the generator themselves
        trainer = PPOTrainer(
            args=tiny.arguments(tmp_path),
            processing_class=tiny.padding_tokenizer(),
            ref_model=None,
            train_dataset=tiny.prompts(),
            peft_config=lora(),
            **parts,
        )
        return tiny.digest(trainer.policy_model)

    assert adapters(1) == adapters(2)


def test_stock_prints_a_banner_and_ours_does_not(tmp_path, capsys):
    args = tiny.arguments(tmp_path, total_episodes=4)
    tiny.stock(args).train()
    assert "===training policy===" in capsys.readouterr().out
    tiny.ours(args).train()
    assert "===" not in capsys.readouterr().out


def test_the_arguments_object_of_the_caller_is_not_changed(tmp_path):
    args = tiny.arguments(tmp_path, num_mini_batches=2)
    tiny.ours(args)
    assert (args.gradient_accumulation_steps, args.num_total_batches) == (2, None)


def test_stock_saves_the_padding_copy_of_the_tokenizer_and_ours_the_policy_alone(tmp_path):
    args = tiny.arguments(tmp_path)
    tiny.stock(args).save_model(str(tmp_path / "stock"))
    stock_tokenizer = AutoTokenizer.from_pretrained(tmp_path / "stock")
    assert stock_tokenizer("ÿ")["input_ids"] == [stock_tokenizer.pad_token_id]  # text that is read as padding

    trainer = tiny.ours(args)
    trainer.save_model(str(tmp_path / "ours"))
    names = {path.name for path in (tmp_path / "ours").iterdir()}
    assert names == {"config.json", "generation_config.json", "model.safetensors"}
    assert tiny.digest(GPT2LMHeadModel.from_pretrained(tmp_path / "ours")) == tiny.digest(trainer.policy_model)


def test_each_update_reaches_the_callbacks_once(tmp_path):
    class Tracker(TrainerCallback):
        steps: list[tuple[int, int]]

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            json.dumps(logs)  # plain numbers only
            self.steps.append((state.global_step, logs["episode"]))

    tracker = Tracker()
    tracker.steps = []
    tiny.ours(tiny.arguments(tmp_path, total_episodes=12), callbacks=[tracker]).train()
    assert tracker.steps == [(1, 4), (2, 8), (3, 12)]


def test_no_model_card_is_written(tmp_path):
    tiny.ours(tiny.arguments(tmp_path, save_strategy="steps", save_steps=1, total_episodes=4)).train()
    assert [path.name for path in Path(tmp_path).iterdir()] == ["checkpoint-1"]


def test_stock_averages_over_slots_it_never_filled_and_ours_over_computed_values(tmp_path):
    args = tiny.arguments(
        tmp_path, learning_rate=0.0, gradient_accumulation_steps=4, num_mini_batches=2, total_episodes=8
    )
    ratios = []
    for build in (tiny.stock, tiny.ours):
        trainer = build(args)
        trainer.train()
        ratios.append(tiny.logged(trainer, "val/ratio")[0])
    assert ratios == pytest.approx([0.5, 1.0], abs=1e-3)


def test_stock_starts_warm_up_at_learning_rate_0_and_ours_above(tmp_path):
    args = {"total_episodes": 16, "warmup_steps": 2, "learning_rate": 1.0, "lr_scheduler_type": "linear"}
    rates = {}
    for build in (tiny.stock, tiny.ours):
        trainer = build(tiny.arguments(tmp_path, optim="sgd", max_grad_norm=1e-9, **args))
        trainer.train()
        rates[build] = tiny.logged(trainer, "lr")
    assert rates[tiny.stock] == pytest.approx([0, 1 / 2, 1, 1 / 2])
    assert rates[tiny.ours] == pytest.approx([1 / 2, 1, 2 / 3, 1 / 3])


def test_stock_ignores_bf16_and_ours_uses_it_in_both_rollout_and_update(tmp_path, monkeypatch):
    monkeypatch.setattr(rollouts, "check_packed_pass", lambda *_: None)  # it runs in float32
    monkeypatch.setattr(packing, "_agrees", lambda *_, hooked: True)  # it compares in float32
    args = {"bf16": True, "learning_rate": 0.0, "total_episodes": 4}
    stock = tiny.stock(tiny.arguments(tmp_path, **args))
    assert stock.accelerator.mixed_precision == "no"
    ours: Any = tiny.ours(tiny.arguments(tmp_path, **args))
    assert ours.accelerator.mixed_precision == "bf16"
    dtypes = set()
    ours.policy_model.lm_head.register_forward_hook(lambda _m, _i, logits: dtypes.add(logits.dtype))
    ours.train()
    assert dtypes == {torch.bfloat16}
    assert {p.dtype for p in ours.model.parameters()} == {torch.float32}
    assert tiny.logged(ours, "val/ratio")[0] == pytest.approx(1, abs=1e-3)
    assert tiny.logged(ours, "policy/approxkl_avg")[0] < 1e-5
    assert tiny.logged(ours, "objective/kl_k3")[0] < 1e-3
    again = tiny.ours(tiny.arguments(tmp_path, total_episodes=4))
    assert again.accelerator.mixed_precision == "no"


class StopAfterFirst(TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = True


@pytest.mark.parametrize(
    ("changes", "callbacks", "stock_logs", "our_logs"),
    [
        ({}, [StopAfterFirst()], [1, 2, 3], [1]),
        ({"max_steps": 2}, [], [1, 2, 3], [1, 2]),
        ({"logging_steps": 2}, [], [1, 2, 3], [2]),
    ],
    ids=["a callback's stop", "max_steps", "logging_steps"],
)
def test_stock_ignores_these_ways_to_stop_and_log_and_ours_does_not(tmp_path, changes, callbacks, stock_logs, our_logs):
    args = {"total_episodes": 12, **changes}
    for build, steps in ((tiny.stock, stock_logs), (tiny.ours, our_logs)):
        trainer = build(tiny.arguments(tmp_path, **args), callbacks=list(callbacks))
        trainer.train()
        assert [entry["step"] for entry in trainer.state.log_history] == steps
