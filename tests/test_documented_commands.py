"""Commands of the documents: jobs know all their flags and settings (fast), and they run on a small demo (long)."""

import argparse
import re
import runpy
import shlex

import pytest

from jobs.common.config import load_config
from tests.demo_copy import DemoCopy
from tests.documented_commands import NOT_RUN, ROOT, Command, commands, commands_in

COMMANDS = commands()
OF_JOBS = [command for command in COMMANDS if re.match(r"(\.venv/bin/)?python -m jobs\.", command.text)]
# The fixture runs `make demo`.
TO_RUN = [command for command in COMMANDS if command.reason is None and command.text != "make demo"]


class Parsed(Exception):  # noqa: N818 (no error)
    """Ends a job after it has parsed its flags."""


def flags_of(text: str, monkeypatch: pytest.MonkeyPatch) -> argparse.Namespace:
    """What a job makes of its command line. Only its parser runs. Raises SystemExit if a flag is wrong."""
    _, _, module, *flags = shlex.split(text, comments=True)
    parse = argparse.ArgumentParser.parse_args
    parsed: list[argparse.Namespace] = []

    def parse_and_end(parser: argparse.ArgumentParser, *args: object) -> None:
        parsed.append(parse(parser, flags))
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_and_end)
    with pytest.raises(Parsed):
        runpy.run_module(module, run_name="__main__")
    return parsed[0]


@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
@pytest.mark.parametrize("command", OF_JOBS, ids=lambda command: f"{command.page}: {command.text[10:70]}")
def test_a_documented_job_knows_its_flags_and_settings(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    if "--config" not in command.text:
        pytest.skip("a script without flags")
    args = flags_of(command.text, monkeypatch)
    config = ROOT / ("conf/production.example.yaml" if args.config == "my.yaml" else args.config)
    load_config(str(config), args.overrides)


def test_a_wrong_flag_of_a_documented_job_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit):
        flags_of("python -m jobs.releases prune --keeep 3 --config my.yaml", monkeypatch)


def test_documented_targets_of_make_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    named = {
        word
        for command in COMMANDS
        if command.text.startswith("make ")
        for word in shlex.split(command.text, comments=True)[1:]
        if "=" not in word
    }
    known = set(
        re.findall(r"\b[a-z-]+\b", " ".join(re.findall(r"^(?:\.PHONY|BENCHES) *:?[:=] *(.*)$", makefile, re.M)))
    )
    assert named - known == set()
    assert len(named) > 10


def test_commands_are_found_with_continued_lines_and_without_comments() -> None:
    page = "text `make demo` and `python -m\njobs.train --ds D`\n```yaml\nmake: no\n```\n```\nmake test  # runs\n"
    page += "curl -d '{\n \"a\": 1}'\n{an: answer}\ndeploy/submit.sh \\\n  jobs/train.py\n```\n`make …`\n"
    found = ["make demo", "python -m jobs.train --ds D", "make test"]
    assert commands_in(page) == [*found, "curl -d '{\n \"a\": 1}'", "deploy/submit.sh \\\n  jobs/train.py"]


def test_few_commands_are_not_run_and_each_reason_is_needed() -> None:
    assert all(any(command.text.startswith(beginning) for command in COMMANDS) for beginning in NOT_RUN)
    assert len(NOT_RUN) < 20


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> DemoCopy:
    """A copy of the project after `make demo` with a small config."""
    return DemoCopy.make(tmp_path_factory.mktemp("project"))


@pytest.mark.long
@pytest.mark.parametrize("page", dict.fromkeys(command.page for command in TO_RUN))
def test_documented_commands_run(demo: DemoCopy, page: str) -> None:
    with demo.fresh() as shell:
        for command in TO_RUN:
            if command.page == page:
                shell.run(command.text)
        for code in re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL):
            if page != "docs/tables.md":  # tests/test_table_examples.py runs those
                shell.run_python(code)
