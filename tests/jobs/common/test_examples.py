"""The help of each job ends with examples of command lines that exist."""

import re
from pathlib import Path

import pytest

from jobs.common.examples import EXAMPLES
from jobs.common.runner import parser

ROOT = Path(__file__).resolve().parents[3]
JOBS = sorted(path.stem for path in (ROOT / "jobs").glob("[!_]*.py"))


def test_every_job_has_examples() -> None:
    assert sorted(EXAMPLES) == JOBS


@pytest.mark.parametrize("job", JOBS)
def test_examples_use_flags_and_configs_that_exist(job: str) -> None:
    help_text, sources = parser(job, "What it does.").format_help(), ("common/runner.py", "common/days.py", f"{job}.py")
    code = "".join((ROOT / "jobs" / name).read_text() for name in sources)
    for flags in EXAMPLES[job]:
        assert f"\n  python -m jobs.{job} {flags}\n" in help_text
        assert all(f'"{flag}"' in code for flag in re.findall(r"--[a-z-]+", flags))
        assert all((ROOT / config).exists() for config in re.findall(r"conf/\S+", flags))
