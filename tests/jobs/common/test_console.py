"""What a job prints: levels by -q and -v, one format, errors in one line, colours and bars on a terminal only."""

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
CODE = """
import logging, sys, warnings
from jobs.common import console
flags = console.argparse.ArgumentParser()
console.add_flags(flags)
console.log_to_console(**vars(flags.parse_args()))
log = logging.getLogger("nightjar")
for level in ("debug", "info", "warning"):
    getattr(log, level)(f"of {level}")
logging.getLogger("library").info("of a library")
logging.getLogger("library").warning("of a library")
logging.getLogger("py4j.java_gateway").error("An error occurred while trying to connect")
warnings.warn("of Python")
print("bars", console.shows_bars())
console.print_error("the end")
"""
LINE = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d "


def printed(*flags: str, code: str = CODE) -> tuple[list[str], list[str]]:
    """Lines of stdout and of stderr, without their dates."""
    done = subprocess.run([sys.executable, "-c", code, *flags], cwd=ROOT, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines(), done.stderr.splitlines()
    assert all(re.match(rf"{LINE}|bars|error", line) for line in (*lines[0], *lines[1])), lines
    return [re.sub(LINE, "", line) for line in lines[0]], [re.sub(LINE, "", line) for line in lines[1]]


@pytest.mark.processes
@pytest.mark.parametrize(
    ("flags", "levels"),
    [((), ["info", "warning"]), (("-q",), ["warning"]), (("-v",), ["debug", "info", "warning"])],
    ids=["default", "-q", "-v"],
)
def test_flags_choose_the_level(flags: tuple[str, ...], levels: list[str]) -> None:
    out, err = printed(*flags)
    assert out == [*(f"{level.upper():7} of {level}" for level in levels), "bars False"]
    of_py4j = ["ERROR   py4j.java_gateway: An error occurred while trying to connect"] if flags == ("-v",) else []
    of_python = "WARNING py.warnings: UserWarning: of Python (<string>:13)"
    assert err == ["WARNING library: of a library", *of_py4j, of_python, "error: the end"]


@pytest.mark.processes
@pytest.mark.parametrize(("no_color", "flag", "bars"), [("", "", True), ("1", "", True), ("1", "-q", False)])
def test_a_terminal_has_bars_and_colours(no_color: str, flag: str, bars: bool) -> None:
    terminal, side = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "NO_COLOR": no_color}
    command = [sys.executable, "-c", CODE, *([flag] if flag else [])]
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=side, stderr=side)
    os.close(side)
    output = b""
    try:
        while chunk := os.read(terminal, 4096):
            output += chunk
    except OSError:  # Linux reports the end of a terminal as an error.
        pass
    assert process.wait() == 0
    os.close(terminal)
    text = output.decode()
    assert f"bars {bars}" in text
    assert ("\x1b[33m" in text, "\x1b[31merror:\x1b[0m the end" in text) == (not no_color, not no_color)


@pytest.mark.processes
def test_an_error_of_the_user_has_no_stack_trace_without_v() -> None:
    command = [sys.executable, "-m", "jobs.report", "--config", "nowhere.yaml", "--ds", "2024-03-04"]
    for flag in ((), ("-v",)):
        done = subprocess.run([*command, *flag], cwd=ROOT, capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.splitlines()[-1] == ("error: config nowhere.yaml cannot be read: No such file or directory")
        assert ("Traceback" in done.stderr) == bool(flag)
        assert len(done.stderr.splitlines()) == 1 or flag


@pytest.mark.processes
def test_a_reader_that_ends_early_is_no_error(tmp_path: Path) -> None:
    config = tmp_path / "night.yaml"
    config.write_text(f"warehouse: {tmp_path}")
    command = f"'{sys.executable}' -m jobs.report --config '{config}' --from 2024-03-04 --to 2027-03-04"
    done = subprocess.run(["bash", "-c", f"{command} | true; exit ${{PIPESTATUS[0]}}"], cwd=ROOT, capture_output=True)
    assert (done.returncode, done.stderr) == (141, b"")
