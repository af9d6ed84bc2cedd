"""`make setup` after an interrupted one. The Python here is a script that makes and uses environments without a network."""

import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PYTHON = """#!/bin/sh
case "$1 $2" in
  "-m venv") mkdir -p "$3/bin"; test -e "$3/bin/python" && test ! -L "$3/bin/python" || cp "$0" "$3/bin/python"; touch "$3/pip" ;;
  "-m pip") test -e "${0%/bin/python}/pip" || { echo "No module named pip" >&2; exit 1; }; touch "${0%/bin/python}/installed" ;;
esac
"""


@pytest.mark.parametrize(
    "left", ["nothing", "no pip", "no python", "all but the packages", "a link to a Python that is gone"]
)
def test_an_interrupted_setup_repairs_itself(tmp_path: Path, left: str) -> None:
    python, venv = tmp_path / "python3", tmp_path / "venv"
    python.write_text(PYTHON)
    python.chmod(0o755)
    if left != "nothing":
        subprocess.run([python, "-m", "venv", venv], check=True)
    if left == "no pip":
        (venv / "pip").unlink()
    if left in ("no python", "a link to a Python that is gone"):
        (venv / "bin" / "python").unlink()
    if left == "a link to a Python that is gone":
        (venv / "bin" / "python").symlink_to(tmp_path / "gone")
    command = ["make", "setup", f"PYTHON={python}", f"VENV={venv}"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    assert (venv / "installed").exists()
    assert (venv / ".installed").exists()
