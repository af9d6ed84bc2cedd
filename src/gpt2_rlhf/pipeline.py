"""From a base model to an evaluated RLHF policy: check everything, run the stages that are not done, show the result.

    python -m gpt2_rlhf.pipeline [--until STAGE] [key=value ...]

Under torchrun or accelerate launch every process runs this; the training stages are then shared by all of them, and
the first process does the rest.
"""

import sys
import time
from collections.abc import Mapping, Sequence

from gpt2_rlhf import config, launch, locks, preflight, publish, runner, runs, stage
from gpt2_rlhf.errors import UserError, exit_with_one_line
from gpt2_rlhf.settings import Settings
from gpt2_rlhf.stage import Stage

_DISTRIBUTED = ("sft", "reward", "judge", "ppo")

USAGE = """usage: python -m gpt2_rlhf.{module} [key=value ...]     (or: make {target} [key=value ...])

{summary}

Settings are Hydra overrides; every argument of TRL's SFTConfig, RewardConfig and PPOConfig is one:
  ppo.args.kl_coef=0.2  sft.args.learning_rate=1e-4  seed=7  data.path=my_pairs.jsonl  sft.peft.r=8

Groups, chosen by group=option:
{groups}

`make config` prints every value that is set, `make status` what is built.
"""


def main(argv: Sequence[str], last: str = "evaluate") -> None:
    """Run the stages up to `last`, print what came out, and exit with 2 and one line where the user can mend it."""
    if "--help" in argv or "-h" in argv:
        print(usage("pipeline" if last == "evaluate" else last, (__doc__ or "").splitlines()[0]))
        return
    exit_with_one_line(lambda: run(argv, last))


def run(argv: Sequence[str], last: str) -> None:
    """The whole recipe."""
    started = time.perf_counter()
    settings = config.load(argv)
    preflight.check(settings)
    if publish.targets(settings.publish) and launch.rank() == 0:
        publish.check(settings)
    if launch.is_wanted(settings):
        launch.relaunch(settings, argv, last)
    plans = stage.plans(settings, launch.processes(settings))
    by_seed = [_up_to(plan, last) for plan in plans]
    stages = {part.directory: part for plan in by_seed for part in plan.values()}
    missing = [part for part in stages.values() if not stage.is_done(part)]
    _check_forced(settings, [part for part in stages.values() if part not in missing])
    if missing:
        _build(settings, missing, plans[0]["ppo"])
    if launch.rank() == 0:
        runs.finish(settings, argv, by_seed, missing, time.perf_counter() - started)
        if last == "evaluate" and publish.targets(settings.publish):
            publish.main(argv)


def _check_forced(settings: Settings, done: Sequence[Stage]) -> None:
    """A policy that was trained past a gate is not taken up without force: the gate would stop a run that trains it."""
    for part in done if not settings.force else []:
        for fault in stage.manifest(part)["metrics"].get("forced", []):
            raise UserError(f"{fault}; {part.directory} was trained all the same; to take it up, set force=true")


def _build(settings: Settings, missing: Sequence[Stage], ppo: Stage) -> None:
    with locks.held(list(missing) if launch.rank() == 0 else []):
        if launch.rank() == 0:
            names = ", ".join(s.name for s in missing)
            print(f"building {names} in {missing[0].directory.parent}", flush=True)
        runner.import_trainers()
        first_trained = next((s for s in missing if s.name in _DISTRIBUTED), None)
        for part in missing:
            if part is first_trained and launch.rank() == 0:
                runner.run_in_child(settings, ppo, runner.check_arguments)
            if part.name in _DISTRIBUTED:
                launch.use_next_port()
                for need in part.needs.values():  # the first process writes their manifests, which PPO's gates read
                    launch.wait_for(need)
            elif launch.rank() != 0:
                launch.wait_for(part)
                continue
            runner.run_in_child(settings, part)
            if launch.rank() == 0:
                runs.print_found(part)


def _up_to(stages: Mapping[str, Stage], last: str) -> dict[str, Stage]:
    wanted = {last, *stages[last].needs}
    return {name: part for name, part in stages.items() if name in wanted}


def usage(target: str, summary: str) -> str:
    """The text behind --help, with the groups and options that conf/ has."""
    lines = [f"  {group}={' | '.join(options)}" for group, options in config.groups().items()]
    return USAGE.format(module=target, target=target, summary=summary, groups="\n".join(lines))


if __name__ == "__main__":
    arguments = sys.argv[1:]
    until = "evaluate"
    if "--until" in arguments:
        at = arguments.index("--until")
        until = arguments[at + 1]
        del arguments[at : at + 2]
    main(arguments, until)
