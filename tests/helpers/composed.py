"""Compose the settings once, in the process that has imported this: those forked from it need not do so again."""

from gpt2_rlhf.config import compose

compose.load([])
