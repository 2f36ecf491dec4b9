"""The page that a night writes: the figure of the newest night, and users and items checked against the tables."""

import json
import shutil
from typing import Any

import numpy as np
import pytest
from mlflow.tracking import MlflowClient

from tests.jobs.nightly_run import FIRST, SECOND, NightlyRun

PARTS = ("recall", "trend", "gates", "inputs", "samples", "popularity", "training", "index", "config", "users", "items")


def examples(nightly_run: NightlyRun, ds: str) -> dict[str, Any]:
    return json.loads((nightly_run.warehouse / "reports" / f"ds={ds}" / "examples.json").read_text())


def page(nightly_run: NightlyRun, ds: str) -> str:
    return (nightly_run.warehouse / "reports" / f"ds={ds}" / "report.html").read_text()


def unit_vectors(nightly_run: NightlyRun, ds: str) -> dict[int, np.ndarray]:
    rows = nightly_run.rows("item_embeddings", ds)
    # The components of the towers. After them come those of the item-item part and the recency prior.
    return {r["item_index"]: np.array(r["embedding"][:16]) for r in rows}


def test_every_night_has_a_page_with_every_part(nightly_run: NightlyRun) -> None:
    for ds in (FIRST, SECOND):
        text = page(nightly_run, ds)
        assert all(f'<section id="{part}">' in text for part in PARTS)
        recall = next(
            row["value"]
            for row in nightly_run.rows("evaluations", ds)
            if (row["model"], row["metric"], row["k"], row["slice"]) == ("two_tower", "recall", 50, "all")
        )
        assert f"Recall@50 {recall:.3f} [" in text
        assert "positives of the next day, items new to the user" in text
    assert "nprobe = " in page(nightly_run, SECOND)
    assert f"No setting changed since the night of {FIRST}" in page(nightly_run, SECOND)


def test_the_page_is_an_artifact_of_the_run_of_the_night(nightly_run: NightlyRun) -> None:
    client = MlflowClient(nightly_run.tracking_uri)
    experiment = client.get_experiment_by_name("nightjar").experiment_id
    (run,) = client.search_runs([experiment], f"tags.`nightjar.night` = '{FIRST}'")
    assert "report.html" in {file.path for file in client.list_artifacts(run.info.run_id)}


def test_users_are_explained_by_their_own_tables(nightly_run: NightlyRun) -> None:
    users = examples(nightly_run, SECOND)["users"]
    assert (users["ds"], users["days"], len(users["rows"])) == (SECOND, ["2024-03-06"], 20)
    vectors = unit_vectors(nightly_run, SECOND)
    states = {row["user_id"]: row for row in nightly_run.rows("user_histories", SECOND)}
    index_of = {r["value"]: r["index"] for r in nightly_run.rows("vocabularies", SECOND) if r["feature"] == "item_id"}
    clicks: dict[str, set[int]] = {}
    for row in nightly_run.rows("interactions", "2024-03-06"):
        if row["action"] == "click":
            clicks.setdefault(str(row["user_id"]), set()).add(index_of.get(str(row["item_id"]), -1))
    for user in users["rows"]:
        state = states.get(user["user"], {"history_items": [], "known_items": []})
        newest_first = state["known_items"][-10:][::-1]  # the order is leave_one_out
        assert user["history"] == newest_first[:8]
        wanted = (clicks[user["user"]] & vectors.keys()) - set(state["known_items"])
        assert {entry["item"] for entry in user["next"]} <= wanted
        assert len(user["next"]) == min(8, len(wanted))
        scores = [entry["score"] for entry in user["retrieved"]]
        assert scores == sorted(scores, reverse=True)
        for entry in user["retrieved"]:
            assert entry["item"] not in state["known_items"]
            assert entry["hit"] == (entry["item"] in wanted)
            cosines = {past: vectors[past] @ vectors[entry["item"]] for past in newest_first if past in vectors}
            if cosines:
                assert entry["cosine"] == pytest.approx(max(cosines.values()), abs=1e-4)
                assert cosines[entry["near"]] == pytest.approx(max(cosines.values()), abs=1e-4)
        ranks = {entry["item"]: entry["rank"] for entry in user["next"]}
        assert all(ranks[e["item"]] == place for place, e in enumerate(user["retrieved"], 1) if e["item"] in ranks)


