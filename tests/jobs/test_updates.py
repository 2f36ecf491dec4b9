"""Updates within the day: what they learn from, what they change, and that nights know nothing of them."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from mlflow.tracking import MlflowClient

from jobs.release.changes import file_of
from model.io.tensor_file import TensorFile
from model.io.urls import checksum
from model.serving.retriever import Retriever
from model.training.checkpoint import PARAMETERS
from tests.jobs.nightly_run import FIRST, SECOND, NightlyRun, rows_of

Updated = tuple[NightlyRun, list[str], list[list[dict[str, Any]]]]
NOON, EVENING = f"{SECOND}T12:00", f"{SECOND}T18:00"


def manifest_of(nightly_run: NightlyRun, release: str) -> dict[str, Any]:
    return json.loads((nightly_run.warehouse / "releases" / release / "manifest.json").read_text())


def incremental(nightly_run: NightlyRun, *flags: str, code: int = 0) -> str:
    return nightly_run.run("incremental", "--ds", SECOND, *flags, code=code)


def tables_of(nightly_run: NightlyRun, number: int, table: str) -> Path:
    return nightly_run.warehouse / "updates" / f"ds={SECOND}" / f"{number:03d}" / table / f"ds={SECOND}"


@pytest.fixture(scope="module")
def updated(first_night: NightlyRun, tmp_path_factory: pytest.TempPathFactory) -> Updated:
    """The first night, then two updates; its releases in order, and the samples of each update."""
    nightly_run = first_night.copy(tmp_path_factory.mktemp("updated"))
    releases, samples = [nightly_run.current()], []
    for number, until in enumerate((NOON, EVENING), 1):
        incremental(nightly_run, "--until", until)
        releases.append(nightly_run.current())
        folder = tables_of(nightly_run, number, "samples")
        facts = json.loads((folder / "_manifest.json").read_text())["facts"]
        groups = facts["splits"]["train"]["groups"]
        samples += [[row for group in groups for row in pq.ParquetFile(folder / group["path"]).read().to_pylist()]]
    return nightly_run, releases, samples


def test_an_update_learns_from_what_came_since_the_last_one_in_the_order_of_time(updated: Updated) -> None:
    nightly_run, _, samples = updated
    every = [row["event_time"] for rows in samples for row in rows]
    assert every == sorted(every)
    morning, afternoon = ({row["row_key"] for row in rows} for rows in samples)
    assert morning.isdisjoint(afternoon)
    assert all(row["event_time"].isoformat() <= NOON for row in samples[0])
    assert all(NOON < row["event_time"].isoformat() <= EVENING for row in samples[1])
    # What the user did in the morning is history in the afternoon.
    did = {(row["user_id"], row["item_index"]) for row in samples[0]}
    assert any((row["user_id"], item) in did for row in samples[1] for item in row["history"])
    assert nightly_run.warehouse.joinpath("updates", f"ds={SECOND}").is_dir()
    assert not tables_of(nightly_run, 1, "samples").exists(), "what no update goes on from is removed"


def test_nothing_but_embedding_tables_changes_and_changes_are_told_whole(updated: Updated) -> None:
    nightly_run, releases, _ = updated
    for before, after in pairwise(releases):
        old, new = (nightly_run.warehouse / "releases" / name for name in (before, after))
        manifest = manifest_of(nightly_run, after)
        changes = manifest["changes"]
        with TensorFile(f"{old}/model/{PARAMETERS}") as one, TensorFile(f"{new}/model/{PARAMETERS}") as other:
            for name in one.names:
                then, now = one.read(name).numpy(), other.read(name).numpy()
                if name not in changes["tables"]:
                    np.testing.assert_array_equal(then, now)
                    continue
                told = pq.ParquetFile(new / "changes" / "tables" / file_of(name)).read()
                patched = np.zeros_like(now)
                patched[: len(then)] = then
                patched[told["row"].to_numpy()] = np.array(told["values"].to_pylist(), np.float32)
                np.testing.assert_array_equal(patched, now)
                assert told.num_rows == changes["tables"][name]
        vectors = {row["item_index"]: row["embedding"] for row in rows_of(old / "embeddings")}
        found = rows_of(new / "changes" / "items")
        assert len(found) == changes["items"] > 0
        vectors |= {row["item_index"]: row["embedding"] for row in found}
        for row in rows_of(new / "changes" / "gone"):
            del vectors[row["item_index"]]
        assert vectors == {row["item_index"]: row["embedding"] for row in rows_of(new / "embeddings")}
        assert manifest["update"]["base"] == before
        assert manifest["update"]["night"] == releases[0]
        assert all(checksum(str(new / name)) == digest for name, digest in manifest["files"].items())


def test_those_who_serve_read_an_update_like_any_release(updated: Updated, tmp_path: Path) -> None:
    nightly_run, releases, samples = updated
    nightly_run.run("recommend", "--ds", SECOND, "--k", "5", "--output", str(tmp_path / "out"))
    rows = rows_of(tmp_path / "out")
    assert {row["user_id"] for row in samples[1]} <= {str(row["user_id"]) for row in rows}
    state = {row["user_id"]: row["history_items"] for row in rows_of(tables_of(nightly_run, 2, "user_histories"))}
    ids = {row["item_index"]: row["item_id"] for row in rows_of(tables_of(nightly_run, 2, "item_features"))}
    newest = max((nightly_run.warehouse / "users").glob("ds=*"))
    users = {str(row["user_id"]): row for row in rows_of(newest)}
    user = samples[1][-1]["user_id"]
    asked = {"history": [ids[item] for item in state[user]]}
    asked |= {name: users[user][name] for name in ("user_id", "age", "interests")}
    (found,) = Retriever(str(nightly_run.warehouse / "releases" / releases[-1])).retrieve([asked], 5)
    best = sorted((row["rank"], row["item_id"]) for row in rows if str(row["user_id"]) == user)
    assert [item for _, item in best] == found.item_ids


def test_the_record_has_the_recall_of_before_and_champion_goes_along(updated: Updated) -> None:
    nightly_run, releases, _ = updated
    client = MlflowClient(nightly_run.tracking_uri)
    champion = client.get_model_version_by_alias("nightjar", "champion")
    assert champion.tags["release_id"] == releases[-1]
    experiment = client.get_experiment_by_name("nightjar").experiment_id
    runs = client.search_runs([experiment])
    nights = {run.data.tags["nightjar.night"]: run for run in runs if "nightjar.night" in run.data.tags}
    assert nights.keys() == {FIRST, f"{SECOND} update-1", f"{SECOND} update-2"}
    assert all(run.info.status == "FINISHED" for run in nights.values())
    (record,) = [run for run in runs if run.data.tags.get("nightjar.record")]
    points = {name: client.get_metric_history(record.info.run_id, name) for name in record.data.metrics}
    for name in ("within_day.recall_at_50", "within_day.night.recall_at_50"):
        assert [point.step for point in sorted(points[name], key=lambda point: point.step)] == [28_494_000, 28_494_360]
    assert "test_then_train.recall_at_50" not in points


def test_an_update_that_was_killed_when_it_had_published_is_completed_by_the_next(updated: Updated) -> None:
    nightly_run, releases, _ = updated
    client = MlflowClient(nightly_run.tracking_uri)
    versions = {one.tags["release_id"]: one.version for one in client.search_model_versions("name = 'nightjar'")}
    experiment = client.get_experiment_by_name("nightjar").experiment_id
    (run_of_it,) = client.search_runs([experiment], f"tags.`nightjar.night` = '{SECOND} update-2'")
    # What SIGKILL leaves between the moves of `current` and of the alias.
    client.set_registered_model_alias("nightjar", "champion", versions[releases[1]])
    client.update_run(run_of_it.info.run_id, status="RUNNING")
    assert "nothing to do" in incremental(nightly_run, "--until", EVENING)
    assert nightly_run.current() == releases[-1]
    assert client.get_model_version_by_alias("nightjar", "champion").version == versions[releases[-1]]
    assert client.get_run(run_of_it.info.run_id).info.status == "FINISHED"


def test_what_an_update_cannot_go_on_from(updated: Updated) -> None:
    nightly_run, releases, _ = updated
    assert "--until '2024-03-06T01:00' is no time of ds=2024-03-05" in incremental(
        nightly_run, "--until", "2024-03-06T01:00", code=2
    )
    said = nightly_run.run("incremental", "--ds", "2024-03-06", code=3)
    assert f"the one in use is {releases[-1]}: run jobs.nightly for ds={SECOND}" in said


def test_an_update_needs_the_model_that_the_release_in_use_was_made_of(first_night: NightlyRun, tmp_path: Path) -> None:
    nightly_run = first_night.copy(tmp_path / "other")
    nightly_run.run("train", "--ds", FIRST, "--set", "training.bootstrap_epochs=1")
    said = incremental(nightly_run, "--until", NOON, code=3)
    assert f"release {nightly_run.current()} is not of the model of ds={FIRST}, which was trained again since" in said


def test_after_going_back_to_an_earlier_update_the_next_one_begins_at_the_night(
    updated: Updated, tmp_path: Path
) -> None:
    """Its own tables are gone, so the events since the night are learnt from again; none is lost."""
    nightly_run, releases, samples = updated
    back = nightly_run.copy(tmp_path / "back")
    back.run("releases", "rollback", releases[1])
    incremental(back, "--until", EVENING)
    told = manifest_of(back, back.current())["update"]
    assert (told["number"], told["after"], told["base"]) == (1, None, releases[0])
    groups = back.manifest(f"updates/ds={SECOND}/001/samples", SECOND)["facts"]["splits"]["train"]["groups"]
    assert sum(group["rows"] for group in groups) == sum(map(len, samples))


def test_the_night_is_what_it_would_have_been(updated: Updated, nightly_run: NightlyRun, tmp_path: Path) -> None:
    """And it takes the place of its updates, whose tables are gone then; so does going back to the release before them."""
    other, releases, _ = updated
    back, mine = (other.copy(tmp_path / name) for name in ("back", "on"))
    back.run("releases", "rollback")
    assert back.current() == releases[0]
    mine.run("nightly", "--ds", SECOND)
    place = f"models/ds={SECOND}/{PARAMETERS}"
    assert checksum(str(mine.warehouse / place)) == checksum(str(nightly_run.warehouse / place))
    manifest = manifest_of(mine, mine.current())
    assert "update" not in manifest
    assert manifest["ds"] == SECOND
    gates = json.loads((mine.release / "gates.json").read_text())
    assert gates["against"] == releases[0]
    assert not (mine.warehouse / "updates" / f"ds={SECOND}").exists()
