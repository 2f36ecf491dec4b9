"""Object stores: Hadoop settings reach Python processes, and files are replaced without a rename."""

import json
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from pipelines.contract.errors import UsageError
from pipelines.files import filesystem
from pipelines.files.filesystem import FileSystem
from pipelines.files.object_stores import OPTIONS, share_stores, store_options
from pipelines.storage.warehouse import Warehouse


@pytest.mark.parametrize(
    ("settings", "options"),
    [
        ({}, {}),
        (
            {"fs.s3a.access.key": "k", "fs.s3a.secret.key": "s", "fs.s3a.session.token": "t"},
            {"s3": {"access_key": "k", "secret_key": "s", "session_token": "t"}},
        ),
        (
            {"fs.s3a.endpoint": "minio:9000", "fs.s3a.connection.ssl.enabled": "false"},
            {"s3": {"scheme": "http", "endpoint_override": "minio:9000"}},
        ),
        (
            {"fs.s3a.endpoint": "https://s3.eu-west-1.amazonaws.com", "fs.s3a.path.style.access": "false"},
            {
                "s3": {
                    "scheme": "https",
                    "endpoint_override": "s3.eu-west-1.amazonaws.com",
                    "force_virtual_addressing": True,
                }
            },
        ),
        (
            {
                "fs.s3a.bucket.logs.access.key": "k",
                "fs.s3a.bucket.open.aws.credentials.provider": "org.apache.hadoop.fs.s3a.AnonymousAWSCredentialsProvider",
            },
            {"s3://logs": {"access_key": "k"}, "s3://open": {"anonymous": True}},
        ),
        (
            {"fs.azure.account.key.acme.dfs.core.windows.net": "k", "fs.oss.accessKeyId": "a", "fs.oss.endpoint": "e"},
            {"abfs://acme": {"account_key": "k"}, "oss": {"key": "a", "endpoint": "e"}},
        ),
    ],
)  # fmt: skip
def test_hadoop_settings_are_translated_to_arrow_options(settings: dict[str, str], options: dict[str, object]) -> None:
    assert store_options(settings, settings.get) == options


def test_python_workers_inherit_the_options(spark: SparkSession, monkeypatch: pytest.MonkeyPatch) -> None:
    conf = spark._jsc.hadoopConfiguration()
    monkeypatch.setenv(OPTIONS, "{}")
    monkeypatch.delenv(OPTIONS)
    conf.set("fs.s3a.bucket.logs.secret.key", "hidden")
    try:
        share_stores(spark)
        read = spark.sparkContext.range(1).map(lambda _: __import__("os").environ["NIGHTJAR_STORES"]).first()
        assert json.loads(read)["s3://logs"] == {"secret_key": "hidden"}
    finally:
        conf.unset("fs.s3a.bucket.logs.secret.key")
        spark.sparkContext.environment.pop(OPTIONS)


@pytest.mark.parametrize("atomic", [True, False])
def test_a_small_file_exists_at_all_times_while_it_is_replaced(
    atomic: bool, spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By an atomic rename, or by overwriting the object in stores without atomic renames."""
    name = f"mounted-{atomic}".lower()  # Hadoop caches a file system per name.
    spark._jsc.hadoopConfiguration().set(f"fs.viewfs.mounttable.{name}.link./data", tmp_path.as_uri())
    if not atomic:
        monkeypatch.setattr(filesystem, "ATOMIC_RENAME", ("file",))
        monkeypatch.setattr(FileSystem, "delete", None)
    files, uri = FileSystem(spark), f"viewfs://{name}/data/releases/current.json"
    assert files.create_text(uri, "one")
    assert not files.create_text(uri, "two")
    assert files.read_text(uri) == "one"
    files.write_text(uri, "three")
    assert files.read_text(uri) == "three"
    with pytest.raises(FileExistsError):
        files._move_text(uri, "four", replace=False)
    assert [path.name for path in (tmp_path / "releases").iterdir() if not path.name.startswith(".")] == [
        "current.json"
    ]


def test_a_folder_moved_file_by_file_gets_its_manifest_last(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filesystem, "ATOMIC_RENAME", ())
    files, moved = FileSystem(spark), []
    rename = FileSystem.rename

    def recording_rename(self: FileSystem, source: str, target: str) -> None:
        moved.append(target.rpartition("/")[2])
        rename(self, source, target)

    monkeypatch.setattr(FileSystem, "rename", recording_rename)
    for folder in ("old", "new"):
        for name in ("a", "manifest.json", "z"):
            (tmp_path / folder).mkdir(exist_ok=True)
            (tmp_path / folder / name).write_text(folder)
    files.replace_folder(f"file://{tmp_path}/new", f"file://{tmp_path}/old", last="manifest.json")
    assert moved == ["a", "z", "manifest.json"]
    assert (tmp_path / "old" / "manifest.json").read_text() == "new"


@pytest.mark.parametrize("root", ["s3a://bucket/warehouse", "foo://bucket/warehouse"])
def test_a_store_whose_jars_are_missing_is_refused_with_the_remedy(spark: SparkSession, root: str) -> None:
    with pytest.raises(UsageError, match="has no file system for"):
        Warehouse(spark, root)
