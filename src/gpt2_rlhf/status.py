"""Print which stages of a run are done, partial or missing, and why. Imports nothing heavy."""

import sys
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from gpt2_rlhf import config, launch, locks, stage
from gpt2_rlhf.errors import exit_with_one_line


def show(argv: Sequence[str]) -> None:
    """Print the table for the run that these overrides describe."""
    settings = config.load(argv)
    processes = launch.processes(settings)
    table = Table(box=box.MARKDOWN)
    for header in ("Stage", "State", "Why", "Directory"):
        table.add_column(header, overflow="fold")
    stages = {part.directory: part for plan in stage.plans(settings, processes) for part in plan.values()}
    for part in stages.values():
        state, why = stage.status(part, processes)
        if state != "done" and part.directory.exists() and locks.is_held(part):
            state, why = "running", "another process is building it"
        table.add_row(part.name, state, why, str(part.directory))
    Console(width=None if sys.stdout.isatty() else 160, highlight=False, markup=False).print(table)


if __name__ == "__main__":
    exit_with_one_line(lambda: show(sys.argv[1:]))
