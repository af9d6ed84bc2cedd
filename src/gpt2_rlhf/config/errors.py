"""The one kind of error a user sees: a line that says where, what was given, what was wanted, what to do next."""

import os
import sys
from collections.abc import Callable


class UserError(Exception):
    """Something the user can mend. Printed as one line without a traceback; the process exits with 2."""


def exit_with_one_line(action: Callable[[], None]) -> None:
    """Run an entry point; a UserError becomes one line on stderr and exit code 2, Ctrl-C exit code 130."""
    try:
        action()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # the reader of a pipe, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        print("\ninterrupted; run the same command again to go on", file=sys.stderr)
        sys.exit(130)
