"""`make help`; and `make setup` after an interrupted one, where Python is a script that makes two files."""

import subprocess
from pathlib import Path

import pytest

from gpt2_rlhf import cli

REPOSITORY = Path(__file__).resolve().parents[1]
PYTHON = """#!/bin/sh
case "$1 $2" in
  "-m venv")
    mkdir -p "$3/bin"
    test ! -L "$3/bin/python" || exit 1  # as venv fails if the link leads nowhere
    cp "$0" "$3/bin/python"
    touch "$3/pip" ;;
  "-m pip")
    venv="${0%/bin/python}"
    test -e "$venv/pip" && touch "$venv/installed" ;;
esac
"""


@pytest.mark.parametrize("left", ["nothing", "no pip", "no python", "no packages", "a dead link"])
def test_an_interrupted_setup_repairs_itself(tmp_path: Path, left: str) -> None:
    python, venv = tmp_path / "python3", tmp_path / "venv"
    python.write_text(PYTHON)
    python.chmod(0o755)
    if left != "nothing":
        subprocess.run([python, "-m", "venv", venv], check=True)
    if left == "no pip":
        (venv / "pip").unlink()
    if left in ("no python", "a dead link"):
        (venv / "bin" / "python").unlink()
    if left == "a dead link":
        (venv / "bin" / "python").symlink_to(tmp_path / "gone")
    command = ["make", "setup", f"PYTHON={python}", f"VENV={venv}"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    assert (venv / "installed").exists()
    assert (venv / ".installed").exists()


def test_help_lists_every_command_in_80_columns() -> None:
    lines = subprocess.run(["make", "help"], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    assert set(cli.VERBS) <= {line.split()[1] for line in lines.splitlines()}
    assert max(map(len, lines.splitlines())) <= 80