def test_the_neighbours_of_items_are_the_nearest_by_cosine(nightly_run: NightlyRun) -> None:
    items, vectors = examples(nightly_run, SECOND)["items"], unit_vectors(nightly_run, SECOND)
    assert len(items["rows"]) == 10
    counts = {row["item_index"]: row["window_count"] for row in nightly_run.rows("item_stats", SECOND) if row["live"]}
    popular = [row["item"] for row in items["rows"][:5]]
    assert sorted((counts[item] for item in popular), reverse=True) == sorted(counts.values(), reverse=True)[:5]
    for row in items["rows"]:
        cosines = sorted((v @ vectors[row["item"]] for item, v in vectors.items() if item != row["item"]), reverse=True)
        assert [cosine for _, cosine in row["near"]] == pytest.approx(cosines[:6], abs=1e-4)
        name = items["names"][str(row["item"])]
        assert name["id"].isdecimal()
        assert name["about"].startswith("category_")


def test_popularity_is_cumulated_over_all_items(nightly_run: NightlyRun) -> None:
    curve = examples(nightly_run, SECOND)["popularity"]["curve"]
    rows = nightly_run.rows("item_stats", SECOND)
    counts = np.sort([row["window_count"] for row in rows])[::-1]
    assert curve[-1] == [len(rows), 1.0, 1.0]
    for rank, before, _ in curve:
        assert before == pytest.approx(counts[:rank].sum() / counts.sum(), abs=1e-4)


def test_a_second_run_writes_the_same_page(nightly_run: NightlyRun) -> None:
    before = {name: (nightly_run.warehouse / "reports" / f"ds={SECOND}" / name).read_bytes() for name in
              ("report.html", "examples.json", "night.json")}  # fmt: skip
    nightly_run.run("nightly", "--ds", SECOND)
    for name, content in before.items():
        assert (nightly_run.warehouse / "reports" / f"ds={SECOND}" / name).read_bytes() == content, name


@pytest.mark.slow
def test_a_night_evaluates_the_release_of_the_night_before_on_its_day(nightly_run: NightlyRun) -> None:
    """As it does when the log of ds did not exist yet in the night before. The page then explains that release."""
    shared = {f"evaluations/ds={ds}": nightly_run.warehouse / "evaluations" / f"ds={ds}" for ds in (FIRST, SECOND)}
    rows, facts = nightly_run.rows("evaluations", FIRST), nightly_run.manifest("evaluations", FIRST)["facts"]
    client = MlflowClient(nightly_run.tracking_uri)
    experiments = [client.get_experiment_by_name("nightjar").experiment_id]
    runs = {run.info.run_id for run in client.search_runs(experiments)}
    aside = nightly_run.folder / "later"
    aside.mkdir()
    later = nightly_run.warehouse / "interactions" / "ds=2024-03-06"
    shutil.move(later, aside / "interactions")
    shutil.move(shared[f"evaluations/ds={SECOND}"], aside / "evaluations")
    shutil.rmtree(shared[f"evaluations/ds={FIRST}"])
    try:
        output = nightly_run.run("nightly", "--ds", SECOND)
        assert f"evaluate {FIRST}: the question is: positives of the next day, items new to the user" in output
        assert nightly_run.rows("evaluations", FIRST) == rows
        assert nightly_run.manifest("evaluations", FIRST)["facts"] == facts
        assert f"evaluate {FIRST}" not in nightly_run.run("nightly", "--ds", SECOND)
        report = nightly_run.run("report", "--ds", SECOND)
        assert f"* of the release of {FIRST} on {SECOND}" in report
        assert f"of the release of {FIRST} on this day" in page(nightly_run, SECOND)
        assert examples(nightly_run, SECOND)["users"]["ds"] == FIRST
    finally:
        shutil.move(aside / "interactions", later)
        shutil.move(aside / "evaluations", shared[f"evaluations/ds={SECOND}"])
        nightly_run.run("nightly", "--ds", SECOND)
        for run in client.search_runs(experiments):
            if run.info.run_id not in runs:  # Tests that share the warehouse count the runs of a night.
                client.delete_run(run.info.run_id)


@pytest.mark.slow
def test_a_night_that_fails_at_its_inputs_has_a_page_with_cause_and_remedy(first_night_copy: NightlyRun) -> None:
    shutil.rmtree(first_night_copy.warehouse / "interactions" / f"ds={SECOND}")
    output = first_night_copy.run("nightly", "--ds", SECOND, code=3)
    assert f"reports/ds={SECOND}/report.html" in output
    text = page(first_night_copy, SECOND)
    assert "Step build_positives failed" in text
    assert text.index("Cause") < text.index(f"has no partition for ds={SECOND}") < text.index("Remedy")
