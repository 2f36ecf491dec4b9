"""If a process dies or hangs, training ends with an error and leaves neither a checkpoint nor a process."""

import os
import signal
import threading
import time
from pathlib import Path

import psutil
import pytest

from model.training.launch import LaunchError, launch
from tests.model import toy_night

TIMEOUT = 120  # Seconds. The default timeout of a collective is half an hour.


def workers(spec_output: str) -> list[psutil.Process]:
    """The training processes that are descendants of this process, without torchrun."""
    processes = []
    for process in psutil.Process().children(recursive=True):
        try:
            line = process.cmdline()
        except psutil.NoSuchProcess:
            continue
        if "model.training.launch" in line and "torch.distributed.run" not in line:
            processes.append(process)
    return processes


@pytest.mark.parametrize(
    ("stop_signal", "message"),
    [
        (signal.SIGKILL, r"2 training processes failed, exit code 1[\s\S]*Signal 9 \(SIGKILL\)"),
        # The process lives but does not answer, like on a machine that swaps or without network.
        (signal.SIGSTOP, r"2 training processes failed, exit code 1[\s\S]*[Tt]imed out"),
    ],
)
@pytest.mark.slow
def test_training_ends_with_an_error_if_a_rank_dies_or_hangs(
    tmp_path: Path, stop_signal: signal.Signals, message: str
) -> None:
    spec = toy_night.make_spec(tmp_path, [64, 64], training={"processes": 2, "timeout_seconds": 10}, epochs=100_000)
    errors: list[BaseException] = []

    def run() -> None:
        try:
            launch(spec)
        except LaunchError as error:
            errors.append(error)

    job = threading.Thread(target=run)
    job.start()
    started = time.monotonic()
    # Both are training once each has used some seconds of CPU time.
    while time.monotonic() - started < TIMEOUT:
        ranks = workers(spec.output)
        if len(ranks) == 2 and all(sum(rank.cpu_times()[:2]) > 6 for rank in ranks):
            break
        time.sleep(0.2)
    assert len(ranks) == 2
    os.kill(ranks[1].pid, stop_signal)
    job.join(TIMEOUT)
    assert not job.is_alive(), "the other rank hangs"
    with pytest.raises(LaunchError, match=message):
        raise errors[0]
    assert not any(rank.is_running() and rank.status() != psutil.STATUS_ZOMBIE for rank in ranks)
    assert not Path(spec.output).exists()
