"""What the README names exists, and what it tells to type composes."""

import re
import shlex
from pathlib import Path

import pytest

from gpt2_rlhf.config import compose

REPOSITORY = Path(__file__).resolve().parents[1]
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
MAKEFILE = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
COMMANDS = [
    shlex.split(line, comments=True)
    for block in re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL)
    for line in block.splitlines()
    if line.startswith("make ")
]


def test_the_layout_names_every_module_and_no_other() -> None:
    layout = README.split("## Layout")[1].split("## ")[0]
    named = set(re.findall(r"(\w+)\.py", layout)) - {"test_pipeline", "build"}  # the latter is in embedded/
    modules = {p.stem for p in (REPOSITORY / "src" / "gpt2_rlhf").glob("*.py")} - {"__init__"}
    assert named == modules


def test_every_top_level_folder_and_file_of_the_layout_exists() -> None:
    files = ("Makefile", "constraints.txt", "MODEL_CARD.md", "pyproject.toml")
    for name in (*files, "cards", "conf", "tests", "src/gpt2_rlhf"):
        assert name in README
        assert (REPOSITORY / name).exists()


def test_the_config_groups_are_those_of_conf() -> None:
    line = next(line for line in README.splitlines() if line.startswith("conf/"))
    assert set(line.partition("groups: ")[2].split()) == set(compose.groups()) - {"personal"}


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_command_of_the_readme_has_a_target_and_overrides_that_compose(command: list[str]) -> None:
    target, overrides = command[1], command[2:]
    assert re.search(rf"^{target}\b|^[a-z ]*\b{target}\b[a-z ]*:", MAKEFILE, flags=re.MULTILINE)
    compose.load(overrides)


def test_the_readme_has_commands_to_check() -> None:
    assert len(COMMANDS) >= 10


def test_the_snippet_is_the_card_s() -> None:
    card = (
        (REPOSITORY / "MODEL_CARD.md").read_text(encoding="utf-8").replace("{{ model_path }}", "outputs/latest/model")
    )
    (snippet,) = re.findall(r"```python\n.*?```", README, flags=re.DOTALL)
    assert snippet in card
