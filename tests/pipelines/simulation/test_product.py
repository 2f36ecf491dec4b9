"""The simulated product: reproducible rows, a narrowing funnel, events in causal order, a truth that models can learn."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from jobs import simulate_logs
from pipelines.config import Simulation
from pipelines.contract.errors import UsageError
from pipelines.simulation import product, truth
from pipelines.simulation.funnel import simulate_block
from pipelines.storage.warehouse import Warehouse

SEED = 5
SIM = Simulation(
    start="2024-02-27",  # the days include February 29
    days=4,
    users=200,  # two blocks; the second is not full
    items=240,
    new_item_share=0.2,
    requests_per_user=0.6,
    recalled=60,
    coarse_kept=20,
    fine_kept=10,
    exposed=5,
    drift=0.1,
)
DAYS = ["2024-02-27", "2024-02-28", "2024-02-29", "2024-03-01"]


@pytest.fixture(scope="module")
def requests(spark: SparkSession) -> DataFrame:
    return product.simulated_requests(spark, SIM, SEED).cache()


@pytest.fixture(scope="module")
def logs(requests: DataFrame) -> pd.DataFrame:
    return product.ranking_logs(requests, SIM).toPandas()


@pytest.fixture(scope="module")
def events(requests: DataFrame) -> pd.DataFrame:
    return product.interactions(requests).toPandas()


@pytest.fixture(scope="module")
def items(spark: SparkSession) -> DataFrame:
    return product.all_items(spark, SIM, SEED).cache()


def test_rows_do_not_depend_on_partitions(spark: SparkSession, monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for tasks in (1, 2):
        monkeypatch.setattr(product, "_tasks", lambda spark, blocks, tasks=tasks: tasks)
        requests = product.simulated_requests(spark, SIM, SEED)
        row = F.xxhash64(*requests.columns) % 2**40
        results.append((requests.rdd.getNumPartitions(), tuple(requests.agg(F.count("*"), F.sum(row)).collect()[0])))
    assert [partitions for partitions, _ in results] == [1, 2]
    assert results[0][1] == results[1][1]
    assert results[0][1][0] > 300


def test_another_seed_gives_other_items() -> None:
    assert not np.allclose(truth.catalogue(SIM, SEED).taste, truth.catalogue(SIM, SEED + 1).taste)


def test_ranking_logs_and_interactions_have_their_schemas(requests: DataFrame) -> None:
    logs, events = product.ranking_logs(requests, SIM), product.interactions(requests)
    assert dict(logs.dtypes) == {
        "request_id": "string",
        "user_id": "bigint",
        "item_id": "bigint",
        "event_time": "timestamp",
        "stage": "string",
        "position": "int",
        "ds": "string",
    }
    assert [name for name, _ in events.dtypes] == ["user_id", "item_id", "event_time", "action", "request_id", "ds"]


def test_each_stage_keeps_its_number_of_items_and_positions_are_ranks(logs: pd.DataFrame) -> None:
    ranges = {"exposed": (1, 5), "rerank": (6, 10), "fine": (11, 20)}
    for _, request in logs.groupby("request_id"):
        assert len(request) == SIM.recalled == request["item_id"].nunique()
        counts = request["stage"].value_counts()
        for stage, (first, last) in ranges.items():
            assert sorted(request.loc[request["stage"] == stage, "position"]) == list(range(first, last + 1))
        ranked = SIM.recalled - counts.get("recall", 0)
        assert sorted(request.loc[request["stage"] == "coarse", "position"]) == list(range(21, ranked + 1))
    filtered = logs[logs["stage"] == "recall"]
    assert 0.01 < len(filtered) / len(logs) < 0.1
    assert filtered["position"].between(1, SIM.recalled).all()


def test_the_ds_is_the_day_of_the_event(logs: pd.DataFrame, events: pd.DataFrame) -> None:
    for frame in (logs, events):
        assert (frame["event_time"].dt.strftime("%Y-%m-%d") == frame["ds"]).all()
        assert sorted(frame["ds"].unique()) == DAYS


def test_clicks_are_on_exposed_items_of_their_request(logs: pd.DataFrame, events: pd.DataFrame) -> None:
    exposed = logs.loc[logs["stage"] == "exposed", ["request_id", "user_id", "item_id", "event_time"]]
    joined = events.merge(exposed, on=["request_id", "user_id", "item_id"], suffixes=("", "_shown"))
    assert len(joined) == len(events) > 0
    assert (joined["event_time"] > joined["event_time_shown"]).all()
    assert set(events["action"]) == {"click", "like"}
    likes = events[events["action"] == "like"].merge(events[events["action"] == "click"], on=["request_id", "item_id"])
    assert len(likes) == (events["action"] == "like").sum()
    assert 0.1 < (events["action"] == "click").sum() / len(exposed) < 0.5


def test_clicked_items_are_not_shown_again(logs: pd.DataFrame, events: pd.DataFrame) -> None:
    clicks = events[events["action"] == "click"]
    assert not clicks.duplicated(["user_id", "item_id"]).any()
    both = logs.merge(clicks, on=["user_id", "item_id"], suffixes=("", "_click"))
    assert (both["event_time"] < both["event_time_click"]).all()


def test_items_are_recalled_only_after_publication(logs: pd.DataFrame, items: DataFrame) -> None:
    published = items.select("item_id", F.timestamp_seconds("seconds").alias("published")).toPandas()
    joined = logs.merge(published, on="item_id")
    assert len(joined) == len(logs)
    assert (joined["event_time"] > joined["published"]).all()
    new = joined[joined["published"] >= pd.Timestamp(SIM.start)]
    assert 0 < len(new) < len(joined)


def test_item_snapshots_have_only_published_items(items: DataFrame) -> None:
    snapshots = product.items_snapshots(items, SIM).toPandas()
    assert (snapshots["publish_time"].dt.strftime("%Y-%m-%d") <= snapshots["ds"]).all()
    sizes = snapshots.groupby("ds")["item_id"].nunique()
    assert list(sizes.index) == DAYS
    assert sizes.iloc[0] > truth.first_items(SIM)  # some are published on the first day
    assert sizes.is_monotonic_increasing
    assert sizes.iloc[-1] == SIM.items
    assert (snapshots["tags"].str.len() == snapshots["tag_weights"].str.len()).all()
    assert np.allclose(snapshots["tag_weights"].map(sum), 1, atol=1e-5)


def test_the_snapshot_of_users_is_on_the_day_before_the_first(spark: SparkSession) -> None:
    users = product.users_snapshot(spark, SIM, SEED).toPandas()
    assert set(users["ds"]) == {"2024-02-26"}
    assert sorted(users["user_id"]) == list(range(1, SIM.users + 1))
    assert users["interests"].map(lambda names: len(names) == len(set(names))).all()


def test_noise_features_are_independent_and_change_no_other_value(spark: SparkSession, items: DataFrame) -> None:
    sim = SIM.model_copy(update={"noise_features": 2})
    noisy = product.all_items(spark, sim, SEED).toPandas()
    plain = items.toPandas()
    pd.testing.assert_frame_equal(noisy[plain.columns], plain)
    assert set(noisy.columns) - set(plain.columns) == {"noise_1", "noise_2"}
    assert noisy["noise_1"].nunique() == noisy["noise_2"].nunique() == truth.NOISE_VALUES
    assert (noisy["noise_1"] == noisy["noise_2"]).mean() < 0.15
    true = truth.catalogue(sim, SEED)
    by_noise = np.stack([true.taste[true.noise[:, 0] == value].mean(axis=0) for value in range(truth.NOISE_VALUES)])
    by_category = np.stack([true.taste[true.category == value].mean(axis=0) for value in range(sim.categories)])
    assert np.linalg.norm(by_noise, axis=1).mean() < 0.6 * np.linalg.norm(by_category, axis=1).mean()
    snapshots = product.items_snapshots(product.all_items(spark, sim, SEED), sim)
    assert {"noise_1", "noise_2"} < set(snapshots.columns)
    users = product.users_snapshot(spark, sim, SEED).toPandas()
    assert users["noise_2"].nunique() == truth.NOISE_VALUES


def test_the_truth_has_one_taste_per_user_and_day_which_drifts(spark: SparkSession) -> None:
    tastes = product.truth_of_users(spark, SIM, SEED).toPandas()
    assert len(tastes) == SIM.users * SIM.days
    by_day = [np.stack(rows.sort_values("user_id")["taste"]) for _, rows in tastes.groupby("ds")]
    assert np.allclose(np.linalg.norm(by_day[0], axis=1), 1, atol=1e-5)
    similarity = [(by_day[0] * later).sum(axis=1).mean() for later in by_day]
    assert similarity[0] > similarity[1] > similarity[2] > similarity[3] > 0.8
    without_drift = SIM.model_copy(update={"drift": 0.0})
    first, *others = truth.daily_tastes(without_drift, SEED, 0)
    assert all(np.array_equal(first, other) for other in others)


def test_item_content_and_user_profiles_predict_tastes() -> None:
    items, directions = truth.catalogue(SIM, SEED), truth.taste_space(SIM, SEED)
    own_category = (items.taste * directions.categories[items.category]).sum(axis=1)
    all_categories = np.abs(items.taste @ directions.categories.T).mean()
    assert own_category.mean() > 0.5 > 1.5 * all_categories
    users = truth.user_block(SIM, SEED, 0)
    stated = users.interests[:, :-1] >= 0
    match = (users.taste[:, None] * directions.categories[users.interests[:, :-1]]).sum(axis=2)
    assert match[stated].mean() > 0.3


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_best_ranking_beats_popularity_by_far(seed: int) -> None:
    """Recall@20 of the last day's clicks: ranking by true utility, and by the number of clicks on the days before."""
    sim = SIM.model_copy(update={"items": 600, "recalled": 200, "requests_per_user": 2.0, "drift": 0.0})
    items = truth.catalogue(sim, seed)
    clicks = [
        (requests.day, user - 1, item)
        for block in range(truth.user_blocks(sim))
        for requests in simulate_block(sim, seed, block)
        for user, shown, clicked in zip(requests.user_id, requests.items, requests.clicked)
        for item in shown[: sim.exposed][clicked]
    ]
    day, user, item = np.array(clicks).T
    past = day < sim.days - 1
    clicked_before, relevant = np.zeros((2, sim.users, sim.items), dtype=bool)
    clicked_before[user[past], item[past]] = True
    relevant[user[~past], item[~past]] = True
    taste = np.concatenate([truth.user_block(sim, seed, b).taste for b in range(truth.user_blocks(sim))])

    def recall_at_20(scores: np.ndarray) -> float:
        top = np.argsort(-np.where(clicked_before, -np.inf, scores), axis=1)[:, :20]
        has_clicks = relevant.any(axis=1)
        hits = np.take_along_axis(relevant, top, axis=1).sum(axis=1)
        return float((hits[has_clicks] / relevant.sum(axis=1)[has_clicks]).mean())

    best = recall_at_20(truth.true_utility(taste, items.taste, items.attractiveness))
    popular = recall_at_20(np.broadcast_to(np.bincount(item[past], minlength=sim.items), relevant.shape))
    assert best > 0.35
    assert best > 2.5 * popular


