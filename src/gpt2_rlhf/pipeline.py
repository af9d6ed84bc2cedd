"""From a base model to an evaluated RLHF policy: check everything, run the stages that are not done, show the result.

Under torchrun or accelerate launch every process runs this; the training stages are then shared by all of them, and
the first process does the rest.
"""

import os
import sys
import time
from collections.abc import Collection, Sequence
from pathlib import Path

from gpt2_rlhf import building, publish
from gpt2_rlhf.config import as_command, compose, functions, preflight
from gpt2_rlhf.config.compose import Composed
from gpt2_rlhf.config.settings import Launch, Settings
from gpt2_rlhf.evidence import product, report, summary, terminal, toxicity
from gpt2_rlhf.launch import child, slurm, whole_run, world
from gpt2_rlhf.models import memory, model_checks, model_files
from gpt2_rlhf.rows import sources
from gpt2_rlhf.store import clean, digests, status
from gpt2_rlhf.store import run as runs
from gpt2_rlhf.store.plan import Inputs, plans
from gpt2_rlhf.store.run import Run
from gpt2_rlhf.store.stage import Stage, fault, manifest

LAST = "evaluate"


def run(overrides: Sequence[str], last: str = LAST) -> None:
    """Build the stages up to `last` that are not done, and show what came out.

    Raises:
        UserError: a fault that the user can correct, in one line.
        SystemExit: a stage failed, or a launcher ran this command in several processes; with its exit code.
    """
    if world.is_started_by_launcher():
        child.die_with_parent()
    with world.together():
        started = time.perf_counter()
        composed = compose.load(overrides)
        preflight.check_overrides(composed.overrides, composed.settings.method)
        check(composed.settings, last)
        if composed.settings.dry_run:
            if world.rank() == 0:
                show_plan(plan(composed, last))
            return
        _relaunch(composed.settings.launch, ["pipeline" if last == LAST else last, *overrides])
        planned = plan(composed, last)
        built = building.build(planned)
        if world.rank() == 0:
            finish(planned, built, time.perf_counter() - started)


def check(settings: Settings, last: str = LAST) -> None:
    """Find every fault of the stages up to `last` that can be known before training; cheap checks come first.

    Nothing here imports torch: a wrong setting, a missing file or an unreachable Hub shows within seconds.

    Raises:
        UserError: the first fault found.
    """
    preflight.check(settings, last)
    if settings.launch.slurm is not None:
        slurm.check(settings.launch)
    config = model_checks.check(settings.model, last, settings.data.template)
    before_prompt = model_files.start_tokens(settings.model) if settings.data.template is None else 0
    positions = model_files.positions(config) - before_prompt
    preflight.check_lengths(settings, positions, last)
    sources.check(settings.data)
    if last in (settings.method, LAST):
        functions.load_utility(settings.data.utility)
        functions.load_score_function(settings.ppo.reward.function)
    if last == LAST and settings.evaluate.toxicity:
        toxicity.check()
    if last == LAST and publish.targets(settings.publish) and world.rank() == 0:
        publish.check(settings)


def plan(composed: Composed, last: str = LAST) -> Run:
    """Plan the run up to the stage `last`. Reads the content of local models, data and functions, and nothing else.

    Raises:
        UserError: a local model or data source is missing.
    """
    settings = composed.settings
    launcher = Path(settings.launch.accelerate_config or "")
    inputs = Inputs(
        base_model=model_files.identity(settings.model, settings.data.template),
        rows=sources.fingerprint(settings.data),
        utility=functions.fingerprint(settings.data.utility),
        reward_function=functions.fingerprint(settings.ppo.reward.function),
        launcher=digests.digest(launcher) if launcher.is_file() else None,
    )
    by_seed = plans(settings, inputs, world.size(settings.launch.processes), last)
    return Run(settings, composed.overrides, composed.values, by_seed)


