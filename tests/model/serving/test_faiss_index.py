"""The Faiss index of a release: choice of factory and setting, reproducibility, and search with exclusions."""

import math
from pathlib import Path

import faiss
import numpy as np
import pytest
from pydantic import ValidationError

from model.release_config import IndexConfig
from model.serving.faiss_index import (
    NO_ITEM,
    Batches,
    IndexFactoryError,
    _threads,
    build_index,
    load_index,
    save_index,
    search,
)
from model.serving.index_choice import (
    EXACT_BELOW,
    choose_index,
    default_factory,
    exact_search,
    recall_lower_bound,
    recall_per_query,
    settings_to_try,
)

DIM, ITEMS, USERS = 16, 4000, 50
FACTORIES = ["IVF32,Flat", "IVF32,SQ8", "IVF32,PQ8", "HNSW16"]
RNG = np.random.default_rng(7)
CENTRES = RNG.normal(size=(40, DIM))


def near_centres(rows: int, noise: float) -> np.ndarray:
    vectors = CENTRES[RNG.integers(len(CENTRES), size=rows)] + noise * RNG.normal(size=(rows, DIM))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


VECTORS, QUERIES = near_centres(ITEMS, 0.5), near_centres(USERS, 0.8)
IDS = RNG.permutation(3 * ITEMS)[:ITEMS].astype(np.int64)


def batches() -> list[tuple[np.ndarray, np.ndarray]]:
    return [(IDS[start : start + 1500], VECTORS[start : start + 1500]) for start in range(0, ITEMS, 1500)]


def best(k: int) -> np.ndarray:
    return IDS[np.argsort(-(QUERIES @ VECTORS.T), axis=1)[:, :k]]


def config(factory: str, target: float) -> IndexConfig:
    return IndexConfig(factory=factory, recall_target=target, recall_at=20)


def test_the_default_is_exact_for_small_catalogues_and_ivf_for_large_ones() -> None:
    assert default_factory(1) == default_factory(EXACT_BELOW - 1) == "Flat"
    assert default_factory(1_000_000) == "IVF4096,Flat"
    assert default_factory(10_000_000) == "IVF16384,Flat"


def test_exact_search_over_batches_equals_search_over_all_items() -> None:
    answer, _ = exact_search(batches(), QUERIES, 30)
    assert (answer == best(30)).mean() > 0.999  # Sums in another order may swap two neighbours.
    assert recall_per_query(answer, best(30)).mean() > 0.999
    assert recall_per_query(np.array([[1, 2, NO_ITEM], [4, 3, 2]]), np.array([[2, 3, 4]] * 2)) == pytest.approx(
        [1 / 3, 1]
    )


@pytest.mark.parametrize(("factory", "parameter"), [("IVF32,Flat", "nprobe"), ("HNSW16", "efSearch")])
def test_the_smallest_setting_whose_lower_bound_reaches_the_target_is_chosen(factory: str, parameter: str) -> None:
    chosen = choose_index(batches, DIM, ITEMS, QUERIES, config(factory, 0.9), seed=1)
    assert (chosen.factory, chosen.parameter) == (factory, parameter)
    *below, last = chosen.sweep
    assert all(point.at_least < 0.9 for point in below)
    assert last.at_least >= 0.9
    assert (chosen.value, chosen.recall) == (last.value, last.recall)
    _, items = search(chosen.index, QUERIES, 20)
    assert recall_per_query(items, best(20)).mean() == pytest.approx(chosen.recall)
    values = settings_to_try(factory, 20)
    assert values == sorted(set(values))
    assert [point.value for point in chosen.sweep] == values[: len(chosen.sweep)]


def test_the_lower_bound_holds_for_most_samples_of_users() -> None:
    """Of 400 samples of 50 users, about as many bounds exceed the true mean as expected for two standard errors."""
    rng = np.random.default_rng(3)
    bounds = np.array([recall_lower_bound(rng.beta(9, 1, 50)) for _ in range(400)])  # The mean is 0.9.
    assert 0.002 < (bounds > 0.9).mean() < 0.06
    assert recall_lower_bound(np.ones(5)) == 1.0  # A target of 1 can be reached.
    assert recall_lower_bound(np.ones(1)) == -math.inf


def test_the_index_is_exact_if_no_setting_reaches_the_target() -> None:
    chosen = choose_index(batches, DIM, ITEMS, QUERIES, config("IVF32,PQ2", 0.95), seed=1)
    assert (chosen.factory, chosen.parameter, chosen.value, chosen.recall) == ("Flat", None, None, 1.0)
    assert chosen.tried == "IVF32,PQ2"
    assert max(point.at_least for point in chosen.sweep) < 0.95
    assert (search(chosen.index, QUERIES, 20)[1] == best(20)).mean() > 0.999


