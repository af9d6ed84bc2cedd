"""What libraries read from the environment when they are imported, before any test imports one."""

import os

import gpt2_rlhf  # noqa: F401 - sets the rest of the environment

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"  # the models are too small for two, and tests may share the machine
