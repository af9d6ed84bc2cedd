"""Let a module that is started by itself, as `python -m gpt2_rlhf.sft`, be the command `python -m gpt2_rlhf sft`."""

import runpy
import sys


def run(verb: str) -> None:
    """Run the command `verb` with the arguments of this process."""
    sys.argv[1:1] = [verb]
    runpy.run_module("gpt2_rlhf", run_name="__main__")
