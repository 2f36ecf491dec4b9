"""The catalogue returns item features as they were written, from memory and from mapped files."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from model.data.catalogue import Catalogue
from model.data.item_columns import bytes_of
from model.io import urls
from model.io.arrow import ColumnError
from tests.model import toy_night


def rows_with_gaps() -> dict[str, np.ndarray]:
    """Item rows in random order. The first item has no tags, the second item has two."""
    rows = toy_night.item_rows()
    rows["item_tags"][0] = 0
    rows["item_tags_weights"][0] = 0
    order = np.random.default_rng(1).permutation(len(rows["item_index"]))
    return {name: values[order] for name, values in rows.items()}


@pytest.mark.parametrize("memory_mb", [None, 1, 0])
def test_gather_returns_the_written_values(memory_mb: int | None) -> None:
    rows = rows_with_gaps()
    catalogue = Catalogue(toy_night.schema(), rows, memory_mb)
    assert catalogue.mapped == (memory_mb == 0)
    features = catalogue.gather(torch.from_numpy(rows["item_index"]).long())
    for name, values in rows.items():
        np.testing.assert_array_equal(features[name], values)
        assert features[name].dtype == (torch.float32 if name.endswith("weights") else torch.int64)
    square = torch.tensor([[0, 1, 2], [toy_night.ITEMS + 1, 3, 2]])
    features = catalogue.gather(square)
    assert features["item_tags"].shape == (2, 3, 3)
    assert features["item_tags"][0].tolist() == [[1, 0, 0], [1, 0, 0], [0, 0, 0]], (
        "defaults for two items without a row, nothing for an item without tags"
    )
    assert features["item_tags_weights"][1, 0].tolist() == [1, 0, 0]
    assert features["item_category"][0, :2].tolist() == [1, 1]
    assert catalogue.defaults()["item_tags"].tolist() == [[1, 0, 0]]


@pytest.mark.parametrize("memory_mb", [None, 0])
def test_vectors_of_items_are_gathered_and_are_zero_for_items_without_a_row(memory_mb: int | None) -> None:
    rows = rows_with_gaps()
    rows["item_look"] = toy_night.vectors("item", len(rows["item_index"]))
    catalogue = Catalogue(toy_night.vector_schema(), rows, memory_mb)
    features = catalogue.gather(torch.from_numpy(rows["item_index"]).long())
    np.testing.assert_array_equal(features["item_look"], rows["item_look"])
    assert features["item_look"].dtype == torch.float32
    square = torch.tensor([[0, 1], [toy_night.ITEMS + 1, int(rows["item_index"][5])]])
    gathered = catalogue.gather(square)["item_look"]
    assert gathered.shape == (2, 2, 4)
    assert not gathered[0].any()
    np.testing.assert_array_equal(gathered[1, 1], rows["item_look"][5])
    assert bytes_of({"item_look": catalogue.columns["item_look"]}) == 4 * 4 * (toy_night.ITEMS + 2)
    with pytest.raises(ColumnError, match=r"'item_look' has shape \(39, 3\), the schema says \(4,\) per row"):
        Catalogue(toy_night.vector_schema(), rows | {"item_look": rows["item_look"][:, :3]})


@pytest.mark.parametrize("memory_mb", [None, 0])
def test_vectors_are_read_from_files_in_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory_mb: int | None
) -> None:
    monkeypatch.setattr(urls, "PART_ROWS", 7)
    current, earlier = rows_with_gaps(), toy_night.earlier_versions()
    files = {}
    for name, rows in (("features", current), ("versions", earlier)):
        rows["item_look"] = toy_night.vectors("item", len(rows["item_index"])) + len(rows["item_index"])
        pq.write_table(toy_night.table(rows), tmp_path / name)
        files[name] = [str(tmp_path / name)]
    schema = toy_night.vector_schema()
    catalogue = Catalogue.read(schema, files["features"], memory_mb, files["versions"])
    assert catalogue.mapped == (memory_mb == 0)
    items = torch.from_numpy(current["item_index"]).long()
    np.testing.assert_array_equal(catalogue.gather(catalogue.rows(items))["item_look"], current["item_look"])
    for row, item in enumerate(earlier["item_index"]):
        before = torch.tensor([int(earlier["valid_before"][row]) - 1])
        gathered = catalogue.gather(catalogue.rows(torch.tensor([int(item)]), before))["item_look"]
        np.testing.assert_array_equal(gathered[0], earlier["item_look"][row])
    with pytest.raises(ColumnError, match="features lacks item_sound; it has item_index"):
        next(urls.read_column_parts(files["features"], "item_sound"))


def test_padding_takes_no_memory() -> None:
    """100,000 items with one tag each, of at most 50: 4 bytes per value and 8 bytes per offset."""
    items, places = 100_000, 50
    tags = {**toy_night.SCHEMA["item"][2], "length": places, "weights_column": None}
    schema = toy_night.schema(
        item=[{**toy_night.SCHEMA["item"][0], "size": items}, tags],
        history={**toy_night.SCHEMA["history"], "size": items},
    )
    values = np.zeros((items - 2, places), np.int32)
    values[:, 0] = 2 + np.arange(items - 2) % 7
    catalogue = Catalogue(schema, {"item_index": np.arange(2, items), "item_tags": values})
    assert bytes_of(catalogue.columns) == items * (4 + 8) + 8
    assert catalogue.gather(torch.tensor([9]))["item_tags"].sum() == 2


def test_mapped_files_are_deleted_with_the_catalogue() -> None:
    catalogue = Catalogue(toy_night.schema(), rows_with_gaps(), 0)
    folder = Path(catalogue._files._folder.name)
    assert len(list(folder.iterdir())) == 5
    del catalogue
    assert not folder.exists()


def test_columns_that_do_not_fit_the_schema_are_refused() -> None:
    rows = rows_with_gaps()
    with pytest.raises(ColumnError, match=r"'item_tags' has shape \(39, 2\), the schema says \(3,\) per row"):
        Catalogue(toy_night.schema(), rows | {"item_tags": rows["item_tags"][:, :2]})
