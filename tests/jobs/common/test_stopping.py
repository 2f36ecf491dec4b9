"""A job that gets SIGTERM ends with one error, names the step it resumes from, and leaves no lock."""

import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from py4j.protocol import Py4JNetworkError

from jobs.common.known_faults import explained
from tests.jobs.nightly_run import FIRST, ROOT, NightlyRun, command


def test_a_lost_jvm_is_reported_in_one_line() -> None:
    error = explained(Py4JNetworkError("Answer from Java side is empty"), "file:///warehouse")
    assert error is not None
    assert error.exit_code == 1
    assert "Run the same command again: it skips finished steps and continues" in str(error)


@pytest.mark.processes
def test_sigterm_during_imports_is_reported() -> None:
    verbose = [sys.executable, "-v", "-m", "jobs.train", "--config", "nowhere.yaml", "--ds", FIRST]  # -v: lists imports
    with subprocess.Popen(verbose, cwd=ROOT, stderr=subprocess.PIPE, text=True) as job:
        assert job.stderr is not None
        for line in job.stderr:
            if line.startswith("import 'jobs' #"):
                break
        job.send_signal(signal.SIGTERM)
        output = job.stderr.read()
    assert job.returncode == 128 + signal.SIGTERM
    assert [line for line in output.splitlines() if line.startswith("error:")] == [
        "error: stopped by SIGTERM. Tables and releases are whole: run the same command again"
    ]


def until(path: Path, pattern: str, job: "subprocess.Popen[str]", seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not list(path.glob(pattern)):
        assert job.poll() is None, job.communicate()[0]
        assert time.monotonic() < deadline, f"no {pattern} in {path}"
        time.sleep(0.2)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_training_that_gets_sigterm_names_the_step_it_resumes_from(
    first_night_copy: NightlyRun, processes: int
) -> None:
    model = first_night_copy.manifest("models", FIRST)
    shutil.rmtree(first_night_copy.warehouse / "_on_the_way", ignore_errors=True)
    settings = ("training.bootstrap_epochs=100000", "training.checkpoint_steps=20", f"training.processes={processes}")
    flags = [part for setting in settings for part in ("--set", setting)]
    job = subprocess.Popen(
        command("train", "--config", first_night_copy.config, "--ds", FIRST, "--force", *flags),
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        until(first_night_copy.warehouse / "_on_the_way" / "models" / FIRST, "*/step=*/progress.json", job)
        job.send_signal(signal.SIGTERM)
        output = job.communicate(timeout=60)[0]
    finally:
        job.kill()
    assert job.returncode == 128 + signal.SIGTERM
    assert "Traceback" not in output
    assert "\tat " not in output
    assert re.search(r"the training resumes from step [1-9]", output)
    assert output.splitlines()[-1].startswith("error: stopped by SIGTERM.")
    assert not list((first_night_copy.warehouse / "_locks").glob("*"))
    assert first_night_copy.manifest("models", FIRST) == model
