"""Each repair: the stock trainer does the wrong thing, ours the right one. When stock does not, the repair can go."""

import copy
import gc
import json
import signal
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, TaskType
from transformers import AutoTokenizer, DataCollatorWithPadding, GPT2LMHeadModel, TrainerCallback
from trl.experimental.ppo import PPOTrainer as TrlPPOTrainer
from trl.experimental.ppo import ppo_trainer as stock_module

from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.models import tokens
from gpt2_rlhf.ppo_trainer import PPOConfig, PPOTrainer, checks, forward, rollouts
from helpers import ppo_tiny as tiny

pytestmark = pytest.mark.usefixtures("small_overheads")


def lora() -> LoraConfig:
    return LoraConfig(r=2, fan_in_fan_out=True, task_type=TaskType.CAUSAL_LM)


class AtUpdateEnd(TrainerCallback):
    """Keeps what `look` sees after each update."""

    def __init__(self, look: Any):
        self.look = look
        self.seen: list[Any] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seen.append(self.look())


# --- optimizer steps, clipping


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
        return np.diff([0, *callback.seen]).tolist()

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


# --- refused up front


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


def test_check_counts_the_prompts_of_all_processes(tmp_path):
    args = tiny.arguments(tmp_path)
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
    assert tiny.logged(trainer, "policy/approxkl_avg")[0] > 1e-3  # 0 if rollout and update saw the same distribution
    with pytest.raises(UserError, match="pads on the right"):
        tiny.ours(args, processing_class=right)


def test_stock_fails_on_empty_answers_with_eos_as_padding_and_ours_refuses_that_and_trains_them(tmp_path):
    args = tiny.arguments(tmp_path, total_episodes=4)
    eos_padded = tiny.padding_tokenizer()
    eos_padded.pad_token = eos_padded.eos_token
    with pytest.raises(ValueError, match="sum of the mask is zero"):  # no token is left to train, the EOS neither
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


# --- a script written for TRL


# PPOConfig sets a field that transformers has deprecated, and TRL's wrapper reads one
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("kind", [TrlPPOTrainer, PPOTrainer], ids=["import of TRL", "import of ours"])
def test_a_script_in_the_usual_form_runs_with_one_import_changed(tmp_path, capsys, kind):
    tokenizer = copy.deepcopy(tiny.tokenizer())
    tokenizer.padding_side = "left"
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})  # its id lies outside the models' vocabulary
    rows = tiny.prompts(8).add_column("prompt", ["some text"] * 8).select_columns(["input_ids"])  # type: ignore[call-arg]
    trainer = kind(
        args=PPOConfig(
            output_dir=str(tmp_path),
            use_cpu=True,
            per_device_train_batch_size=4,
            per_device_eval_batch_size=2,
            total_episodes=8,
            num_ppo_epochs=2,
            response_length=tiny.RESPONSE,
            missing_eos_penalty=1.0,
            disable_tqdm=True,
        ),
        processing_class=tokenizer,
        model=tiny.policy(),
        ref_model=tiny.policy(),
        reward_model=tiny.scorer(1),
        value_model=tiny.scorer(2),
        train_dataset=rows,
        eval_dataset=rows.select(range(2)),
        data_collator=DataCollatorWithPadding(tokenizer),
        peft_config=None,
    )
    trainer.train()
    trainer.save_model(str(tmp_path / "model"))
    trainer.generate_completions()
    assert trainer.state.global_step == 2
    assert tiny.digest(GPT2LMHeadModel.from_pretrained(tmp_path / "model")) == tiny.digest(trainer.policy_model)
    printed = capsys.readouterr().out
    assert printed.count("model response") == 3  # num_sample_generations is 10: a table for each update, and one more
    notices = [line for line in printed.splitlines() if line.startswith("ppo: ")]
    if kind is PPOTrainer:
        assert notices == [
            "ppo: stop_token is not set; answers end at EOS, as with stop_token='eos'",
            "ppo: bf16 is on, as PPOConfig sets it, and is slow on a CPU; bf16=False trains in float32",
        ]
    else:
        assert notices == []


