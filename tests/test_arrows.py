"""The house keeps its arrows: pipelines and model meet in Parquet, and two libraries have one home each."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FORBIDDEN = {
    "pipelines": {"torch", "mlflow", "petastorm", "faiss", "model", "jobs"},
    "model": {"pipelines", "jobs", "mlflow"},
}


def imports_of(path: Path, *, top_level_only: bool = False) -> set[str]:
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else ast.walk(tree)
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    return found


def files_of(*rooms: str) -> list[Path]:
    return sorted(path for room in rooms for path in (ROOT / room).rglob("*.py"))


@pytest.mark.parametrize("room", sorted(FORBIDDEN))
def test_a_room_imports_nothing_it_must_not(room: str) -> None:
    assert files_of(room), f"{room} has no files: the test would pass on an empty house"
    wrong = {
        str(path.relative_to(ROOT)): found for path in files_of(room) if (found := imports_of(path) & FORBIDDEN[room])
    }
    assert wrong == {}


def test_model_does_not_import_pyspark_when_it_is_imported() -> None:
    wrong = [path.name for path in files_of("model") if "pyspark" in imports_of(path, top_level_only=True)]
    assert wrong == []


def test_nobody_imports_jobs() -> None:
    wrong = [str(path) for path in files_of("pipelines", "model") if "jobs" in imports_of(path)]
    assert wrong == []


@pytest.mark.parametrize(
    ("library", "home"),
    [
        ("petastorm", ["model/data.py"]),
        ("mlflow", ["jobs/support/served.py", "jobs/support/tracking.py"]),  # The first is run by MLflow, not by us.
    ],
)
def test_a_library_has_one_home(library: str, home: list[str]) -> None:
    users = [
        str(path.relative_to(ROOT)) for path in files_of("pipelines", "model", "jobs") if library in imports_of(path)
    ]
    assert users == home
