"""The quality benchmark: its questions, figures, peers and summary, on worlds that are small enough to check by hand."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks.quality import __main__ as command
from benchmarks.quality import ours, ranking, variants
from benchmarks.quality.figures import Metrics, bootstrap, coverage_of, metrics_of
from benchmarks.quality.ours import TRUTHS, Variant
from benchmarks.quality.peers import PEERS
from benchmarks.quality.question import Question
from benchmarks.quality.run import WorldRun
from benchmarks.quality.store import Answer, Store
from benchmarks.quality.summary import WorldFigures, figures_of_worlds, page_of, summarise, table_of
from benchmarks.quality.validation import VALIDATION, without_last_likes
from benchmarks.quality.variants import TUNED
from benchmarks.quality.worlds import EASY_ONLY, ROOT, WORLDS, AskedNight
from jobs import tune
from jobs.common.config import load_config
from tests.toy_question import END, EVENTS, question


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


def toy_store(root: Path) -> Store:
    """World head_heavy: two nights with the same two users. Ours lists the target first, popularity third, EASE nowhere."""
    store = Store(root)
    for night in ("2024-01-01", "2024-01-02"):
        asked = question(EVENTS, asked=np.array([0, 1]), targets=(np.array([0, 1]), np.array([4, 4])))
        asked.save(store.question_file("head_heavy", night))
        places = {"ours": 0, "popularity": 2, "ease": None, EASY_ONLY: 60, **dict.fromkeys(TRUTHS, 0)}
        for model, place in places.items():
            lists = np.full((2, 100), -1)
            if place is not None:
                lists[:, place] = 4
            store.write("head_heavy", night, model, 1, Answer(lists, {"question": asked.fingerprint, "commit": "c"}))
    return store


def test_a_summary_says_where_we_are_ahead(tmp_path: Path) -> None:
    store = toy_store(tmp_path)
    summary = summarise(figures_of_worlds(store), {"movielens": "needs --movielens FOLDER"})
    assert (summary["worlds_ahead"], summary["worlds_behind"]) == (0, 0), "popularity finds as many targets in 50"
    assert summary["reachable_share"] == summary["learnable_share"] == summary["learned_share"] == {"head_heavy": 1.0}
    assert summary["hard_negatives_gain"] == {"head_heavy": {"mean": 1.0, "low": 1.0, "high": 1.0}}
    assert summary["left_out"] == {"movielens": "needs --movielens FOLDER"}
    world = summary["worlds"]["head_heavy"]
    assert world["ours_minus_peer"]["ease"]["recall_at_50"]["low"] == 1.0
    assert world["ours_minus_peer"]["popularity"]["ndcg_at_10"]["mean"] == pytest.approx(0.5)
    assert world["models"]["ours"]["coverage"] == pytest.approx(1 / 6, abs=1e-5)
    assert summary["peers_missing"]["head_heavy"] == [p for p in PEERS if p not in ("popularity", "ease")]
    assert "| head_heavy | ease | 0.0000 |" in table_of(summary)

    for night in ("2024-01-01", "2024-01-02"):  # now popularity lists the target after the 50th place
        answer = store.read("head_heavy", night, "popularity", 1)
        assert answer is not None
        store.write("head_heavy", night, "popularity", 1, Answer(np.roll(answer.lists, 60, axis=1), answer.facts))
    assert summarise(figures_of_worlds(store), {})["ahead"] == ["head_heavy"]
    for night in ("2024-01-01", "2024-01-02"):
        answer = store.read("head_heavy", night, "ease", 1)
        assert answer is not None
        store.write("head_heavy", night, TUNED, 1, answer)
    summary = summarise(figures_of_worlds(store), {})
    assert (summary["worlds_ahead"], summary["tuned_worlds_ahead"]) == (1, 0), "the tuned model lists no target"
    assert summary["worlds_behind"] == 0


def test_our_model_is_behind_if_the_best_peer_is_certainly_better(tmp_path: Path) -> None:
    store = toy_store(tmp_path)
    for night in ("2024-01-01", "2024-01-02"):
        answer = store.read("head_heavy", night, "ours", 1)
        assert answer is not None
        store.write("head_heavy", night, "ours", 1, Answer(np.full((2, 100), -1), answer.facts))
    summary = summarise(figures_of_worlds(store), {})
    assert (summary["behind"], summary["ahead"]) == (["head_heavy"], [])
    assert summary["tail_over_item_cf"] == {}
    assert summary["hard_negatives_gain"]["head_heavy"]["mean"] == 0.0


def test_worlds_that_the_store_lacks_keep_their_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toy_store(tmp_path / "store")
    out = tmp_path / "quality.json"
    argv = ["--summarise", "--store", str(tmp_path / "store"), "--out", str(out)]
    command.main(argv)
    first = json.loads(out.read_text())
    assert first["kept"] == []
    assert list(first["worlds"]) == ["head_heavy"]
    shutil.move(tmp_path / "store" / "head_heavy", tmp_path / "store" / "drifting")
    command.main([*argv, "--keep"])
    second = json.loads(out.read_text())
    assert second["kept"] == ["head_heavy"]
    assert list(second["worlds"]) == ["drifting", "head_heavy"]
    assert second["worlds"]["head_heavy"] == first["worlds"]["head_heavy"]
    assert second["reachable_share"] == {"drifting": 1.0, "head_heavy": 1.0}
    command.main(argv)
    assert list(json.loads(out.read_text())["worlds"]) == ["drifting"], "without --keep only what is in the store"


def test_the_page_of_figures_is_that_of_the_json() -> None:
    found = json.loads(command.RESULT.read_text())
    assert command.RESULT.with_suffix(".md").read_text() == page_of(found)
    assert not found["smoke"]
    for name, world in found["worlds"].items():
        less = world["models"]["ours"]["recall"]["all"]["50"] - world["models"]["popularity"]["recall"]["all"]["50"]
        written = world["ours_minus_peer"]["popularity"]["recall_at_50"]["mean"]
        assert less == pytest.approx(written, abs=2e-5), name


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


def test_a_variant_of_two_nights_has_its_own_warehouse_and_reads_the_logs_of_its_world(tmp_path: Path) -> None:
    assert variants.parse("mined: nights=2 negatives.mined=2") == Variant("mined", ("negatives.mined=2",), nights=2)
    options = command.parse(["--variant", "mined: nights=2 negatives.mined=2", "--variant", "none: nights=2"])
    store, night = Store(tmp_path), AskedNight("2024-03-09", 9)
    run = WorldRun(WORLDS["head_heavy"], store, options)
    configs = {variant.name: config for variant, _, config in run.missing_runs(night)}
    assert configs["ours"].warehouse == str(store.warehouse("head_heavy"))
    assert configs["mined"].warehouse == str(tmp_path / "head_heavy" / "warehouse-mined")
    assert configs["mined"].inputs.items.path == str(store.warehouse("head_heavy") / "items")
    assert not configs["none"].evaluation.simulated_truth, "the truth is not in its warehouse"
    # It is never taken for the default, which is a first night.
    assert ours.digest_of(configs["ours"], 2) != ours.digest_of(configs["ours"])
    question(EVENTS).save(store.question_file("head_heavy", night.ds))
    facts = {"config": ours.digest_of(configs["none"]), "question": question(EVENTS).fingerprint}
    store.write("head_heavy", night.ds, "none", 1, Answer(np.zeros((4, 100)), facts))
    assert ("none", 1) in [(variant.name, seed) for variant, seed, _ in run.missing_runs(night)]


def test_easy_negatives_alone_are_valid_whatever_options_of_hard_negatives_the_config_has(tmp_path: Path) -> None:
    options = ("loss.hard_ramp=[0.3, 0.8]", "loss.hard_weight=0.3", "negatives.mined=2")
    config = WORLDS["head_heavy"].load(tmp_path, (*options, *variants.EASY))
    negatives = config.negatives
    assert (negatives.coarse, negatives.fine, negatives.mined, config.loss.hard_ramp) == (0, 0, 0, None)


def test_a_simulated_world_without_its_best_reachable_lists_is_incomplete(tmp_path: Path) -> None:
    store, night = Store(tmp_path), AskedNight("2024-01-01", 6)
    run = WorldRun(WORLDS["head_heavy"], store, command.parse(["--models", "popularity"]))
    question(EVENTS).save(store.question_file("head_heavy", night.ds))
    assert run._is_incomplete([night])
    for truth in TRUTHS:
        assert run._is_incomplete([night])
        store.write("head_heavy", night.ds, truth, 1, Answer(np.zeros((4, 100)), {}))
    assert not run._is_incomplete([night])


def test_unknown_names_end_with_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--worlds", "grocer"], ["--models", "als,bprr"], ["--variant", "ours: model.dim=1"]):
        with pytest.raises(SystemExit) as error:
            command.parse(arguments)
        assert error.value.code == 2
    assert "no world is named 'grocer'" in capsys.readouterr().err


def test_a_validation_copy_of_ratings_ends_before_the_last_liked_film_of_each_user(tmp_path: Path) -> None:
    rows = [(1, 10, 5.0, 100), (1, 11, 4.0, 200), (1, 12, 4.5, 200), (1, 13, 1.0, 300), (2, 10, 3.0, 50)]
    source = tmp_path / "source"
    source.mkdir()
    ratings = pd.DataFrame(rows, columns=["userId", "movieId", "rating", "timestamp"])
    ratings.to_csv(source / "ratings.csv", index=False)
    (source / "movies.csv").write_text("movieId,title,genres\n")
    without_last_likes(source, tmp_path / "copy")
    kept = pd.read_csv(tmp_path / "copy" / "ratings.csv")
    assert kept[["userId", "movieId"]].to_numpy().tolist() == [[1, 10], [2, 10]]


def test_validation_asks_other_questions_in_every_world(tmp_path: Path) -> None:
    assert set(VALIDATION) == set(WORLDS)
    for name, world in WORLDS.items():
        earlier = VALIDATION[name]
        if world.simulated:
            assert earlier.load(tmp_path).seed != world.load(tmp_path).seed
        else:
            assert (earlier.fill, earlier.nights) != (world.fill, world.nights)
    assert command.parse(["--validation"]).store != command.parse([]).store


def test_our_config_is_tuned_on_the_past_of_the_first_night(tmp_path: Path) -> None:
    """The flags are those of jobs.tune, and give the config of the world without the days after the night."""
    store, night = (
        Store(tmp_path),
        AskedNight("2017-06-09", 7743, ("evaluation.split=next_days", "evaluation.days=472")),
    )
    run = WorldRun(WORLDS["movielens_time"], store, command.parse(["--models", "tuned", "--tune-minutes", "20"]))
    args = tune._flags().parse_args(run.tune_flags(night))
    assert (args.ds, args.bootstrap_days, args.minutes) == ("2017-06-09", 7743, 20)
    assert args.output == str(store.tuned_config("movielens_time"))
    assert load_config(args.config, args.overrides) == run.config(night, Variant("ours"))
    assert run._needs_tuning()
    store.tuned_config("movielens_time").parent.mkdir(parents=True)
    store.tuned_config("movielens_time").write_text("")
    assert not run._needs_tuning()
    assert not WorldRun(run.world, Store(tmp_path / "other"), command.parse([]))._needs_tuning()


def test_every_world_and_every_step_of_the_ladder_is_a_valid_config(tmp_path: Path) -> None:
    ladder = variants.read(ROOT / "benchmarks/quality/ladder.yaml")
    for world in WORLDS.values():
        for overrides in ((), world.smoke):
            world.load(tmp_path, overrides)
    for variant in ladder:
        WORLDS["head_heavy"].load(tmp_path, variant.overrides)
        if not variant.changed_input:
            WORLDS["grocery"].load(tmp_path, variant.overrides)
    assert len({variant.name for variant in ladder}) == len(ladder)
