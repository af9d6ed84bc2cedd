"""TRL's PPO, repaired: a policy, a reward model and prompts become a policy with higher reward, and can resume.

The trainer is a subclass of TRL 1.12's `PPOTrainer`, the last there is (huggingface/trl#7020): arguments, models,
optimizer and checkpoints are its own. The loop is ours, the same algorithm to rounding (tests/test_ppo_trainer.py
compares the first updates): its statistics, early stop and speed cannot be mended from outside. Each repair has a test
in which the stock trainer does the wrong thing, so that it can go when the stock one does the right thing.
"""

import copy
import math
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast_object_list
from datasets import Dataset
from peft import PeftConfig, PeftModel
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback, set_seed
from trl.experimental.ppo import PPOConfig, PPOTrainer
from trl.experimental.ppo import ppo_trainer as stock

from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.config.settings import PpoKl
from gpt2_rlhf.models import packing, tokens
from gpt2_rlhf.ppo_trainer import checkpoints, checks, forward, gates, losses, reward_scores, rollouts
from gpt2_rlhf.ppo_trainer.forward import PolicyAndValue, Rows
from gpt2_rlhf.ppo_trainer.metrics import Clock, Means, explained_variance
from gpt2_rlhf.ppo_trainer.prompt_batches import PromptBatches
from gpt2_rlhf.ppo_trainer.reward_scores import ScoreFunction, Shaping
from gpt2_rlhf.ppo_trainer.rollouts import Rollout
from gpt2_rlhf.ppo_trainer.watch import Seen, Watch


class Diverged(UserError):
    """The scores of the rollouts are not finite."""


_UNSHAPED = Shaping()
_FIXED_KL = PpoKl(target_nats=None, horizon_episodes=1)


