"""Build the stages of runs: side by side on this machine, by all processes of a launcher, or as jobs of Slurm.

What is built is under a lock, each stage in processes of its own. A stage that fails has said why.
"""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType

from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.config.settings import Launch, Settings
from gpt2_rlhf.evidence import terminal
from gpt2_rlhf.launch import child, garbage, slurm, tasks, whole_run, world
from gpt2_rlhf.launch.build import build as build_stage
from gpt2_rlhf.launch.tasks import Task
from gpt2_rlhf.store import digests, locks
from gpt2_rlhf.store.run import Run
from gpt2_rlhf.store.stage import NOT_BUILT, TRAINED, Stage, fault, manifest, unfinished

_SEEN_WITHIN_S = 120.0


@dataclass(frozen=True)
class Job:
    """A stage to build, what messages call it, and the settings of its run."""

    stage: Stage
    label: str
    settings: Settings


def missing_stages(planned: Sequence[Run]) -> list[Stage]:
    """Return the stages of one or several runs that are not done, as the first process finds them.

    Raises:
        UserError: this process has planned other stages.
    """
    by_name = {stage.directory.name: stage for one in planned for stage in one.stages}
    names = world.agree(lambda: " ".join(one.directory.name for one in unfinished(list(by_name.values())))).split()
    if others := [name for name in names if name not in by_name]:
        raise UserError(
            f"{others[0]}: not a stage of the run{world.which()}; expected the same settings, model, data and version "
            "on all nodes"
        )
    return [by_name[name] for name in names]


def _refuse_forced(planned: Run, missing: Sequence[Stage]) -> None:
    """Refuse to reuse a policy trained with force=true unless force is set again."""
    if planned.settings.force:
        return
    for stage in planned.stages:
        if stage not in missing:
            for forced in manifest(stage)["metrics"].get("forced", []):
                raise UserError(
                    f"{forced}; {stage.directory} was trained with force=true; to reuse it, set force=true again"
                )


def build(planned: Run) -> list[Stage]:
    """Build the stages that are not done, each in processes of its own, print what each found, and return them.

    Raises:
        UserError: another run is building one of them, one was trained with force=true and is not to be used, or one
            was damaged as soon as it was written.
        SystemExit: one failed; it has said why.
    """
    codes = _build([planned], None, keeps_going=False)
    if (code := next(filter(None, codes.values()), 0)) != 0:
        raise SystemExit(code)
    return [stage for stage in planned.stages if stage.directory in codes]


def build_all(planned: Sequence[Run], at_once: int | None) -> dict[Path, str]:
    """Build what is missing of several runs; a stage that fails stops only those that need it.

    at_once: how many stages run side by side; None: as many as for one run.

    Returns:
        Why something was not built, by directory of the stage that failed or of the run that was refused.

    Raises:
        UserError: as `build`.
        SystemExit: Ctrl-C or SIGTERM came.
    """
    codes = _build(planned, at_once, keeps_going=True)
    return {directory: child.reason(directory, code) for directory, code in codes.items() if code != 0}


def check_before_training(settings: Settings, stages: Sequence[Stage]) -> None:
    """Refuse what would fail while these stages train, and print what each will take; the data are ready.

    To be called in a process that may look for a GPU.

    Raises:
        UserError: as check_arguments; or a stage needs more memory than there is.
    """
    from gpt2_rlhf.models import estimates, memory, tokens  # as in _step
    from gpt2_rlhf.rows import lengths

    check_arguments(settings, [stage for stage in stages if stage.name in TRAINED])
    processes = int(next(stage.inputs["processes"] for stage in stages if stage.name in TRAINED))
    tokenizer = tokens.load_base_tokenizer(settings.model, settings.data.template)
    tables = lengths.of_tables(stages[0].needs["data"].directory, tokenizer)
    names, at_once = [stage.name for stage in stages], stages_at_once(settings.launch)
    found = estimates.of(names, settings, tables, processes)
    here = world.on_this_machine(processes)
    estimates.require_memory(names, found, settings, tables, processes, here, at_once)
    seconds = {stage.directory: found[stage.name].seconds for stage in stages}
    whole = whole_run.in_words(whole_run.write(stages, seconds, at_once))
    each = ", ".join(f"{name} {whole_run.in_words(one.seconds)}" for name, one in found.items())
    sizes = (f"{name} {memory.in_words(one.memory.total)}" for name, one in found.items() if one.memory is not None)
    print(f"about {whole}: {each}\nmemory: {', '.join(sizes)}", flush=True)


def check_arguments(settings: Settings, stages: Sequence[Stage]) -> None:
    """Have TRL check the arguments of all stages that will train; to be called in a process that may look for a GPU.

    Raises:
        UserError: names the stage and what is refused, or the disk that has too little room.
    """
    from gpt2_rlhf.launch import training  # as in _step
    from gpt2_rlhf.models import room

    world.leave()
    room.require(settings, [(stage, _step(stage.name).check(settings, stage)) for stage in stages])
    training.say_precision(settings)


