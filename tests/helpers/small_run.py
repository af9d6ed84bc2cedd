"""Overrides that make a run of all stages on the bundled data take half a minute."""

SMALL = (
    "data.train_pairs=240",
    "data.test_pairs=48",
    "data.shares={sft: 0.2, reward: 0.4, judge: 0.2, ppo: 0.2}",
    "sft.args.per_device_train_batch_size=8",
    "sft.args.num_train_epochs=3",
    "sft.args.save_steps=2",
    "reward.args.per_device_train_batch_size=8",
    "reward.args.num_train_epochs=2",
    "reward.args.save_steps=2",
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
