"""Stage 3, PPO: the SFT model is trained on its own answers to raise the reward model's score, held near SFT by KL.

Policy and reference start as the SFT model, the critic as the reward model (Ziegler et al. 2019, arXiv:1909.08593;
Stiennon et al. 2020, arXiv:2009.01325). With LoRA the reference is the policy with its adapter switched off. Some of
the prompts are withheld: on their answers the policy is measured while it trains, and a guard may stop it.
"""

import runpy
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

from datasets import Dataset
from peft import PeftModel, TaskType
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.config.functions import load_score_function, load_utility
from gpt2_rlhf.config.settings import Settings
from gpt2_rlhf.evidence import curves, measured
from gpt2_rlhf.launch import training, world
from gpt2_rlhf.launch.stopwatch import Stopwatch
from gpt2_rlhf.models import loading, tokens
from gpt2_rlhf.ppo_trainer import PPOConfig, PPOTrainer, checkpoints, checks, gates, heldout
from gpt2_rlhf.ppo_trainer.reward_scores import Shaping
from gpt2_rlhf.ppo_trainer.watch import Watch
from gpt2_rlhf.rows import tables
from gpt2_rlhf.store.stage import Outcome, Stage, manifest, newest_whole_checkpoint


def check(settings: Settings, stage: Stage) -> None:
    """Have TRL and our trainer check the arguments of the stage before anything trains; its data is ready.

    Raises:
        UserError: names what TRL, a tracker or the number of prompts does not allow.
    """
    given = arguments(settings, stage)
    training.check(stage.name, PPOConfig, given)
    prompts = manifest(stage.needs["data"])["metrics"]["tables"]["ppo"]["prompts"]
    heldout_prompts = settings.ppo.withheld_prompts
    if heldout_prompts >= prompts:
        raise UserError(
            f"ppo.heldout.prompts: {heldout_prompts} of {prompts} PPO prompts leave none to train on; lower it, give "
            "more pairs, or set ppo.args.eval_strategy=no"
        )
    checks.check(PPOConfig(**given), prompts - heldout_prompts, int(stage.inputs["processes"]))


def arguments(settings: Settings, stage: Stage) -> dict[str, Any]:
    """The fields of PPOConfig: answers end with EOS, and no samples are drawn that would change the random state."""
    own = {"stop_token": "eos", "num_sample_generations": 0}
    chosen = {"bf16": False, **settings.ppo.args}  # TRL's own default is true, and PPO honours it
    return {**training.arguments(stage, chosen), **own}


