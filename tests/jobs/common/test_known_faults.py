"""Technical errors with a known cause become one line with a remedy."""

import pytest
from py4j.protocol import Py4JNetworkError

from jobs.common.known_faults import explained


def test_a_lost_jvm_is_reported_in_one_line() -> None:
    error = explained(Py4JNetworkError("Answer from Java side is empty"), "file:///warehouse")
    assert error is not None
    assert error.exit_code == 1
    assert "Run the same command again: it skips finished steps and continues" in str(error)


@pytest.mark.parametrize(
    "error",
    [
        PermissionError(13, "Permission denied", "/data/warehouse/_locks"),
        OSError(
            "java.io.IOException: Mkdirs failed to create file:/data/warehouse/_staging\n\tat org.apache.hadoop.fs"
        ),
    ],
)
def test_missing_rights_are_reported_in_one_line_with_the_path(error: OSError) -> None:
    fault = explained(error, "file:///data/warehouse")
    assert fault is not None
    assert "a file may not be read or written: " in str(fault)
    assert "/data/warehouse/_" in str(fault)
    assert "\n" not in str(fault)


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (
            RuntimeError("o1.collect\n: java.lang.OutOfMemoryError: Java heap space\n\tat x.y"),
            "OutOfMemoryError: Java heap",
        ),
        (MemoryError("Unable to allocate 9 GiB"), "MemoryError: Unable to allocate 9 GiB"),
    ],
)
def test_too_little_memory_names_the_settings(error: Exception, cause: str) -> None:
    fault = explained(error, "file:///data/warehouse")
    assert fault is not None
    assert cause in str(fault)
    assert "raise spark.driver.memory" in str(fault)
    assert "\n" not in str(fault)
