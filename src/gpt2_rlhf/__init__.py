"""SFT, a reward model and PPO for GPT-2, chained so that the hand-over, resuming and evidence hold."""
