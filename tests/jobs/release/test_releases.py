"""The life of releases: listed, checked, left and come back to, pruned."""

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
from jobs.common.steps import alone
from jobs.release.store import all_releases, find_release
from model.serving.release import ReleaseError
from pipelines.contract.errors import InputError, UsageError
from pipelines.storage.locks import LockedError, locked
from pipelines.storage.warehouse import Warehouse
from tests.jobs.nightly_run import FIRST, SECOND, NightlyRun

Ask = Callable[..., Context]


@pytest.fixture
def ask(nightly_run: NightlyRun, spark: SparkSession, tmp_path: Path) -> Ask:
    """A context on a copy of the nightly run, to run `releases` with flags."""
    shutil.copytree(nightly_run.warehouse, tmp_path / "w")
    config = load_config(nightly_run.config, [f"warehouse={tmp_path / 'w'}"])
    context = Context(config, spark, Warehouse(spark, config.warehouse), argparse.Namespace())

    def on(*words: str) -> Context:
        args = releases._flags().parse_args([*words, "--config", nightly_run.config])
        return replace(context, args=args, force=args.force)

    return on


def of_day(context: Context, ds: str) -> str:
    return next(r.release_id for r in all_releases(context.warehouse) if r.manifest["ds"] == ds)


def current(context: Context) -> dict[str, object]:
    return json.loads(context.warehouse.read_text(f"{context.warehouse.root}/releases/current.json"))


def champion(context: Context) -> str:
    client = MlflowClient(f"sqlite:///{context.warehouse.root.removeprefix('file://')}/mlflow.db")
    return str(client.get_model_version_by_alias("nightjar", "champion").tags["release_id"])


def test_a_list_says_what_is_in_use(ask: Ask, capsys: pytest.CaptureFixture[str]) -> None:
    context = ask("list")
    releases.run(context)
    header, newest, oldest = capsys.readouterr().out.splitlines()
    assert header.split() == ["release", "ds", "items", "dim", "index", "state", "gates", "recall@50"]
    assert newest.split()[:3] == [of_day(context, SECOND), SECOND, str(find_release(context).manifest["items"])]
    assert "current" in newest
    assert "IVF16,Flat nprobe=" in newest
    assert 0 < float(newest.split()[-1]) < 1
    assert oldest.startswith(of_day(context, FIRST))
    assert "current" not in oldest


def test_back_and_not_forward_again_by_itself(ask: Ask, capsys: pytest.CaptureFixture[str]) -> None:
    context = ask("rollback")
    first, second = of_day(context, FIRST), of_day(context, SECOND)
    assert (current(context)["release_id"], champion(context)) == (second, second)
    releases.run(context)
    assert current(context) == {"release_id": first, "ds": FIRST, "rolled_back": [second]}
    assert champion(context) == first
    releases.run(ask("list"))
    assert f"{second}  {SECOND}" in (said := capsys.readouterr().out)
    assert "rolled back" in said
    with pytest.raises(InputError, match=f"no release of a day before {FIRST} has passed its gates"):
        releases.run(context)

    night = replace(context.at(SECOND), args=argparse.Namespace())
    alone(publish_items.run)(night)
    assert (current(context)["release_id"], champion(context)) == (first, first)
    alone(publish_items.run)(replace(night, force=True))
    assert current(context) == {"release_id": second, "ds": SECOND, "rolled_back": []}
    assert champion(context) == second
    releases.run(ask("rollback", first))
    releases.run(ask("rollback", second))  # Forward by name.
    assert current(context) == {"release_id": second, "ds": SECOND, "rolled_back": [first]}
    assert champion(context) == second


def test_nobody_goes_to_a_refused_or_damaged_release(ask: Ask) -> None:
    context = ask("rollback")
    first = find_release(context, of_day(context, FIRST))
    verdict = json.loads(context.warehouse.read_text(f"{first.uri}/gates.json"))
    verdict["gates"][0]["limit"] = 1e9
    context.warehouse.write_text(f"{first.uri}/gates.json", json.dumps(verdict))
    with pytest.raises(InputError, match="has passed its gates"):
        releases.run(context)
    with pytest.raises(UsageError, match=f"{first.release_id} was refused by effective_dimensions: --force goes"):
        releases.run(ask("rollback", first.release_id))
    Path(first.uri.removeprefix("file://"), "index.faiss").unlink()
    with pytest.raises(ReleaseError, match=rf"release {first.release_id}, file index.faiss: is missing. .* rollback"):
        releases.run(ask("rollback", first.release_id, "--force"))
    assert current(context)["ds"] == SECOND


def test_readers_refuse_a_tampered_release(ask: Ask, capsys: pytest.CaptureFixture[str]) -> None:
    context = ask("show")
    release = find_release(context)
    releases.run(context)
    said = capsys.readouterr().out
    assert f"{len(release.manifest['files'])} of {len(release.manifest['files'])} files as published" in said
    assert '"state": "current"' in said
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


def test_pruning_keeps_the_newest_and_the_current(ask: Ask) -> None:
    context = ask("prune", "--keep", "1")
    first, second = of_day(context, FIRST), of_day(context, SECOND)
    releases.run(ask("rollback"))
    releases.run(context)
    assert {r.release_id for r in all_releases(context.warehouse)} == {first, second}
    releases.run(ask("rollback", second))
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
    (left / first / "manifest.json").unlink()  # As a prune that was killed leaves it.
    releases.run(context)
    assert {path.name for path in left.iterdir()} == {second, "current.json"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["list", "2024-03-04-x"], "takes no release id"),
        (["prune"], "prune needs it"),
        (["list", "--keep", "2"], "belongs to prune"),
    ],
)
def test_what_does_not_go_together(words: list[str], said: str) -> None:
    args = releases._flags().parse_args([*words, "--config", "none.yaml"])
    with pytest.raises(UsageError, match=said):
        releases.run(Context(None, None, None, args))  # type: ignore[arg-type]
