"""The notebooks run to their end on small nights, and what they show agrees with the tables. They are stored with outputs."""

import json
import re
from datetime import date, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from pyspark.sql import SparkSession

from jobs import simulate_logs
from jobs.common.config import Config
from pipelines.night import Night, SampleConfig
from pipelines.positives.build import build_positives
from pipelines.samples.build import build_negatives
from pipelines.storage.warehouse import Warehouse
from tests.jobs.nightly_run import SECOND, NightlyRun

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"
DS = "2024-03-03"
CONFIG = Config.model_validate(
    {
        "simulation": {"days": 3, "users": 150, "items": 400, "requests_per_user": 1.5}
        | {"recalled": 100, "coarse_kept": 40, "fine_kept": 20, "exposed": 10},
        "features": {"item": [{"kind": "categorical", "name": "category"}], "history": {"length": 10}},
        "negatives": {"uniform": 3, "popularity": 1, "coarse": 2, "fine": 2},
        "samples": {"row_group_rows": 256, "trainers": 1},
    }
)
ABSOLUTE = re.compile(r"(?<![\w.:/])/(?:tmp|home|root|work|Users|mnt|var)/")
# Last cell: prints what a reader sees as one line of JSON.
PRINT_TABLES = """
print(json.dumps({
    "mean": hardness["mean"].to_dict(),
    "number": summary["number"].to_dict(),
    "before": popularity["window_count"].tolist(),
    "promises": promises["broken"].tolist(),
    "row": [user, NIGHT],
    "explained": explained[["kind", "is_positive", "is_known", "interacted", "exposed"]].values.tolist(),
    "here": explained[["kind", "here", "elsewhere"]].fillna("").values.tolist(),
}))
"""


PRINT_NIGHTS = """
shown = table[[f"Recall@{K}", "verdict", "release"]]
print(json.dumps({"nights": shown.to_dict("index"), "gates": gates.iloc[:, 0].tolist(), "live": versions.alias.tolist()}))
"""
PRINT_ANSWER = """
print(json.dumps({"night": NIGHT, "user": user, "hits": int(hits), "answer": explained.item_id.tolist()}))
"""
PRINT_SERVED = """
print(json.dumps({"served": over_http["item_ids"], "recipes": recipes.recipe.tolist(), "history": request["history"],
                  "recall": figures.set_index("model").value.to_dict()}))
"""


def executed(name: str, monkeypatch: pytest.MonkeyPatch, last_cell: str, warehouse: str = "") -> tuple[Any, Any]:
    """Run a notebook and one more cell on a warehouse. Returns the notebook, and the JSON that the last cell prints."""
    monkeypatch.setenv("NIGHTJAR_WAREHOUSE", warehouse.removeprefix("file://"))
    monkeypatch.delenv("NIGHTJAR_NIGHT", raising=False)
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    notebook = nbformat.read(NOTEBOOKS / name, as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell(f"import json\n{last_cell}"))
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(NOTEBOOKS)}}).execute()
    return notebook, json.loads("".join(output.get("text", "") for output in notebook.cells[-1].outputs))


