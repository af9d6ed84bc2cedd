"""The PPO trainer: TRL 1.12's constructor, arguments and models around a loop of our own.

The loop is the same algorithm as TRL's; tests/ppo_trainer/test_trainer.py compares the first updates, and holds a test
for each repair in which TRL's trainer fails. TRL's loop cannot be repaired from outside: its statistics, early stop
and speed are inside `train()`.
"""

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast_object_list, patch_environment
from datasets import Dataset
from peft import PeftConfig
from transformers import DataCollatorWithPadding, PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback, set_seed
from trl.experimental.ppo import PPOConfig
from trl.experimental.ppo import PPOTrainer as TrlPPOTrainer

from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.config.settings import PpoKl
from gpt2_rlhf.launch import sharding
from gpt2_rlhf.models import packing, threads, tokens
from gpt2_rlhf.ppo_trainer import checkpoints, checks, forward, gates, losses, reward_scores, rollouts, updates
from gpt2_rlhf.ppo_trainer.metrics import Clock, Means, explained_variance
from gpt2_rlhf.ppo_trainer.reward_scores import ScoreFunction, Shaping
from gpt2_rlhf.ppo_trainer.watch import Watch, WatchResult

_UNSHAPED = Shaping()
_FIXED_KL = PpoKl(target_nats=None, horizon_episodes=1)
_DRAWS, _ORDER = 0, 1  # the uses of random numbers, each with a generator of its own


