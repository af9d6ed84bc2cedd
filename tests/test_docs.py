"""What README, CONTRIBUTING, CHANGELOG and docs/ name exists, and what they tell the reader to type works."""

import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

from gpt2_rlhf import cli
from gpt2_rlhf.config import compose
from gpt2_rlhf.config.points import points

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE = REPOSITORY / "src" / "gpt2_rlhf"
PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/architecture.md", "docs/benchmarks.md", "docs/scale.md")
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
MAKEFILE = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
LAYOUT = README.split("## Layout")[1].split("```")[1]
COMMANDS = [
    shlex.split(line, comments=True)
    for page in PAGES
    for block in re.findall(r"```bash\n(.*?)```", (REPOSITORY / page).read_text(encoding="utf-8"), flags=re.DOTALL)
    for line in block.splitlines()
    if line.startswith("make ")
]


def text(page: str) -> str:
    return (REPOSITORY / page).read_text(encoding="utf-8")


def named_paths(page: str) -> set[str]:
    """Files and folders of the repository that a page names in code or links."""
    marked = re.findall(r"`([^`\n]+)`|\]\(([^)]+)\)", re.sub(r"```.*?```", "", text(page), flags=re.DOTALL))
    names = {word for pair in marked for word in pair if re.fullmatch(r"\.?\w[\w./-]*", word)}
    top = {path.name for path in REPOSITORY.iterdir()} | {"examples", "MODEL_CARD.md"}
    files = {name for name in names if "/" in name and name.split("/")[0] in top}
    files |= {name for name in names if re.fullmatch(r"Makefile|[A-Z_]+\.md|\w+\.(toml|txt|md)", name)}
    own = {name for name in files if name == "conf/personal/mine.yaml" or name.startswith("outputs/")}
    return files - own  # the reader's


@pytest.mark.parametrize("page", PAGES)
def test_every_path_that_a_page_names_exists(page: str) -> None:
    folders = (REPOSITORY, (REPOSITORY / page).parent)
    missing = [name for name in named_paths(page) if not any((folder / name).exists() for folder in folders)]
    assert missing == []


def test_pages_name_paths() -> None:
    assert len(named_paths("docs/architecture.md")) > 20
    assert "tests/ppo_trainer/test_trainer.py" in named_paths("README.md")


@pytest.mark.parametrize("page", PAGES)
def test_a_name_in_brackets_after_a_file_is_in_the_file(page: str) -> None:
    for file, name in re.findall(r"`(src/[\w/]+\.py)` \(`(\w+)`", text(page)):
        assert re.search(rf"\b{name}\b", text(file)), f"{page}: {file} has no {name}"


@pytest.mark.parametrize("page", PAGES)
def test_every_module_that_a_page_runs_exists(page: str) -> None:
    for package, module in re.findall(r"python -m (gpt2_rlhf|benchmarks)\.(\w+)", text(page)):
        folder = PACKAGE if package == "gpt2_rlhf" else REPOSITORY / package
        assert (folder / f"{module}.py").is_file()


def test_the_layout_names_every_top_level_entry_and_every_room() -> None:
    section = README.split("## Layout")[1].split("## Limits")[0]
    tracked = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    entries = {line.split("/")[0] for line in tracked.splitlines()} - {"README.md", "LICENSE", "src"}
    assert [entry for entry in entries if not entry.startswith(".") and entry not in section] == []
    rooms = {path.parent.name for path in PACKAGE.glob("*/*.py")}
    assert set(re.findall(r"^  (\w+)/", LAYOUT, flags=re.MULTILINE)) == rooms


def test_the_config_groups_are_those_of_conf() -> None:
    line = next(line for line in LAYOUT.splitlines() if line.startswith("conf/"))
    assert set(line.partition("groups: ")[2].split()) == set(compose.groups()) - {"personal"}


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_command_has_a_target_and_overrides_that_compose(command: list[str]) -> None:
    target, overrides = command[1], command[2:]
    assert re.search(rf"^{target}\b|^[a-z ]*\b{target}\b[a-z ]*:", MAKEFILE, flags=re.MULTILINE)
    for one in [point.overrides for point in points(overrides)] if target == "sweep" else [overrides]:
        compose.load(one)


def test_there_are_commands_to_check() -> None:
    assert len(COMMANDS) >= 10


@pytest.mark.parametrize("page", PAGES)
def test_the_console_script_has_the_commands_that_a_page_names(page: str) -> None:
    for verb, overrides in re.findall(r"`gpt2-rlhf ([a-z]+)([^`]*)`", text(page)):
        assert verb in cli.VERBS
        compose.load(shlex.split(overrides))


def test_the_snippet_is_that_of_the_card_of_quickstart() -> None:
    (snippet,) = re.findall(r"```python\n.*?```", README, flags=re.DOTALL)
    assert snippet in text("MODEL_CARD.md")


def test_trackers_of_the_extra_are_those_that_the_readme_names() -> None:
    extra = tomllib.loads(text("pyproject.toml"))["project"]["optional-dependencies"]["trackers"]
    assert {re.split(r"\W", requirement)[0] for requirement in extra} == {"tensorboard", "trackio", "wandb"}
    assert "TensorBoard, Trackio and W&B" in README
    assert "pip install '.[trackers]'" in README


def test_pre_commit_runs_the_pinned_ruff_and_the_workflow_runs_ci() -> None:
    (hooks,) = yaml.safe_load(text(".pre-commit-config.yaml"))["repos"]
    development = tomllib.loads(text("pyproject.toml"))["project"]["optional-dependencies"]["dev"]
    assert f"ruff=={hooks['rev'].removeprefix('v')}" in development
    steps = yaml.safe_load(text(".github/workflows/ci.yml"))["jobs"]["checks"]["steps"]
    assert ".ci/run" in [step.get("run") for step in steps]


def test_constraints_pin_every_requirement_once() -> None:
    project = tomllib.loads(text("pyproject.toml"))["project"]
    requirements = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    names = [re.split(r"[^\w-]", requirement)[0].lower().replace("_", "-") for requirement in requirements]
    pinned = [line.partition("==")[0].lower().replace("_", "-") for line in text("constraints.txt").split()]
    assert set(names) <= set(pinned)
    assert len(pinned) == len(set(pinned))
