"""Errors that a user can act on. Each names its place and its remedy; `exit_code` is what a job ends with."""


class NightjarError(Exception):
    """A message for the user, printed without a stack trace."""

    exit_code = 1


class UsageError(NightjarError):
    """A flag or a config value is wrong (exit 2)."""

    exit_code = 2


class InputError(NightjarError):
    """An input table breaks its contract, or is not there (exit 3)."""

    exit_code = 3
