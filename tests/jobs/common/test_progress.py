"""The log says when a step starts and ends and, while nothing else is logged, that it is still running."""

import io
import logging
import re
import threading
import time
from collections.abc import Iterator

import pytest
from pyspark.sql import SparkSession

from jobs.common.progress import Heartbeat, activity, heartbeat, spark_tasks, step
from pipelines.contract.log_lines import LogHandler

SHORT = 0.05  # seconds
log = logging.getLogger("nightjar")


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    """What the job logs."""
    before, level = log.handlers, log.level
    stream = io.StringIO()
    log.handlers = [LogHandler(stream)]
    log.setLevel(logging.INFO)
    yield stream
    log.handlers = before
    log.setLevel(level)


def test_a_step_logs_its_start_and_its_end(lines: io.StringIO) -> None:
    with step("train 2024-03-07", "step 3 of 5"):
        pass
    with pytest.raises(ValueError, match="broken"), step("evaluate 2024-03-07"):
        raise ValueError("broken")
    messages = [line[28:] for line in lines.getvalue().splitlines()]
    assert messages == [
        "train 2024-03-07: starts (step 3 of 5)",
        "train 2024-03-07: done in 0.0 s",
        "evaluate 2024-03-07: starts",
    ]


def test_a_silent_step_has_a_heartbeat_until_it_ends(lines: io.StringIO) -> None:
    with heartbeat(lambda: "3 of 8 tasks done", SHORT), activity("nightly"), activity("train 2024-03-07"):
        while not lines.getvalue():
            time.sleep(SHORT)
    beats = lines.getvalue()
    assert re.match(r".{20}INFO    train 2024-03-07: running for \d s; 3 of 8 tasks done\n", beats)
    time.sleep(3 * SHORT)
    assert lines.getvalue() == beats


def test_lines_of_the_step_or_of_other_processes_replace_the_heartbeat(lines: io.StringIO) -> None:
    now = start = time.monotonic()
    beats = Heartbeat(lambda: "", 30.0, lambda: now)
    (handler,) = log.handlers
    with activity("train 2024-03-07"):
        now = start + 29
        assert beats.line() is None
        handler.last = start + 20  # type: ignore[attr-defined]
        now = start + 49
        assert beats.line() is None
        now = start + 60
        assert beats.line() == "train 2024-03-07: running for 60 s"
        now = start + 89
        assert beats.line() is None
        with activity(""):
            now = start + 200
            assert beats.line() is None
        now = start + 229
        assert beats.line() is None
        now = start + 230
        assert beats.line() == "train 2024-03-07: running for 4 min"


def test_an_error_of_spark_does_not_stop_the_heartbeat(lines: io.StringIO) -> None:
    def dead() -> str:
        raise OSError("the JVM is dead")

    with activity("train 2024-03-07"):
        assert Heartbeat(dead, 0.0).line() == "train 2024-03-07: running for 0 s"


def test_the_heartbeat_knows_what_spark_has_done_and_what_is_left(spark: SparkSession) -> None:
    assert spark_tasks(spark) == ""
    work = spark.sparkContext.parallelize(range(6), 6).map(lambda _: time.sleep(0.5))
    running = threading.Thread(target=work.count)
    running.start()
    seen = set()
    while running.is_alive():
        seen.add(spark_tasks(spark))
        time.sleep(0.05)
    running.join()
    assert any(re.fullmatch(r"Spark job \d+: [1-5] of 6 tasks done, [1-5] left", text) for text in seen), seen
