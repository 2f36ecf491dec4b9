"""Updates within the day: the events they train on, the tables they change, and that nights do not depend on them."""

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from mlflow.tracking import MlflowClient

from jobs.release.published_changes import file_of
from model.io.tensor_file import TensorFile
from model.io.urls import checksum
from model.serving.retriever import Retriever
from model.training.checkpoint import ITEM_ITEM, PARAMETERS
from tests.jobs.nightly_run import FIRST, SECOND, NightlyRun, rows_of

pytestmark = pytest.mark.slow

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
    """The first night and two updates: the run, its releases in order, and the samples of each update."""
    nightly_run = first_night.copy(tmp_path_factory.mktemp("updated"))
    releases, samples = [nightly_run.current()], []
    for number, (until, changed) in enumerate(((NOON, "model.item_item=null"), (EVENING, "model.item_item.rank=3")), 1):
        output = incremental(nightly_run, "--until", until, "--set", changed)  # An update keeps the part of its night.
        assert "model.item_item differ from those of the night" in output
        releases.append(nightly_run.current())
        folder = tables_of(nightly_run, number, "samples")
        facts = json.loads((folder / "_manifest.json").read_text())["facts"]
        groups = facts["splits"]["train"]["groups"]
        samples += [[row for group in groups for row in pq.ParquetFile(folder / group["path"]).read().to_pylist()]]
    return nightly_run, releases, samples


def test_an_update_trains_on_the_events_since_the_last_one_in_order_of_time(updated: Updated) -> None:
    nightly_run, _, samples = updated
    times = [row["event_time"] for rows in samples for row in rows]
    assert times == sorted(times)
    morning, afternoon = ({row["row_key"] for row in rows} for rows in samples)
    assert morning.isdisjoint(afternoon)
    assert all(row["event_time"].isoformat() <= NOON for row in samples[0])
    assert all(NOON < row["event_time"].isoformat() <= EVENING for row in samples[1])
    # Clicks of the morning are in the histories of the afternoon.
    clicked = {(row["user_id"], row["item_index"]) for row in samples[0]}
    assert any((row["user_id"], item) in clicked for row in samples[1] for item in row["history"])
    assert nightly_run.warehouse.joinpath("updates", f"ds={SECOND}").is_dir()
    assert not tables_of(nightly_run, 1, "samples").exists(), "tables that no later update needs are removed"


def test_only_embedding_tables_change_and_the_changes_are_complete(updated: Updated) -> None:
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
                patch = pq.ParquetFile(new / "changes" / "tables" / file_of(name)).read()
                patched = np.zeros_like(now)
                patched[: len(then)] = then
                patched[patch["row"].to_numpy()] = np.array(patch["values"].to_pylist(), np.float32)
                np.testing.assert_array_equal(patched, now)
                assert patch.num_rows == changes["tables"][name]
        parts = [(folder / "model" / ITEM_ITEM).read_bytes() for folder in (old, new)]
        assert parts[0] == parts[1], "an update keeps the item-item part of its night"
        vectors = {row["item_index"]: row["embedding"] for row in rows_of(old / "embeddings")}
        changed = rows_of(new / "changes" / "items")
        assert len(changed) == changes["items"] > 0
        vectors |= {row["item_index"]: row["embedding"] for row in changed}
        for row in rows_of(new / "changes" / "gone"):
            del vectors[row["item_index"]]
        assert vectors == {row["item_index"]: row["embedding"] for row in rows_of(new / "embeddings")}
        assert manifest["update"]["base"] == before
        assert manifest["update"]["night"] == releases[0]
        assert all(checksum(str(new / name)) == digest for name, digest in manifest["files"].items())


