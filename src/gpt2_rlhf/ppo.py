"""Stage 3, PPO: train the SFT model on its own answers for a higher reward, kept near SFT by a KL penalty.

Policy and reference start as the SFT model, the critic as the reward model (Ziegler et al. 2019, arXiv:1909.08593;
Stiennon et al. 2020, arXiv:2009.01325). With LoRA the reference is the policy with its adapter switched off. Some
prompts are withheld: on their answers the policy is measured while it trains, and a guard may stop the run.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments, set_seed

from gpt2_rlhf.config import as_command, ppo_sizes
from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.config.functions import load_score_function, load_utility
from gpt2_rlhf.config.settings import Ppo, Settings
from gpt2_rlhf.evidence import calibration, curves, measured
from gpt2_rlhf.launch import training, world
from gpt2_rlhf.launch.stopwatch import Stopwatch
from gpt2_rlhf.models import loading, tokens
from gpt2_rlhf.ppo_trainer import PPOConfig, PPOTrainer, checkpoints, checks, gates, heldout, reward_scores
from gpt2_rlhf.ppo_trainer.watch import Watch
from gpt2_rlhf.rows import tables
from gpt2_rlhf.store.stage import Outcome, Stage, manifest


def check(settings: Settings, stage: Stage) -> TrainingArguments:
    """Return the stage's config, or raise a UserError that names an argument to change; the data is ready."""
    given = arguments(settings, stage)
    config = training.check(stage.name, PPOConfig, given)
    loading.check_lora(settings.model, settings.ppo.peft, "ppo.peft")
    if given["activation_checkpointing"]:
        raise UserError("ppo.args.activation_checkpointing: true: PPO does not use it; set it to false")
    fitted = training.prompt_sizes(settings, stage)
    checks.check(PPOConfig(**given), fitted.train_prompts, int(stage.inputs["processes"]))
    if (line := ppo_sizes.change(settings.ppo, fitted, int(stage.inputs["processes"]))) is not None:
        print(line, flush=True)
    return config


def arguments(settings: Settings, stage: Stage) -> dict[str, Any]:
    """Return the fields of PPOConfig: batches fit the prompts, answers end with EOS, and TRL draws no samples."""
    own = {"stop_token": "eos", "num_sample_generations": 0, **training.prompt_sizes(settings, stage).batch_arguments}
    return {**training.arguments(stage, settings.ppo.args), **own}


def run(settings: Settings, stage: Stage) -> Outcome:
    """Train on the `ppo` prompts, save the policy in `stage.model_dir`, and return what was measured."""
    ppo, reward_report = settings.ppo, manifest(stage.needs["reward"])["metrics"]
    # with a reward function the reward model only starts the critic
    fault = calibration.reward_model_fault(reward_report) if ppo.reward.function is None else None
    forced = gates.pass_or_stop([fault], settings.force)
    prepared, fitted = stage.needs["data"].directory, training.prompt_sizes(settings, stage)
    withheld = tables.prompts(prepared, "ppo")[: fitted.withheld_prompts]
    tokenizer = tokens.load_base_tokenizer(settings.model, settings.data.template)
    rows = tables.token_columns(prepared, "ppo", partial(tokens.encode_ppo, tokenizer))
    padding = tokens.padding_copy(tokenizer, "left")
    sft_dir, reward_dir = str(stage.needs["sft"].model_dir), str(stage.needs["reward"].model_dir)
    policy = loading.load_policy(sft_dir)
    adapter = loading.lora(ppo.peft, policy, "ppo.peft")
    reward_model = loading.load_reward(reward_dir, tokens.pad_id(padding))
    judge, judge_fault = _judge(stage, tokens.pad_id(padding))
    set_seed(stage.seed)

    work = Stopwatch()
    watch = _watch(settings, stage, withheld, tokenizer, reward_model, judge) if withheld else None
    trainer = PPOTrainer(
        args=PPOConfig(**arguments(settings, stage)),
        processing_class=padding,
        model=policy,
        ref_model=loading.load_policy(sft_dir) if adapter is None else None,
        reward_model=reward_model,
        value_model=loading.load_reward(reward_dir, tokens.pad_id(padding)),
        train_dataset=rows.select(range(len(withheld), len(rows))),
        peft_config=adapter,
        callbacks=training.callbacks(stage),
        score_function=reward_scores.load(ppo.reward.function, padding, partial(tables.prompts, prepared, "ppo")),
        shaping=reward_scores.shaping(ppo.reward, reward_report),
        kl=ppo.kl,
        watch=watch,
        force=settings.force,
        rollout_cache=ppo.rollout_cache,
    )
    if judge is not None:
        judge.to(trainer.accelerator.device)  # type: ignore[arg-type]  # transformers' stub of `to` takes no device
    with work.running():
        training.train(trainer, stage)
    if not trainer.is_world_process_zero():
        return Outcome({}, work.seconds)
    kept_update, chosen_by = _handed_on(ppo, trainer, watch)
    loading.save(_policy_of(kept_update, trainer, sft_dir), tokenizer, stage.model_dir)
    curves.write(stage.directory)
    return Outcome(
        {
            "prompts": len(rows) - len(withheld),
            "episodes_per_update": fitted.episodes_per_update,
            "episodes": trainer.state.episode,
            "updates": trainer.state.global_step,
            "kept_update": kept_update,
            "best_update": trainer.best_update,
            "stopped": trainer.stopped,
            "heldout": None if watch is None else watch.report(kept_update),
            "chosen_by": chosen_by,
            "judge_fault": judge_fault,
            "forced": [*forced, *trainer.forced],
        },
        work.seconds,
    )