@pytest.mark.parametrize(
    ("parts", "line"),
    [
        ({"value_model": None}, "PPOTrainer: value_model is None; it is required"),
        ({"reward_model": None}, "PPOTrainer: reward_model is None; pass a reward model, or a score_function"),
        ({"data_collator": print}, "data_collator is a builtin_function_or_method, which would not be called"),
        ({"eval_dataset": [], "score_function": len}, "eval_dataset with score_function: .* leave one of the two out"),
        ({"eval_dataset": {"test": []}}, "eval_dataset has columns None; expected a Dataset with input_ids"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_parts_that_would_not_be_used_or_are_missing_are_refused(tmp_path, parts, line):
    given: dict[str, Any] = {"reward_model": tiny.scorer(1), "value_model": tiny.scorer(2), **parts}
    with pytest.raises(UserError, match=line):
        PPOTrainer(
            args=tiny.arguments(tmp_path),
            processing_class=tiny.padding_tokenizer(),
            model=tiny.policy(),
            ref_model=None,
            train_dataset=tiny.prompts(),
            **given,
        )


def test_a_stop_token_id_must_be_that_of_eos(tmp_path):
    with pytest.raises(
        UserError, match=r"stop_token_id: 7 is not the tokenizer's EOS \(399\).* set tokenizer.eos_token"
    ):
        tiny.ours(tiny.arguments(tmp_path, stop_token=None, stop_token_id=7))
    trainer = tiny.ours(tiny.arguments(tmp_path, stop_token=None, stop_token_id=tiny.EOS_ID))
    assert trainer.policy_model.generation_config.eos_token_id == tiny.EOS_ID


def test_the_callers_optimizer_and_schedule_are_used(tmp_path):
    model, value_model = tiny.policy(), tiny.scorer(2)
    optimizer = torch.optim.SGD([*model.parameters(), *value_model.parameters()], lr=0.5)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda update: 1 / (update + 1))
    args = tiny.arguments(tmp_path, warmup_steps=1)
    trainer: Any = tiny.ours(args, model=model, value_model=value_model, optimizers=(optimizer, schedule))
    before = tiny.digest(model)
    trainer.train()
    assert trainer.optimizer.optimizer is optimizer
    assert tiny.logged(trainer, "lr") == [0.5, 0.25]
    assert tiny.digest(model) != before


def test_padding_in_the_prompts_is_left_out(tmp_path):
    padded = [{"input_ids": [tiny.PAD_ID] * 3 + ids} for ids in tiny.prompts()["input_ids"]]
    digests = set()
    for rows in (tiny.prompts(), Dataset.from_list(padded)):
        trainer = tiny.ours(tiny.arguments(tmp_path, total_episodes=4), train_dataset=rows)
        trainer.train()
        digests.add(tiny.trained_digest(trainer))
    assert len(digests) == 1


# --- rollouts


@pytest.mark.parametrize("peft_config", [None, lora()], ids=["full", "lora"])
def test_stock_samples_under_the_policys_generation_config_and_ours_under_ppos(tmp_path, peft_config):
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

    def seen(build: Any) -> list[int]:
        callback = AtUpdateEnd(largest_logits_alive)
        args = tiny.arguments(tmp_path, gradient_accumulation_steps=4, total_episodes=8)
        build(args, callbacks=[callback]).train()
        return callback.seen

    assert seen(tiny.stock) == [rollout]
    assert seen(tiny.ours)[0] < rollout / 2  # a reference pass over some rows may wait for the collector


# --- seeds, output, side effects


def test_stock_depends_on_more_than_its_seed_and_ours_on_nothing_else(tmp_path):
    def trained(build: Any, elsewhere: int) -> str:
        args = tiny.arguments(tmp_path)
        trainer = build(args)
        np.random.seed(elsewhere)  # as another library may
        trainer.train()
        return tiny.trained_digest(trainer)

    assert trained(tiny.stock, 1) != trained(tiny.stock, 2)
    assert trained(tiny.ours, 1) == trained(tiny.ours, 2)


def test_adapters_are_drawn_from_the_seed(tmp_path):
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


def test_the_callers_arguments_are_left_alone(tmp_path):
    args = tiny.arguments(tmp_path, num_mini_batches=2)
    tiny.ours(args)
    assert (args.gradient_accumulation_steps, args.num_total_batches) == (2, None)


def test_stock_saves_the_padding_copy_of_the_tokenizer_and_ours_the_policy_alone(tmp_path):
    args = tiny.arguments(tmp_path)
    tiny.stock(args).save_model(str(tmp_path / "stock"))
    stock_tokenizer = AutoTokenizer.from_pretrained(tmp_path / "stock")
    assert stock_tokenizer("ÿ")["input_ids"] == [stock_tokenizer.pad_token_id]  # text that reads as padding

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


# --- the algorithm is that of stock


def first_update_of_both(tmp_path: Path, monkeypatch: Any, policy: Any, **changes: Any) -> tuple[Any, Any]:
    """A stock trainer's first update, and ours on the answers that the stock one has sampled."""
    args = {"gradient_accumulation_steps": 1, "per_device_train_batch_size": 4, "total_episodes": 4, "optim": "sgd"}
    args |= {"max_grad_norm": 0, "temperature": 0.7, "learning_rate": 0.1, **changes}
    seen = []
    generate = stock_module.batch_generation

    def recorded(*given: Any) -> Any:
        seen.append(generate(*given)[0])
        return generate_again(seen[-1], *given)

    def generate_again(token_ids: Any, model: Any, queries: Any, *_: Any) -> Any:
        output: Any = stock_module.forward(model, token_ids, tiny.PAD_ID)
        logits = output.logits[:, queries.shape[1] - 1 : -1]
        return token_ids, logits / (0.7 + 1e-7)

    def replayed(model: Any, prompts: Any, **given: Any) -> Any:
        token_ids = seen[0].clone()
        prompt_tokens = token_ids.shape[1] - answer_tokens[0]
        answers = token_ids[:, prompt_tokens:]
        after_eos = (answers == tiny.EOS_ID).cumsum(1) - (answers == tiny.EOS_ID).int() > 0
        answers[after_eos] = tiny.PAD_ID
        rows = forward.Rows(token_ids, prompt_tokens, tiny.PAD_ID)
        return rows, forward.answer_logprobs(model, rows, 0.7)[0]

    answer_tokens: list[int] = []

    def noting_length(model: Any, queries: Any, *rest: Any) -> Any:
        found = recorded(model, queries, *rest)
        answer_tokens.append(found[0].shape[1] - queries.shape[1])
        return found

    monkeypatch.setattr(stock_module, "batch_generation", noting_length)
    stock: Any = tiny.stock(tiny.arguments(tmp_path, **args), model=policy())
    # ours never samples the padding token, to which stock gives 1/400 in these random models
    for model in (stock.policy_model, stock.ref_model):
        model.get_output_embeddings().register_forward_hook(lambda _m, _i, logits: ban(logits))
    torch.manual_seed(4)
    stock.train()
    monkeypatch.setattr(rollouts, "sample", replayed)
    ours = tiny.ours(tiny.arguments(tmp_path, **args), model=policy())
    ours.train()
    return stock, ours


def ban(logits: torch.Tensor) -> None:
    logits.detach()[..., tiny.PAD_ID] = -1e4


@pytest.mark.parametrize(
    ("policy", "changes"),
    [
        (tiny.policy, {}),
        (tiny.policy, {"kl_estimator": "k3", "gamma": 0.9, "num_ppo_epochs": 3}),
        (tiny.often_stopping_policy, {"missing_eos_penalty": 2.0}),
    ],
    ids=["plain", "k3, discount, 3 epochs", "answers that stop"],
)
def test_the_first_update_is_that_of_stock(tmp_path, monkeypatch, policy, changes):
    stock, ours = first_update_of_both(tmp_path, monkeypatch, policy, **changes)
    expected, found = stock.state.log_history[0], ours.state.log_history[0]
    names = [name for name in expected if name.startswith(("objective/", "loss/"))]
    if policy is tiny.policy:
        assert found["answer/tokens"] == tiny.RESPONSE  # without padding, stock's other means are right as well
        names += ["policy/approxkl_avg", "policy/clipfrac_avg", "policy/entropy_avg", "val/clipfrac_avg", "val/ratio"]
    else:
        assert found["answer/tokens"] < tiny.RESPONSE
    assert len(names) >= 7
    assert {n: found[n] for n in names} == pytest.approx({n: expected[n] for n in names}, rel=1e-5, abs=1e-5)
    for model in ("policy_model", "value_model"):
        weights = zip(getattr(ours, model).parameters(), getattr(stock, model).parameters(), strict=True)
        assert max((our - their).abs().max().item() for our, their in weights) < 1e-5


# --- statistics, schedule, precision, stopping


def test_stock_counts_slots_it_never_fills_and_ours_only_what_was_computed(tmp_path):
    args = tiny.arguments(
        tmp_path, learning_rate=0.0, gradient_accumulation_steps=4, num_mini_batches=2, total_episodes=8
    )
    ratios = []
    for build in (tiny.stock, tiny.ours):
        trainer = build(args)
        trainer.train()
        ratios.append(tiny.logged(trainer, "val/ratio")[0])
    assert ratios == pytest.approx([0.5, 1.0], abs=1e-3)


def test_stock_averages_over_padding_and_ours_over_tokens(tmp_path, monkeypatch):
    at_tokens = []
    passed = forward.answer_logprobs

    def noted(model: Any, rows: Any, temperature: float) -> Any:
        logprobs, entropies = passed(model, rows, temperature)
        if logprobs.requires_grad:
            at_tokens.append(entropies[rows.is_token])
        return logprobs, entropies

    monkeypatch.setattr(forward, "answer_logprobs", noted)
    stock, ours = first_update_of_both(tmp_path, monkeypatch, tiny.often_stopping_policy, learning_rate=0.0)
    expected = at_tokens[0].mean().item()
    assert tiny.logged(ours, "policy/entropy_avg") == pytest.approx([expected], rel=1e-5)
    assert abs(tiny.logged(stock, "policy/entropy_avg")[0] - expected) > 0.1


def test_stock_wastes_the_first_update_of_a_warm_up_and_ours_does_not(tmp_path):
    args = {"total_episodes": 16, "warmup_steps": 2, "learning_rate": 1.0, "lr_scheduler_type": "linear"}
    rates = {}
    for build in (tiny.stock, tiny.ours):
        trainer = build(tiny.arguments(tmp_path, optim="sgd", max_grad_norm=1e-9, **args))
        trainer.train()
        rates[build] = tiny.logged(trainer, "lr")
    assert rates[tiny.stock] == pytest.approx([0, 1 / 2, 1, 1 / 2])
    assert rates[tiny.ours] == pytest.approx([1 / 2, 1, 2 / 3, 1 / 3])


def test_stock_ignores_bf16_and_ours_computes_in_it_alike_in_rollout_and_update(tmp_path):
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
def test_stock_ignores_what_ours_honours(tmp_path, changes, callbacks, stock_logs, our_logs):
    args = {"total_episodes": 12, **changes}
    for build, steps in ((tiny.stock, stock_logs), (tiny.ours, our_logs)):
        trainer = build(tiny.arguments(tmp_path, **args), callbacks=list(callbacks))
        trainer.train()
        assert [entry["step"] for entry in trainer.state.log_history] == steps
