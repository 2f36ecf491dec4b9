"""The peers of the quality benchmark, and how they are tuned, on a question that is small enough to check by hand."""

import numpy as np
import pandas as pd
import pytest

from benchmarks.quality import ours
from benchmarks.quality.peers import ease, item_cf, rechub, search
from benchmarks.quality.peers.popularity import Popularity
from benchmarks.quality.question import DAY, Question, validation_tail
from tests.toy_question import END, EVENTS, question


def test_a_validation_tail_asks_the_same_question_of_earlier_days_and_never_reads_the_targets() -> None:
    asked = question(EVENTS, targets=(np.array([0, 1]), np.array([5, 5])))
    tail = validation_tail(asked)
    assert tail.end == END - 7 * DAY
    assert (tail.event_time < tail.end).all()
    targets = {(int(tail.asked[row]), int(item)) for row, item in zip(*tail.targets)}
    assert targets == {(1, 2), (2, 3)}, "user 1 had item 0 before, and item 5 is only wanted after the end"
    excluded = {(int(tail.asked[row]), int(item)) for row, item in zip(*tail.excluded)}
    assert excluded == {(1, 0), (2, 4)}
    hidden = validation_tail(asked.without_targets())
    assert hidden.fingerprint == tail.fingerprint


def test_a_validation_tail_without_days_holds_out_the_last_item_of_each_user_everywhere() -> None:
    tail = validation_tail(question([*EVENTS, (3, 5, 4.0)], days=None))
    targets = {(int(tail.asked[row]), int(item)) for row, item in zip(*tail.targets)}
    assert targets == {(0, 1), (1, 0), (2, 3)}, "user 3 has only one item"
    past = set(zip(tail.event_user.tolist(), tail.event_item.tolist()))
    assert past == {(0, 0), (1, 2), (2, 4), (3, 5)}, "no event of a held-out item is left, also not an earlier one"


def test_popularity_counts_a_window_and_leaves_out_what_a_user_had() -> None:
    asked = question(EVENTS, excluded=(np.array([1]), np.array([2])))
    lists = search.rank(Popularity(), asked, {"days": 3}, seed=1)
    # In the last three days items 2, 0 and 3 have one event each; over all days item 0 has the most.
    assert lists[0, :6].tolist() == [0, 2, 3, 1, 4, 5]
    assert lists[1, :6].tolist() == [0, 3, 1, 4, 5, -1]


def test_rows_of_neural_peers_have_the_items_before_the_event_as_history() -> None:
    batches = rechub.Batches(question(EVENTS), negatives=3, pointwise=False, seed=1)
    rows, _ = batches._batch(np.arange(len(EVENTS)))
    histories = [[item - 1 for item in history if item] for history in rows["history"].tolist()]
    # By user, oldest event first: user 0 has items 0, 1; user 1 has items 0, 2, 0; user 2 has items 4, 3.
    assert (rows["item_id"] - 1).tolist() == [0, 1, 0, 2, 0, 4, 3]
    assert histories == [[], [0], [], [0], [0, 2], [], [4]]
    assert rows["neg_items"].shape == (7, 3)
    assert 6 not in rows["neg_items"], "item 5 has no event, so it is never drawn"
    now = batches.now(np.array([1, 3]))["history"]
    assert now[:, -3:].tolist() == [[1, 3, 1], [0, 0, 0]]
    pointwise, labels = rechub.Batches(question(EVENTS), negatives=1, pointwise=True, seed=1)._batch(np.array([3]))
    assert labels.tolist() == [1.0, 0.0]
    assert pointwise["history"].shape == (2, rechub.HISTORY)


def test_peers_get_encoded_features_and_no_ids() -> None:
    rows = {
        "item_id": [70_000_001, 70_000_002],
        "item_index": [2, 3],
        "item_category": [5, 6],
        "item_tags": [np.array([1, 0]), np.array([2, 3])],
        "item_price": [0.5, -0.5],
    }
    features = ours._indices(pd.DataFrame(rows), "item_")
    assert {name: values.tolist() for name, values in features.items()} == {
        "category": [5, 6],
        "tags": [[1, 0], [2, 3]],
    }