def test_an_update_is_served_like_any_release(updated: Updated, tmp_path: Path) -> None:
    nightly_run, releases, samples = updated
    nightly_run.run("recommend", "--ds", SECOND, "--k", "5", "--output", str(tmp_path / "out"))
    rows = rows_of(tmp_path / "out")
    assert {row["user_id"] for row in samples[1]} <= {str(row["user_id"]) for row in rows}
    state = {row["user_id"]: row["history_items"] for row in rows_of(tables_of(nightly_run, 2, "user_histories"))}
    ids = {row["item_index"]: int(row["item_id"]) for row in rows_of(tables_of(nightly_run, 2, "item_features"))}
    newest = max((nightly_run.warehouse / "users").glob("ds=*"))
    users = {str(row["user_id"]): row for row in rows_of(newest)}
    user = samples[1][-1]["user_id"]
    request = {"history": [ids[item] for item in state[user]]}
    request |= {name: users[user][name] for name in ("user_id", "age", "interests")}
    (answer,) = Retriever(str(nightly_run.warehouse / "releases" / releases[-1])).retrieve([request], 5)
    best = sorted((row["rank"], row["item_id"]) for row in rows if str(row["user_id"]) == user)
    assert [item for _, item in best] == answer.item_ids


def test_mlflow_has_the_recall_before_each_update_and_champion_is_the_last_one(updated: Updated) -> None:
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


def test_an_update_that_was_killed_after_publishing_is_completed_by_the_next_run(updated: Updated) -> None:
    nightly_run, releases, _ = updated
    client = MlflowClient(nightly_run.tracking_uri)
    versions = {
        version.tags["release_id"]: version.version for version in client.search_model_versions("name = 'nightjar'")
    }
    experiment = client.get_experiment_by_name("nightjar").experiment_id
    (update_run,) = client.search_runs([experiment], f"tags.`nightjar.night` = '{SECOND} update-2'")
    # State after SIGKILL between the updates of `current.json` and of the alias.
    client.set_registered_model_alias("nightjar", "champion", versions[releases[1]])
    client.update_run(update_run.info.run_id, status="RUNNING")
    assert "nothing to do" in incremental(nightly_run, "--until", EVENING)
    assert nightly_run.current() == releases[-1]
    assert client.get_model_version_by_alias("nightjar", "champion").version == versions[releases[-1]]
    assert client.get_run(update_run.info.run_id).info.status == "FINISHED"


def test_an_update_refuses_a_time_of_another_day_and_a_release_of_another_night(updated: Updated) -> None:
    nightly_run, releases, _ = updated
    assert "--until '2024-03-06T01:00' is not a time of ds=2024-03-05" in incremental(
        nightly_run, "--until", "2024-03-06T01:00", code=2
    )
    output = nightly_run.run("incremental", "--ds", "2024-03-06", code=3)
    assert f"the release in use is {releases[-1]}: run jobs.nightly for ds={SECOND}" in output


def test_an_update_refuses_a_model_that_was_trained_again_since_the_release(
    first_night: NightlyRun, tmp_path: Path
) -> None:
    nightly_run = first_night.copy(tmp_path / "other")
    choice = ("--set", "training.bootstrap_epochs=auto", "--set", "training.bootstrap_max_epochs=2")
    output = nightly_run.run("train", "--ds", FIRST, *choice)
    epochs = re.findall(r"epoch (\d) of at most 2: loss \d+\.\d+ on the held-out hours", output)
    assert epochs == ["1", "2"]
    kept = re.search(r"training: keeps epoch (\d) of 2", output)
    assert kept is not None
    assert nightly_run.manifest("models", FIRST)["facts"]["epochs"] == int(kept[1])
    output = incremental(nightly_run, "--until", NOON, code=3)
    assert f"release {nightly_run.current()} is not of the model of ds={FIRST}, which was trained again since" in output


def test_after_a_rollback_to_an_earlier_update_the_next_one_restarts_from_the_night(
    updated: Updated, tmp_path: Path
) -> None:
    """The tables of that update were removed, so the next one trains on all events since the night again."""
    nightly_run, releases, samples = updated
    back = nightly_run.copy(tmp_path / "back")
    back.run("releases", "rollback", releases[1])
    incremental(back, "--until", EVENING)
    update = manifest_of(back, back.current())["update"]
    assert (update["number"], update["after"], update["base"]) == (1, None, releases[0])
    groups = back.manifest(f"updates/ds={SECOND}/001/samples", SECOND)["facts"]["splits"]["train"]["groups"]
    assert sum(group["rows"] for group in groups) == sum(map(len, samples))


def test_the_night_after_updates_equals_the_night_without_them(
    updated: Updated, nightly_run: NightlyRun, tmp_path: Path
) -> None:
    """The night replaces its updates and removes their tables. A rollback from the updates ends at the release before them."""
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