class PPOTrainer(TrlPPOTrainer):
    """TRL's PPO trainer with its known defects repaired, complete checkpoints and exact resume.

    The package's docstring lists the repairs and what differs for a script written for TRL. `args.max_steps` above 0
    counts updates and takes precedence over `total_episodes`.
    """

    def __init__(
        self,
        args: PPOConfig,
        processing_class: PreTrainedTokenizerBase,
        model: PreTrainedModel,
        ref_model: PreTrainedModel | None,
        reward_model: PreTrainedModel | None,
        train_dataset: Dataset,
        value_model: PreTrainedModel,
        data_collator: DataCollatorWithPadding | None = None,
        eval_dataset: Dataset | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        callbacks: list[TrainerCallback] | None = None,
        peft_config: PeftConfig | None = None,
        *,
        score_function: ScoreFunction | None = None,
        shaping: Shaping = _UNSHAPED,
        kl: PpoKl = _FIXED_KL,
        watch: Watch | None = None,
        force: bool = True,
        rollout_cache: str | None = None,
    ) -> None:
        """Take the arguments of TRL's PPOTrainer, and the keyword arguments in the package's docstring.

        The penalty for a missing EOS is not shaped. The watch measures before the first update, every `eval_steps` and
        at the end. force: print what a gate (gates.py) finds and go on. rollout_cache: of models.sampling.CACHES.

        Raises:
            UserError: from checks.py, before anything is built.
        """
        parts = {
            "model": model,
            "reward_model": reward_model,
            "value_model": value_model,
            "train_dataset": train_dataset,
            "eval_dataset": eval_dataset,
            "data_collator": data_collator,
        }
        args, prompts = checks.prepare(args, processing_class, parts, score_function is not None)
        with _around_trls_constructor(args):
            super().__init__(
                args=args,
                processing_class=processing_class,
                model=model,
                ref_model=ref_model,
                reward_model=value_model if reward_model is None else reward_model,  # TRL requires one
                train_dataset=train_dataset.select_columns(["input_ids"]),  # TRL's collator fails on text columns
                value_model=value_model,
                eval_dataset=None if eval_dataset is None else eval_dataset.select_columns(["input_ids"]),
                optimizers=optimizers,
                callbacks=callbacks,
                peft_config=peft_config,
            )
        if self.is_deepspeed_enabled or (self.is_fsdp_enabled and not args.fsdp):
            raise UserError("ppo: DeepSpeed and accelerate's FSDP are not supported; shard with PPOConfig(fsdp=True)")
        self._prepare_copies(reward_model)
        self.accelerator.gradient_accumulation_steps = 1  # the loop divides by the microbatches of a mini-batch

        assert args.output_dir is not None
        assert args.batch_size is not None
        self.run_dir = Path(args.output_dir)
        self.episodes_per_update = args.batch_size
        self.kl_coef = args.kl_coef
        self.forced: list[str] = []  # faults found by gates and passed with `force`
        self.best_update: int | None = None  # by the watch; its checkpoint is kept
        self.stopped: str | None = None  # why the guard ended the run
        self.prompts = prompts
        self._shaping, self._kl, self._watch, self._force = shaping, kl, watch, force
        scored_by = [self.reward_model] if score_function is None else []
        self._models = rollouts.Models(
            policy=self.policy_model,
            reference=self.ref_model,
            value_model=self.value_model,
            score=reward_scores.scorer(score_function, self.reward_model, processing_class),
            eos_token_id=tokens.eos_id(processing_class),
            pad_token_id=tokens.pad_id(processing_class),
            cache=rollout_cache,
            in_threads=threads.apart(self.ref_model or self.policy_model, self.value_model, *scored_by),
        )

    def _prepare_copies(self, reward_model: PreTrainedModel | None) -> None:
        """Prepare what is whole on each device: reference and reward model and, if sharded, copies of the others."""
        if self._whole is not None:
            sharding.gather(self.model, self._whole)
            self.policy_model, self.value_model = self._whole.policy, self._whole.value_model
        frozen: tuple[Any, Any] = (reward_model, self.ref_model)
        for part in frozen:
            if part is not None:
                _prepare(part)
                if self._whole is not None and self.accelerator.device.type != "cpu":
                    part.to(torch.bfloat16)  # room for it is scarce

    def create_optimizer_and_scheduler(self, num_training_steps: int) -> None:
        """Create what the caller did not pass, for our wrapper of policy and value model in place of TRL's.

        TRL's constructor calls this between building its wrapper and preparing it. With warm-up, the first and the
        last update have a learning rate above 0.
        """
        # DDP and FSDP exchange gradients in one backward pass of both
        in_threads = self.accelerator.num_processes == 1 and not self.args.fsdp
        self.model = forward.PolicyAndValue(self.policy_model, self.value_model, in_threads)
        _prepare(self.model)
        self._whole: Any = None
        if self.args.fsdp:
            self._whole = sharding.whole_copy(self.model, self.accelerator.device)
            # else FSDP would round the results to the precision in which it gathers weights; `learn` uses autocast
            plugin: Any = self.accelerator.state.fsdp_plugin  # typed as optional
            plugin.mixed_precision_policy = None
        warms_up = self.lr_scheduler is None and self.args.get_warmup_steps(num_training_steps) > 0
        super().create_optimizer_and_scheduler(num_training_steps + warms_up)
        if warms_up:
            assert self.lr_scheduler is not None
            with warnings.catch_warnings():  # intended: the scheduler steps before the optimizer
                warnings.filterwarnings("ignore", message=".*lr_scheduler.step", category=UserWarning)
                self.lr_scheduler.step()

    def train(self, resume_from_checkpoint: str | None = None) -> None:
        """Run PPO to `args.total_episodes`, from the start or from a `checkpoint-N` folder of the same arguments.

        On a CPU, a resumed run ends with exactly the weights of an uninterrupted one.

        Raises:
            UserError: the folder is not a complete checkpoint of a run with this batch size and number of processes.
        """
        self._begin(None if resume_from_checkpoint is None else Path(resume_from_checkpoint))
        handler = self.callback_handler
        while not self.control.should_training_stop:
            self.control = handler.on_step_begin(self.args, self.state, self.control)
            try:
                metrics = self._update()
            except rollouts.Diverged as fault:
                if self._watch is None or not self._watch.guard.enabled:
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
                self._measure()
            if self.control.should_save:
                self._save_checkpoint(self.model, trial=None)
                self.control = handler.on_save(self.args, self.state, self.control)
            if self.args.num_sample_generations and (self.state.global_step - 1) % self.sample_generations_freq == 0:
                self.generate_completions(sampling=True)  # TRL's; does nothing without eval_dataset
        self.control = handler.on_train_end(self.args, self.state, self.control)

    def _begin(self, checkpoint: Path | None) -> None:
        state, num_updates, episodes = self.state, self.args.num_total_batches, self.args.total_episodes
        assert num_updates is not None
        assert episodes is not None
        state.global_step = state.episode = 0
        state.epoch = 0.0
        state.max_steps = num_updates
        state.num_train_epochs = math.ceil(episodes / self.train_dataset_len)
        state.compute_steps(self.args, state.max_steps)
        if checkpoint is not None:
            processes = self.accelerator.num_processes
            checkpoints.check(checkpoint, self.episodes_per_update, processes, self._optimizer_file)
            own = checkpoints.load(self, checkpoint, self._optimizer_file)
            self.kl_coef, self.forced = own["kl_coef"], own["forced"]
            if self._whole is not None:
                sharding.scatter(self._whole, self.model)
        self.control = self.callback_handler.on_train_begin(self.args, state, self.control)
        # after on_train_begin, where trackers may draw random numbers
        set_seed(self.local_seed)
        self._load_rng_state(None if checkpoint is None else str(checkpoint))
        rollouts.check_packed_pass(self._models, self.prompts, self.args)
        if state.global_step >= state.max_steps:
            self.control.should_training_stop = True
        if self._watch is not None and self.args.eval_strategy != "no":
            found = self._from_main_process(lambda watch: watch.resume(state.global_step, checkpoint))
            if found is None:
                self._measure()
            else:
                self._act_on(found)

    def _update(self) -> dict[str, Any]:
        """Sample one batch of rollouts, take the optimizer steps on it, and return what to log."""
        args, step, kl_coef = self.args, self.state.global_step, self.kl_coef
        clock, means = Clock(), Means()
        prompts = rollouts.prompt_batch(self.prompts, step, self.episodes_per_update, args.seed)
        draws = self._generator(_DRAWS).random((self.episodes_per_update, args.response_length))
        # each process takes its rows of the whole batch: answers do not depend on the number of processes
        rows = self.episodes_per_update // self.accelerator.num_processes
        own = slice(rows * self.accelerator.process_index, rows * (self.accelerator.process_index + 1))
        rollout = rollouts.roll_out(self._models, prompts[own], draws[own], args, self.accelerator, clock)
        kl_nats, ended, empty = rollouts.check(rollout, self.accelerator, step)
        if step == 0:
            faults = [gates.reference_fault(kl_nats), gates.sft_fault(ended, empty, self.episodes_per_update)]
            self.forced = gates.pass_or_stop(faults, self._force)
        learning_rate = self.lr_scheduler.get_last_lr()[0]  # type: ignore[union-attr]  # typed as optional
        with clock.phase("update"):
            batch = updates.prepare(rollout, self.accelerator, args, kl_coef, self._shaping, means)
            order = self._generator(_ORDER)
            with self._shares_only():
                norms = updates.learn(batch, self.model, self.optimizer, self.accelerator, args, order, means)
        self.lr_scheduler.step()  # type: ignore[union-attr]  # typed as optional
        found, variances = means.over_processes(self.accelerator)
        self.kl_coef = losses.next_kl_coef(kl_coef, found["objective/kl"], self.episodes_per_update, self._kl)
        text_tokens = found.pop("text_tokens") * self.episodes_per_update
        del found["error"], found["return"]  # only their variances are logged
        return {
            **found,
            "val/ratio_var": variances["val/ratio"],
            "val/explained_variance": explained_variance(variances["error"], variances["return"]),
            "objective/kl_coef": kl_coef,
            "grad_norm": sum(norms) / len(norms),
            "lr": learning_rate,
            **clock.metrics(text_tokens, self.episodes_per_update),
        }

    @contextmanager
    def _shares_only(self) -> Iterator[None]:
        """Within the block, only the shares of policy and critic take memory; after it their copies are whole again."""
        if self._whole is None:
            yield
            return
        for name in ("policy", "value_model"):
            shares, whole = getattr(self.model, name), getattr(self._whole, name)
            columns = max(map(len, self.prompts)) + self.args.response_length
            with self.accelerator.autocast():
                packing.packs_as(forward.language_model(shares), forward.language_model(whole), columns)
        sharding.free(self._whole)
        yield
        sharding.gather(self.model, self._whole)

    def _generator(self, purpose: int) -> np.random.Generator:
        """Return a generator that depends on seed, update and purpose only, so that a resumed run draws the same."""
        return np.random.default_rng([self.args.seed, 0, self.state.global_step, purpose])

    def _measure(self) -> None:
        """Measure the policy on the held-out prompts, log the figures and act on them."""
        policy, reference = cast(PreTrainedModel, self.policy_model), cast(PreTrainedModel | None, self.ref_model)
        found = self._from_main_process(lambda watch: watch.measure(self.state.global_step, policy, reference))
        if found is not None:
            self._act_on(found)
            self.log(found.metrics)

    def _act_on(self, found: WatchResult) -> None:
        """Save the policy if it is the best so far, and stop if the watch says so."""
        if found.best_update == self.state.global_step > 0 and found.best_update != self.best_update:
            self.control.should_save = True  # rolling back is loading this checkpoint
        self.best_update = found.best_update
        if found.stop is not None:
            self.stopped = found.stop
            self.control.should_training_stop = True

    def _from_main_process(self, use: Callable[[Watch], WatchResult | None]) -> WatchResult | None:
        """Return in every process what `use` returns for the watch in the first one."""
        found = [use(self._watch) if self._watch is not None and self.accelerator.is_main_process else None]
        return broadcast_object_list(found)[0]

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the policy, or its adapter, without the tokenizer, whose padding copy must not be saved."""
        if self.args.should_save:
            checkpoints.write_model(self.policy_model, Path(output_dir or self.run_dir))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        is_writer = self.args.should_save
        with checkpoints.written_whole(self) as folder:
            self._save_rng_state(str(folder))
            if is_writer or self._whole is not None:
                torch.save(self.optimizer.state_dict(), folder / self._optimizer_file)
            if is_writer:
                checkpoints.write(self, {"kl_coef": self.kl_coef, "forced": self.forced}, folder)
                if self._watch is not None:
                    self._watch.save(folder)
        if is_writer:
            newest, limit = self.state.global_step, self.args.save_total_limit
            checkpoints.remove_oldest(self.run_dir, newest, limit, self.best_update)
        self.accelerator.wait_for_everyone()

    @property
    def _optimizer_file(self) -> str:
        return "optimizer.pt" if self._whole is None else f"optimizer_{self.accelerator.process_index}.pt"


def _prepare(model: Any) -> None:
    packing.use_fused_activations(model)
    model.eval()  # TRL switches dropout modules off, but OPT calls dropout as a function


@contextmanager
def _around_trls_constructor(args: PPOConfig) -> Iterator[None]:
    """Within the block, TRL's constructor uses seed, precision and sharding of the arguments, and does not warn."""
    set_seed(args.seed)  # adapters draw their weights from the global generator
    AcceleratorState._reset_state()  # an earlier trainer in this process may have had another precision
    # TRL builds its Accelerator without arguments, which therefore come from the environment
    environment = {"accelerate_mixed_precision": "bf16" if args.bf16 else "fp16" if args.fp16 else "no"}
    if args.fsdp:
        sharding.allow_on_cpu()
        environment |= {"accelerate_use_fsdp": "true", "fsdp_version": "2"}
        environment["fsdp_auto_wrap_policy"] = "TRANSFORMER_BASED_WRAP"
    with patch_environment(**environment), warnings.catch_warnings():
        # TRL's wrapper reads a deprecated attribute of the policy (ppo_trainer.py, PolicyAndValueWrapper)
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        yield
