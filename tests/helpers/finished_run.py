"""Write the folders of a finished run without training, and point huggingface_hub at a local hub."""

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from gpt2_rlhf import pipeline
from gpt2_rlhf.config import compose
from gpt2_rlhf.evidence import product, summary
from gpt2_rlhf.hub.tries import Patience
from gpt2_rlhf.store import run as runs
from gpt2_rlhf.store.run import Run
from helpers import card_run, commands
from helpers.local_hub import in_process
from helpers.local_hub.server import Hub
from helpers.local_hub.store import Account

TOKEN = "hf_TokenThatMustNotBeSeen"
RUN = "0123456789ab"
HASTE = Patience(tries=5, first_wait_s=0.05, longest_wait_s=2, silence_s=1, try_s=30)
CARD = "---\nlicense: mit\ntags:\n- rlhf\n---\n\n# somebody/demo\n"


def write(output_dir: Path) -> Path:
    """Write outputs/latest with a policy and a reward model of random bytes; return the folder of the policy."""
    run_dir = output_dir / "runs" / RUN
    for name in ("model", "reward_model"):
        stage_dir, folder = output_dir / "stages" / f"{name}-1", run_dir / name
        (folder / "report").mkdir(parents=True)
        stage_dir.mkdir(parents=True)
        (stage_dir / "model.safetensors").write_bytes(os.urandom(300_000))
        (folder / "model.safetensors").hardlink_to(stage_dir / "model.safetensors")
        (folder / "config.json").write_text(f'{{"name": "{name}"}}')
        (folder / "README.md").write_text(CARD)
        (folder / "report" / "reward.png").write_bytes(b"\x89PNG\r\n\x1a\n\0")
        (folder / ".README.md.part").write_text("half a ca")
    (output_dir / "latest").symlink_to(Path("runs", RUN))
    return run_dir / "model"


def write_evaluated(output_dir: Path, overrides: list[str]) -> Path:
    """Write the run of card_run as a pipeline with these overrides leaves it; return outputs/latest."""
    records = card_run.records()
    for name, record in records.items():
        digest = hashlib.sha256(f"model.safetensors of {name}".encode()).hexdigest()
        record["weights_sha256"] = {"model.safetensors": digest}
    stages = card_run.stages(output_dir, records)
    composed = compose.load([*overrides, f"output_dir={output_dir}"])
    run = Run(composed.settings, tuple(overrides), composed.values, (stages,))
    runs.link_stages(run)
    summary.write(run, [], 0.0)
    product.write(run)
    runs.make_newest(run)
    return runs.latest(str(output_dir))


def use_hub(hub: Hub, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have this process and later ones reach the hub with an empty HF_HOME and the token of `somebody`."""
    hub.accounts[TOKEN] = Account("somebody", organisations={"lab": "write", "club": "read"})
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", hub.address)
    monkeypatch.setenv("HF_HOME", str(home))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("HF_HUB_DOWNLOAD_TIMEOUT", "1")
    for name, value in _constants(hub.address, home).items():
        monkeypatch.setattr(constants, name, value)


def _constants(address: str, home: Path) -> dict[str, Any]:
    return {
        **in_process.settings(address, home / "hub"),
        "HF_HOME": str(home),
        "HF_TOKEN_PATH": str(home / "token"),
        "HF_HUB_DOWNLOAD_TIMEOUT": 1,
    }


def command(address: str, home: Path, *arguments: str) -> None:
    """Run `python -m gpt2_rlhf` with these arguments in this process, forked from one that imported huggingface_hub."""
    for name, value in _constants(address, home).items():
        setattr(constants, name, value)
    commands.run_here(*arguments)


def planned(overrides: list[str]) -> Run:
    """Return the run that these overrides describe, as a command plans it."""
    return pipeline.plan(compose.load(overrides))
