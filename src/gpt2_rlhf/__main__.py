"""Run a command: `python -m gpt2_rlhf VERB key=value`, or the script `gpt2-rlhf`."""

import signal

_before = signal.getsignal(signal.SIGINT)
if _before is signal.default_int_handler:  # not ignored, as for a job in the background
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback of the imports, which take a second

from gpt2_rlhf.cli import main  # noqa: E402

signal.signal(signal.SIGINT, _before)
if __name__ == "__main__":
    main()
