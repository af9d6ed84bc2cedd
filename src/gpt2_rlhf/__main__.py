"""Run a command: `python -m gpt2_rlhf VERB key=value`."""

from gpt2_rlhf.cli import main

main()
