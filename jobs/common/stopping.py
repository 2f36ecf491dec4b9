"""A job that is told to stop (SIGTERM, Ctrl-C) ends within a minute, says so, and leaves what a killed one leaves."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

import psutil

GRACE = 40.0  # seconds for cleaning up; then the process ends as it is, which the next run copes with


class Stopped(BaseException):
    """The job was told to stop. No Exception, so that nothing takes it for an error of its own."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


class Stopping:
    """Whether the job was told to stop, and how it ends then."""

    signal: int | None = None

    @property
    def exit_code(self) -> int:
        """128 + the signal's number, as shells report it."""
        return 128 + (self.signal or 0)

    def message(self) -> str:
        """What the job says at its end."""
        name = signal.Signals(self.signal or signal.SIGTERM).name
        return f"stopped by {name}. Tables and releases are whole: the same command goes on, finished steps are skipped"


@contextmanager
def stoppable() -> Iterator[Stopping]:
    """Raise Stopped in the main thread on SIGTERM or Ctrl-C, once. A job that has not ended after GRACE is ended."""
    stopping = Stopping()
    if threading.current_thread() is not threading.main_thread():  # Only there can signals be handled.
        yield stopping
        return

    def stop(number: int, _: FrameType | None) -> None:
        if stopping.signal is None:
            stopping.signal = number
            raise Stopped(number)

    read, write = os.pipe()
    os.set_blocking(write, False)
    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    # A long call into C keeps the handler waiting; the pipe is written to at once.
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
    """End the process GRACE after a signal; its children too, which would otherwise go on without it."""
    while (number := int.from_bytes(os.read(read, 1), "big")) not in (signal.SIGTERM, signal.SIGINT):
        if done.is_set():
            os.close(read)
            return
    done.wait(GRACE)
    stopping.signal = number
    with suppress(OSError, ValueError):
        print(f"error: {stopping.message()}", file=sys.stderr, flush=True)
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            child.kill()
    os._exit(stopping.exit_code)
