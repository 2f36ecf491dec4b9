"""A process that runs jobs one after another, each as `python -m` would, so that Java starts and warms up once for all."""

import atexit
import multiprocessing
import os
import runpy
import sys
import tempfile
import traceback
import warnings
from multiprocessing.connection import Connection
from pathlib import Path


class WarmJobs:
    """Started with the first job. Who kills a job, or gives it another environment, starts a process of its own."""

    def __init__(self, folder: Path) -> None:
        """`folder`: where jobs are run."""
        handle, name = tempfile.mkstemp(suffix=".log")
        os.close(handle)
        self.log = Path(name)
        self.connection, theirs = multiprocessing.Pipe()
        context = multiprocessing.get_context("spawn")
        self.process = context.Process(target=_serve, args=(theirs, name, str(folder)))
        self.process.start()
        theirs.close()
        atexit.register(self.stop)

    def run(self, job: str, *flags: str, timeout: float) -> tuple[int, str]:
        """A job to its end: its exit code, and all that it and Java said."""
        begin = self.log.stat().st_size
        try:
            self.connection.send((job, flags))
            ended = self.connection.poll(timeout)
            code = self.connection.recv() if ended else -1
        except (EOFError, OSError) as error:
            raise RuntimeError(f"the process that runs jobs.{job} has died: {self.log.read_text()[-4000:]}") from error
        if not ended:
            said = self.log.read_text()[-4000:]
            self.stop()
            raise TimeoutError(f"jobs.{job} has not ended in {timeout} s: {said}")
        with self.log.open("rb") as log:
            log.seek(begin)
            return code, log.read().decode()

    def stop(self) -> None:
        """End the process, and Java with it."""
        self.connection.close()
        self.process.join(10)
        self.process.kill()
        self.log.unlink(missing_ok=True)


def _serve(connection: Connection, log: str, folder: str) -> None:
    """Jobs as they come, until nobody is there to ask for one."""
    os.chdir(folder)
    said = os.open(log, os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(said, stream)
    sys.stdout = os.fdopen(1, "w", buffering=1)
    sys.stderr = os.fdopen(2, "w", buffering=1)
    warnings.filterwarnings("ignore", message=".*found in sys.modules after import", category=RuntimeWarning)
    while True:
        try:
            job, flags = connection.recv()
        except EOFError:
            return
        connection.send(_ended(job, flags))


def _ended(job: str, flags: tuple[str, ...]) -> int:
    """The exit code of a job that is run here."""
    sys.argv = [job, *flags]
    try:
        runpy.run_module(f"jobs.{job}", run_name="__main__", alter_sys=True)
        code: object = 0
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
        code = 1
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    return code if isinstance(code, int) else int(code is not None)
