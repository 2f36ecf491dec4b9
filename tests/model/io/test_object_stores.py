"""Object stores through Arrow, against a local S3 server, and the errors for stores that cannot be read."""

import json
from collections.abc import Iterator
from pathlib import Path

import boto3
import pyarrow.fs as pafs
import pytest
from moto.server import ThreadedMotoServer

from model.io.object_stores import OPTIONS, StoreError, open_store
from model.io.urls import checksum, read_bytes, resolve, write_folder
from model.training.checkpoint import load_checkpoint
from model.training.resume import find_progress, identity, saved_steps
from model.training.trainer import train
from tests.model.toy_night import make_spec

BUCKET = "warehouse"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The address of a local S3 server with one bucket."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    client = boto3.client(
        "s3", endpoint_url=f"http://{host}:{port}", aws_access_key_id="me", aws_secret_access_key="x",
        region_name="us-east-1",
    )  # fmt: skip
    client.create_bucket(Bucket=BUCKET)
    yield f"{host}:{port}"
    server.stop()


@pytest.fixture
def options(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {
        "access_key": "me",
        "secret_key": "x",
        "region": "us-east-1",
        "scheme": "http",
        "endpoint_override": server,
    }
    monkeypatch.setenv(OPTIONS, json.dumps({"s3": options}))


@pytest.mark.parametrize("scheme", ["s3", "s3a", "s3n"])
@pytest.mark.usefixtures("options")
@pytest.mark.slow
def test_an_interrupted_write_leaves_the_folder_without_its_last_file(scheme: str) -> None:
    url = f"{scheme}://{BUCKET}/a folder/{scheme}"
    for text in (b"first", b"second"):
        write_folder(url, {"content": [text], "description.json": [text]})
        assert read_bytes(f"{url}/content") == text
    before = checksum(f"{url}/description.json")

    def breaks() -> Iterator[bytes]:
        yield b"half"
        raise OSError("the network is down")

    with pytest.raises(OSError, match="network"):
        write_folder(url, {"content": breaks(), "description.json": [b"third"]})
    filesystem, path = resolve(f"{url}/description.json")
    assert filesystem.get_file_info(path).type == pafs.FileType.NotFound
    assert before


@pytest.mark.usefixtures("options")
@pytest.mark.slow
def test_training_reads_writes_and_resumes_from_a_store(tmp_path: Path) -> None:
    spec = make_spec(tmp_path, [100, 92])
    filesystem, _ = resolve(f"s3a://{BUCKET}/x")
    pafs.copy_files(str(tmp_path), f"{BUCKET}/night", destination_filesystem=filesystem)

    def moved(url: str) -> str:
        return url.replace(f"file://{tmp_path}", str(tmp_path)).replace(str(tmp_path), f"s3a://{BUCKET}/night")

    remote = spec.model_validate_json(moved(spec.model_dump_json())).model_copy(
        update={"output": f"s3a://{BUCKET}/models/one", "resume": f"s3a://{BUCKET}/progress"}
    )
    training = remote.training.model_copy(update={"checkpoint_steps": 1})
    remote = remote.model_copy(update={"training": training})
    result = train(remote)
    assert result.steps > 2
    assert saved_steps(str(remote.resume))
    assert find_progress(str(remote.resume), identity(remote)) is not None
    assert load_checkpoint(remote.output)


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("abfss://data@account.dfs.core.windows.net/night/x y", "data/night/x y"),
        ("oss://bucket/night/a%20b#c", "bucket/night/a%20b#c"),
    ],
)
def test_a_missing_package_of_a_store_is_named(url: str, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StoreError, match=r"pip install (adlfs|ossfs)"):
        open_store(url)
    opened = pafs.LocalFileSystem()
    monkeypatch.setattr("model.io.object_stores._file_system", lambda *_: opened)
    assert open_store(url) == (opened, path)


def test_an_unknown_scheme_is_named() -> None:
    with pytest.raises(StoreError, match="nothing reads ftp://"):
        resolve("ftp://host/x")
