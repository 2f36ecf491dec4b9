"""The log lines of a job: one format in the driver, in the training workers and (log4j2.properties) in the JVM."""

import logging
import os
import sys
import time
import warnings
from typing import TextIO

FORMAT, DATES = "%(asctime)s %(levelname)-7s %(message)s", "%Y-%m-%d %H:%M:%S"
YELLOW, RED, PLAIN = "\x1b[33m", "\x1b[31m", "\x1b[0m"
CLEAR_LINE = "\r\x1b[K"  # removes a progress bar, which is drawn again below the line


class LogFormat(logging.Formatter):
    """`2024-03-07 04:12:09 INFO    message`, in UTC. Lines of libraries also name their logger."""

    converter = staticmethod(time.gmtime)

    def __init__(self, *, named: bool = False, coloured: bool = False) -> None:
        super().__init__(FORMAT.replace("%(message)s", "%(name)s: %(message)s") if named else FORMAT, DATES)
        self._coloured = coloured

    def format(self, record: logging.LogRecord) -> str:
        """The line; on a terminal, warnings are yellow and errors are red."""
        line = super().format(record)
        if not self._coloured or record.levelno < logging.WARNING:
            return line
        return f"{RED if record.levelno >= logging.ERROR else YELLOW}{line}{PLAIN}"


class LogHandler(logging.StreamHandler):
    """Writes log lines to a stream, and remembers when it wrote the last one."""

    def __init__(self, stream: TextIO, *, named: bool = False) -> None:
        super().__init__(stream)
        self.last = time.monotonic()
        self._before = CLEAR_LINE if is_terminal(stream) else ""
        self.setFormatter(LogFormat(named=named, coloured=has_colours(stream)))

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line."""
        super().emit(record)
        self.last = time.monotonic()

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (the name that logging calls)
        """Lose the line if nobody reads the output any more (`| head`) or its disk is full. The job goes on."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)

    def format(self, record: logging.LogRecord) -> str:
        """The line, after the code that removes a progress bar on a terminal."""
        return self._before + super().format(record)


def is_terminal(stream: TextIO) -> bool:
    """Whether a stream is a terminal that can move its cursor."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def has_colours(stream: TextIO) -> bool:
    """Whether to write colours: on a terminal, unless the user sets NO_COLOR (https://no-color.org)."""
    return is_terminal(stream) and not os.environ.get("NO_COLOR")


def log_to_stdout(level: int = logging.INFO) -> None:
    """Write the log of Nightjar to stdout, from `level` on, and warnings of libraries and of Python to stderr."""
    handler, of_libraries = LogHandler(sys.stdout), LogHandler(sys.stderr, named=True)
    logger, root = logging.getLogger("nightjar"), logging.getLogger()
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(level)
    root.handlers = [of_libraries]
    root.setLevel(logging.WARNING)
    logging.captureWarnings(True)
    warnings.formatwarning = _one_line
    logging.getLogger("model").setLevel(logging.INFO if level < logging.INFO else logging.WARNING)


def _one_line(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    return f"{category.__name__}: {message} ({filename}:{lineno})"


def counted(number: int, noun: str) -> str:
    """A number with its noun.

    >>> counted(1, "epoch"), counted(2, "process")
    ('1 epoch', '2 processes')
    """
    plural = "" if number == 1 else "es" if noun.endswith("s") else "s"
    return f"{number:,} {noun}{plural}"


def duration(seconds: float) -> str:
    """Format a duration in a precision that fits its length.

    >>> duration(42), duration(754), duration(7500)
    ('42 s', '13 min', '2 h 05 min')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"
