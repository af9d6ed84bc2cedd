"""The one kind of error a user sees: a line that says where, what was given, what was expected, what to do next."""

import re

from gpt2_rlhf.config.printable import printable


class UserError(Exception):
    """An error that the user can correct. Printed as one line without a traceback; the process exits with 2."""

    def __str__(self) -> str:
        """Return the message as one line, since it names files and columns of others."""
        return printable(super().__str__())


def one_line(text: object) -> str:
    """Return an error's text in one short line, without the queries of addresses, which can hold signatures."""
    return re.sub(r"\?\S+", "", " ".join(str(text).split()))[:300]
