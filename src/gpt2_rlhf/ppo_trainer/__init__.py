from gpt2_rlhf.config.settings import PpoKl
from gpt2_rlhf.ppo_trainer.reward_scores import Shaping
from gpt2_rlhf.ppo_trainer.trainer import PPOConfig, PPOTrainer

__all__ = ["PPOConfig", "PPOTrainer", "PpoKl", "Shaping"]
