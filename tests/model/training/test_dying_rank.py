"""A process that dies or falls silent ends the training with an error, soon, and leaves no checkpoint and no other process."""

import os
import signal
import threading
import time
from pathlib import Path

import psutil
import pytest

from model.training.launch import LaunchError, launch
from tests.model import toy_night

PATIENCE = 120  # seconds; a hang would last for the collective's timeout of half an hour


def workers(spec_output: str) -> list[psutil.Process]:
    """The training processes under this one, torchrun itself left out."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            line = process.cmdline()
        except psutil.NoSuchProcess:
            continue
        if "model.training.launch" in line and "torch.distributed.run" not in line:
            found.append(process)
    return found


@pytest.mark.parametrize(
    ("stopped_by", "said"),
    [
        (signal.SIGKILL, r"2 training processes failed, exit code 1[\s\S]*Signal 9 \(SIGKILL\)"),
        # It lives, and says nothing more: a machine that swaps, a network that is gone.
        (signal.SIGSTOP, r"2 training processes failed, exit code 1[\s\S]*[Tt]imed out"),
    ],
)
@pytest.mark.slow
def test_a_rank_that_is_gone_ends_the_job_with_its_error(tmp_path: Path, stopped_by: signal.Signals, said: str) -> None:
    spec = toy_night.make_spec(tmp_path, [64, 64], training={"processes": 2, "timeout_seconds": 10}, epochs=100_000)
    errors: list[BaseException] = []

    def run() -> None:
        try:
            launch(spec)
        except LaunchError as error:
            errors.append(error)

    job = threading.Thread(target=run)
    job.start()
    began = time.monotonic()
    # Both are deep in training when they have used some seconds of processor time since they were seen first.
    while time.monotonic() - began < PATIENCE:
        ranks = workers(spec.output)
        if len(ranks) == 2 and all(sum(rank.cpu_times()[:2]) > 6 for rank in ranks):
            break
        time.sleep(0.2)
    assert len(ranks) == 2
    os.kill(ranks[1].pid, stopped_by)
    job.join(PATIENCE)
    assert not job.is_alive(), "the other rank hangs"
    with pytest.raises(LaunchError, match=said):
        raise errors[0]
    assert not any(rank.is_running() and rank.status() != psutil.STATUS_ZOMBIE for rank in ranks)
    assert not Path(spec.output).exists()
