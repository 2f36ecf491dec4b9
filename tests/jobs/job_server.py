"""A process that runs one job after another as `python -m` would, so that the JVM starts and warms up only once."""

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


class JobServer:
    """Runs jobs in one child process. Tests that kill a job or change its environment start a process themselves."""

    def __init__(self, folder: Path) -> None:
        """Start the process; `folder` is its working directory."""
        handle, name = tempfile.mkstemp(suffix=".log")
        os.close(handle)
        self.log = Path(name)
        self.connection, other_end = multiprocessing.Pipe()
        context = multiprocessing.get_context("spawn")
        self.process = context.Process(target=_serve, args=(other_end, name, str(folder)))
        self.process.start()
        other_end.close()
        atexit.register(self.stop)

    def run(self, job: str, *flags: str, timeout: float) -> tuple[int, str]:
        """Run a job to its end. Returns its exit code, and the output of the job and of the JVM."""
        begin = self.log.stat().st_size
        try:
            self.connection.send((job, flags))
            ended = self.connection.poll(timeout)
            code = self.connection.recv() if ended else -1
        except (EOFError, OSError) as error:
            raise RuntimeError(f"the process that ran jobs.{job} has died: {self.log.read_text()[-4000:]}") from error
        if not ended:
            output = self.log.read_text()[-4000:]
            self.stop()
            raise TimeoutError(f"jobs.{job} did not end within {timeout} s: {output}")
        with self.log.open("rb") as log:
            log.seek(begin)
            return code, log.read().decode()

    def stop(self) -> None:
        """End the process and its JVM."""
        self.connection.close()
        self.process.join(10)
        self.process.kill()
        self.log.unlink(missing_ok=True)


def _serve(connection: Connection, log: str, folder: str) -> None:
    """Run the jobs that arrive on the connection until it is closed."""
    os.chdir(folder)
    output = os.open(log, os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(output, stream)
    sys.stdout = os.fdopen(1, "w", buffering=1)
    sys.stderr = os.fdopen(2, "w", buffering=1)
    warnings.filterwarnings("ignore", message=".*found in sys.modules after import", category=RuntimeWarning)
    while True:
        try:
            job, flags = connection.recv()
        except EOFError:
            return
        connection.send(_exit_code_of(job, flags))


def _exit_code_of(job: str, flags: tuple[str, ...]) -> int:
    """Run a job in this process and return the exit code that `python -m` would end with."""
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
