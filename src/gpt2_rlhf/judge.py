"""The judge: a second reward model, of pairs that nothing else saw and another seed, which PPO is never trained on.

Two reward models share what the data say and differ in their errors (Coste et al. 2023, arXiv:2310.02743), so a policy
that gains with one and loses with the other has learnt errors. Recipe and settings are those of the reward stage.
"""

import sys

from gpt2_rlhf import pipeline
from gpt2_rlhf.reward import run

__all__ = ["run"]


if __name__ == "__main__":
    pipeline.main(sys.argv[1:], last="judge")