def stages_at_once(launch: Launch) -> int:
    """Return how many stages have cores of their own; one that takes all cores runs alone."""
    return max(1, world.cores() // (launch.threads * launch.processes)) if launch.threads else 1


def show_found(job: Job) -> None:
    """Print what a finished stage found."""
    stage, record = job.stage, manifest(job.stage)
    found = terminal.found(stage.name, record["metrics"])
    print(f"{job.label} done in {record['wall_s']:.0f} s: {found}", flush=True)
    if stage.name == "data":
        from gpt2_rlhf.rows import row_report  # as in _step

        print(end="".join(f"  {line}\n" for line in row_report.notices(record["metrics"])), flush=True)


def _jobs(planned: Sequence[Run]) -> dict[Path, Job]:
    """Return the stages of all runs by directory; one of several runs has the number of its point in its name."""
    jobs = {stage.directory: Job(stage, one.label(stage), one.settings) for one in planned for stage in one.stages}
    for place, one in enumerate(planned, start=1) if len(planned) > 1 else ():
        for stage in one.stages:
            if sum(stage in other.stages for other in planned) == 1:
                jobs[stage.directory] = Job(stage, f"point {place} {one.label(stage)}", one.settings)
    return jobs


def _build(planned: Sequence[Run], at_once: int | None, keeps_going: bool) -> dict[Path, int]:
    """Build what is missing of one or several runs, a shared stage once; return the exit codes by directory.

    keeps_going: as `build_all`, with the code of a refused run by its own directory; otherwise as `build`.
    """
    codes: dict[Path, int] = {}
    jobs, runs, missing = _jobs(planned), list(planned), missing_stages(planned)
    for one in planned:
        _refuse_forced(one, missing)
    while missing:  # again if a damaged stage came out differently, so that others were built on another
        codes |= _build_once(runs, jobs, missing, at_once, keeps_going)
        runs = [one for one in runs if not any(map(codes.get, one.directories))]
        missing = missing_stages(runs) if runs else []
        if damaged := next((stage for stage in missing if stage.directory in codes), None):
            wrong = fault(damaged, read_all=True)
            raise UserError(f"{damaged.directory}: {wrong}, just after it was built; check the disk")
    return codes


def _build_once(
    planned: Sequence[Run], jobs: Mapping[Path, Job], missing: Sequence[Stage], at_once: int | None, keeps_going: bool
) -> dict[Path, int]:
    """Build the missing stages; as `_build`. It ends early if a finished stage, which others need, must be built again.

    jobs: those of all stages, also of runs that are not in `planned` because they failed before.
    """
    if planned[0].settings.launch.slurm is not None:
        return _build_by_slurm(planned, jobs, missing)
    is_first = world.rank() == 0
    finished = [job.stage for job in jobs.values() if job.stage not in missing and fault(job.stage) is None]

    def goes_on(code: int) -> bool:
        if code != 0:
            return keeps_going
        return not world.agree(lambda: " ".join(filter(None, map(fault, finished))))

    run = partial(_run, jobs, at_once or stages_at_once(planned[0].settings.launch), goes_on)
    with locks.held(list(missing) if is_first else []):
        if is_first:
            _begin(missing)
        if world.agree(lambda: "locked") and not is_first:
            lock = locks.lock_path(missing[0])
            _wait_until_seen(lock, lock.exists)
        codes = run([one for one in missing if one.name == "data"], [one.name for one in missing])
        if not all(map(goes_on, codes.values())):
            return codes
        wanted = set[Path]()
        for one in planned:
            rest = [stage for stage in one.stages if stage in missing and stage.name != "data"]
            if not rest or any(codes.get(stage.directory) for stage in one.stages):  # its data failed
                continue
            # one of several runs is refused by its own folder, since runs share stages
            log_dir = one.directory if keeps_going else rest[0].directory
            if is_first and (code := _check(one.settings, rest, log_dir)) != 0:
                codes[log_dir] = code
            else:
                wanted |= {stage.directory for stage in rest}
        return codes | run([one for one in missing if one.directory in wanted], ["evidence.plots"])


def _run(
    jobs: Mapping[Path, Job],
    at_once: int,
    goes_on: Callable[[int], bool],
    stages: Sequence[Stage],
    then: Sequence[str],
) -> dict[Path, int]:
    """Build stages side by side where they do not need each other, and return the exit codes by directory.

    jobs: those of all stages, in order, also if they are built before or later. goes_on: whether to go on with what
    does not need a stage that ended with this code. then: modules that come next, which are imported meanwhile.
    """
    if world.is_started_by_launcher():
        return _run_in_order(jobs, goes_on, stages)
    expected = whole_run.read(stages)

    def show_end(task: Task, code: int) -> bool:
        if code == 0:
            show_found(jobs[task.directory])
        return goes_on(code)

    def overall(running: Mapping[Path, whole_run.Running], took: Mapping[Path, float]) -> str:
        numbers = [str(place) for place, directory in enumerate(jobs, start=1) if directory in running]
        left_s = whole_run.left_s(stages, expected, running, took, at_once)
        left = "" if left_s is None else f", about {whole_run.in_words(left_s)} left"
        return f"stage{'s' if len(numbers) > 1 else ''} {' and '.join(numbers)} of {len(jobs)}{left}"

    every = [_task(job, job.settings.launch.processes) for job in (jobs[stage.directory] for stage in stages)]
    return tasks.run_all(every, at_once, show_end, overall, meanwhile=partial(_import_all, then))


def _run_in_order(jobs: Mapping[Path, Job], goes_on: Callable[[int], bool], stages: Sequence[Stage]) -> dict[Path, int]:
    """Build stages one after the other, as one of the processes that a launcher has started; otherwise as `_run`."""
    codes: dict[Path, int] = {}
    is_first = world.rank() == 0
    for stage in stages:
        task = _task(jobs[stage.directory], 1)
        if stage.name in TRAINED:
            tasks.run(replace(task, action=partial(world.in_own_group, stage.directory.name, task.action)))
        elif is_first:
            tasks.run(task)
        if is_first:
            show_found(jobs[stage.directory])
        codes[stage.directory] = 0
        is_last = not goes_on(0)  # for which all wait until the first process has built the stage
        if not is_first:
            _wait_until_seen(stage.directory, lambda stage=stage: fault(stage, read_all=True) is None)
        if is_last:
            break
    return codes


def _build_by_slurm(planned: Sequence[Run], jobs: Mapping[Path, Job], missing: Sequence[Stage]) -> dict[Path, int]:
    """Build what is missing of one or several runs as jobs, as `_build`."""
    _begin(missing)
    submitted = list[Task]()
    trained = [stage for stage in missing if stage.name in TRAINED]
    for stage in missing:
        job = jobs[stage.directory]
        # each checks its own arguments; of one run the first checks all, and of several a shared stage must not fail
        to_check = trained if len(planned) == 1 and stage in trained[:1] else [stage]
        task = _task(job, job.settings.launch.processes)
        submitted.append(replace(task, action=partial(_build_in_job, job, to_check)))
    return slurm.run_all(
        submitted,
        planned[0].settings.launch,
        is_done=lambda task: fault(jobs[task.directory].stage) is None,
        on_done=lambda task: show_found(jobs[task.directory]),
    )


def _build_in_job(job: Job, to_check: Sequence[Stage]) -> None:
    """Build one stage, as one of the processes of a job; the first checks the arguments of stages before."""
    is_first = world.rank() == 0
    with locks.held([job.stage] if is_first else []):
        if is_first and (code := _check(job.settings, to_check, job.stage.directory)) != 0:
            raise SystemExit(code)
        tasks.run(_task(job, 1))


def _begin(missing: Sequence[Stage]) -> None:
    """Rename the directories of finished stages that are lost or damaged, and print that and what is built."""
    for stage in missing:
        wrong = fault(stage, read_all=True)
        if wrong is not None and wrong != NOT_BUILT:
            print(
                f"{stage.name}: {wrong}; it is built again, and until `make clean` the old one is kept as "
                f"{digests.set_aside(stage.directory)}",
                flush=True,
            )
    names = ", ".join(dict.fromkeys(stage.name for stage in missing))
    print(f"building {names} in {missing[0].directory.parent}", flush=True)


def _check(settings: Settings, stages: Sequence[Stage], log_dir: Path) -> int:
    """Run `check_before_training` in a process of its own if a stage trains, and return its exit code."""
    if not any(stage.name in TRAINED for stage in stages):
        return 0
    for stage in stages:
        _step(stage.name)  # before the check is forked, which would import them for itself alone
    return tasks.run_all([Task("check", log_dir, partial(check_before_training, settings, stages))], 1)[log_dir]


def _wait_until_seen(path: Path, is_seen: Callable[[], bool]) -> None:
    """Wait until this node sees what the first process has written; a network file system may take a minute."""
    if not world.wait_for(is_seen, _SEEN_WITHIN_S):
        raise UserError(
            f"output_dir: {path} is written, but not seen whole{world.which()}; expected a folder on a disk that all "
            "nodes share"
        )


def _task(job: Job, processes: int) -> Task:
    stage = job.stage
    needs = frozenset(need.directory for need in stage.needs.values())
    action = partial(build_stage, _step(stage.name).run, job.settings, stage)
    count = processes if stage.name in TRAINED else 1
    return Task(job.label, stage.directory, action, needs, count, job.settings.launch.threads)


def _import_all(names: Sequence[str]) -> None:
    with contextlib.suppress(Exception):  # it is raised again where it is needed
        for name in names:
            _step(name)  # or another module of this package


def _step(name: str) -> ModuleType:
    """Import the module of a stage when it is built: torch and TRL take seconds, and each method has its trainer."""
    with garbage.without_collections():
        return import_module(f"gpt2_rlhf.{'reward' if name == 'judge' else name}")
