"""What libraries read from the environment when they are imported, before any test imports one."""

import os

from gpt2_rlhf.pipeline import quiet_environment

quiet_environment()
os.environ["HF_HUB_OFFLINE"] = "1"
