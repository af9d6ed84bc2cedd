"""The one kind of error a user sees: a line that says where, what was given, what was wanted, what to do next."""


class UserError(Exception):
    """Something the user can mend. Printed as one line without a traceback; the process exits with 2."""
