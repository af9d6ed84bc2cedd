"""SFT, a reward model and PPO for GPT-2, chained so that the hand-over, resuming and evidence hold.

Importing the package sets what libraries read from the environment when they are imported, unless the user has.
"""

import os

for _name in ("HF_HUB_DISABLE_TELEMETRY", "HF_HUB_DISABLE_PROGRESS_BARS", "TRL_EXPERIMENTAL_SILENCE"):
    os.environ.setdefault(_name, "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # it warns at every fork otherwise
# Threads of OpenMP that spin while they wait double a run's time as soon as another program uses a core.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # else a lost connection prints a C++ stack
