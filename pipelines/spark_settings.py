"""Turns Java's error about a Spark setting into one that names the setting, its value and the remedy."""

import re
import shlex
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipelines.contract.errors import UsageError

MEMORY, JAVA_OPTIONS = "spark.driver.memory", "spark.driver.extraJavaOptions"


def wrong_setting(error: BaseException, settings: Mapping[str, str]) -> UsageError | None:
    """The error for the user if Spark refused the value of one of these settings; None if it failed for another reason.

    Spark names the setting in some of its messages and only the value in others.
    """
    messages = list(_messages(error))
    for message in reversed(messages):  # the innermost cause is the most precise
        named = [key for key in settings if re.search(rf"(?<![\w.]){re.escape(key)}(?![\w.])", message)]
        quoted = [key for key, value in settings.items() if _is_specific(value) and value in message]
        for key in named or quoted:
            return _refusal(key, settings[key], message)
    return None


def wrong_java_setting(java_home: str, settings: Mapping[str, str]) -> UsageError:
    """The error for the user if the JVM of Spark did not start with these settings.

    Starts Java again without Spark, to test whether it refuses a setting. Reasons of Spark itself are already printed.
    """
    options = {
        MEMORY: [f"-Xmx{settings[MEMORY]}"] if MEMORY in settings else [],
        JAVA_OPTIONS: shlex.split(settings.get(JAVA_OPTIONS, "")),
    }
    for key, flags in options.items():
        command = [str(Path(java_home) / "bin" / "java"), *flags, "-version"]
        answer = subprocess.run(command, capture_output=True, text=True, timeout=60)
        if answer.returncode:
            lines = (answer.stdout + answer.stderr).strip().splitlines()
            return _refusal(key, settings.get(key, ""), lines[0] if lines else f"exit code {answer.returncode}")
    return UsageError(
        "Spark's JVM did not start, for the reason that it printed above. Correct the section `spark` of the config "
        f"(spark.master is {settings.get('spark.master', 'not set')!r}) or the Java under JAVA_HOME = {java_home}"
    )


def _refusal(key: str, value: str, message: str) -> UsageError:
    reason = " ".join(message.split()).rstrip(".")
    return UsageError(
        f"{key}: Spark does not start with the value {value!r}: {reason}. Correct it in the section `spark` of the config, "
        "or in the flag of spark-submit that sets it"
    )


def _messages(error: BaseException) -> Iterator[str]:
    """Java's messages of an error and of its causes, outermost first."""
    java: Any = getattr(error, "java_exception", None) or getattr(error, "_origin", None)
    while java is not None:
        yield str(java.getMessage())
        java = java.getCause()


def _is_specific(value: str) -> bool:
    """Whether a message that contains this value is likely about it. Values like true or 4 are in many messages."""
    return len(value) > 2 and value.lower() not in ("true", "false") and not value.isdigit()
