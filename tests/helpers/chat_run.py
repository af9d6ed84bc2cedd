"""Write a finished run that one can talk to: the bundled model in the place of each model, and no training."""

import base64
import json
from functools import cache
from pathlib import Path
from typing import Any

import torch

from gpt2_rlhf.config import compose
from gpt2_rlhf.models import loading, model_files, tokens
from gpt2_rlhf.store import run as runs
from gpt2_rlhf.store.run import Run
from gpt2_rlhf.store.stage import write_manifest
from helpers import card_run

HOSTILE = '<img src="http://127.0.0.1:9/x" onerror="document.title=1"> [a](javascript:alert(1)) *b*'
PICTURE = base64.b64decode(  # one pixel
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


@cache
def reward_model(seed: int) -> Any:
    """The bundled model with a score head of random weights."""
    folder = str(model_files.EMBEDDED_DIR)
    torch.manual_seed(seed)
    return loading.load_reward(folder, tokens.pad_id(tokens.padding_copy(tokens.load_tokenizer(folder, None), "right")))


def write(output_dir: Path, name: str = "0123456789ab") -> Path:
    """Write the run into a folder of outputs and point latest at it; return its own folder."""
    records = card_run.records()
    base = compose.load([]).settings.model
    records["sft"]["inputs"]["model"] = model_files.identity(base, None)
    for record in records.values():
        record["directory"] = record["directory"].replace("0123456789ab", name)
    stages = card_run.stages(output_dir, records)
    folder = str(model_files.EMBEDDED_DIR)
    tokenizer = tokens.load_tokenizer(folder, None)
    for number, stage in enumerate(stages.values()):
        if stage.name in ("reward", "judge"):
            loading.save(reward_model(number), tokenizer, stage.model_dir)
        elif stage.name in ("sft", "ppo"):
            policy = loading.load_policy(folder)
            torch.manual_seed(number)
            with torch.no_grad():
                for parameter in policy.parameters():  # so that each model gives other answers
                    parameter.add_(torch.randn_like(parameter), alpha=0.04)
            loading.save(policy, tokenizer, stage.model_dir)
    (stages["ppo"].directory / "ppo.png").write_bytes(PICTURE)
    samples = [{"prompt": f"\n\nHuman: {text}\n\nAssistant:"} for text in ("How do I rest?", HOSTILE)]
    (stages["evaluate"].directory / "samples.jsonl").write_text("".join(f"{json.dumps(one)}\n" for one in samples))
    for stage in stages.values():
        write_manifest(stage, records[stage.name])
    composed = compose.load([f"output_dir={output_dir}"])
    run = Run(composed.settings, composed.overrides, composed.values, (stages,))
    runs.link_stages(run)
    (run.directory / "samples.jsonl").symlink_to(Path("evaluate", "samples.jsonl"))
    (run.directory / "summary.json").write_text(json.dumps({"command": "make pipeline"}))
    runs.make_newest(run)
    return run.directory
