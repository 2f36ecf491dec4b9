"""Finds the command lines of the documents, and adapts them to a small copy of the demo.

In the documents, `my.yaml` is the config of a product whose first night is 2024-06-01, and `warehouse` is its warehouse. In
the tests it is a small demo, whose first night is 2024-03-07 with six days before it.
"""

import re
import shlex
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from tests.test_docs import ROOT, documents

FENCE = re.compile(r"^```(\w*)[ \t]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`((?:python -m|make|mlflow|\.venv/bin/\S+)\s[^`]+)`")
PROGRAM = re.compile(r"(?:[A-Z_]+=\S+ )?(?:python -m|make|mlflow|curl|export|source|rm|du|\.venv/bin/\S+|deploy/\S+) ")
FIRST_NIGHT, FIRST_NIGHT_OF_DEMO, DAYS_OF_DEMO = date(2024, 6, 1), date(2024, 3, 7), 6

# Beginning of a command -> why no test runs it. Everything else runs.
NOT_RUN = {
    "make setup": "installs packages",
    "make test": "the tests themselves",
    "make lint": "the checks that CI runs before the tests",
    "make bench": "takes minutes to hours",
    "make demo-grocery": "a year of purchases: takes minutes",
    "python -m benchmarks.": "takes hours",
    "python -m jobs.import_movielens": "the data must be downloaded",
    "python -m jobs.nightly --config conf/movielens.yaml": "the data must be downloaded",
    "python -m jobs.import_recflow": "the data must be downloaded",
    "python -m jobs.import_grocery": "a year of purchases: takes minutes",
    "python -m jobs.build_positives --config conf/grocery.yaml": "a year of purchases: takes minutes",
    "python -m jobs.build_negatives --config conf/grocery.yaml": "a year of purchases: takes minutes",
    "python -m jobs.publish_items --config conf/grocery.yaml": "a year of purchases: takes minutes",
    ".venv/bin/pip install": "installs packages",
    ".venv/bin/jupyter lab": "opens a browser",
    ".venv/bin/python notebooks/execute.py": "tests/test_notebooks.py runs the notebooks",
    ".venv/bin/python -m pytest": "its test_name stands for any test",
    "python -m pytest": "a test, which runs anyway",
}


@dataclass(frozen=True)
class Command:
    """A command line of a document, without its comment."""

    page: str  # path of the document
    text: str

    @property
    def reason(self) -> str | None:
        """Why no test runs it; None if one does."""
        return next((why for beginning, why in NOT_RUN.items() if self.text.startswith(beginning)), None)


def commands() -> list[Command]:
    """The command lines of all documents, page by page, in their order."""
    return [
        Command(str(path.relative_to(ROOT)), text)
        for path in documents()
        for text in commands_in(path.read_text(encoding="utf-8"))
    ]


def commands_in(document: str) -> list[str]:
    """The command lines in code blocks without a language, and in backticks."""
    places = [(match.start(), line) for match in FENCE.finditer(document) if not match[1] for line in _lines(match[2])]
    text = FENCE.sub(lambda match: " " * len(match[0]), document)
    places += [(match.start(), " ".join(match[1].split())) for match in INLINE.finditer(text)]
    lines = [line for _, line in sorted(places, key=lambda place: place[0])]
    # An ellipsis or an abbreviation stands for something else.
    return [line for line in lines if "…" not in line]


def _lines(block: str) -> list[str]:
    """The command lines of a code block. A line continues while a quotation is open or after a backslash."""
    lines: list[str] = []
    part = ""
    for line in block.splitlines():
        part = f"{part}\n{line}" if part else line
        if not PROGRAM.match(part):
            part = ""
        elif _is_complete(part):
            lines.append(re.sub(r"\s+#(?=\s).*$", "", part) if "\n" not in part else part)
            part = ""
    return lines


def _is_complete(text: str) -> bool:
    try:
        shlex.split(text, comments=True)
    except ValueError:
        return False
    return not text.endswith("\\")


def adapted(text: str, releases: Path) -> str:
    """The command for the small demo. A release id becomes that of the newest release of its day in `releases`."""
    text = re.sub(r"2024-06-(\d\d)", lambda day: str(_moved(date(2024, 6, int(day[1])))), text)
    text = re.sub(r"(\d{4}-\d\d-\d\d)-[0-9a-f]{8}\b", lambda release: _newest(releases, release[1]), text)
    text = text.replace("--bootstrap-days 30", f"--bootstrap-days {DAYS_OF_DEMO}").replace(
        " warehouse/", " warehouse-demo/"
    )
    return re.sub(r"(--minutes \d+)", r"\1 --trials 1", text)


def _moved(day: date) -> date:
    return day + (FIRST_NIGHT_OF_DEMO - FIRST_NIGHT)


def _newest(releases: Path, day: str) -> str:
    folders = sorted(releases.glob(f"{day}-*/manifest.json"), key=lambda path: path.stat().st_mtime)
    return folders[-1].parent.name if folders else f"{day}-00000000"
