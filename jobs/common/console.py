"""What a job prints: the level of its log (-q, -v), its errors, and whether it shows progress bars and colours."""

import argparse
import logging
import os
import select
import sys

from pipelines.contract.log_lines import CLEAR_LINE, PLAIN, RED, has_colours, is_terminal, log_to_stdout

log = logging.getLogger("nightjar")
_OF_PY4J = ("java_gateway", "clientserver")  # modules that log the stack of each error that they raise


def add_flags(flags: argparse.ArgumentParser) -> None:
    """Add -q and -v."""
    level = flags.add_mutually_exclusive_group()
    level.add_argument("-q", "--quiet", action="store_true", help="print warnings, errors and results only")
    level.add_argument(
        "-v", "--verbose", action="store_true", help="also print details, and the stack trace of an error"
    )


def log_to_console(*, quiet: bool = False, verbose: bool = False) -> None:
    """Send the log to stdout, from the level that the flags ask for."""
    log_to_stdout(logging.WARNING if quiet else logging.DEBUG if verbose else logging.INFO)
    if not verbose:
        for handler in logging.getLogger().handlers:
            handler.addFilter(lambda record: not (record.name.startswith("py4j") or record.module in _OF_PY4J))


def shows_bars() -> bool:
    """Whether to show progress bars: on a terminal, unless -q is given. Elsewhere jobs log their progress as lines."""
    return log.isEnabledFor(logging.INFO) and is_terminal(sys.stdout) and is_terminal(sys.stderr)


def print_error(message: str) -> None:
    """Print the error that ends a job to stderr."""
    red, plain = (RED, PLAIN) if has_colours(sys.stderr) else ("", "")
    clear = CLEAR_LINE if is_terminal(sys.stderr) else ""
    print(f"{clear}{red}error:{plain} {message}", file=sys.stderr, flush=True)


def output_is_closed() -> bool:
    """Whether the reader of stdout has ended, as in `jobs.report … | head`. What is still to be printed is then lost."""
    poll = select.poll()
    poll.register(sys.stdout, select.POLLOUT)
    if not any(event & select.POLLERR for _, event in poll.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes stdout once more when it exits.
    return True
