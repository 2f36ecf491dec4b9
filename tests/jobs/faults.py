"""Helpers for tests of faults: jobs that must fail, damaged files, small disks, and processes beside the test."""

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.jobs.nightly_run import ROOT, SECOND, NightlyRun, command

STACK = re.compile(r"Traceback|^\s+at \S+\(|^\s+File \"", re.MULTILINE)
# On a busy machine the JVM may print both exceptions when Spark stops: its threads still drop blocks and are interrupted.
INTERRUPTED = re.compile(
    r'^(?:Exception in thread "block-manager-storage-async-thread-pool-|java\.util\.concurrent\.RejectedExecutionException: )'
    r".*\n(?:(?:\s+at |\s+\.\.\. |Caused by: ).*\n)*",
    re.MULTILINE,
)


def fails(job: str, nightly_run: NightlyRun, *flags: str, code: int, **options: Any) -> str:
    """Run a job of the second night, assert that it ends with this code and one error, and return the message."""
    output = INTERRUPTED.sub("", nightly_run.run(job, "--ds", SECOND, *flags, code=code, **options))
    assert options.get("allow_traceback") or not STACK.search(output), output
    return message_of(output)


def message_of(output: str) -> str:
    """The only error message in the output of a job."""
    (message,) = re.findall(r"^error: (.*)$", output, re.MULTILINE)
    return message


def succeeds(job: str, nightly_run: NightlyRun, *flags: str) -> str:
    """Run a job of the second night, assert that it succeeds, and return its output."""
    return nightly_run.run(job, "--ds", SECOND, *flags)


def largest_file(nightly_run: NightlyRun, table: str, ds: str) -> Path:
    return max((nightly_run.warehouse / table / f"ds={ds}").rglob("*.parquet"), key=lambda file: file.stat().st_size)


@contextmanager
def damaged(file: Path, damage: Callable[[bytes], bytes]) -> Iterator[None]:
    """Replace the content of a file by `damage(content)` within the block."""
    backup = file.with_name(f"_{file.name}.backup")
    shutil.copy2(file, backup)
    file.write_bytes(damage(backup.read_bytes()))
    try:
        yield
    finally:
        backup.replace(file)


def first_half(content: bytes) -> bytes:
    return content[: len(content) // 2]


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """Mount a file system of 16 KB at a folder of the warehouse within the block."""
    folder.mkdir(parents=True, exist_ok=True)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("no right to mount a small file system")
    try:
        yield
    finally:
        # -l: Spark keeps files open that it could not finish.
        subprocess.run(["umount", "-l", str(folder)], check=True)


def start(job: str, nightly_run: NightlyRun, *flags: str, env: dict[str, str] | None = None) -> "subprocess.Popen[str]":
    """Start a job of the second night in a new process. The caller ends it with `kill`."""
    return subprocess.Popen(
        command(job, "--config", nightly_run.config, "--ds", SECOND, *flags),
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        env=env,
    )


def wait_until(condition: Callable[[], bool], child: "subprocess.Popen[str]") -> None:
    """Wait until the condition holds. Fails if the process ends before, or after 15 minutes."""
    deadline = time.monotonic() + 900
    while not condition():
        assert child.poll() is None, child.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def kill(child: "subprocess.Popen[str]") -> None:
    """Kill a process and its group, if it runs."""
    if child.poll() is None:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
    if child.stdout:
        child.stdout.close()