class RepairedPPOTrainer(PPOTrainer):
    """TRL's PPO trainer without its known defects, with full checkpoints and exact resume.

    Not supported, and refused: DeepSpeed and FSDP. `args.max_steps` above 0 counts updates and wins over
    `total_episodes`; callbacks may stop training (`control.should_training_stop`). Every `logging_steps` updates it
    logs TRL's metrics, as means over real tokens of all processes, and ours (ppo_metrics, `grad_norm` before clipping).
    """

    def __init__(
        self,
        args: PPOConfig,
        processing_class: PreTrainedTokenizerBase,
        model: PreTrainedModel,
        ref_model: PreTrainedModel | None,
        reward_model: PreTrainedModel,
        train_dataset: Dataset,
        value_model: PreTrainedModel,
        callbacks: list[TrainerCallback] | None = None,
        peft_config: PeftConfig | None = None,
        score_function: ScoreFunction | None = None,
        shaping: Shaping = _UNSHAPED,
        kl: PpoKl = _FIXED_KL,
        watch: Watch | None = None,
        force: bool = False,
    ) -> None:
        """As TRL's; with `ref_model` None it is a copy of `model`, or with `peft_config` the base under the adapter.

        score_function: scores answers in place of the reward model. shaping: of scores, before the penalty for a
        missing EOS. kl: fixed or adaptive coefficient. watch: measures before the first update, every `eval_steps`
        and at the end, and may stop the run. force: go on where a gate (gates.py) would stop.

        Raises:
            UserError: from ppo_checks, before anything is built.
        """
        args = copy.copy(args)  # TRL writes derived sizes into it
        _ = args.device  # starts the process group, so that the next line knows how many we are
        processes = PartialState().num_processes
        checks.check(args, len(train_dataset), processes)
        rows = args.per_device_train_batch_size * args.gradient_accumulation_steps
        positions = min(part.config.max_position_embeddings for part in (model, reward_model, value_model))
        checks.check_tokens(processing_class, train_dataset, args.response_length, positions)
        if args.max_steps > 0:
            args.total_episodes = args.max_steps * rows * processes

        set_seed(args.seed)  # adapters draw their weights from the global generator
        with _harmless_warnings_silenced(), _mixed_precision(args), _our_policy_and_value():
            super().__init__(
                args=args,
                processing_class=processing_class,
                model=model,
                ref_model=ref_model,
                reward_model=reward_model,
                train_dataset=train_dataset.select_columns(["input_ids"]),  # TRL's collator fails on text columns
                value_model=value_model,
                callbacks=callbacks,
                peft_config=peft_config,
            )
        if self.is_deepspeed_enabled or self.is_fsdp_enabled:
            raise UserError("ppo: DeepSpeed and FSDP are not supported; launch with plain data parallelism")
        packing.use_fused_activations(self.value_model, self.reward_model, self.policy_model)
        if self.ref_model is not None:
            packing.use_fused_activations(self.ref_model)
        self.accelerator.gradient_accumulation_steps = 1  # the loop divides by the microbatches of a mini-batch

        assert args.output_dir is not None
        assert args.num_total_batches is not None
        self.run_dir = Path(args.output_dir)
        self.rows = rows
        self.episodes_per_update = rows * processes
        self.kl_coef = args.kl_coef
        self.forced: list[str] = []  # faults that `force` went past
        self.best_update: int | None = None  # by the watch; its checkpoint is kept
        self.stopped: str | None = None  # why the guard ended the run
        self._score_function = score_function
        self._shaping = shaping
        self._kl = kl
        self._watch = watch
        self._force = force
        self._pad_token_id = tokens.pad_id(processing_class)
        self._eos_token_id = tokens.eos_id(processing_class)
        self.batches = PromptBatches(
            prompts=train_dataset["input_ids"],
            rows=rows,
            seed=args.seed,
            rank=self.accelerator.process_index,
            world_size=processes,
        )

    def create_optimizer_and_scheduler(self, num_training_steps: int) -> None:
        """As Trainer's, but with warm-up the first update already has a learning rate above 0, and the last one too."""
        warms_up = self.args.get_warmup_steps(num_training_steps) > 0
        super().create_optimizer_and_scheduler(num_training_steps + warms_up)
        if warms_up:
            assert self.lr_scheduler is not None
            with warnings.catch_warnings():  # the optimizer has not stepped yet, which is the point
                warnings.filterwarnings("ignore", message=".*lr_scheduler.step", category=UserWarning)
                self.lr_scheduler.step()

    @property
    def _policy_and_value(self) -> Any:
        """The wrapper of both, or DDP around it."""
        return self.model

    def train(self, resume_from_checkpoint: str | None = None) -> None:
        """Run PPO to `args.total_episodes`, from the start or from a `checkpoint-N` folder of the same arguments.

        On CPU a resumed run ends with the weights of an uninterrupted one, to the bit.

        Raises:
            UserError: the folder is not a whole checkpoint of a run with this batch size and number of processes.
        """
        self._begin(None if resume_from_checkpoint is None else Path(resume_from_checkpoint))
        handler = self.callback_handler
        while not self.control.should_training_stop:
            self.control = handler.on_step_begin(self.args, self.state, self.control)
            try:
                metrics = self._update()
            except Diverged as fault:
                if self._watch is None or not self._watch.is_guarded:
                    raise
                self.stopped = str(fault)
                break
            self.state.global_step += 1
            self.state.episode += self.episodes_per_update
            self.state.epoch = self.state.episode / self.train_dataset_len
            self.control = handler.on_step_end(self.args, self.state, self.control)
            if self.control.should_log:
                self.log({**metrics, "episode": self.state.episode})
            if self.control.should_evaluate:
                self._look()
            if self.control.should_save:
                self._save_checkpoint(self._policy_and_value, trial=None)
                self.control = handler.on_save(self.args, self.state, self.control)
        self.control = handler.on_train_end(self.args, self.state, self.control)

    def _begin(self, checkpoint: Path | None) -> None:
        state, updates, episodes = self.state, self.args.num_total_batches, self.args.total_episodes
        assert updates is not None
        assert episodes is not None
        state.global_step = state.episode = 0
        state.epoch = 0.0
        state.max_steps = updates
        state.num_train_epochs = math.ceil(episodes / self.train_dataset_len)
        state.compute_steps(self.args, state.max_steps)
        if checkpoint is not None:
            checkpoints.check(checkpoint, self.episodes_per_update, self.accelerator.num_processes)
            checkpoints.load(self, checkpoint)
        self._policy_and_value.train()
        self.control = self.callback_handler.on_train_begin(self.args, state, self.control)
        # Trackers may draw random numbers when they begin: the generators come last
        set_seed(self.local_seed)
        self._load_rng_state(None if checkpoint is None else str(checkpoint))
        if state.global_step >= state.max_steps:
            self.control.should_training_stop = True
        if self._watch is not None and self.args.eval_strategy != "no":
            seen = self._shared(lambda watch: watch.resume(state.global_step))
            if seen is None:
                self._look()
            else:
                self._heed(seen)
                if checkpoint is None:  # a checkpoint has the log history of its measurements, a new start has none
                    self.log(seen.metrics)

    def _look(self) -> None:
        """Measure the policy on the held-out prompts, log that, and do what follows from it."""
        policy, reference = cast(PreTrainedModel, self.policy_model), cast(PreTrainedModel | None, self.ref_model)
        seen = self._shared(lambda watch: watch.look(self.state.global_step, policy, reference))
        if seen is not None:
            self._heed(seen)
            self.log(seen.metrics)

    def _heed(self, seen: Seen) -> None:
        is_best = seen.best_update == self.state.global_step > 0
        if is_best and seen.best_update != self.best_update:
            self.control.should_save = True  # rolling back is loading this checkpoint
        self.best_update = seen.best_update
        if seen.stop is not None:
            self.stopped = seen.stop
            self.control.should_training_stop = True

    def _shared(self, ask: Callable[[Watch], Seen | None]) -> Seen | None:
        """What the watch of the first process answers, in all of them."""
        answer = [ask(self._watch) if self._watch is not None and self.accelerator.is_main_process else None]
        return broadcast_object_list(answer)[0]

    def _update(self) -> dict[str, float]:
        """One batch of rollouts and the optimizer steps on it; what to log of them."""
        clock, means = Clock(), Means()
        rollout = self._roll_out(clock)
        self._check_rollout(rollout)
        learning_rate, kl_coef = self.lr_scheduler.get_last_lr()[0], self.kl_coef  # type: ignore[union-attr]
        with clock.phase("update"):
            norms = self._learn(rollout, means)
        self.lr_scheduler.step()  # type: ignore[union-attr]
        found = means.over_processes(self.accelerator)
        if self._kl.target_nats is not None:
            self.kl_coef = losses.next_kl_coef(
                kl_coef,
                found["objective/kl"],
                self.episodes_per_update,
                self._kl.target_nats,
                self._kl.horizon_episodes,
            )
        text_tokens = found.pop("text_tokens") * self.episodes_per_update
        error, square_error, mean, square = (found.pop(name) for name in _RETURNS)
        ratio_squared = found.pop("val/ratio_squared")
        metrics: dict[str, Any] = {
            **found,
            "val/ratio_var": ratio_squared - found["val/ratio"] ** 2,
            "val/explained_variance": explained_variance(error, square_error, mean, square),
            "objective/kl_coef": kl_coef,
            "grad_norm": sum(norms) / len(norms),
            "lr": learning_rate,
            **clock.metrics(text_tokens, self.episodes_per_update),
        }
        return metrics

    @torch.no_grad()
    def _roll_out(self, clock: Clock) -> Rollout:
        """Answers to the next prompts, with what policy, reference, critic and reward model say of them."""
        args, update = self.args, self.state.global_step
        prompts = self.batches.batch(update)
        draws = self._generator(_DRAWS).random((len(prompts), args.response_length))
        with clock.phase("rollout"), self.accelerator.autocast():
            rows, logprobs = rollouts.sample(
                self.policy_model,
                prompts,
                draws=draws,
                temperature=args.temperature,
                eos_token_id=self._eos_token_id,
                pad_token_id=self._pad_token_id,
                rows_per_call=args.local_rollout_forward_batch_size,
            )
        with clock.phase("score"), self.accelerator.autocast():
            if self.accelerator.mixed_precision != "no":
                # rounded otherwise when sampled token by token: the ratio would not be 1 before the first step
                logprobs = self._in_parts(rows, self._policy_logprobs)
            return Rollout(
                rows=rows,
                ended=(rows.answers == self._eos_token_id).any(1),
                logprobs=logprobs,
                ref_logprobs=self._in_parts(rows, self._reference_logprobs),
                values=self._in_parts(rows, lambda part: forward.answer_values(self.value_model, part)),
                scores=self._in_parts(rows, self._scores),
            )

    def _check_rollout(self, rollout: Rollout) -> None:
        """Refuse scores that are not finite, and before the first update what gates.py finds in the rollouts."""
        k3 = losses.kl_per_token(rollout.logprobs, rollout.ref_logprobs, "k3").sum(1)
        here = torch.stack([k3.sum(), rollout.ended.sum(), rollout.scores.isfinite().sum()]).float()
        everywhere = self.accelerator.reduce(here, "sum")
        assert isinstance(everywhere, Tensor)
        kl_nats, ended, finite = everywhere.tolist()
        if finite < self.episodes_per_update:
            raise Diverged(
                f"ppo: update {self.state.global_step + 1}: {self.episodes_per_update - finite:.0f} of "
                f"{self.episodes_per_update} scores are not finite; the reward (or the policy) has diverged: lower "
                "ppo.args.learning_rate, or look at the reward model or ppo.reward.function"
            )
        if self.state.global_step == 0:
            answers = self.episodes_per_update
            faults = [gates.reference_fault(kl_nats / answers), gates.sft_fault(int(ended), answers)]
            self.forced = gates.pass_or_stop(faults, self._force)

    def _learn(self, rollout: Rollout, means: Means) -> list[float]:
        """The optimizer steps on one batch of rollouts; the gradient's norm at each, before clipping."""
        args, rows = self.args, rollout.rows
        is_token = rows.is_token
        has_value = losses.value_mask(is_token)
        old_values = rollout.values.masked_fill(~has_value, 0)
        scores = self._shaping(rollout.scores)
        if args.missing_eos_penalty is not None:
            scores = scores - args.missing_eos_penalty * ~rollout.ended
        kl = losses.kl_per_token(rollout.logprobs, rollout.ref_logprobs, args.kl_estimator)
        rewards = losses.token_rewards(kl, scores, is_token, self.kl_coef)
        if args.whiten_rewards:
            rewards = stock.masked_whiten(rewards, has_value, shift_mean=False).masked_fill(~has_value, 0)
        advantages, returns = losses.advantages_and_returns(rewards, old_values, is_token, args.gamma, args.lam)
        self._describe(rollout, scores, kl, old_values, returns, means)

        norms = []
        order = self._generator(_ORDER)
        for _ in range(args.num_ppo_epochs):
            for minibatch in np.split(order.permutation(self.rows), args.num_mini_batches):
                starts = range(0, len(minibatch), args.per_device_train_batch_size)
                for start in starts:
                    some = torch.from_numpy(minibatch[start : start + args.per_device_train_batch_size])
                    some = some.to(is_token.device)
                    with nullcontext() if start == starts[-1] else self.accelerator.no_sync(self._policy_and_value):
                        logprobs, entropies, values = self._policy_and_value(rows[some], args.temperature)
                        surrogate, ratio, policy_clipped = losses.policy_loss(
                            logprobs, rollout.logprobs[some], advantages[some], is_token[some], args.cliprange
                        )
                        error, value_clipped = losses.value_loss(
                            values, old_values[some], returns[some], has_value[some], args.cliprange_value
                        )
                        loss = surrogate + args.vf_coef * error
                        self.accelerator.backward(loss / len(starts))
                    log_ratio = (logprobs - rollout.logprobs[some]).detach()
                    tokens_of, valued = is_token[some], has_value[some]
                    means.add("policy/approxkl_avg", 0.5 * log_ratio.square(), tokens_of)
                    means.add("policy/clipfrac_avg", policy_clipped, tokens_of)
                    means.add("policy/entropy_avg", entropies, tokens_of)
                    means.add("loss/policy_avg", surrogate.expand(len(tokens_of)), tokens_of.sum(1))
                    means.add("loss/value_avg", error.expand(len(valued)), valued.sum(1))
                    means.add("val/clipfrac_avg", value_clipped, valued)
                    means.add("val/ratio", ratio, tokens_of)
                    means.add("val/ratio_squared", ratio.square(), tokens_of)
                norm = self.accelerator.clip_grad_norm_(
                    self._policy_and_value.parameters(), args.max_grad_norm or math.inf
                )
                assert norm is not None
                norms.append(float(norm))
                self.optimizer.step()
                self.optimizer.zero_grad()
        return norms

    def _describe(
        self, rollout: Rollout, scores: Tensor, kl: Tensor, values: Tensor, returns: Tensor, means: Means
    ) -> None:
        """What is to be said of the rollouts themselves, before the policy moves."""
        is_token = rollout.rows.is_token
        non_score_reward = -self.kl_coef * kl.sum(1)
        means.add("objective/kl", kl.sum(1))
        for name in ("k1", "k3"):
            estimate = losses.kl_per_token(rollout.logprobs, rollout.ref_logprobs, name)
            means.add(f"objective/kl_{name}", estimate.sum(1))
        means.add("objective/entropy", -rollout.logprobs.sum(1))
        means.add("objective/non_score_reward", non_score_reward)
        means.add("objective/rlhf_reward", non_score_reward + scores)
        means.add("objective/scores", scores)
        means.add("objective/unshaped_scores", rollout.scores)
        means.add("answer/tokens", is_token.sum(1))
        means.add("answer/eos_rate", rollout.ended)
        means.add("text_tokens", (rollout.rows.token_ids != self._pad_token_id).sum(1))
        has_value = losses.value_mask(is_token)
        for name, value in zip(_RETURNS, (returns - values, (returns - values) ** 2, returns, returns**2), strict=True):
            means.add(name, value, has_value)

    def _in_parts(self, rows: Rows, passed: Callable[[Rows], Tensor]) -> Tensor:
        """`passed` over `local_rollout_forward_batch_size` rows at a time."""
        starts = range(0, len(rows.token_ids), self.args.local_rollout_forward_batch_size)
        size = self.args.local_rollout_forward_batch_size
        return torch.cat([passed(rows[start : start + size]) for start in starts])

    def _policy_logprobs(self, rows: Rows) -> Tensor:
        return forward.answer_logprobs(self.policy_model, rows, self.args.temperature)[0]

    def _scores(self, rows: Rows) -> Tensor:
        if self._score_function is None:
            return forward.answer_scores(self.reward_model, rows)
        texts = [self._texts(ids) for ids in (rows.token_ids[:, : rows.prompt_tokens], rows.answers)]
        return reward_scores.scores_of(self._score_function, *texts).to(rows.token_ids.device)

    def _texts(self, token_ids: Tensor) -> list[str]:
        tokenizer: Any = self.processing_class
        # decode() would not skip the padding, which is an ordinary token of the vocabulary
        rows = [[i for i in row if i not in (self._pad_token_id, self._eos_token_id)] for row in token_ids.tolist()]
        return [tokenizer.decode(row, clean_up_tokenization_spaces=False) for row in rows]

    def _reference_logprobs(self, rows: Rows) -> Tensor:
        if self.ref_model is not None:
            return forward.answer_logprobs(self.ref_model, rows, self.args.temperature)[0]
        assert isinstance(self.policy_model, PeftModel)
        with self.policy_model.disable_adapter():
            return self._policy_logprobs(rows)

    def _generator(self, purpose: int) -> np.random.Generator:
        """Random numbers that are a function of seed, process and update, whatever else drew some before."""
        return np.random.default_rng([self.args.seed, self.accelerator.process_index, self.state.global_step, purpose])

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the policy alone, or its adapter: no tokenizer, whose padding copy must not be saved."""
        if self.args.should_save:
            checkpoints.write_model(self.policy_model, Path(output_dir or self.run_dir))

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        checkpoints.save(self)


_DRAWS, _ORDER = 0, 1  # what random numbers are for
_RETURNS = ("error", "square_error", "return", "square_return")


@contextmanager
def _our_policy_and_value() -> Iterator[None]:
    """Within the block, TRL's PPO module builds our wrapper of policy and value model."""
    own = stock.PolicyAndValueWrapper
    stock.PolicyAndValueWrapper = PolicyAndValue
    try:
        yield
    finally:
        stock.PolicyAndValueWrapper = own


@contextmanager
def _mixed_precision(args: PPOConfig) -> Iterator[None]:
    """Within the block, Accelerate takes its precision from the arguments: TRL builds its Accelerator without any."""
    name = "ACCELERATE_MIXED_PRECISION"
    before = os.environ.get(name)
    AcceleratorState._reset_state()  # that of an earlier trainer in this process
    os.environ[name] = "bf16" if args.bf16 else "fp16" if args.fp16 else "no"
    try:
        yield
    finally:
        del os.environ[name]
        if before is not None:
            os.environ[name] = before


@contextmanager
def _harmless_warnings_silenced() -> Iterator[None]:
    with warnings.catch_warnings():
        # TRL's wrapper reads a deprecated attribute of the policy (ppo_trainer.py, PolicyAndValueWrapper)
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        yield
