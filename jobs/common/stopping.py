"""Stops a job on SIGTERM or Ctrl-C: it ends within a minute, prints that it was stopped, and the next run resumes."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

import psutil

from jobs.common.console import print_error

GRACE = 40.0  # seconds for cleaning up; then the process is ended, and the next run cleans up


class Stopped(BaseException):
    """Raised when the job gets a signal. Not an Exception, so that no `except Exception` catches it."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


class Stopping:
    """The signal that stopped the job, if any."""

    signal: int | None = None

    @property
    def exit_code(self) -> int:
        """128 + the signal's number, as shells report it."""
        return 128 + (self.signal or 0)

    def message(self) -> str:
        """The message that the job prints at its end."""
        name = signal.Signals(self.signal or signal.SIGTERM).name
        return (
            f"stopped by {name}. Tables and releases are whole. Run the same command again: it skips finished steps and "
            "continues"
        )


@contextmanager
def stoppable() -> Iterator[Stopping]:
    """Raise Stopped in the main thread on SIGTERM or Ctrl-C, once. If the job has not ended after GRACE seconds, end it."""
    stopping = Stopping()
    if threading.current_thread() is not threading.main_thread():  # Python handles signals only in the main thread.
        yield stopping
        return

    def stop(number: int, _: FrameType | None) -> None:
        if stopping.signal is None:
            stopping.signal = number
            raise Stopped(number)

    read, write = os.pipe()
    os.set_blocking(write, False)
    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
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
    """End the process and its children GRACE seconds after a signal."""
    while (number := int.from_bytes(os.read(read, 1), "big")) not in (signal.SIGTERM, signal.SIGINT):
        if done.is_set():
            os.close(read)
            return
    done.wait(GRACE)
    stopping.signal = number
    with suppress(OSError, ValueError):
        print_error(stopping.message())
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            child.kill()
    os._exit(stopping.exit_code)
