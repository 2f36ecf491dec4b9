"""Ranking metrics against a simple reference implementation; the index against brute force."""

import math
from pathlib import Path

import numpy as np
import pytest

from model.evaluation.ranking_metrics import NO_ITEM, bootstrap_interval, popularity_thirds, ranking_metrics, top_k
from model.serving.faiss_index import build_index, load_index, save_index, search

KS = [1, 5, 10]


def reference_metrics(ranking: list[int], targets: set[int], k: int) -> tuple[float, float, float]:
    hits = [rank for rank, item in enumerate(ranking[:k], start=1) if item in targets]
    gain = sum(1 / math.log2(1 + rank) for rank in hits)
    ideal = sum(1 / math.log2(1 + rank) for rank in range(1, min(k, len(targets)) + 1))
    return len(hits) / len(targets), gain / ideal, float(bool(hits))


@pytest.mark.parametrize("seed", range(3))
def test_metrics_equal_those_of_the_reference(seed: int) -> None:
    rng = np.random.default_rng(seed)
    users, items = 7, 40
    scores = rng.normal(size=(users, items)).astype(np.float32)
    targets = [set(rng.choice(items, size=rng.integers(1, 12), replace=False).tolist()) for _ in range(users)]
    seen = [set(rng.choice(items, size=5, replace=False).tolist()) for _ in range(users)]
    pairs = (np.repeat(np.arange(users), [len(t) for t in targets]), np.array([i for t in targets for i in sorted(t)]))
    excluded = (np.repeat(np.arange(users), 5), np.array([i for s in seen for i in sorted(s)]))
    top = top_k(scores, max(KS), excluded)
    metrics = ranking_metrics(top, pairs, items, KS)
    for user in range(users):
        ranking = [i for i in np.argsort(-scores[user]).tolist() if i not in seen[user]]
        assert top[user].tolist() == ranking[: max(KS)]
        for column, k in enumerate(KS):
            values = tuple(metrics[name][user, column] for name in ("recall", "ndcg", "hit_rate"))
            assert values == pytest.approx(reference_metrics(ranking, targets[user], k))


def test_ties_are_ordered_by_position_and_missing_items_are_filled() -> None:
    scores = np.zeros((2, 4), np.float32)
    top = top_k(scores, 3, (np.array([1, 1, 1]), np.array([0, 1, 3])))
    assert top.tolist() == [[0, 1, 2], [2, NO_ITEM, NO_ITEM]]
    assert top_k(scores, 6).tolist() == [[0, 1, 2, 3, NO_ITEM, NO_ITEM]] * 2


def test_a_user_without_targets_has_no_metrics() -> None:
    metrics = ranking_metrics(np.array([[0], [0]]), (np.array([1]), np.array([0])), 3, [1])
    assert np.isnan(metrics["recall"][0, 0])
    assert metrics["recall"][1, 0] == 1.0


def test_each_third_has_a_third_of_the_clicks() -> None:
    counts = np.array([1, 30, 5, 20, 0, 4, 10, 20])
    thirds = popularity_thirds(counts)
    assert thirds[1] == 0  # The most clicked item.
    assert thirds[4] == 2  # An item without clicks.
    assert [thirds[i] for i in np.argsort(-counts)] == sorted(thirds)


def test_the_interval_contains_the_mean_and_narrows_with_more_users() -> None:
    rng = np.random.default_rng(0)
    few, many = rng.random(30), rng.random(3000)
    for values in (few, many):
        low, high = bootstrap_interval(values, 300, 1)
        assert low < values.mean() < high
    assert np.diff(bootstrap_interval(many, 300, 1)) < np.diff(bootstrap_interval(few, 300, 1))


def test_search_is_exact_for_any_exclusions(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    vectors = rng.normal(size=(300, 8)).astype(np.float32)
    ids = rng.permutation(1000)[:300].astype(np.int64)
    built = build_index(lambda: [(ids[:100], vectors[:100]), (ids[100:], vectors[100:])], 8)
    save_index(built, tmp_path / "index.faiss")
    index = load_index(str(tmp_path / "index.faiss"))
    users = rng.normal(size=(4, 8)).astype(np.float32)
    excluded = [ids[:0], ids[rng.choice(300, 3)], ids[rng.choice(300, 280, replace=False)], ids]
    scores, items = search(index, users, 10, excluded)
    for user in range(4):
        order = np.argsort(-(vectors @ users[user]))
        expected = [int(i) for i in ids[order] if i not in excluded[user]][:10]
        assert [i for i in items[user].tolist() if i != NO_ITEM] == expected
        assert np.isfinite(scores[user]).sum() == len(expected)
