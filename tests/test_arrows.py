"""Which package may import which: no cycles, and some libraries are imported by one module only."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FORBIDDEN = {
    "pipelines": {"torch", "mlflow", "petastorm", "faiss", "model", "jobs"},
    "model": {"pipelines", "jobs", "mlflow"},
}
SHARED = "pipelines.contract"  # the only part of pipelines that model may import


def imports_of(path: Path, *, top_level_only: bool = False) -> set[str]:
    """Dotted names that a file imports; `from a import b` counts as a and as a.b."""
    tree = ast.parse(path.read_text())
    names = set()
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def libraries_of(path: Path, *, top_level_only: bool = False) -> set[str]:
    names = imports_of(path, top_level_only=top_level_only)
    return {name.split(".")[0] for name in names if not f"{name}.".startswith(f"{SHARED}.")}


def files_of(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def package_of(path: Path) -> str:
    """First two parts of the module name: `pipelines.samples` for a package, `pipelines.night` for a file beside it."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:2])


@pytest.mark.parametrize("package", sorted(FORBIDDEN))
def test_a_top_level_package_does_not_import_forbidden_ones(package: str) -> None:
    assert files_of(package), f"{package} has no files, so the test would check nothing"
    wrong = {
        str(path.relative_to(ROOT)): names
        for path in files_of(package)
        if (names := libraries_of(path) & FORBIDDEN[package])
    }
    assert wrong == {}


def test_packages_import_each_other_in_one_direction() -> None:
    files = files_of("pipelines", "model", "jobs")
    packages = {package_of(path) for path in files}
    arrows: dict[str, set[str]] = {package: set() for package in packages}
    for path in files:
        package = package_of(path)
        arrows[package] |= {".".join(name.split(".")[:2]) for name in imports_of(path)} & packages - {package}
    TopologicalSorter(arrows).prepare()  # raises CycleError, which names the packages


def test_model_does_not_import_pyspark_when_it_is_imported() -> None:
    wrong = [path.name for path in files_of("model") if "pyspark" in libraries_of(path, top_level_only=True)]
    assert wrong == []


def test_pipelines_and_model_do_not_import_jobs() -> None:
    wrong = [str(path) for path in files_of("pipelines", "model") if "jobs" in libraries_of(path)]
    assert wrong == []


def test_the_contract_needs_neither_pyspark_nor_torch() -> None:
    modules = [f"{SHARED}.{path.stem}" for path in files_of("pipelines/contract") if path.stem != "__init__"]
    code = f"import sys, {', '.join(modules)}; sys.exit(', '.join({{'pyspark', 'torch'}} & sys.modules.keys()))"
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (process.stderr.strip(), bool(modules)) == ("", True)


@pytest.mark.parametrize(
    ("library", "modules"),
    [
        ("petastorm", ["model/data/petastorm_reader.py"]),
        ("optuna", [f"jobs/tuning/{name}.py" for name in ("plots", "search", "study")]),
        ("ruamel", ["jobs/tuning/tuned_config.py"]),
        (
            "mlflow",
            [
                f"jobs/tracking/{name}.py"
                for name in ("client", "job_run", "model_version", "pyfunc", "registry", "system_metrics")
            ],
        ),
    ],
)
def test_a_library_is_imported_by_its_module_only(library: str, modules: list[str]) -> None:
    users = [
        str(path.relative_to(ROOT)) for path in files_of("pipelines", "model", "jobs") if library in libraries_of(path)
    ]
    assert users == modules
