"""Both samplers follow the target distribution (chi-square test on fixed hashes) and return correct log q."""

import numpy as np
import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from scipy.stats import chisquare

from pipelines.contract.errors import InputError
from pipelines.contract.negative_kinds import POPULARITY, UNIFORM
from pipelines.hashing import mix
from pipelines.samples import samplers

pytestmark = pytest.mark.joins

ROWS, ITEMS = 20_000, 60


@pytest.fixture(scope="module")
def stats(spark: SparkSession) -> DataFrame:
    """Sixty items: three are not live, every seventh has no clicks, item 2 has half of all the mass."""
    popularity = [0.0 if n % 7 == 0 or (n < 5 and n > 2) else 1.0 / n for n in range(2, ITEMS + 2)]
    popularity[0] = sum(popularity[1:])
    total = sum(popularity)
    live = [n not in (10, 20, 30) for n in range(2, ITEMS + 2)]
    live_total = sum(p for p, is_live in zip(popularity, live) if is_live)
    assert total > live_total
    rows = [
        (index, is_live, 1.0 / sum(live) if is_live else 0.0, p / live_total if is_live else 0.0)
        for index, (p, is_live) in enumerate(zip(popularity, live), 2)
    ]
    schema = "item_index int, live boolean, q_uniform double, q_popularity double"
    return spark.createDataFrame(rows, schema).persist()


def target(stats: DataFrame, kind: int) -> np.ndarray:
    q = np.zeros(ITEMS + 2)
    for row in stats.collect():
        q[row["item_index"]] = row[samplers.COLUMNS[kind]]
    return q


def check(items: np.ndarray, log_q: np.ndarray, q: np.ndarray) -> None:
    counts = np.bincount(items, minlength=len(q))
    assert counts[q == 0].sum() == 0
    assert chisquare(counts[q > 0], q[q > 0] / q.sum() * counts.sum()).pvalue > 1e-3
    np.testing.assert_allclose(np.exp(log_q), q[items], rtol=1e-5)


@pytest.mark.parametrize("kind", [UNIFORM, POPULARITY])
def test_the_broadcast_sampler_follows_the_target(stats: DataFrame, kind: int) -> None:
    table = samplers.alias_tables(stats)[kind]
    places = table.draw(mix(np.arange(ROWS, dtype=np.uint64), 17, kind))
    check(table.items[places], table.log_q[places], target(stats, kind))


def test_the_shuffled_sampler_follows_the_same_target(stats: DataFrame, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samplers, "ITEMS_PER_BUCKET", 7)  # many buckets; the interval of item 2 spans half of them
    monkeypatch.setattr(samplers, "BLOCK", 16)
    rows = stats.sparkSession.range(ROWS // 10).select(F.xxhash64("id").alias("key"), F.lit(0).alias("cell"))
    drawn = samplers.with_written_draws(rows, stats, {UNIFORM: 2, POPULARITY: 2}, 17).toPandas()
    assert len(drawn) == ROWS // 10
    assert set(drawn["cell"]) == {0}
    for kind in (UNIFORM, POPULARITY):
        items, log_q = np.stack(drawn[f"drawn_{kind}"]), np.stack(drawn[f"drawn_log_q_{kind}"])
        assert items.shape == (ROWS // 10, 2 + samplers.SPARE)
        check(items.ravel(), log_q.ravel(), target(stats, kind))
        # The draws of a row are independent of each other.
        q = target(stats, kind)
        same = (items[:, 0] == items[:, 1]).mean()
        assert same == pytest.approx((q**2).sum(), abs=4 * np.sqrt((q**2).sum() / len(items)))


def test_shuffled_draws_depend_on_the_seed_but_not_on_partitions(stats: DataFrame) -> None:
    rows = stats.sparkSession.range(300).select(F.xxhash64("id").alias("key"), F.lit(0).alias("cell"))
    one = samplers.with_written_draws(rows.coalesce(1), stats, {POPULARITY: 1}, 17)
    many = samplers.with_written_draws(rows.repartition(5), stats.repartition(3), {POPULARITY: 1}, 17)
    assert sorted(map(repr, one.collect())) == sorted(map(repr, many.collect()))
    other = samplers.with_written_draws(rows, stats, {POPULARITY: 1}, 18)
    assert sorted(map(repr, one.collect())) != sorted(map(repr, other.collect()))


def test_rows_without_a_cell_get_no_draws(stats: DataFrame) -> None:
    cell = F.when(F.col("id") < 2, 0).alias("cell")
    rows = stats.sparkSession.range(3).select(F.col("id").alias("key"), cell)
    drawn = samplers.with_written_draws(rows, stats, {UNIFORM: 1}, 17).collect()
    assert {row["key"]: row[f"drawn_{UNIFORM}"] is None for row in drawn} == {0: False, 1: False, 2: True}


def test_without_clicks_popularity_is_uniform(stats: DataFrame) -> None:
    unclicked = stats.withColumn("q_popularity", F.lit(0.0))
    rows = stats.sparkSession.range(3).select(F.col("id").alias("key"), F.lit(0).alias("cell"))
    drawn = samplers.with_written_draws(rows, unclicked, {POPULARITY: 1}, 17).toPandas()
    np.testing.assert_allclose(np.exp(np.stack(drawn[f"drawn_log_q_{POPULARITY}"])), 1 / 57, rtol=1e-5)
    assert samplers.alias_tables(unclicked)[POPULARITY].log_q == pytest.approx(np.log(1 / 57))


def test_a_catalogue_without_live_items_is_refused(stats: DataFrame) -> None:
    rows = stats.sparkSession.range(3).select(F.col("id").alias("key"), F.lit(0).alias("cell"))
    for sample in (
        lambda: samplers.alias_tables(stats.where("not live")),
        lambda: samplers.with_written_draws(rows, stats.where("not live"), {UNIFORM: 1}, 17),
    ):
        with pytest.raises(InputError, match="no item is live"):
            sample()