def test_click_probability_rises_with_utility_and_falls_with_position() -> None:
    chance = truth.click_probability(np.array([[5.0], [7.0]]), np.arange(1, 11))
    assert (np.diff(chance, axis=1) < 0).all()
    assert (chance[1] > chance[0]).all()


def test_too_few_items_for_a_recall_list_are_refused(spark: SparkSession) -> None:
    sim = SIM.model_copy(update={"new_item_share": 0.8})
    with pytest.raises(UsageError, match="48 items are available on the first day, but 60 are recalled"):
        product.simulated_requests(spark, sim, SEED)


def test_the_job_writes_every_table_once(spark: SparkSession, warehouse: Warehouse) -> None:
    sim = SIM.model_copy(update={"users": 40, "days": 2})
    context = SimpleNamespace(
        spark=spark, warehouse=warehouse, config=SimpleNamespace(simulation=sim, seed=SEED), force=False
    )
    simulate_logs.run(context)
    tables = ["users", "items", "interactions", "ranking_logs", "sim_truth_users", "sim_truth_items"]
    days = {table: warehouse.input_days(warehouse.path(table)) for table in tables}
    assert days["users"] == ["2024-02-26"]
    assert days["sim_truth_items"] == DAYS[:1]
    for table in ("items", "interactions", "ranking_logs", "sim_truth_users"):
        assert days[table] == DAYS[:2]

    def fingerprints() -> list[str]:
        return [warehouse.input_fingerprint(warehouse.path(table), days[table]) for table in tables]

    before = fingerprints()
    simulate_logs.run(context)  # the same command again changes nothing
    assert fingerprints() == before
    context.config.simulation = sim.model_copy(update={"days": 1})
    simulate_logs.run(context)  # another config: days of the earlier simulation are removed
    assert warehouse.input_days(warehouse.path("interactions")) == DAYS[:1]
