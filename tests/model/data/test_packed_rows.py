"""Packed rows: unpacked to the rows that were packed, each positive once, and named errors for files of another layout."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from model.config import TrainingConfig
from model.data.batching import to_tensor
from model.data.packed_rows import Packing, concatenate, share_of, unpack
from model.data.petastorm_reader import SampleFile, SampleReader, SharedSampleReader, plan_files, sample_columns
from model.io.arrow import ColumnError
from pipelines.contract.schema import FeatureSchema
from tests.model import packed_night, toy_night
from tests.model.packed_night import CONTEXT, PACK

COUNTS = [9, 8, 9, 3]
SCHEMA = packed_night.schema(context=CONTEXT)
PACKING = Packing(SCHEMA, PACK)
COLUMNS = ["row", *sample_columns(SCHEMA, versions=True, packing=PACKING)]
SETTINGS = TrainingConfig(batch_size=16, shuffle_window=20)


def keys(batch: dict[str, Any]) -> list[tuple[float, ...]]:
    """The positives of a batch: packed row, item, example age (a random number) and history."""
    columns = [np.asarray(batch[name]) for name in ("row", "item_index", "example_age")]
    rows = np.concatenate([np.stack(columns, 1), np.asarray(batch["history"])], 1)
    return sorted(map(tuple, rows.astype(np.float32).tolist()))


@pytest.mark.parametrize("pack", [1, 4, 7])
@pytest.mark.parametrize("features", [{"context": CONTEXT}, {"history": None}, {"example_age": None}], ids=str)
def test_unpacked_rows_are_those_that_were_packed(pack: int, features: dict[str, Any]) -> None:
    schema = packed_night.schema()
    schema = FeatureSchema.model_validate({**schema.model_dump(), **features})
    rows = packed_night.packed_rows(40, seed=pack, pack=pack)
    columns = ["row", *sample_columns(schema, versions=True, packing=Packing(schema, pack))]
    expected = packed_night.unpacked(rows, pack)
    unpacked = unpack({name: rows[name] for name in columns}, schema, pack)
    for name in set(columns) - {"history_seen"}:
        assert unpacked[name].shape == expected[name].shape, name
        np.testing.assert_array_equal(unpacked[name], expected[name], err_msg=name)
    assert "history_seen" not in unpacked
    if schema.history:
        np.testing.assert_array_equal(unpacked["packed_row"], expected["row"])
        np.testing.assert_array_equal(unpacked["packed_seen"], (expected["history"] != 0).sum(1))
        np.testing.assert_array_equal(unpacked["packed_history"], rows["history"])
        np.testing.assert_array_equal(unpacked["packed_ages"], rows["history_ages"])
        np.testing.assert_array_equal(unpacked["packed_actions"], rows["history_actions"])
    empty = unpack({name: rows[name][:0] for name in columns}, schema, pack)
    assert {name: values.shape for name, values in empty.items()} == {
        name: (0, *values.shape[1:]) for name, values in unpacked.items()
    }


def test_parts_of_a_batch_keep_each_positive_with_its_packed_row() -> None:
    rows = packed_night.packed_rows(11)

    def batch(part: slice) -> dict[str, torch.Tensor]:
        unpacked = unpack({name: rows[name][part] for name in COLUMNS}, SCHEMA, PACK)
        return {name: to_tensor(values) for name, values in unpacked.items()}

    whole = batch(slice(None))
    joined = concatenate([batch(slice(0, 5)), batch(slice(5, 5)), batch(slice(5, 11))])
    assert whole.keys() == joined.keys()
    assert all(torch.equal(whole[name], joined[name]) for name in whole)
    shares = [share_of(whole, rank, 3) for rank in range(3)]
    assert keys(concatenate(shares)) == keys(whole)
    for share in shares:
        of_positives = share["packed_history"][share["packed_row"]]
        assert torch.equal(of_positives, torch.from_numpy(rows["history"])[share["row"]].long())
        assert torch.equal(share["packed_actions"] > 0, share["packed_history"] > 0)
        assert len(share["packed_history"]) in (3, 4)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_an_epoch_reads_each_positive_once(tmp_path: Path, world: int) -> None:
    rows = packed_night.packed_rows(sum(COUNTS))
    files = packed_night.write(tmp_path, rows, COUNTS, packed=True)
    positives = sum(file.positives or 0 for file in files)
    plan = plan_files(files, world, SETTINGS.batch_size)
    assert plan.positives == positives
    for epoch in range(2):
        ranks = []
        for rank in range(world):
            reader = SampleReader(files, COLUMNS, SETTINGS, 3, rank, world, PACKING)
            with reader.epoch(epoch) as batches:
                ranks.append([keys(batch) for batch in batches])
        assert {len(steps) for steps in ranks} == {plan.steps}
        assert sorted(itertools.chain(*itertools.chain(*ranks))) == keys(packed_night.unpacked(rows))
    sizes = [sum(map(len, step)) for step in zip(*ranks)]
    assert max(sizes) <= 2 * SETTINGS.batch_size
    assert len(sizes) == pytest.approx(positives / SETTINGS.batch_size, rel=0.5), "batch_size counts positives"


@pytest.mark.parametrize("world", [1, 2, 4])
def test_steps_of_three_shards_do_not_depend_on_the_number_of_ranks(tmp_path: Path, world: int) -> None:
    rows = packed_night.packed_rows(sum(COUNTS))
    files = packed_night.write(tmp_path, rows, COUNTS, packed=True)

    def positives_by_step(processes: int) -> list[list[tuple[float, ...]]]:
        steps: dict[int, list[tuple[float, ...]]] = {}
        for rank in range(processes):
            shared = SharedSampleReader(files, COLUMNS, SETTINGS, 3, rank, processes, 3, packing=PACKING)
            with shared.epoch(0, skip=1) as batches:
                for step, batch in enumerate(batches):
                    assert torch.equal(
                        batch["packed_history"][batch["packed_row"]],
                        torch.from_numpy(rows["history"])[batch["row"]].long(),
                    )
                    steps.setdefault(step, []).extend(keys(batch))
        return [sorted(steps[step]) for step in range(len(steps))]

    assert positives_by_step(world) == positives_by_step(3)


def read(files: list[SampleFile], columns: list[str], packing: Packing | None) -> None:
    with SampleReader(files, columns, SETTINGS, 3, 0, 1, packing).epoch(0) as batches:
        list(batches)


def test_files_of_another_layout_are_refused(tmp_path: Path) -> None:
    rows = packed_night.packed_rows(10)
    packed = packed_night.write(tmp_path / "packed", rows, [10], packed=True)
    flat = packed_night.write(tmp_path / "flat", rows, [10], packed=False)
    columns = ["row", *sample_columns(SCHEMA)]
    remedy = "write the samples again with build_negatives"
    with pytest.raises(
        ColumnError, match=rf"column 'weight' of samples has lists of 4 values.*rows are packed.*{remedy}"
    ):
        read([packed[0].model_copy(update={"positives": None})], columns, None)
    with pytest.raises(ColumnError, match=rf"lacks history_seen.*its manifest says pack = 4: {remedy}"):
        read(flat, COLUMNS, PACKING)
    without_history = Packing(SCHEMA.without(["history"]), PACK)
    columns = sample_columns(without_history.schema, packing=without_history)
    with pytest.raises(
        ColumnError, match=rf"column 'context_hour' of samples has one value per row.*pack = 4.*{remedy}"
    ):
        read(flat, columns, without_history)
    with pytest.raises(
        ColumnError, match=r"'context_hour' of samples has lists of 4 values.*the manifest says pack = 5"
    ):
        read(packed, COLUMNS, Packing(SCHEMA, 5))
    with pytest.raises(ValueError, match=r"has \d+ positives, its manifest says 7: write the table again"):
        read([packed[0].model_copy(update={"positives": 7})], COLUMNS, PACKING)


def test_a_positive_that_sees_more_items_than_the_history_has_is_refused(tmp_path: Path) -> None:
    rows = packed_night.packed_rows(10)
    rows["history_seen"][3, 0] = toy_night.HISTORY + 1
    files = packed_night.write(tmp_path, rows, [10], packed=True)
    with pytest.raises(ColumnError, match=r"'history_seen' of samples.*1 rows.*for instance 6 of . in row 3"):
        read(files, COLUMNS, PACKING)


def test_a_list_that_cannot_be_divided_among_the_positives_is_refused(tmp_path: Path) -> None:
    rows = packed_night.packed_rows(10)
    files = packed_night.write(tmp_path, {**rows, "negatives": rows["negatives"][:, :-1]}, [10], packed=True)
    with pytest.raises(ColumnError, match=r"'negatives' of samples has lists of 15 values.*a multiple of it"):
        read(files, COLUMNS, PACKING)


def test_the_negatives_of_packed_files_are_read_from_parquet_as_written(tmp_path: Path) -> None:
    rows = packed_night.packed_rows(6)
    files = packed_night.write(tmp_path, rows, [6], packed=True)
    stored = pq.read_table(files[0].url.removeprefix("file://"))["negatives"].to_pylist()
    with SampleReader(files, COLUMNS, SETTINGS, 3, 0, 1, PACKING).epoch(0, shuffle=False) as batches:
        negatives = torch.cat([batch["negatives"] for batch in batches]).tolist()
    expected = [
        stored[row][4 * place : 4 * place + 4] for row, items in enumerate(rows["item_index"]) for place in range(PACK)
        if items[place]
    ]  # fmt: skip
    assert negatives == expected
