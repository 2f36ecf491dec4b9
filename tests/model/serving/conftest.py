"""Fixtures of the serving tests."""

from pathlib import Path

import pytest

from tests.model.serving.toy_release import KINDS, write_release


@pytest.fixture(params=KINDS)
def release(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The folder of a toy release, of each of KINDS."""
    folder = tmp_path / "releases" / "2024-03-01-toy"
    write_release(folder, request.param)
    return folder
