"""A job that gets SIGTERM ends with one error, names the step it resumes from, and leaves no lock."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.jobs.nightly_run import FIRST, ROOT, NightlyRun, command


@pytest.mark.processes
@pytest.mark.parametrize(("number", "name"), [(signal.SIGTERM, "SIGTERM"), (signal.SIGINT, "Ctrl-C")])
def test_a_signal_during_imports_is_reported(number: int, name: str) -> None:
    verbose = [sys.executable, "-v", "-m", "jobs.train", "--config", "nowhere.yaml", "--ds", FIRST]  # -v: lists imports
    with subprocess.Popen(verbose, cwd=ROOT, stderr=subprocess.PIPE, text=True) as job:
        assert job.stderr is not None
        for line in job.stderr:
            if line.startswith("import 'jobs' #"):
                break
        job.send_signal(number)
        output = job.stderr.read()
    assert job.returncode == 128 + number
    assert [line for line in output.splitlines() if line.startswith("error:")] == [
        f"error: stopped by {name}. Tables and releases are whole: run the same command again"
    ]


STOPPED = """
import signal, sys, time
from jobs.common.console import log_to_console, print_error
from jobs.common.stopping import Stopped, stoppable
log_to_console()
with stoppable() as stopping:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # as Spark does
    stopping.listen()
    try:
        print("ready", flush=True)
        time.sleep(60)
    except Stopped:
        print("cleaning", flush=True)
        time.sleep(float(sys.argv[1]))
print_error(stopping.message())
sys.exit(stopping.exit_code)
"""


@pytest.mark.processes
def test_the_error_is_the_last_line_also_if_the_process_ends_slowly() -> None:
    slow = STOPPED.replace("sys.exit(", "time.sleep(2.5)\nsys.exit(")
    with subprocess.Popen(
        [sys.executable, "-c", slow, "0"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as job:
        assert job.stdout is not None
        assert job.stdout.readline() == "ready\n"
        job.send_signal(signal.SIGTERM)
        lines = job.stdout.read().splitlines()
    assert job.returncode == 128 + signal.SIGTERM
    assert lines[-1].startswith("error: stopped by SIGTERM."), lines


@pytest.mark.processes
@pytest.mark.parametrize(("cleaning", "signals"), [(0, 1), (60, 2)], ids=["one Ctrl-C", "two, while it cleans up"])
def test_ctrl_c_ends_a_job_after_it_has_cleaned_up_and_a_second_one_at_once(cleaning: int, signals: int) -> None:
    command = [sys.executable, "-c", STOPPED, str(cleaning)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as job:
        assert job.stdout is not None
        assert job.stderr is not None
        assert job.stdout.readline() == "ready\n"
        for _ in range(signals):
            job.send_signal(signal.SIGINT)
            while "cleaning\n" not in (seen := job.stdout.readline()) and seen:
                pass
        errors = job.stderr.read()
    assert job.returncode == 130
    assert errors.startswith("error: stopped by Ctrl-C. Tables and releases are whole. Run the same command again")
    assert len(errors.splitlines()) == 1


def until(path: Path, pattern: str, job: "subprocess.Popen[str]", seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not list(path.glob(pattern)):
        assert job.poll() is None, job.communicate()[0]
        assert time.monotonic() < deadline, f"no {pattern} in {path}"
        time.sleep(0.2)


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "number"), [(1, signal.SIGINT), (2, signal.SIGTERM), (2, signal.SIGINT)])
def test_a_training_that_is_stopped_names_the_step_it_resumes_from(
    first_night_copy: NightlyRun, processes: int, number: int
) -> None:
    """Ctrl-C on a terminal reaches all processes of the job, SIGTERM of a scheduler the job only."""
    model = first_night_copy.manifest("models", FIRST)
    shutil.rmtree(first_night_copy.warehouse / "_on_the_way", ignore_errors=True)
    settings = ("training.bootstrap_epochs=100000", "training.checkpoint_steps=20", f"training.processes={processes}")
    flags = [part for setting in settings for part in ("--set", setting)]
    job = subprocess.Popen(
        command("train", "--config", first_night_copy.config, "--ds", FIRST, "--force", *flags),
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        until(first_night_copy.warehouse / "_on_the_way" / "models" / FIRST, "*/step=*/progress.json", job)
        os.killpg(job.pid, number) if number == signal.SIGINT else job.send_signal(number)
        output = job.communicate(timeout=60)[0]
    finally:
        job.kill()
    assert job.returncode == 128 + number
    assert "Traceback" not in output
    assert "\tat " not in output
    assert re.search(r"the training resumes from step [1-9]", output)
    stopped = "Ctrl-C" if number == signal.SIGINT else "SIGTERM"
    assert output.splitlines()[-1].startswith(f"error: stopped by {stopped}.")
    assert len(output[output.index("the training resumes from") :].splitlines()) <= 5
    assert not list((first_night_copy.warehouse / "_locks").glob("*"))
    assert first_night_copy.manifest("models", FIRST) == model
