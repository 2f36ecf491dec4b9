"""Benchmarks on tiny data: their inputs and outputs are right. Their seconds mean nothing at this size."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from pyspark.sql import SparkSession

from benchmarks import frequency, index, links, logs, samples, study, towers, training
from benchmarks.logs import Day
from benchmarks.product import CONFIG, KNOWN, Product
from jobs.common.config import load_config
from model.config import StreamingConfig

ROOT = Path(__file__).resolve().parents[1]
RATIOS = {
    "negatives_over_copy",
    "positives_over_copy",
    "growth_8x",
    "growth_8x_positives",
    "growth_8x_negatives",
    "draw_over_naive",
    "day30_over_day5",
    "peak_memory_share",
}


def test_a_day_of_benchmark_logs_has_the_documented_shape(spark: SparkSession) -> None:
    day = Day("2024-03-02", requests=500, users=400, items=1000)
    ranked = logs.ranking_logs(spark, day).toPandas()
    clicks = logs.interactions(spark, day).toPandas()
    requests = ranked.groupby("request_id")
    assert requests.size().tolist() == [100] * 500
    assert (requests["item_id"].nunique() == 100).all()  # no item twice in a request
    assert (requests["user_id"].nunique() == 1).all()
    stages = ranked.query("request_id == '2024-03-02-7'").groupby("stage")
    assert stages.size().to_dict() == {"exposed": 20, "rerank": 5, "fine": 25, "coarse": 50}
    assert stages["position"].agg(["min", "max"]).loc["fine"].tolist() == [1, 25]

    assert clicks.groupby("request_id").size().tolist() == [10] * 500
    exposed = ranked.query("stage == 'exposed'")
    shown = clicks.merge(exposed, on=["request_id", "user_id", "item_id"], suffixes=("", "_shown"))
    assert len(shown) == len(clicks)
    assert (shown["event_time"] > shown["event_time_shown"]).all()
    assert set(clicks["event_time"].dt.strftime("%Y-%m-%d")) == {"2024-03-02"}
    by_item = clicks.groupby("item_id").size().sort_values(ascending=False)
    assert by_item.iloc[:100].sum() > 0.5 * len(clicks)  # a tenth of the items has more than half of the clicks
    assert (
        logs.interactions(spark, day).exceptAll(spark.createDataFrame(clicks)).isEmpty()
    )  # a second call gives the same rows


@pytest.mark.long
def test_a_tiny_run_of_the_samples_benchmark_prints_all_ratios_as_its_last_line(
    spark: SparkSession, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = samples.options_of(["--scale", "0.004", "--runs", "1", "--cold", "--nights", "2"])
    samples.run(spark, tmp_path, options)
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    details = figures.pop("details")
    assert set(figures) == RATIOS
    assert all(math.isfinite(value) and value > 0 for value in figures.values())
    assert set(details["memory_gb"]) >= {"eighth", "full", "draw", "nights", "limit"}
    assert len(details["nights"]) == 2

    draw = details["draw"]
    assert draw["ours"]["negatives"] == 10 * draw["rows"]
    assert draw["naive"]["negatives"] > 0.95 * draw["ours"]["negatives"]  # as much work on both sides

    for size in samples.SIZES:
        requests = samples.measured_day(options.scale, size).requests
        product = Product(spark, tmp_path / size)
        clicks = product.table("interactions", samples.DS).dropDuplicates(["user_id", "item_id"])
        counts = product.warehouse.require("positives", samples.DS, "").facts["counts"]
        assert requests * 9 < counts["positives"] == clicks.count()
        rows = counts["positives"] - counts["dropped_over_cap"]
        written = [details["steps"][size][step]["rows"] for step in ("positives", "negatives")]
        assert written == [counts["positives"], rows]
        assert product.table("ranking_logs", samples.DS).count() == 100 * requests
    kinds = product.warehouse.require("samples", samples.DS, "").facts["kinds"]
    quotas = {kind: getattr(CONFIG.negatives, kind) for kind in ("uniform", "coarse", "fine")}
    assert sum(kinds.values()) == CONFIG.negatives.total * rows
    assert kinds["uniform"] == quotas["uniform"] * rows
    assert kinds["coarse"] + kinds["fine"] > 0.9 * (quotas["coarse"] + quotas["fine"]) * rows  # few fallbacks

    before = product.table("user_histories", samples.FIRST)
    looked_back = before.selectExpr(
        "size(history_items) AS history", "size(history_times) AS times", "size(array_distinct(known_items)) AS known"
    )
    assert {tuple(row) for row in looked_back.select("history", "times").distinct().collect()} == {(50, 50)}
    assert looked_back.agg({"known": "min"}).first()[0] >= KNOWN


@pytest.mark.long
def test_parts_of_the_training_benchmark_run_alone(capsys: pytest.CaptureFixture[str]) -> None:
    parts = ["reader_over_arrow", "fed_over_memory"]
    training.main([*parts, "--scale", "0.002"])
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(figures) == {*parts, "details"}
    assert all(math.isfinite(figures[part]) and figures[part] > 0 for part in parts)
    with pytest.raises(SystemExit):
        training.main(["reader"])


def test_the_frequency_simulation_settles_sooner_with_a_warm_up() -> None:
    errors = {
        warm_up: frequency.simulate(StreamingConfig(alpha=0.01, hashes=1, slots=5000, warm_up=warm_up), 0, 500)
        for warm_up in (False, True)
    }
    assert errors[True][-1] < 0.15 < 0.35 < errors[False][-1]
    assert errors[True][-1] < errors[True][0]


def test_the_index_benchmark_measures_the_chosen_index_with_other_users() -> None:
    exact, cells = index.measure(5000, ["IVF32,Flat"])
    assert (exact["factory"], exact["recall_at_100"], exact["speed_up"]) == ("Flat", 1.0, 1.0)
    assert cells["factory"] == "IVF32,Flat"
    assert cells["setting"].startswith("nprobe ")
    assert 0.9 < cells["recall_at_100"] < 1
    one, two = (index.SyntheticVectors(100, seed=1).users(10, number) for number in range(2))
    np.testing.assert_allclose(np.linalg.norm(one, axis=1), 1.0, rtol=1e-5)
    assert not (one == two).any()


def test_every_variant_of_the_towers_study_is_a_valid_config() -> None:
    for _, overrides in towers.VARIANTS:
        config = load_config(str(ROOT / towers.CONFIG), [*towers.product_overrides(), *overrides])
        names = {feature.name for side in (config.features.user, config.features.item) for feature in side}
        assert {*towers.NOISE, "category", "interests"} < names
        assert set(config.model.leave_out) < names | {"user_id"}


def test_a_table_of_a_study_has_means_intervals_and_baselines() -> None:
    found = study.StudyResult(
        recall={"one": {"tail": [0.1, 0.2, 0.3], "all": [0.5, 0.5, 0.5]}},
        baselines={"recent popularity": {"all": [0.4]}},
    )
    assert study.table_of(found.recall | found.baselines, 50).splitlines() == [
        "| Recall@50 | all | tail |",
        "|---|---|---|",
        "| one | 0.5000 ± 0.0000 | 0.2000 ± 0.2484 |",  # t(2 degrees, 97.5%) = 4.3027, times 0.1 / sqrt(3)
        "| recent popularity | 0.4000 | nan |",
    ]
    one, two = {"all": [0.1, 0.2]}, {"all": [0.1, 0.5]}
    less = study.differences({"one": one, "two": two}, [("two", "one"), ("two", "three")])
    assert less["two, less one"]["all"] == pytest.approx([0.0, 0.3])
    assert len(less) == 1


def test_the_links_benchmark_ranks_articles_of_the_same_ring_first(tmp_path: Path) -> None:
    """Two rings of articles; each article links to the next ten of its ring. Known links are not ranked."""
    names = [f"a{number:03d}" for number in range(80)]
    pairs = [(i, (i + 2 * step) % 80) for i in range(80) for step in range(1, 11)]
    (tmp_path / "links.tsv").write_text("# comment\n" + "".join(f"{names[a]}\t{names[b]}\n" for a, b in pairs))
    (tmp_path / "categories.tsv").write_text("".join(f"{name}\tring{i % 2}\n" for i, name in enumerate(names)))
    graph = links.Graph.read(tmp_path, seed=1)
    assert graph.articles == 80
    assert 0.06 < graph.held_out.mean() < 0.14
    assert (links.Graph.read(tmp_path, seed=2).held_out != graph.held_out).any()
    at_10, at_50, _ = links.run(str(tmp_path), "classic", 0.1, seed=1, epochs=60)
    assert at_10 > 0.3, "10 random articles of the 30 unknown ones of a ring would contain a third at best"
    assert at_50 > 0.9