def test_an_exact_index_is_not_swept() -> None:
    chosen = choose_index(batches, DIM, ITEMS, QUERIES[:0], IndexConfig(), seed=1)
    assert (chosen.factory, chosen.recall, chosen.sweep) == ("Flat", 1.0, [])
    assert math.isnan(chosen.exact_seconds)


@pytest.mark.parametrize("factory", FACTORIES)
def test_the_same_items_give_the_same_bytes_on_one_and_two_threads(factory: str) -> None:
    threads, built = faiss.omp_get_max_threads(), []
    for count in (1, 2):
        faiss.omp_set_num_threads(count)
        built.append(faiss.serialize_index(build_index(batches, DIM, factory, seed=5)).tobytes())
    faiss.omp_set_num_threads(threads)
    assert built[0] == built[1]
    if factory == "IVF32,Flat":
        assert built[0] != faiss.serialize_index(build_index(batches, DIM, factory, seed=6)).tobytes()


@pytest.mark.parametrize("factory", FACTORIES)
def test_a_file_stores_the_setting_and_search_leaves_out_excluded_items(factory: str, tmp_path: Path) -> None:
    chosen = choose_index(batches, DIM, ITEMS, QUERIES, config(factory, 0.6), seed=1)
    assert chosen.factory == factory
    save_index(chosen.index, tmp_path / "index.faiss")
    index = load_index(str(tmp_path / "index.faiss"))
    inner = faiss.downcast_index(index.index)
    assert (inner.hnsw.efSearch if chosen.parameter == "efSearch" else inner.nprobe) == chosen.value
    scores, items = search(index, QUERIES, 20)
    assert (items == search(chosen.index, QUERIES, 20)[1]).all()
    assert recall_per_query(items, best(20)).mean() == pytest.approx(chosen.recall)

    excluded = [row[: 15 * (user % 2)] for user, row in enumerate(best(20))]
    scores, items = search(index, QUERIES, 20, excluded)
    assert not any(set(row) & set(left_out) for row, left_out in zip(items.tolist(), excluded))
    assert all(len(set(row)) == 20 for row in items.tolist())
    assert (np.diff(scores, axis=1) <= 0).all()
    assert items.min() >= 0


@pytest.mark.parametrize("factory", FACTORIES)
def test_positions_stay_empty_only_if_there_are_no_more_items(factory: str) -> None:
    few: Batches = lambda: [(IDS[:600], VECTORS[:600])]  # noqa: E731
    index = build_index(few, DIM, factory)  # nprobe 1: about 20 items per cell.
    _, items = search(index, QUERIES[:3], 400, [IDS[:100], IDS[:0], IDS[:590]])
    assert [(row >= 0).sum() for row in items] == [400, 400, 10]
    assert set(items[2][:10]) == set(IDS[590:600])


def test_a_factory_that_does_not_fit_is_refused_with_the_reason() -> None:
    with pytest.raises(
        IndexFactoryError, match=r"IVF8192,Flat needs at least 8,192 items to train on, there are 4,000"
    ):
        build_index(batches, DIM, "IVF8192,Flat")
    with pytest.raises(IndexFactoryError, match=r"IVF32,PQ5 does not fit vectors of 16"):
        build_index(batches, DIM, "IVF32,PQ5")
    with pytest.raises(ValidationError, match="factory"):
        IndexConfig(factory="LSH")


@pytest.mark.parametrize("factory", ["Flat", "HNSW16"])
def test_an_index_written_by_earlier_versions_answers_alike(tmp_path: Path, factory: str) -> None:
    """They wrote IDMap2, which is IDMap with a second map for `reconstruct`."""
    index = build_index(batches, DIM, factory)
    assert type(index) is faiss.IndexIDMap
    earlier = faiss.index_factory(DIM, f"IDMap2,{factory}", faiss.METRIC_INNER_PRODUCT)
    for ids, vectors in batches():
        earlier.add_with_ids(vectors, ids)
    answers = []
    for name, written in (("now", index), ("earlier", earlier)):
        save_index(written, tmp_path / name)
        loaded = load_index(str(tmp_path / name))
        assert isinstance(loaded, faiss.IndexIDMap)
        answers.append(search(loaded, QUERIES, 10, [best(3)[row] for row in range(USERS)]))
    for now, before in zip(*answers):
        np.testing.assert_array_equal(now, before)


def test_threads_are_limited_inside_the_block_only() -> None:
    before = faiss.omp_get_max_threads()
    with _threads(1):
        assert faiss.omp_get_max_threads() == 1
        with _threads(None):
            assert faiss.omp_get_max_threads() == 1
    assert faiss.omp_get_max_threads() == before
    with pytest.raises(RuntimeError, match="stop"), _threads(1):
        raise RuntimeError("stop")
    assert faiss.omp_get_max_threads() == before
