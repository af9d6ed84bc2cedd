"""Build many runs that differ in some settings, sharing all stages that do not differ, and compare them.

A point that fails is a row of the table that says so, and the others go on. The same command again builds what is
missing only. Each point is a run like any other: `make pipeline` with its settings shows its report, and trains
nothing.
"""

from collections.abc import Sequence
from pathlib import Path

from gpt2_rlhf import building, pipeline, publish
from gpt2_rlhf.config import compose
from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.config.points import Point, points
from gpt2_rlhf.evidence import summary, sweep_report
from gpt2_rlhf.evidence.sweep_report import Built
from gpt2_rlhf.launch import world
from gpt2_rlhf.store import run as runs
from gpt2_rlhf.store.files import content_sha256
from gpt2_rlhf.store.run import Run


def run(overrides: Sequence[str]) -> None:
    """Build every point of a sweep, and print the table of all.

    Raises:
        UserError: a point's settings have a fault that is known before training, or no setting has several values.
        SystemExit: Ctrl-C or SIGTERM came, or every point failed.
    """
    if world.is_started_by_launcher():
        raise UserError("sweep: it starts its own processes; start it without torchrun or accelerate launch")
    expanded = points(overrides)
    planned = [_plan(point) for point in expanded]
    _refuse_alike(expanded, planned)
    settings = planned[0].settings
    if settings.dry_run:
        for number, (point, one) in enumerate(zip(expanded, planned, strict=True), start=1):
            print(f"\npoint {number} of {len(planned)}: {point.label}")
            pipeline.show_plan(one, [stage for earlier in planned[: number - 1] for stage in earlier.stages])
        return
    faults = _build(expanded, planned, settings.sweep.parallel)
    built: list[Built] = []
    for point, one in zip(expanded, planned, strict=True):
        built.append(Built(point.label, one, next(filter(None, map(faults.get, one.directories)), None)))
        if built[-1].fault is None:
            runs.link_stages(one)
            summary.write(one, [], 0.0)
    directory = Path(settings.output_dir) / "sweeps" / content_sha256([one.name for one in planned])[:12]
    print(f"\n{sweep_report.write(directory, built, settings.sweep.best_by)}")
    print(f"Table: {directory / 'sweep.md'}   figures: {directory / 'sweep.json'}   picture: {directory / 'sweep.png'}")
    print("A point's own report: make pipeline with its settings; nothing trains again")
    if all(one.fault is not None for one in built):
        raise SystemExit(1)


def _plan(point: Point) -> Run:
    try:
        composed = compose.load(point.overrides)
        if publish.targets(composed.settings.publish):
            raise UserError(
                "publish: a sweep publishes nothing; to push a point, run `make pipeline` with its settings"
            )
        pipeline.check(composed.settings)
    except UserError as error:
        raise UserError(f"point {point.label}: {error}") from error
    if composed.settings.launch.accelerate_config is not None:
        raise UserError("launch: a sweep does not use accelerate's launcher; set launch.processes, or launch=slurm")
    return pipeline.plan(composed)


def _refuse_alike(expanded: Sequence[Point], planned: Sequence[Run]) -> None:
    """Refuse points that differ in nothing that a stage reads, since the sweep would compare a run with itself."""
    labels: dict[str, str] = {}
    for point, one in zip(expanded, planned, strict=True):
        if (other := labels.setdefault(one.name, point.label)) != point.label:
            raise UserError(
                f"sweep: {other} and {point.label} are the same run: no stage reads what they differ in, or the values "
                "are equal; leave one out, or vary another setting"
            )


def _build(expanded: Sequence[Point], planned: Sequence[Run], parallel: int) -> dict[Path, str]:
    """Build the points, `parallel` stages at once; return why stages failed or points were refused, by directory."""
    if parallel > 1 or planned[0].settings.launch.slurm is not None:  # Slurm decides what runs at once
        return building.build_all(planned, parallel)
    faults: dict[Path, str] = {}
    for number, (point, one) in enumerate(zip(expanded, planned, strict=True), start=1):
        if not any(stage.directory in faults for stage in one.stages):
            print(f"\npoint {number} of {len(planned)}: {point.label}", flush=True)
            faults |= building.build_all([one], None)
    return faults
