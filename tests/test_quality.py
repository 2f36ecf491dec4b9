"""The quality benchmark: its questions, figures, peers and summary, on worlds that are small enough to check by hand."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks.quality import __main__ as command
from benchmarks.quality import ours, ranking, variants
from benchmarks.quality.figures import Metrics, bootstrap, coverage_of, metrics_of
from benchmarks.quality.peers import ease, item_cf, rechub, search
from benchmarks.quality.peers.popularity import Popularity
from benchmarks.quality.question import DAY, Question, validation_tail
from benchmarks.quality.run import WorldRun
from benchmarks.quality.store import Answer, Store
from benchmarks.quality.summary import WorldFigures, summarise, table_of
from benchmarks.quality.worlds import EASY_ONLY, ROOT, WORLDS, AskedNight

END = 100 * DAY


def question(events: list[tuple[int, int, float]], **changes: object) -> Question:
    """A question about users 0 to 3 and items 0 to 5. `events`: user, item, days before the end."""
    ordered = sorted(events, key=lambda event: -event[2])
    user, item, before = (np.array(column) for column in zip(*ordered))
    nothing = (np.zeros(0, np.int64), np.zeros(0, np.int64))
    arrays: dict[str, object] = {
        "users": np.array([f"u{n}" for n in range(4)]),
        "items": np.array([f"i{n}" for n in range(6)]),
        "event_user": user,
        "event_item": item,
        "event_time": (END - before * DAY).astype(np.int64),
        "event_weight": np.ones(len(user), np.float32),
        "asked": np.arange(4),
        "targets": nothing,
        "excluded": nothing,
        "end": END,
        "days": 7,
    }
    return Question(**(arrays | changes))  # type: ignore[arg-type]


EVENTS = [(0, 0, 20.0), (0, 1, 9.0), (1, 0, 8.0), (1, 2, 3.0), (1, 0, 2.0), (2, 3, 1.0), (2, 4, 30.0)]


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


def test_a_question_is_the_same_after_it_was_saved(tmp_path: Path) -> None:
    features = {"category": np.arange(6), "tags": np.ones((6, 2), int)}
    asked = question(EVENTS, targets=(np.array([0]), np.array([5])), item_features=features, days=None)
    asked.save(tmp_path / "question.npz")
    loaded = Question.load(tmp_path / "question.npz")
    assert loaded.fingerprint == asked.fingerprint
    assert (loaded.days, loaded.end, loaded.new_only) == (None, END, True)
    assert set(loaded.item_features) == {"category", "tags"}
    assert loaded.targets[1].tolist() == [5]


def test_the_paired_bootstrap_resamples_users_with_all_their_nights() -> None:
    # User a has two nights, b one: the resamples aa, ab, bb have the means 2, 1 and -1 with chances 1/4, 1/2, 1/4.
    interval = bootstrap(np.array([1.0, 3.0, -1.0]), np.array(["a", "a", "b"]))
    assert interval.as_dict() == {"mean": 1.0, "low": -1.0, "high": 2.0}
    # As three users, their means would reach the largest single value.
    assert bootstrap(np.array([1.0, 3.0, -1.0]), np.array(["a", "b", "c"])).high > 2.0
    same = bootstrap(np.full(5, 0.25), np.arange(5))
    assert (same.low, same.mean, same.high) == (0.25, 0.25, 0.25)
    assert bootstrap(np.array([np.nan, 0.5]), np.array(["a", "b"])).as_dict() == {"mean": 0.5, "low": 0.5, "high": 0.5}


def test_figures_are_per_user_and_slice() -> None:
    asked = question(EVENTS, targets=(np.array([0, 0, 1]), np.array([0, 5, 5])))
    lists = np.full((4, 100), -1)
    lists[0, :2], lists[1, 0] = (3, 0), 2
    metrics = metrics_of(asked, lists)
    np.testing.assert_array_equal(metrics["recall", "all", 50], [0.5, 0.0, np.nan, np.nan])
    np.testing.assert_array_equal(metrics["recall", "head", 50], [1.0, np.nan, np.nan, np.nan])  # item 0 is the head
    np.testing.assert_array_equal(metrics["hit_rate", "unseen", 10], [0.0, 0.0, np.nan, np.nan])  # item 5 has no event
    assert coverage_of(lists, 6) == 0.5


def test_popularity_counts_a_window_and_leaves_out_what_a_user_had() -> None:
    asked = question(EVENTS, excluded=(np.array([1]), np.array([2])))
    lists = search.rank(Popularity(), asked, {"days": 3}, seed=1)
    # In the last three days items 2, 0 and 3 have one event each; over all days item 0 has the most.
    assert lists[0, :6].tolist() == [0, 2, 3, 1, 4, 5]
    assert lists[1, :6].tolist() == [0, 3, 1, 4, 5, -1]


def test_lists_do_not_depend_on_the_blocks_of_users(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = question(EVENTS, excluded=(np.array([3, 0, 1]), np.array([2, 1, 5])))
    scores = np.random.default_rng(1).random((4, 6))
    whole = ranking.lists_of(asked, lambda block: scores[block])
    assert {user: set(range(6)) - set(whole[user, :6].tolist()) for user in range(4)} == {
        0: {1},
        1: {5},
        2: set(),
        3: {2},
    }
    monkeypatch.setattr(ranking, "CELLS", 12)  # two users at a time
    np.testing.assert_array_equal(ranking.lists_of(asked, lambda block: scores[block]), whole)


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


def toy_store(root: Path) -> Store:
    """World head_heavy: two nights with the same two users. Ours lists the target first, popularity third, EASE nowhere."""
    store = Store(root)
    for night in ("2024-01-01", "2024-01-02"):
        asked = question(EVENTS, asked=np.array([0, 1]), targets=(np.array([0, 1]), np.array([4, 4])))
        asked.save(store.question_file("head_heavy", night))
        for model, place in {"ours": 0, "popularity": 2, "ease": None, EASY_ONLY: 60, "best_reachable": 0}.items():
            lists = np.full((2, 100), -1)
            if place is not None:
                lists[:, place] = 4
            store.write("head_heavy", night, model, 1, Answer(lists, {"question": asked.fingerprint, "commit": "c"}))
    return store


def test_a_summary_says_where_we_are_ahead(tmp_path: Path) -> None:
    store = toy_store(tmp_path)
    summary = summarise(store, {"movielens": "needs --movielens FOLDER"})
    assert (summary["worlds_ahead"], summary["worlds_behind"]) == (0, 0), "popularity finds as many targets in 50"
    assert summary["reachable_share"] == {"head_heavy": 1.0}
    assert summary["hard_negatives_gain"] == {"head_heavy": {"mean": 1.0, "low": 1.0, "high": 1.0}}
    assert summary["left_out"] == {"movielens": "needs --movielens FOLDER"}
    world = summary["worlds"]["head_heavy"]
    assert world["ours_minus_peer"]["ease"]["recall_at_50"]["low"] == 1.0
    assert world["ours_minus_peer"]["popularity"]["ndcg_at_10"]["mean"] == pytest.approx(0.5)
    assert world["models"]["ours"]["coverage"] == pytest.approx(1 / 6)
    assert summary["peers_missing"]["head_heavy"] == [p for p in search.PEERS if p not in ("popularity", "ease")]
    assert "| head_heavy | ease | 0.0000 |" in table_of(summary)

    for night in ("2024-01-01", "2024-01-02"):  # now popularity lists the target after the 50th place
        answer = store.read("head_heavy", night, "popularity", 1)
        assert answer is not None
        store.write("head_heavy", night, "popularity", 1, Answer(np.roll(answer.lists, 60, axis=1), answer.facts))
    assert summarise(store, {})["ahead"] == ["head_heavy"]


def test_answers_to_an_older_question_are_left_out(tmp_path: Path) -> None:
    store = toy_store(tmp_path)
    question(EVENTS[1:], asked=np.array([0, 1])).save(store.question_file("head_heavy", "2024-01-02"))
    figures = WorldFigures(store, "head_heavy")
    assert set(figures.metrics["ours"]) == {"2024-01-01"}


def test_seeds_of_a_user_are_averaged(tmp_path: Path) -> None:
    store = toy_store(tmp_path)
    answer = store.read("head_heavy", "2024-01-01", "ours", 1)
    assert answer is not None
    store.write("head_heavy", "2024-01-01", "ours", 2, Answer(np.full((2, 100), -1), answer.facts))
    metrics: Metrics = WorldFigures(store, "head_heavy").metrics["ours"]["2024-01-01"]
    np.testing.assert_array_equal(metrics["recall", "all", 50], [0.5, 0.5])


def test_runs_that_are_stored_with_the_same_settings_are_skipped(tmp_path: Path) -> None:
    options = command.parse(
        ["--variant", "wide: model.dim=128", "--variant", "more: negatives.uniform=3", "--seeds", "2"]
    )
    store, night = Store(tmp_path), AskedNight("2017-11-27", 331)
    run = WorldRun(WORLDS["grocery"], store, options)
    asked = question(EVENTS)
    asked.save(store.question_file("grocery", night.ds))
    planned = [(variant.name, seed) for variant, seed, _ in run.missing_runs(night)]
    tables_then_seeds = [("ours", 1), ("wide", 1), ("ours", 2), ("wide", 2), ("more", 1), ("more", 2)]
    assert planned == tables_then_seeds
    config = next(config for variant, _, config in run.missing_runs(night) if variant.name == "wide")
    facts = {"config": ours.digest_of(config), "question": asked.fingerprint}
    store.write("grocery", night.ds, "wide", 1, Answer(np.zeros((4, 100)), facts))
    store.write("grocery", night.ds, "wide", 2, Answer(np.zeros((4, 100)), facts | {"config": "of another batch size"}))
    again = [(variant.name, seed) for variant, seed, _ in run.missing_runs(night)]
    assert ("wide", 1) not in again
    assert ("wide", 2) in again


def test_unknown_names_end_with_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--worlds", "grocer"], ["--models", "als,bprr"], ["--variant", "ours: model.dim=1"]):
        with pytest.raises(SystemExit) as error:
            command.parse(arguments)
        assert error.value.code == 2
    assert "no world is named 'grocer'" in capsys.readouterr().err


def test_every_world_and_every_step_of_the_ladder_is_a_valid_config(tmp_path: Path) -> None:
    ladder = variants.read(ROOT / "benchmarks/quality/ladder.yaml")
    for world in WORLDS.values():
        for overrides in ((), world.smoke):
            world.load(tmp_path, overrides)
    for variant in ladder:
        for name in ("grocery", "head_heavy"):
            WORLDS[name].load(tmp_path, variant.overrides)
    assert len({variant.name for variant in ladder}) == len(ladder)
