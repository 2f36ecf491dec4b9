"""Errors that a user can act on. Each message names the place and the remedy; the job exits with `exit_code`."""


class NightjarError(Exception):
    """Base class. The message is for the user and is printed without a stack trace."""

    exit_code = 1


class UsageError(NightjarError):
    """A flag or a config value is wrong (exit 2)."""

    exit_code = 2


class InputError(NightjarError):
    """An input table is missing or breaks its contract (exit 3)."""

    exit_code = 3
