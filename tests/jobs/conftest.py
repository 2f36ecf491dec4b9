"""What tests of jobs share: a house with one night published."""

import pytest

from tests.jobs.small_house import FIRST, House, run


@pytest.fixture(scope="session")
def first_night(tmp_path_factory: pytest.TempPathFactory) -> House:
    """The first night, published; to be copied by who changes it."""
    built = House.build(tmp_path_factory.mktemp("first"))
    run("nightly", "--config", built.config, "--ds", FIRST, "--bootstrap-days", "4")
    return built