def show_plan(planned: Run, shared: Collection[Stage] = ()) -> None:
    """Print the stages with what each would take; build and write nothing.

    shared: stages that another point of a sweep builds first.

    Raises:
        UserError: a stage does not fit in memory.
    """
    from gpt2_rlhf.models import estimates, tokens  # torch takes a second to import
    from gpt2_rlhf.rows import lengths  # and pyarrow as well

    settings, stages = planned.settings, planned.stages
    processes = world.size(settings.launch.processes)
    data = planned.plans[0]["data"]
    tokenizer = tokens.load_base_tokenizer(settings.model, settings.data.template)
    tables, data_s = (
        (lengths.of_tables(data.directory, tokenizer), None)
        if fault(data) is None
        else lengths.expected(settings.data, tokenizer)
    )
    states = ["shared" if stage in shared else status.status(stage)[0] for stage in stages]
    missing = [stage for stage, state in zip(stages, states, strict=True) if state not in ("done", "shared")]
    found = estimates.of([name for name in planned.plans[0] if name != "data"], settings, tables, processes)
    seconds = {"data": data_s, **{name: one.seconds for name, one in found.items()}}
    line = "{:<10}{:<10}{:>10}{:>9}{:>10}{:>9}   {}".format
    print(line("stage", "state", "rows", "updates", "memory", "time", "directory"))
    for stage, state in zip(stages, states, strict=True):
        one = found.get(stage.name)
        rows = sum(table.rows for table in tables.values()) if one is None else one.rows
        steps, size = (None, None) if one is None else (one.updates, one.memory)
        took = seconds[stage.name] if rows else None
        cells = (
            f"{rows:,}" if rows else "?",
            "" if steps is None else f"{steps:,}" if rows else "?",
            "" if size is None else memory.in_words(size.total),
            "" if stage not in missing else "?" if took is None else whole_run.in_words(took),
        )
        print(line(stage.name, state, *cells, stage.directory))
    known = {stage.directory: one_s for stage in missing if (one_s := seconds[stage.name]) is not None}
    at_once = building.stages_at_once(settings.launch)
    if missing and len(known) == len(missing):
        whole_s = max(whole_run.ends(missing, known, at_once).values())
        print(f"about {whole_run.in_words(whole_s)} in all")
    print(f"device: {estimates.device()}; results: {planned.directory}; nothing was built or written")
    to_build = [stage.name for stage in missing if stage != data]
    here = world.on_this_machine(processes)
    estimates.require_memory(to_build, found, settings, tables, processes, here, at_once)


def finish(planned: Run, built: Sequence[Stage], wall_s: float) -> None:
    """Make this the newest run, and show what its last stage found; after an evaluation, publish where asked to.

    built: the stages that this call built; all others were reused. wall_s: seconds this call took so far.
    """
    settings, last = planned.settings, planned.last
    runs.link_stages(planned)
    clean.delete(clean.leftovers(planned.directories))
    if last.name == LAST:
        figures = summary.write(planned, built, wall_s)
        print(f"\n{terminal.story(figures)}", end="", flush=True)
        report.write(planned.directory, settings, planned.manifests()[0], figures)
        product.write(planned)  # after the report, whose plots it takes along
    elif last.name == "data":
        _show_rows(planned)
    runs.make_newest(planned)
    latest = runs.latest(settings.output_dir)
    if last.name != LAST:
        print(f"{last.name} is done: {latest / last.name} ({manifest(last)['wall_s']:.1f} s when it was built)")
        return
    print(f"Report:  {latest / report.DIRECTORY / report.PAGE}")
    print(f"Model:   {latest / 'model'}")
    print(f"Samples: {latest / 'samples.jsonl'}")
    if settings.publish.repo_id is None:
        print("Next: `make chat` talks to these models; `make show` prints all tables")
    if publish.targets(settings.publish):
        (publish.show if settings.publish.dry_run else publish.push)(planned)


def _relaunch(launch: Launch, arguments: Sequence[str]) -> None:
    """Replace this process by accelerate's launcher if a config file of it is set and it has not started this one."""
    if launch.accelerate_config is None or launch.processes == 1 or world.is_started_by_launcher():
        return
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, world.cores() // launch.processes)))
    options = ["--config_file", launch.accelerate_config, "--num_processes", str(launch.processes)]
    launcher = [sys.executable, "-m", "accelerate.commands.launch", *options]
    os.execv(sys.executable, [*launcher, "-m", "gpt2_rlhf", *arguments])


def _show_rows(planned: Run) -> None:
    from gpt2_rlhf.models import tokens  # as in building._step
    from gpt2_rlhf.rows import preview, row_report, tables

    print(f"{row_report.text(row_report.read(planned.last.directory))}\n")
    rows = {name: tables.load(planned.last.directory, name, preview.ROWS_SHOWN) for name in ("sft", "reward", "ppo")}
    settings = planned.settings
    print(f"{preview.preview(tokens.load_base_tokenizer(settings.model, settings.data.template), rows)}\n")


if __name__ == "__main__":
    as_command.run("pipeline")
