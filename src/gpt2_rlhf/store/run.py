"""One run: what was asked for, the stages it consists of, and where its results are found.

A command composes its settings once into such a record and hands the record on. outputs/runs/<hash> holds links into
the stage store, so runs that share stages share their bytes; outputs/latest is one symbolic link to the newest run.
"""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2_rlhf.config import compose, methods
from gpt2_rlhf.config.compose import Composed
from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.config.settings import Settings
from gpt2_rlhf.store.files import link, read_json, replacing
from gpt2_rlhf.store.stage import Stage, manifest

_STAGES = ("data", "sft", "reward", "judge", *methods.LABELS, "evaluate")


@dataclass(frozen=True)
class Run(Composed):
    """What a command asks for, and its stages by name for each seed; the first seed's policy is handed on."""

    plans: tuple[Mapping[str, Stage], ...]

    @property
    def stages(self) -> list[Stage]:
        """Every stage once, in the order in which they are built."""
        return list({stage.directory: stage for plan in self.plans for stage in plan.values()}.values())

    @property
    def last(self) -> Stage:
        """The last stage of the first seed."""
        return list(self.plans[0].values())[-1]

    @property
    def name(self) -> str:
        """The hash that names the run, which is that of its last stage."""
        return self.last.directory.name.rpartition("-")[2]

    @property
    def directory(self) -> Path:
        """Where the results of the run are."""
        return Path(self.settings.output_dir) / "runs" / self.name

    @property
    def directories(self) -> list[Path]:
        """The directory of the run, then those of its stages."""
        return [self.directory, *(stage.directory for stage in self.stages)]

    @property
    def command(self) -> str:
        """The command that was typed, as `make` takes it."""
        return shlex.join(["make", "pipeline", *self.overrides])

    @property
    def portable_command(self) -> str:
        """The command that reproduces the run anywhere: local paths cut to file names, `publish.*` removed."""
        kept = [one.partition("=") for one in self.overrides if not one.startswith("publish.")]
        return shlex.join(["make", "pipeline", *(f"{key}{sep}{without_folder(value)}" for key, sep, value in kept)])

    def label(self, stage: Stage) -> str:
        """Return what a stage is called in messages: its name, with the seed if it is of one of several seeds."""
        method = self.settings.method
        seeds = [plan[method].seed for plan in self.plans if plan.get(stage.name) == stage and method in plan]
        return f"{stage.name}, seed {seeds[0]}" if len(self.plans) > 1 and len(seeds) == 1 else stage.name

    def manifests(self) -> list[dict[str, dict[str, Any]]]:
        """The manifests of the finished stages by name, for each seed of the policy."""
        read = {stage.directory: manifest(stage) for stage in self.stages}
        return [{name: read[stage.directory] for name, stage in plan.items()} for plan in self.plans]


def read(directory: Path, now: Settings) -> Run:
    """Return the evaluated run in this directory as it was when it was shown, to be published or talked to as set now.

    Raises:
        UserError: there is none, a stage of it is lost, or its settings are those of another version.
    """
    try:
        command = read_json(directory / "summary.json")["command"]
        found = {one.name: _read_stage(one) for one in directory.iterdir() if one.name.partition("-")[0] in _STAGES}
        settings, values = compose.read((directory / "config.yaml").read_text(encoding="utf-8"), now)
        needed = ("data", "sft", "reward", settings.method, "evaluate")
        first = {name: found[name] for name in _STAGES if name in found or name in needed}
        others = [
            first | {name: found[f"{name}-seed{seed}"] for name in (settings.method, "evaluate")}
            for seed in (settings.ppo.seeds or [])[1:]
        ]
    except (OSError, LookupError, TypeError, ValueError) as error:
        raise UserError(
            f"{directory}: there is no finished model, or a stage of it is lost or damaged; run `make pipeline` first, "
            "with the overrides of that run"
        ) from error
    except UserError as error:
        raise UserError(f"{directory}: made by another version; run `make pipeline` again first ({error})") from error
    return Run(settings, tuple(shlex.split(command)[2:]), values, (first, *others))


def _read_stage(link: Path) -> Stage:
    directory = link.resolve()
    record = manifest(Stage("", directory, {}, {}))
    return Stage(record["stage"], directory, {**record["inputs"], "seed": record["seed"]}, {})


def latest(output_dir: str) -> Path:
    """Return the link to the newest run."""
    return Path(output_dir) / "latest"


def finished(output_dir: str) -> list[str]:
    """Return the names of the evaluated runs, the newest first."""
    summaries = Path(output_dir, "runs").glob("*/summary.json")
    return [path.parent.name for path in sorted(summaries, key=lambda path: -path.stat().st_mtime)]


def find(output_dir: str, name: str | None) -> Path:
    """Return the folder of the run whose name this is, or the beginning of it; the newest run without a name.

    Raises:
        UserError: no run has this name, or several begin with it.
    """
    if name is None:
        return latest(output_dir)
    names = finished(output_dir)
    found = [one for one in names if one.startswith(name)]
    if len(found) != 1:
        expected = f"expected one of {', '.join(found or names)}" if names else "run `make pipeline` first"
        raise UserError(f"{output_dir}: {'several runs begin' if found else 'no run begins'} with {name}; {expected}")
    return Path(output_dir, "runs", found[0])


def link_stages(run: Run) -> None:
    """Link the stages into the directory of the run, and write its settings there."""
    run.directory.mkdir(parents=True, exist_ok=True)
    stages, method = dict(run.plans[0]), run.settings.method
    for plan in run.plans[1:]:
        stages |= {f"{name}-seed{plan[method].seed}": plan[name] for name in (method, "evaluate") if name in plan}
    for name, stage in stages.items():
        link(run.directory / name, Path("..", "..", "stages", stage.directory.name))
    with replacing(run.directory / "config.yaml") as file:
        file.write(compose.yaml(run.values))


def make_newest(run: Run) -> None:
    """Point outputs/latest at the run."""
    link(latest(run.settings.output_dir), Path("runs", run.name))


def without_folders(node: Any) -> Any:
    """Return the same JSON-like value with each local path in it cut to its file name."""
    if isinstance(node, Mapping):
        return {key: without_folders(value) for key, value in node.items()}
    if isinstance(node, list):
        return [without_folders(value) for value in node]
    return without_folder(node) if isinstance(node, str) else node


def without_folder(text: str) -> str:
    """Return a local path's file name, in Hydra's quotes where it has some; any other text unchanged."""
    quote = text[:1] if text[:1] in ("'", '"') and text[-1:] == text[:1] else ""
    path = text.strip(quote) if quote else text
    return f"{quote}{Path(path).name}{quote}" if path.startswith(("/", "~", "./", "../")) else text
