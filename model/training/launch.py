"""Launches training: in this process, in several processes on this machine (torchrun), or on Spark executors."""

import atexit
import codecs
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import IO, Any

import torch
import torch.distributed as dist

from model.config import TrainingConfig
from model.training.device import backend_of, training_device
from model.training.spec import TrainingResult, TrainingSpec
from model.training.trainer import AfterEpoch, train
from pipelines.contract.log_lines import log_to_stdout

ROOT = Path(__file__).resolve().parents[2]
# Lines of stderr to quote per process after a failure. The message of the process that failed first is followed by those of
# the others, which lost it, and by about 30 lines of torchrun.
_TAIL_LINES = 80
_EXECUTOR_TIMEOUT = 120.0  # Seconds that executors may take to start.


class LaunchError(RuntimeError):
    """The processes of a training run failed (exit 1). The message quotes the end of their stderr."""

    exit_code = 1


def launch(spec: TrainingSpec, after_epoch: AfterEpoch | None = None) -> TrainingResult:
    """Train with `spec.training.processes` processes. With one, raises what `train` raises; with more, LaunchError.

    `after_epoch`: see `train`. Only for one process, which is this one.

    Raises DeviceError if the config asks for a GPU that this machine does not have.
    """
    if spec.training.launcher == "torchrun":
        training_device(spec.training)  # Raises before processes are started.
    if spec.training.processes == 1:
        with _threads(spec.training):
            return train(spec, after_epoch)
    assert after_epoch is None, "after_epoch needs the process that trains"
    if spec.training.launcher == "spark":
        return _launch_spark(spec)
    return _launch_torchrun(spec)


def worker(spec_json: str) -> str:
    """Train as one process of a group that the environment variables describe. TrainingSpec and TrainingResult as JSON."""
    spec = TrainingSpec.model_validate_json(spec_json)
    log_to_stdout(spec.log_level)
    device = training_device(spec.training)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group(backend_of(device), timeout=timedelta(seconds=spec.training.timeout_seconds))
    try:
        with _threads(spec.training):
            result = train(spec).model_dump_json()
    finally:
        dist.destroy_process_group()
    atexit.register(_exit_at_once)
    return result


def _exit_at_once() -> None:
    """Exit a successful worker with code 0, without shutting down the interpreter.

    After Petastorm and DDP have run in one process, the shutdown sometimes aborts on a busy machine ("terminate called
    without an active exception"), and torchrun then reports a finished training as failed. Registered only after success,
    so that a failed worker keeps its exit code.
    """
    logging.shutdown()
    sys.stderr.flush()
    sys.stdout.flush()
    os._exit(0)


def _launch_torchrun(spec: TrainingSpec) -> TrainingResult:
    with tempfile.TemporaryDirectory(prefix="nightjar-train-") as folder:
        spec_file, result_file = Path(folder, "spec.json"), Path(folder, "result.json")
        spec_file.write_text(spec.model_dump_json())
        command = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            f"--nproc-per-node={spec.training.processes}",
            "-m",
            "model.training.launch",
            str(spec_file),
            str(result_file),
        ]
        # Without OMP_NUM_THREADS torchrun sets it to 1 and warns. The workers set their number of threads later.
        environment = {
            **os.environ,
            "PYTHONPATH": _python_path(),
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
        }
        tail: deque[str] = deque(maxlen=_TAIL_LINES * spec.training.processes)
        with subprocess.Popen(command, stderr=subprocess.PIPE, bufsize=0, env=environment) as child:
            try:
                for line in _echo_lines(child.stderr):
                    tail.append(line)
            except BaseException:
                child.terminate()  # torchrun ends its workers.
                raise
        if child.returncode:
            raise LaunchError(
                f"{spec.training.processes} training processes failed, exit code {child.returncode}:\n{''.join(tail)}"
            )
        return TrainingResult.model_validate_json(result_file.read_text())


def _echo_lines(stream: IO[bytes] | None) -> Iterator[str]:
    """Copy a stream to stderr as it arrives, and yield its lines. Of a line with carriage returns, yields the last part."""
    decoder, rest = codecs.getincrementaldecoder("utf-8")("replace"), ""
    while stream and (chunk := stream.read(65_536)):
        text = decoder.decode(chunk)
        sys.stderr.write(text)
        sys.stderr.flush()
        *lines, rest = (rest + text).split("\n")
        yield from (line.rpartition("\r")[2] + "\n" for line in lines)
    yield rest.rpartition("\r")[2]


def _launch_spark(spec: TrainingSpec) -> TrainingResult:
    from pyspark.ml.torch.distributor import TorchDistributor
    from pyspark.sql import SparkSession

    session = SparkSession.getActiveSession()
    if session is None:
        raise LaunchError(
            "training.launcher is spark, and no Spark session is active: open one, or use launcher torchrun"
        )
    local = is_local_master(session.sparkContext.master)
    if not local:
        _wait_for_slots(session, spec.training.processes)
    with _environment("PYTHONPATH", _python_path()):
        distributor = TorchDistributor(num_processes=spec.training.processes, local_mode=local, use_gpu=False)
        return TrainingResult.model_validate_json(distributor.run(worker, spec.model_dump_json()))


def is_local_master(master: str) -> bool:
    """Whether Spark runs tasks in the driver's process. local-cluster[...] has executors, as a cluster has."""
    return master == "local" or master.startswith("local[")


def _wait_for_slots(session: Any, processes: int) -> None:
    """Wait until the executors can run all processes at once. Raises LaunchError after _EXECUTOR_TIMEOUT.

    Spark itself would retry for ten minutes, then fail with a stack trace.
    """
    context = session.sparkContext._jsc.sc()
    profile = context.resourceProfileManager().defaultResourceProfile()
    deadline = time.monotonic() + _EXECUTOR_TIMEOUT
    while (slots := int(context.maxNumConcurrentTasks(profile))) < processes:
        if time.monotonic() > deadline:
            raise LaunchError(
                f"training.processes: {processes} processes must start at once, but the executors run {slots} tasks at a time "
                f"(after {_EXECUTOR_TIMEOUT:.0f} s of waiting): give the application more executors or cores, or lower "
                "training.processes, then run the same command again"
            )
        time.sleep(1.0)


def _python_path() -> str:
    """PYTHONPATH for child processes, so that they import this package from any working directory."""
    return os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


@contextmanager
def _threads(config: TrainingConfig) -> Iterator[None]:
    """Set the number of torch threads of this process: `threads` of the config, else an equal share of the cores."""
    before = torch.get_num_threads()
    local_processes = int(os.environ.get("LOCAL_WORLD_SIZE", config.processes))
    torch.set_num_threads(config.threads or max(1, _cores() // local_processes))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _cores() -> int:
    """Number of cores that this process may use; in a container often fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def main(arguments: list[str]) -> None:
    """Entry point of torchrun: `python -m model.training.launch SPEC.json RESULT.json`."""
    spec_file, result_file = arguments
    result = worker(Path(spec_file).read_text())
    if os.environ.get("RANK", "0") == "0":
        Path(result_file).write_text(result)


if __name__ == "__main__":
    main(sys.argv[1:])
