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
from gpt2_rlhf.config import compose
from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.config.printable import printable
from gpt2_rlhf.config.system_faults import exit_with_one_line
from gpt2_rlhf.launch import slurm
from gpt2_rlhf.store import clean, status

USAGE = """usage: gpt2-rlhf {verb} [key=value ...]     (or: make {verb} [key=value ...])

{about}

Settings are Hydra overrides; every argument of TRL's SFTConfig, RewardConfig and PPOConfig is one:
  ppo.args.kl_coef=0.2  sft.args.learning_rate=1e-4  seed=7  data.path=my_pairs.jsonl  sft.peft.r=8

Groups, chosen by group=option:
{groups}

`gpt2-rlhf config` prints every value that is set, `gpt2-rlhf status` what is built.
"""

STAGES = {
    "data": "Prepare the rows; print the row report, and rows as the trainers see them.",
    "sft": "Build up to supervised fine-tuning.",
    "reward": "Build up to the reward model.",
    "judge": "Build up to the judge, a second reward model that PPO is not trained on.",
    "ppo": "Build up to PPO.",
    "evaluate": "Build up to the comparison of base, SFT and PPO.",
}
VERBS = {
    "pipeline": "Build all stages that are not done: SFT, reward model, PPO, evaluation.",
    **STAGES,
    "sweep": "Build all points of lists such as seed=0,1 ppo.args.kl_coef=0.05,0.1, and compare them.",
    "config": "Print every value that is set, after overrides.",
    "status": "Print which stages are done, running, partial or missing, and why.",
    "chat": "Talk to base, SFT and PPO side by side; --web: in the browser.",
    "card": "Write the model cards again, without a push.",
    "publish": "Push the newest run: publish.repo_id=user/name; publish.dry_run=true only shows it.",
    "clean": "Delete unfinished and set-aside stages; with --all, ask, and delete everything.",
    "prune": "Ask, and delete finished stages that no run shows.",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command; exits with 2 and one line where the user can mend what went wrong."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # it may be of an encoding that not all texts can be printed in
        sys.stdout.reconfigure(errors="backslashreplace")
    exit_with_one_line(lambda: _run(sys.argv[1:] if arguments is None else arguments))


def _run(arguments: Sequence[str]) -> None:
    verb, *rest = arguments or ["--help"]
    if verb in ("--help", "-h"):
        print(_list())
        return
    if verb not in VERBS:
        raise UserError(f"{verb}: there is no such command; expected one of {', '.join(VERBS)}")
    if "--help" in rest or "-h" in rest:
        print(_usage(verb))
        return
    actions: dict[str, Callable[[Sequence[str]], None]] = {
        "pipeline": _pipeline,
        "sweep": sweep.run,
        "config": _config,
        "status": _status,
        "chat": _chat,
        "card": _card,
        "publish": _publish,
        "clean": _clean,
        "prune": lambda overrides: clean.prune(compose.load(overrides).settings.output_dir),
    }
    if verb in STAGES:
        pipeline.run(rest, verb)
    else:
        actions[verb](rest)


def _pipeline(overrides: Sequence[str]) -> None:
    rest = [one for one in overrides if one not in ("--multirun", "-m")]  # Hydra's words for a sweep
    (pipeline.run if len(rest) == len(overrides) else sweep.run)(rest)


def _config(overrides: Sequence[str]) -> None:
    print(compose.load(overrides).yaml, end="")


def _status(overrides: Sequence[str]) -> None:
    run = pipeline.plan(compose.load(overrides))
    table = Table(box=box.MARKDOWN)
    for header in ("Stage", "State", "Why", "Directory"):
        table.add_column(header, overflow="fold")
    for stage in run.stages:
        state = slurm.status(stage.directory) or status.status(stage, run.processes)
        table.add_row(stage.name, *map(printable, (*state, str(stage.directory))))
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False, markup=False)
    with console.capture() as text:  # rich itself would exit without a word after a broken pipe
        console.print(table)
    print(text.get(), end="")


def _chat(arguments: Sequence[str]) -> None:
    chat.run(compose.load(["chat.web=true" if one == "--web" else one for one in arguments]))


def _card(overrides: Sequence[str]) -> None:
    for path in publish.write_cards(pipeline.plan(compose.load(overrides))):
        print(path)


def _publish(overrides: Sequence[str]) -> None:
    publish.main(pipeline.plan(compose.load(overrides)))


def _clean(arguments: Sequence[str]) -> None:
    overrides = [one for one in arguments if one != "--all"]
    delete = clean.clean_all if "--all" in arguments else clean.clean
    delete(compose.load(overrides).settings.output_dir)


def _list() -> str:
    lines = [f"  {verb:<10} {about}" for verb, about in VERBS.items()]
    return "\n".join(["usage: gpt2-rlhf VERB [key=value ...]", "", *lines, "", "gpt2-rlhf VERB --help says more."])


def _usage(verb: str) -> str:
    groups = "\n".join(f"  {group}={' | '.join(options)}" for group, options in compose.groups().items())
    return USAGE.format(verb=verb, about=VERBS[verb], groups=groups)
