"""Fixtures that tests of jobs share."""

import pytest

from tests.jobs.faults import succeeds
from tests.jobs.nightly_run import NightlyRun


@pytest.fixture(scope="module")
def sampled(first_night_copy: NightlyRun) -> NightlyRun:
    """The first night and the samples of the second. Every test leaves both in place."""
    succeeds("build_positives", first_night_copy)
    succeeds("build_negatives", first_night_copy)
    return first_night_copy
