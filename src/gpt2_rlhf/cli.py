"""Every command: parse its arguments, call what does the work, exit with its code.

gpt2-rlhf VERB [key=value ...]     or: python -m gpt2_rlhf VERB, or: make VERB
"""

import io
import sys
from collections.abc import Callable, Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from gpt2_rlhf import chat, pipeline, publish, sweep
from gpt2_rlhf.config import compose, preflight
from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.config.methods import LABELS
from gpt2_rlhf.config.printable import printable
from gpt2_rlhf.config.system_faults import exit_with_one_line
from gpt2_rlhf.evidence import summary, terminal
from gpt2_rlhf.launch import slurm
from gpt2_rlhf.store import clean, status
from gpt2_rlhf.store import run as runs
from gpt2_rlhf.store.run import Run

SETTINGS = """Settings are Hydra overrides. Every argument of TRL's SFTConfig, RewardConfig,
PPOConfig, RLOOConfig and DPOConfig is one:
  seed=7  data.path=my_pairs.jsonl  ppo.args.kl_coef=0.2  sft.peft.r=8

Groups, chosen by group=option:
{groups}

`gpt2-rlhf config` prints every value that is set, `gpt2-rlhf status` what is
built.
"""

STAGES = {
    "data": "Prepare the rows; print their report, and how trainers get them.",
    "sft": "Build up to supervised fine-tuning.",
    "reward": "Build up to the reward model.",
    "judge": "Build up to the judge, a reward model that PPO is not trained on.",
    "ppo": "Build up to PPO.",
    "rloo": "Build up to RLOO, as method=rloo.",
    "dpo": "Build up to DPO, as method=dpo.",
    "evaluate": "Build up to the comparison of base, SFT and policy.",
}
VERBS = {
    "pipeline": "Build what is not done: SFT, reward model, PPO, evaluation.",
    **STAGES,
    "sweep": "Build all points of lists such as seed=0,1, and compare them.",
    "config": "Print every value that is set, after overrides.",
    "status": "Print which stages of such a run are done, and why others are not.",
    "show": "Print all tables of the newest run, or one: table=reward_model.",
    "chat": "Talk to base, SFT and PPO side by side; --web: in the browser.",
    "card": "Write the model cards again, without a push.",
    "publish": "Push the newest run to the Hub: publish.repo_id=user/name.",
    "clean": "Delete unfinished stages; with --all, ask, and delete everything.",
    "prune": "Ask, and delete finished stages that no run shows.",
}
_OWN_ARGUMENTS = {  # of the verbs that other settings do not change
    "chat": "[chat.KEY=VALUE ...] [output_dir=FOLDER]",
    "clean": "[--all] [output_dir=FOLDER]",
    "prune": "[output_dir=FOLDER]",
}
_WIDTH = 80


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command; exits with 2 and one line where the user can mend what went wrong."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # it may be of an encoding that not all texts can be printed in
        sys.stdout.reconfigure(errors="backslashreplace")
    exit_with_one_line(lambda: _run(sys.argv[1:] if arguments is None else arguments))


def _run(arguments: Sequence[str]) -> None:
    verb, *rest = arguments or ["--help"]
    if verb in ("--help", "-h", "help"):
        print("usage: gpt2-rlhf VERB [key=value ...]\n")
        for name, about in VERBS.items():
            print(f"  {name:<10} {about}")
        print("\ngpt2-rlhf VERB --help says more.")
        return
    if verb not in VERBS:
        raise UserError(f"there is no command {verb!r}; expected one of {', '.join(VERBS)}")
    if "--help" in rest or "-h" in rest:
        _print_usage(verb)
        return
    actions: dict[str, Callable[[Sequence[str]], None]] = {
        "pipeline": _pipeline,
        "sweep": sweep.run,
        "config": _config,
        "status": _status,
        "show": _show,
        "chat": _chat,
        "card": _card,
        "publish": lambda overrides: publish.main(_run_with_a_card(overrides)),
        "clean": _clean,
        "prune": lambda overrides: clean.prune(compose.load(overrides).settings.output_dir),
    }
    if verb in STAGES:
        pipeline.run([f"method={verb}", *rest] if verb in LABELS else rest, verb)
    else:
        actions[verb](rest)


def _pipeline(overrides: Sequence[str]) -> None:
    rest = [one for one in overrides if one not in ("--multirun", "-m")]  # Hydra's words for a sweep
    (pipeline.run if len(rest) == len(overrides) else sweep.run)(rest)


def _config(overrides: Sequence[str]) -> None:
    composed = compose.load(overrides)
    print(compose.yaml(composed.values), end="", flush=True)
    preflight.check(composed.settings)


def _status(overrides: Sequence[str]) -> None:
    composed = compose.load(overrides)
    preflight.check(composed.settings)
    run = pipeline.plan(composed)
    table = Table(box=box.MARKDOWN)
    table.add_column("Stage", no_wrap=True)
    table.add_column("State", no_wrap=True)
    table.add_column("Why", overflow="fold")
    for stage in run.stages:
        if (job := slurm.queued(stage.directory)) is None:
            state = status.status(stage)
        else:
            state = ("running" if job.state == "RUNNING" else "queued", str(job))
        table.add_row(*map(printable, (stage.directory.name, *state)))
    console = Console(width=_WIDTH, highlight=False, markup=False)
    with console.capture() as text:  # rich itself would exit without a word after a broken pipe
        console.print(table)
    print(f"in {printable(str(run.last.directory.parent))}:\n{text.get().strip()}")


def _show(arguments: Sequence[str]) -> None:
    chosen = [one.removeprefix("table=") for one in arguments if one.startswith("table=") or "=" not in one]
    overrides = [one for one in arguments if "=" in one and not one.startswith("table=")]
    composed = compose.load(overrides)
    is_newest = all(one.startswith("output_dir=") for one in overrides)
    run_dir = runs.latest(composed.settings.output_dir) if is_newest else pipeline.plan(composed).directory
    found = summary.read(run_dir)
    try:
        text = terminal.tables(found, chosen[-1] if chosen else None)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{run_dir}: made by another version; run `make pipeline` again, with the same overrides"
        ) from error
    print(text, end="")


def _chat(arguments: Sequence[str]) -> None:
    chat.run(compose.load(["chat.web=true" if one == "--web" else one for one in arguments]))


def _card(overrides: Sequence[str]) -> None:
    for path in publish.write_cards(_run_with_a_card(overrides)):
        print(path)


def _run_with_a_card(overrides: Sequence[str]) -> Run:
    composed = compose.load(overrides)
    preflight.check_ranges(composed.settings, lambda key: key.startswith("card."))
    return pipeline.plan(composed)


def _clean(arguments: Sequence[str]) -> None:
    overrides = [one for one in arguments if one != "--all"]
    delete = clean.clean_all if "--all" in arguments else clean.clean
    delete(compose.load(overrides).settings.output_dir)


def _print_usage(verb: str) -> None:
    arguments = _OWN_ARGUMENTS.get(verb, "[key=value ...]")
    target = f"{verb} {arguments}" if verb != "clean" else "clean, or for --all: make clean-all"
    print(f"usage: gpt2-rlhf {verb} {arguments}\n   or: make {target}\n\n{VERBS[verb]}\n")
    if verb not in _OWN_ARGUMENTS:
        groups = "\n".join(f"  {group}={' | '.join(options)}" for group, options in compose.groups().items())
        print(SETTINGS.format(groups=groups))
