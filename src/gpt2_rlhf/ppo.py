"""Stage 3, PPO: the SFT model is trained on its own answers to raise the reward model's score, held near SFT by KL.

Policy and reference start as the SFT model, the critic as the reward model (Ziegler et al. 2019, arXiv:1909.08593;
Stiennon et al. 2020, arXiv:2009.01325). With LoRA the reference is the policy with its adapter switched off.
"""

import sys

from datasets import Dataset
from peft import TaskType
from transformers import set_seed

from gpt2_rlhf import data, gates, launch, models, pipeline, ppo_reward, tokens, training
from gpt2_rlhf.ppo_reward import Shaping
from gpt2_rlhf.ppo_trainer import PPOConfig, RepairedPPOTrainer
from gpt2_rlhf.settings import Settings
from gpt2_rlhf.stage import Outcome, Stage, manifest, newest_whole_checkpoint
from gpt2_rlhf.stopwatch import Stopwatch


def run(settings: Settings, stage: Stage) -> Outcome:
    """Train on the `ppo` prompts and leave the policy in `stage.model_dir`."""
    report = manifest(stage.needs["reward"])["metrics"]
    reward = settings.ppo.reward
    fault = gates.reward_model_fault(report) if reward.function is None else None  # else it only starts the critic
    forced = gates.pass_or_stop([fault], settings.force)
    mean, std = (report["score_mean"], report["score_std"]) if reward.normalise else (0.0, 1.0)
    prompts = data.load(stage.needs["data"].directory, "ppo")
    tokenizer = models.load_base_tokenizer(settings.model)
    padding = tokens.padding_copy(tokenizer, "left")
    sft_dir, reward_dir = str(stage.needs["sft"].model_dir), str(stage.needs["reward"].model_dir)
    adapter = models.lora(settings.ppo.peft, TaskType.CAUSAL_LM)
    set_seed(stage.seed)

    work = Stopwatch()
    trainer = RepairedPPOTrainer(
        args=PPOConfig(**training.ppo_arguments(settings, stage)),
        processing_class=padding,
        model=models.load_policy(sft_dir),
        ref_model=models.load_policy(sft_dir) if adapter is None else None,
        reward_model=models.load_reward(reward_dir, tokens.pad_id(padding)),
        value_model=models.load_reward(reward_dir, tokens.pad_id(padding)),
        train_dataset=Dataset.from_list([tokens.encode_ppo(tokenizer, row) for row in prompts]),
        peft_config=adapter,
        callbacks=training.callbacks(stage),
        score_function=ppo_reward.load(reward.function),
        shaping=Shaping(mean, std, reward.clip),
        kl=settings.ppo.kl,
        force=settings.force,
    )
    with work.running():
        training.train(trainer, newest_whole_checkpoint(stage, launch.processes(settings)))
    if trainer.is_world_process_zero():
        training.save(trainer.policy_model, tokenizer, stage.model_dir)
    return Outcome(
        {
            "prompts": len(prompts),
            "episodes": trainer.state.episode,
            "updates": trainer.state.global_step,
            "forced": [*forced, *trainer.forced],
        },
        work.seconds,
    )


if __name__ == "__main__":
    pipeline.main(sys.argv[1:], last="ppo")
