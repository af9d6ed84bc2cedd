"""The package as `pip install .` leaves it: away from the checkout, with its settings, templates and bundled data."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from helpers.small_run import SMALL

REPOSITORY = Path(__file__).resolve().parents[1]
BUILD = "from setuptools import build_meta; print(build_meta.build_{}({!r}))"

pytestmark = pytest.mark.slow


def run(folder: Path, *command: str, **environment: str) -> str:
    """Run a command in `folder`, and return what it prints; everything it needs is on this machine."""
    variables = {**os.environ, "PIP_NO_INDEX": "1", **environment}
    done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what the package is built from, with settings of its owner's, and with nothing built before."""
    copy = tmp_path_factory.mktemp("checkout")
    for folder in ("src", "conf"):
        ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(REPOSITORY / folder, copy / folder, symlinks=True, ignore=ignored)
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / file, copy)
    (copy / "conf" / "personal").mkdir(exist_ok=True)
    (copy / "conf" / "personal" / "mine.yaml").write_text("# @package _global_\nseed: 99\n", encoding="utf-8")
    return copy


@pytest.fixture(scope="module")
def wheel(checkout: Path) -> Path:
    """The wheel that pip builds from the checkout."""
    run(checkout, sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", "dist", ".")
    (built,) = (checkout / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the installed wheel and nothing else."""
    folder = tmp_path_factory.mktemp("installed")
    run(folder, sys.executable, "-m", "pip", "install", "--no-deps", "--target", str(folder), str(wheel))
    return folder


def files(archive: Path) -> set[str]:
    return {name for name in zipfile.ZipFile(archive).namelist() if name.startswith("gpt2_rlhf/")}


def test_the_wheel_holds_every_file_of_the_package_and_no_personal_setting(wheel: Path) -> None:
    package = REPOSITORY / "src" / "gpt2_rlhf"
    conf = {f"gpt2_rlhf/config/conf/{path.relative_to(REPOSITORY / 'conf')}" for path in REPOSITORY.glob("conf/**/*")}
    expected = {f"gpt2_rlhf/{path.relative_to(package)}" for path in package.rglob("*") if path.is_file()} | {
        name for name in conf if name.endswith(".yaml") and "/personal/" not in name
    }
    assert files(wheel) == {name for name in expected if "__pycache__" not in name}


def test_a_wheel_from_the_source_distribution_holds_the_same_files(checkout: Path, wheel: Path, tmp_path: Path) -> None:
    name = run(checkout, sys.executable, "-c", BUILD.format("sdist", str(tmp_path))).splitlines()[-1]
    shutil.unpack_archive(tmp_path / name, tmp_path, filter="data")
    unpacked = tmp_path / name.removesuffix(".tar.gz")
    again = run(unpacked, sys.executable, "-c", BUILD.format("wheel", str(tmp_path))).splitlines()[-1]
    assert files(tmp_path / again) == files(wheel)


def test_modules_are_imported_from_the_installed_wheel(installed: Path, tmp_path: Path) -> None:
    script = "import gpt2_rlhf.pipeline; print(gpt2_rlhf.pipeline.__file__)"
    found = run(tmp_path, sys.executable, "-c", script, PYTHONPATH=str(installed))
    assert Path(found.strip()) == installed / "gpt2_rlhf" / "pipeline.py"


def test_the_console_script_prints_settings_and_help(installed: Path, tmp_path: Path) -> None:
    script = str(installed / "bin" / "gpt2-rlhf")
    config = run(tmp_path, script, "config", "experiment=gpt2_hh", "seed=7", PYTHONPATH=str(installed))
    assert "seed: 7\n" in config
    assert "openai-community/gpt2" in config
    assert "usage: gpt2-rlhf VERB" in run(tmp_path, script, "--help", PYTHONPATH=str(installed))
    assert "experiment=gpt2_hh | gpt2_hh_500" in run(tmp_path, script, "pipeline", "--help", PYTHONPATH=str(installed))
    assert list(tmp_path.iterdir()) == []


def test_a_small_pipeline_runs_in_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    few_steps = ("sft.args.max_steps=2", "reward.args.max_steps=2", "ppo.args.total_episodes=16")
    run(tmp_path, sys.executable, "-m", "gpt2_rlhf", "pipeline", *SMALL, *few_steps, PYTHONPATH=str(installed))
    newest = tmp_path / "outputs" / "latest"
    assert (newest / "model" / "model.safetensors").is_file()
    assert (newest / "model" / "README.md").is_file()
    assert (newest / "report" / "index.html").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["outputs"]