def _judge(stage: Stage, pad_token_id: int) -> tuple[PreTrainedModel | None, str | None]:
    """Return the judge, or None and the fault for which it is not used."""
    if "judge" not in stage.needs:
        return None, None
    fault = calibration.reward_model_fault(manifest(stage.needs["judge"])["metrics"], "judge")
    if fault is None:
        return loading.load_reward(str(stage.needs["judge"].model_dir), pad_token_id), None
    if world.rank() == 0:
        print(f"  the judge is not used: {fault}", flush=True)
    return None, fault


def _watch(
    settings: Settings,
    stage: Stage,
    prompts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    reward_model: PreTrainedModel,
    judge: PreTrainedModel | None,
) -> Watch:
    ppo, batch_size = settings.ppo, settings.evaluate.batch_size
    function = load_score_function(ppo.reward.function)
    measure = partial(
        heldout.measure,
        tokenizer=tokenizer,
        prompts=prompts,
        reward=(
            heldout.by_model("reward", reward_model, tokenizer, batch_size)
            if function is None
            else heldout.by_function(function)
        ),
        judge=None if judge is None else heldout.by_model("judge", judge, tokenizer, batch_size),
        utility=load_utility(settings.data.utility),
        seed=stage.seed,
        max_new_tokens=ppo.args["response_length"],
        temperature=ppo.args["temperature"],
        batch_size=batch_size,
    )
    return Watch(stage.directory / measured.DIRECTORY, prompts, measure, ppo.heldout.best_by, ppo.guard)


def _handed_on(ppo: Ppo, trainer: PPOTrainer, watch: Watch | None) -> tuple[int, str | None]:
    """Return the last update and None, or the best and its measure if set so or if the guard stopped the run."""
    if watch is None or trainer.best_update is None or (trainer.stopped is None and ppo.heldout.hand_on != "best"):
        return trainer.state.global_step, None
    if trainer.stopped is not None:
        line = f"the guard stopped PPO: {trainer.stopped}; back to the policy of update {trainer.best_update}"
        print(f"  {line}", flush=True)
    return trainer.best_update, watch.best_by


def _policy_of(update: int, trainer: PPOTrainer, sft_dir: str) -> PreTrainedModel | PeftModel:
    if update == 0:
        return loading.load_policy(sft_dir)
    if update != trainer.state.global_step:
        checkpoints.load_best(trainer.policy_model, trainer.run_dir, update)
    return trainer.policy_model


if __name__ == "__main__":
    as_command.run("ppo")
