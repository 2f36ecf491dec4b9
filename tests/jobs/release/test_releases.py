"""jobs/releases.py: list, show, roll back and prune releases."""

import argparse
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient
from pyspark.sql import SparkSession

from jobs import publish_items, recommend, releases
from jobs.common.config import load_config
from jobs.common.runner import Context
from jobs.night.steps import as_job
from jobs.release.store import all_releases, find_release
from model.serving.release import ReleaseError
from pipelines.contract.errors import InputError, UsageError
from pipelines.storage.locks import LockedError, locked
from pipelines.storage.warehouse import Warehouse
from tests.jobs.nightly_run import FIRST, SECOND, NightlyRun

ContextOf = Callable[..., Context]


@pytest.fixture
def context_of(nightly_run: NightlyRun, spark: SparkSession, tmp_path: Path) -> ContextOf:
    """Makes a context of jobs/releases.py from flags, on a copy of the nightly run."""
    shutil.copytree(nightly_run.warehouse, tmp_path / "w")
    config = load_config(nightly_run.config, [f"warehouse={tmp_path / 'w'}"])
    context = Context(config, spark, Warehouse(spark, config.warehouse), argparse.Namespace())

    def with_flags(*flags: str) -> Context:
        args = releases._flags().parse_args([*flags, "--config", nightly_run.config])
        return replace(context, args=args, force=args.force)

    return with_flags


def of_day(context: Context, ds: str) -> str:
    return next(r.release_id for r in all_releases(context.warehouse) if r.manifest["ds"] == ds)


def current(context: Context) -> dict[str, object]:
    return json.loads(context.warehouse.read_text(f"{context.warehouse.root}/releases/current.json"))


def champion(context: Context) -> str:
    client = MlflowClient(f"sqlite:///{context.warehouse.root.removeprefix('file://')}/mlflow.db")
    return str(client.get_model_version_by_alias("nightjar", "champion").tags["release_id"])


def test_the_list_marks_the_current_release(context_of: ContextOf, capsys: pytest.CaptureFixture[str]) -> None:
    context = context_of("list")
    releases.run(context)
    header, newest, oldest = capsys.readouterr().out.splitlines()
    assert header.split() == ["release", "ds", "items", "dim", "index", "state", "gates", "recall@50"]
    assert newest.split()[:3] == [of_day(context, SECOND), SECOND, str(find_release(context).manifest["items"])]
    assert "current" in newest
    assert "IVF16,Flat nprobe=" in newest
    assert 0 < float(newest.split()[-1]) < 1
    assert oldest.startswith(of_day(context, FIRST))
    assert "current" not in oldest


def test_a_rollback_stays_until_a_forced_publish_or_a_rollback_by_name(
    context_of: ContextOf, capsys: pytest.CaptureFixture[str]
) -> None:
    context = context_of("rollback")
    first, second = of_day(context, FIRST), of_day(context, SECOND)
    assert (current(context)["release_id"], champion(context)) == (second, second)
    releases.run(context)
    assert current(context) == {"release_id": first, "ds": FIRST, "rolled_back": [second]}
    assert champion(context) == first
    releases.run(context_of("list"))
    assert f"{second}  {SECOND}" in (output := capsys.readouterr().out)
    assert "rolled back" in output
    with pytest.raises(InputError, match=f"no release of a day before {FIRST} has passed its gates"):
        releases.run(context)

    night = replace(context.at(SECOND), args=argparse.Namespace())
    as_job("publish_items", publish_items.run)(night)
    assert (current(context)["release_id"], champion(context)) == (first, first)
    as_job("publish_items", publish_items.run)(replace(night, force=True))
    assert current(context) == {"release_id": second, "ds": SECOND, "rolled_back": []}
    assert champion(context) == second
    releases.run(context_of("rollback", first))
    releases.run(context_of("rollback", second))  # forward by name
    assert current(context) == {"release_id": second, "ds": SECOND, "rolled_back": [first]}
    assert champion(context) == second


def test_a_rollback_to_a_refused_or_damaged_release_is_refused(context_of: ContextOf) -> None:
    context = context_of("rollback")
    first = find_release(context, of_day(context, FIRST))
    verdict = json.loads(context.warehouse.read_text(f"{first.uri}/gates.json"))
    verdict["gates"][0]["limit"] = 1e9
    context.warehouse.write_text(f"{first.uri}/gates.json", json.dumps(verdict))
    with pytest.raises(InputError, match="has passed its gates"):
        releases.run(context)
    with pytest.raises(UsageError, match=f"{first.release_id} was refused by effective_dimensions: use --force"):
        releases.run(context_of("rollback", first.release_id))
    Path(first.uri.removeprefix("file://"), "index.faiss").unlink()
    with pytest.raises(ReleaseError, match=rf"release {first.release_id}, file index.faiss: is missing. .* rollback"):
        releases.run(context_of("rollback", first.release_id, "--force"))
    assert current(context)["ds"] == SECOND


def test_a_release_that_was_changed_is_refused_by_readers(
    context_of: ContextOf, capsys: pytest.CaptureFixture[str]
) -> None:
    context = context_of("show")
    release = find_release(context)
    releases.run(context)
    output = capsys.readouterr().out
    assert f"{len(release.manifest['files'])} of {len(release.manifest['files'])} files as published" in output
    assert '"state": "current"' in output
    index = Path(release.uri.removeprefix("file://"), "index.faiss")
    raw = bytearray(index.read_bytes())
    raw[-1] ^= 1
    index.write_bytes(raw)
    flags = ["--config", "-", "--ds", SECOND, "--output", str(index.parent / "top")]
    night = replace(context.at(SECOND), args=recommend._flags().parse_args(flags))
    message = rf"release {release.release_id}, file index.faiss: is not what was published .* --ds {SECOND} --force"
    with pytest.raises(ReleaseError, match=message) as error:
        recommend.run(night)
    assert error.value.exit_code == 3
    releases.run(context)
    assert "index.faiss: is not what was published" in capsys.readouterr().out


def test_prune_keeps_the_newest_and_the_current_release(context_of: ContextOf) -> None:
    context = context_of("prune", "--keep", "1")
    first, second = of_day(context, FIRST), of_day(context, SECOND)
    releases.run(context_of("rollback"))
    releases.run(context)
    assert {r.release_id for r in all_releases(context.warehouse)} == {first, second}
    releases.run(context_of("rollback", second))
    with locked(context.warehouse, FIRST, "publish_items"), pytest.raises(LockedError, match="publish_items"):
        releases.run(context)
    assert find_release(context, first).release_id == first
    releases.run(context)
    assert [r.release_id for r in all_releases(context.warehouse)] == [second]
    with pytest.raises(InputError, match=f"release '{first}' is not in"):
        find_release(context, first)
    left = Path(context.warehouse.root.removeprefix("file://"), "releases")
    assert {path.name for path in left.iterdir()} == {second, "current.json"}
    shutil.copytree(left / second, left / first)
    (left / first / "manifest.json").unlink()  # as after a prune that was killed
    releases.run(context)
    assert {path.name for path in left.iterdir()} == {second, "current.json"}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["list", "2024-03-04-x"], "takes no release id"),
        (["prune"], "prune needs it"),
        (["list", "--keep", "2"], "belongs to prune"),
    ],
)
def test_flags_of_another_action_are_refused(flags: list[str], message: str) -> None:
    args = releases._flags().parse_args([*flags, "--config", "none.yaml"])
    with pytest.raises(UsageError, match=message):
        releases.run(Context(None, None, None, args))  # type: ignore[arg-type]
