"""Stops a job on SIGTERM or Ctrl-C: it ends within a minute, prints that it was stopped, and the next run resumes.

A second Ctrl-C ends it at once.
"""

import logging
import os
import select
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

import psutil

from jobs.common.console import print_error

log = logging.getLogger("nightjar")

GRACE = 40.0  # seconds for cleaning up; then the process is ended, and the next run cleans up


class Stopped(KeyboardInterrupt):
    """Raised when the job gets a signal. No `except Exception` catches it.

    A KeyboardInterrupt, because py4j then closes the connection on which it waits for the JVM. Otherwise the next call would
    wait for the answer to the one that was interrupted.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


class Stopping:
    """The signal that stopped the job, if any."""

    signal: int | None = None
    is_said = False  # whether the job has taken its message, to print it as its last line

    @property
    def exit_code(self) -> int:
        """128 + the signal's number, as shells report it."""
        return 128 + (self.signal or 0)

    def message(self) -> str:
        """The message that the job prints at its end."""
        self.is_said = True
        return (
            f"stopped by {_name(self.signal)}. Tables and releases are whole. Run the same command again: it skips finished "
            "steps and continues"
        )

    def listen(self) -> None:
        """Raise Stopped in the main thread on SIGTERM or Ctrl-C, once. Call it again after Spark has set its own handler."""
        if threading.current_thread() is threading.main_thread():  # Python handles signals only there.
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, self._stop)

    def _stop(self, number: int, _: FrameType | None) -> None:
        if self.signal is None:
            self.signal = number
            raise Stopped(number)


@contextmanager
def stoppable() -> Iterator[Stopping]:
    """Raise Stopped on SIGTERM or Ctrl-C within the block. If the job has not ended after GRACE seconds, end it."""
    stopping = Stopping()
    if threading.current_thread() is not threading.main_thread():
        yield stopping
        return
    read, write = os.pipe()
    os.set_blocking(write, False)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    stopping.listen()
    # The handler runs only after a long call into C returns. The pipe is written at once.
    waking = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    done = threading.Event()
    threading.Thread(target=_watch, args=(read, done, stopping), name="stopping", daemon=True).start()
    try:
        yield stopping
    finally:
        signal.set_wakeup_fd(waking)
        for number, handler in before.items():
            signal.signal(number, signal.SIG_IGN if stopping.signal else handler)
        if stopping.signal is None:
            done.set()
            os.close(write)


def _watch(read: int, done: threading.Event, stopping: Stopping) -> None:
    """End the process and its children GRACE seconds after a signal, or at the second Ctrl-C."""
    while (number := int.from_bytes(os.read(read, 1), "big")) not in (signal.SIGTERM, signal.SIGINT):
        if done.is_set():
            os.close(read)
            return
    if not _is_pressed(read, 1.0):  # Most jobs have ended by then.
        _announce(stopping, number)
        _is_pressed(read, GRACE)
    stopping.signal = number
    with suppress(OSError, ValueError):
        print_error(stopping.message())
    end_children()
    os._exit(stopping.exit_code)


def _announce(stopping: Stopping, number: int) -> None:
    """Say that the job is cleaning up, unless it has said its last line and only its process is still ending."""
    if not stopping.is_said:
        log.warning("stopping after %s: cleaning up, for %.0f s at most; Ctrl-C ends at once", _name(number), GRACE)


def _is_pressed(read: int, seconds: float) -> bool:
    """Wait for Ctrl-C. Returns whether it came within this time."""
    deadline = time.monotonic() + seconds
    while select.select([read], [], [], max(0.0, deadline - time.monotonic()))[0]:
        if int.from_bytes(os.read(read, 1), "big") == signal.SIGINT:
            return True
    return False


def end_children() -> None:
    """Kill all processes that this one has started."""
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            child.kill()


def _name(number: int | None) -> str:
    return "Ctrl-C" if number == signal.SIGINT else signal.Signals(number or signal.SIGTERM).name