def test_item_cf_finds_the_nearest_neighbours() -> None:
    matrix = item_cf.user_items(question([(0, 0, 3), (0, 1, 2), (1, 0, 3), (1, 1, 2), (1, 2, 1), (2, 2, 1), (2, 3, 1)]))
    neighbours, similarities = item_cf.nearest(matrix, 0.0, 2)
    assert neighbours[0].tolist() == [1, 2]
    np.testing.assert_allclose(similarities[0], [1.0, 0.5])  # 2 / sqrt(2 x 2), 1 / sqrt(2 x 2)
    np.testing.assert_allclose(item_cf.nearest(matrix, 2.0, 2)[1][0], [0.5, 0.25])
    latest = item_cf.user_items(question([(0, 0, 3), (0, 1, 2), (0, 0, 1)]), latest=1).toarray()
    assert latest[0].tolist() == [1, 0, 0, 0, 0, 0]


def test_ease_is_the_ridge_regression_of_each_item_on_all_others() -> None:
    X = (np.random.default_rng(3).random((30, 6)) < 0.4).astype(np.float64)
    gram, B = X.T @ X, ease.weights(X.T @ X, 5.0)
    for item in range(6):
        others = np.delete(np.arange(6), item)
        direct = np.linalg.solve(gram[np.ix_(others, others)] + 5.0 * np.eye(5), gram[others, item])
        np.testing.assert_allclose(B[others, item], direct, atol=1e-10)
        assert B[item, item] == 0.0


@pytest.mark.parametrize("peer", [item_cf.ItemCf(), ease.Ease()])
def test_a_tuned_peer_recommends_what_similar_users_have(peer: search.Peer) -> None:
    """Users 0 and 1 share items 0 and 1, users 2 and 3 share items 3 and 4; user 1 lacks 2, and user 3 lacks 5."""
    events = [
        (user, item, 50.0 - item) for user, items in enumerate(([0, 1, 2], [0, 1], [3, 4, 5], [3, 4])) for item in items
    ]
    excluded = [(user, item) for user, item, _ in events]
    asked = question(events, excluded=tuple(np.array(column) for column in zip(*excluded)), days=None)
    found = search.tune(peer, asked, seconds=0.0)
    assert len(found["tried"]) == 1, "at least one setting is tried when there is no time"
    assert found["tail"]["to"] == END
    lists = search.rank(peer, asked, found["setting"], seed=1)
    assert (lists[1, 0], lists[3, 0]) == (2, 5)


def test_a_smoke_run_limits_the_items_of_ease() -> None:
    found = search.tune(ease.Ease(), question(EVENTS), seconds=0.0, most_items=2)
    assert found["setting"]["items"] == 2
    assert "items" not in search.tune(Popularity(), question(EVENTS), seconds=0.0, most_items=2)["setting"]


def test_a_search_stops_a_fit_whose_epochs_no_longer_help() -> None:
    asked = question(EVENTS)

    class Falling:
        """The first two epochs list item 2, which user 1 wants; later ones list nothing."""

        def settings(self, question: Question) -> list[search.Setting]:
            return [{"epochs": 10}]

        def rankings(self, question: Question, setting: search.Setting, seed: int, last: bool):  # type: ignore[no-untyped-def]
            for epoch in range(1, setting["epochs"] + 1):
                yield {"epochs": epoch}, np.full((len(question.asked), 100), 2 if epoch == 2 else -1)

    found = search.tune(Falling(), asked, seconds=60.0)
    assert found["setting"] == {"epochs": 2}
    assert [trial["setting"]["epochs"] for trial in found["tried"]] == [1, 2, 3, 4, 5]


def test_towers_of_the_peer_dssm_can_have_negative_cosines() -> None:
    assert rechub.tower_of(32) == {"dims": [64, 32], "activation": "prelu"}