def figures_of(notebook: Any) -> int:
    """Number of plots in the outputs."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return sum("image/png" in output.get("data", {}) for output in outputs)


@pytest.fixture(scope="module")
def simulated(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Warehouse:
    """Three days of a simulated product and one night, up to its samples."""
    warehouse = Warehouse(spark, str(tmp_path_factory.mktemp("wh") / "a warehouse"))
    context: Any = SimpleNamespace(config=CONFIG, spark=spark, warehouse=warehouse, force=False)
    simulate_logs.run(context)
    config = SampleConfig(CONFIG.features, CONFIG.positives, CONFIG.negatives, CONFIG.samples)
    night = Night.open(warehouse, CONFIG.inputs, DS, CONFIG.seed, bootstrap_days=3)
    build_positives(night, config, "a")
    build_negatives(night, config, "a")
    return warehouse


@pytest.mark.slow
def test_tables_of_the_samples_notebook_agree_with_the_samples(
    simulated: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    notebook, shown = executed("01_sample_tables.ipynb", monkeypatch, PRINT_TABLES, simulated.root)
    mean = shown["mean"]
    assert mean["uniform"] < mean["coarse"] < mean["fine"] < mean["positive"]
    rows = simulated.read("samples", DS).count()
    assert shown["number"]["positive"] == rows > 100
    assert {kind: shown["number"][kind] for kind in ("uniform", "fine")} == kinds_of(simulated, uniform=1, fine=4)
    assert shown["promises"] == [0, 0, 0, 0, 0]
    assert shown["before"] == sorted(shown["before"], reverse=True)
    assert len(shown["explained"]) == CONFIG.negatives.total
    assert not any(any(reasons) for _, *reasons in shown["explained"])
    for kind, here, elsewhere in shown["here"]:
        if kind == "coarse":
            assert here.startswith(("recall", "coarse")) or "recall" in elsewhere or "coarse" in elsewhere
        if kind == "fine":
            assert here.startswith(("fine", "rerank")) or "fine" in elsewhere or "rerank" in elsewhere
    assert figures_of(notebook) == 3


@pytest.mark.slow
def test_nights_in_mlflow_have_the_figures_of_the_tables(
    nightly_run: NightlyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    notebook, shown = executed("02_nights_in_mlflow.ipynb", monkeypatch, PRINT_NIGHTS, str(nightly_run.warehouse))
    assert len(shown["nights"]) >= 2
    release = json.loads((nightly_run.warehouse / "releases" / nightly_run.current() / "manifest.json").read_text())
    live = shown["nights"][release["ds"]]
    assert (live["verdict"], live["release"]) == ("Published", release["release_id"])
    (recall,) = [
        row["value"]
        for row in nightly_run.rows("evaluations", release["ds"])
        if (row["model"], row["metric"], row["slice"], row["k"]) == ("two_tower", "recall", "all", 50)
    ]
    assert live["Recall@50"] == pytest.approx(recall, abs=5e-5)
    assert "effective_dimensions" in shown["gates"]
    assert sum("champion" in aliases for aliases in shown["live"]) == 1
    assert figures_of(notebook) == 2


@pytest.mark.slow
def test_the_answers_of_the_third_notebook_are_those_of_the_release(
    nightly_run: NightlyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "03_what_the_model_retrieves.ipynb"
    notebook, shown = executed(name, monkeypatch, PRINT_ANSWER, str(nightly_run.warehouse))
    assert shown["night"] == SECOND
    tomorrow = (date.fromisoformat(SECOND) + timedelta(1)).isoformat()
    clicked = {
        str(row["item_id"])
        for row in nightly_run.rows("interactions", tomorrow)
        if str(row["user_id"]) == shown["user"] and row["action"] == "click"
    }
    assert len(shown["answer"]) == 50
    assert shown["hits"] == len(clicked & set(shown["answer"])) > 0
    assert figures_of(notebook) == 3


@pytest.mark.slow
def test_three_csv_files_become_a_served_model(monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = nbformat.read(NOTEBOOKS / "04_bring_your_own_data.ipynb", as_version=4)
    assert notebook.cells[-1].source.startswith("PLACE.cleanup()")
    _, shown = executed("04_bring_your_own_data.ipynb", monkeypatch, PRINT_SERVED)
    assert len(set(shown["served"])) == 8
    assert set(shown["served"]) <= set(shown["recipes"]) - set(shown["history"])
    assert shown["recall"]["two_tower"] > shown["recall"]["popularity"] > 0


def kinds_of(warehouse: Warehouse, **kinds: int) -> dict[str, int]:
    """Number of negatives of these kinds in the written samples."""
    exploded = warehouse.read("samples", DS).selectExpr("explode(negative_kinds) AS kind").groupBy("kind").count()
    counts = {row["kind"]: row["count"] for row in exploded.collect()}
    return {name: counts[kind] for name, kind in kinds.items()}


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.name)
def test_notebooks_are_stored_with_outputs_that_name_no_folder_of_a_machine(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1)), (
        "run from the first cell to the last"
    )
    outputs = [output for cell in code for output in cell.outputs]
    assert outputs
    assert {output.output_type for output in outputs} <= {"stream", "display_data", "execute_result"}, "no errors"
    assert not ABSOLUTE.search(path.read_text(encoding="utf-8"))
    assert path.stat().st_size < 1_000_000
    ids = [cell.id for cell in notebook.cells]
    assert len(set(ids)) == len(ids)
