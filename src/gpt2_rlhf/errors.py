"""The one kind of error a user sees: a line that says where, what was given, what was wanted, what to do next."""

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
    except KeyboardInterrupt:
        print("\ninterrupted; run the same command again to go on", file=sys.stderr)
        sys.exit(130)
