"""A run of all stages on the bundled data that takes half a minute, and its stages for other runs."""

import shutil
from pathlib import Path

SMALL = (
    "data.train_pairs=200",
    "data.test_pairs=48",
    "data.shares={sft: 0.24, reward: 0.28, judge: 0.24, ppo: 0.24}",
    "sft.args.per_device_train_batch_size=8",
    "sft.args.num_train_epochs=3",
    "sft.args.save_steps=4",
    "reward.args.per_device_train_batch_size=8",
    "reward.args.num_train_epochs=2",
    "reward.args.save_steps=4",
    "ppo.args.per_device_train_batch_size=8",
    "ppo.args.gradient_accumulation_steps=2",
    "ppo.args.total_episodes=48",
    "ppo.args.response_length=16",
    "ppo.args.save_steps=1",
    "ppo.args.eval_steps=2",
    "ppo.heldout.prompts=16",
    "evaluate.prompts=16",
    "force=true",  # a reward model of so few pairs is no better than chance
)


def copy_stages(output_dir: Path, other: Path, *names: str) -> None:
    """Copy the finished stages of these names to another output folder, where they need not be built again."""
    for name in names:
        for stage in output_dir.glob(f"stages/{name}-*/"):
            shutil.copytree(stage, other / "stages" / stage.name)
