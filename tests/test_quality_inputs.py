"""Input tables that the quality benchmark changes for rungs of its ladder, and the warehouses of such variants."""

from pathlib import Path

import numpy as np
import pytest
from pyspark.sql import Row, SparkSession

from benchmarks.quality import __main__ as command
from benchmarks.quality import changed_inputs, variants
from benchmarks.quality.ours import Variant
from benchmarks.quality.run import WorldRun
from benchmarks.quality.store import Store
from benchmarks.quality.worlds import WORLDS, AskedNight
from pipelines.storage.warehouse import Warehouse

DS = "2024-01-01"


def test_items_that_were_shown_without_a_click_can_be_drawn_as_negatives(spark: SparkSession, tmp_path: Path) -> None:
    world, own = (Warehouse(spark, str(tmp_path / name)) for name in ("world", "own"))
    stages = {"1": "exposed", "2": "exposed", "3": "rerank", "4": "fine", "5": "coarse"}
    rows = [Row(request_id=request, item_id=item, stage=stages[item], ds=DS) for request in "ab" for item in stages]
    world.write_input(spark.createDataFrame(rows), "ranking_logs")
    clicks = [("a", "1", "click"), ("a", "1", "like"), ("b", "2", "click")]
    world.write_input(
        spark.createDataFrame(
            [(*click, DS) for click in clicks], "request_id string, item_id string, action string, ds string"
        ),
        "interactions",
    )
    config = WORLDS["new_items"].load(tmp_path / "own")
    changed_inputs.write("shown_as_dropped", world, own, config)
    found = own.read_input(own.path("ranking_logs"), [DS]).collect()
    assert len(found) == 10
    assert {(row["request_id"], row["item_id"]): row["stage"] for row in found} == {
        ("a", "1"): "exposed", ("a", "2"): "rerank", ("a", "3"): "fine", ("a", "4"): "fine", ("a", "5"): "coarse",
        ("b", "1"): "rerank", ("b", "2"): "exposed", ("b", "3"): "fine", ("b", "4"): "fine", ("b", "5"): "coarse",
    }  # fmt: skip


def test_a_vector_of_an_item_says_much_of_its_taste(spark: SparkSession, tmp_path: Path) -> None:
    world, own = (Warehouse(spark, str(tmp_path / name)) for name in ("world", "own"))
    taste_Md = np.random.default_rng(1).normal(size=(200, 16))
    taste_Md /= np.linalg.norm(taste_Md, axis=1, keepdims=True)
    truth = [(item, taste.tolist(), DS) for item, taste in enumerate(taste_Md)]
    world.write_input(spark.createDataFrame(truth, "item_id bigint, taste array<float>, ds string"), "sim_truth_items")
    days = [DS, "2024-01-02"]
    items = [Row(item_id=item, category="c", ds=ds) for ds in days for item in range(200)]
    world.write_input(spark.createDataFrame(items, "item_id bigint, category string, ds string"), "items")
    changed_inputs.write("items_with_vectors", world, own, WORLDS["new_items"].load(tmp_path / "own"))
    rows = own.read_input(own.path("items"), days).orderBy("ds", "item_id").collect()
    assert len(rows) == 400
    content_Md = np.stack([row["content"] for row in rows])
    np.testing.assert_array_equal(content_Md[:200], content_Md[200:], "the vector of an item does not change")
    np.testing.assert_allclose(np.linalg.norm(content_Md, axis=1), 1.0, atol=1e-6)
    assert (content_Md[:200] * taste_Md).sum(1).mean() == pytest.approx(1.09**-0.5, abs=0.01)


def test_a_variant_reads_the_changed_table_from_its_own_warehouse(tmp_path: Path) -> None:
    setting = "changed_input=shown_as_dropped"
    assert variants.parse(f"shown: {setting} negatives.fine=2").changed_input == "shown_as_dropped"
    options = command.parse(["--variant", f"shown: {setting} negatives.fine=2", "--variant", f"more: {setting}"])
    store = Store(tmp_path)
    run = WorldRun(WORLDS["head_heavy"], store, options)
    config = run.config(AskedNight("2024-03-09", 9), options.variant[0])
    assert config.warehouse == str(tmp_path / "head_heavy" / "warehouse-shown_as_dropped")
    assert config.inputs.items.path == str(store.warehouse("head_heavy") / "items")
    assert config.inputs.ranking_logs.path is None, "in its own warehouse"
    assert [variant.name for variant in variants.of_world(run.world, store, [], options.variant)] == ["shown", "more"]
    assert variants.of_world(WORLDS["grocery"], store, [], options.variant) == [], "it has no ranking logs"
    for wrong in ("changed_input=nothing", f"{setting} changed_input=items_with_vectors"):
        with pytest.raises(SystemExit, match="changed_input"):
            variants.parse(f"a: {wrong}")
    assert not Variant("plain").own_warehouse