def run(settings: Settings, stage: Stage) -> Outcome:
    """Train on the `ppo` prompts and leave the policy in `stage.model_dir`."""
    report = manifest(stage.needs["reward"])["metrics"]
    reward = settings.ppo.reward
    fault = gates.reward_model_fault(report) if reward.function is None else None  # else it only starts the critic
    forced = gates.pass_or_stop([fault], settings.force)
    mean, std = (report["score_mean"], report["score_std"]) if reward.normalise else (0.0, 1.0)
    heldout, prompts = split(settings, tables.load(stage.needs["data"].directory, "ppo"))
    tokenizer = loading.load_base_tokenizer(settings.model)
    padding = tokens.padding_copy(tokenizer, "left")
    sft_dir, reward_dir = str(stage.needs["sft"].model_dir), str(stage.needs["reward"].model_dir)
    adapter = loading.lora(settings.ppo.peft, TaskType.CAUSAL_LM)
    reward_model = loading.load_reward(reward_dir, tokens.pad_id(padding))
    judge, judge_fault = _judge(stage, tokens.pad_id(padding))
    set_seed(stage.seed)

    work = Stopwatch()
    watch = _watch(settings, stage, heldout, tokenizer, reward_model, judge) if heldout else None
    trainer = PPOTrainer(
        args=PPOConfig(**arguments(settings, stage)),
        processing_class=padding,
        model=loading.load_policy(sft_dir),
        ref_model=loading.load_policy(sft_dir) if adapter is None else None,
        reward_model=reward_model,
        value_model=loading.load_reward(reward_dir, tokens.pad_id(padding)),
        train_dataset=Dataset.from_list([tokens.encode_ppo(tokenizer, row) for row in prompts]),
        peft_config=adapter,
        callbacks=training.callbacks(stage),
        score_function=load_score_function(reward.function),
        shaping=Shaping(mean, std, reward.clip),
        kl=settings.ppo.kl,
        watch=watch,
        force=settings.force,
    )
    if judge is not None:
        judge.to(trainer.accelerator.device)  # type: ignore[arg-type]
    with work.running():
        training.train(trainer, newest_whole_checkpoint(stage, world.size(settings.launch.processes)))
    if not trainer.is_world_process_zero():
        return Outcome({}, work.seconds)
    kept_update = _kept_update(settings, trainer)
    loading.save(_policy_after(kept_update, trainer, sft_dir), tokenizer, stage.model_dir)
    curves.write(stage.directory)
    return Outcome(
        {
            "prompts": len(prompts),
            "episodes": trainer.state.episode,
            "updates": trainer.state.global_step,
            "kept_update": kept_update,
            "best_update": trainer.best_update,
            "stopped": trainer.stopped,
            "heldout": None if watch is None else watch.report(kept_update),
            "judge_fault": judge_fault,
            "forced": [*forced, *trainer.forced],
        },
        work.seconds,
    )


def split(settings: Settings, rows: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The prompts that PPO is measured on, none where it is not measured, and those it trains on."""
    count = settings.ppo.withheld_prompts
    return list(rows[:count]), list(rows[count:])


def _judge(stage: Stage, pad_token_id: int) -> tuple[PreTrainedModel | None, str | None]:
    """The judge, or None and why it is not to be asked."""
    if "judge" not in stage.needs:
        return None, None
    fault = gates.reward_model_fault(manifest(stage.needs["judge"])["metrics"], "judge")
    if fault is None:
        return loading.load_reward(str(stage.needs["judge"].model_dir), pad_token_id), None
    if world.rank() == 0:
        print(f"  the judge is not asked: {fault}", flush=True)
    return None, fault


def _watch(
    settings: Settings,
    stage: Stage,
    rows: Sequence[dict[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    reward_model: PreTrainedModel,
    judge: PreTrainedModel | None,
) -> Watch:
    ppo, batch_size = settings.ppo, settings.evaluate.batch_size
    function = load_score_function(ppo.reward.function)
    prompts = [row["prompt"] for row in rows]
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
    directory = stage.directory / measured.DIRECTORY
    return Watch(directory, prompts, measure, ppo.heldout.best_by, ppo.guard)


def _kept_update(settings: Settings, trainer: PPOTrainer) -> int:
    """After which update the policy is handed on: the last, or the best where asked for or where the guard stopped."""
    wants_best = trainer.stopped is not None or settings.ppo.heldout.hand_on == "best"
    if not wants_best or trainer.best_update is None:
        return trainer.state.global_step
    if trainer.stopped is not None:
        print(
            f"\n  the guard stopped PPO: {trainer.stopped}; back to the policy of update {trainer.best_update}",
            flush=True,
        )
    return trainer.best_update


def _policy_after(update: int, trainer: PPOTrainer, sft_dir: str) -> PreTrainedModel | PeftModel:
    if update == 0:
        return loading.load_policy(sft_dir)
    if update != trainer.state.global_step:
        checkpoints.load_policy(trainer.policy_model, trainer.run_dir / f"checkpoint-{update}")
    return trainer.policy_model


if __name__ == "__main__":  # `python -m gpt2_rlhf.ppo` is `python -m gpt2_rlhf ppo`
    sys.argv[1:1] = ["ppo"]
    runpy.run_module("gpt2_rlhf", run_name="__main__")
