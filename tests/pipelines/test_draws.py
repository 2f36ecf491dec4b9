"""Draws follow their distribution, never take what is forbidden, and depend on keys alone."""

import numpy as np
import pytest
from scipy.stats import chisquare

from pipelines.draws import NONE, POPULARITY, UNIFORM, AliasTable, draw_easy, pick_hard
from pipelines.hashing import mix, to_unit

ITEMS = np.array([3, 5, 8, 13, 21, 34])
MASS = np.array([1.0, 4.0, 0.0, 2.0, 0.5, 8.0])
WIDTH = 50


def keys(n: int, seed: int = 0) -> np.ndarray:
    return mix(np.arange(n, dtype=np.uint64), seed)


def test_hashes_are_uniform() -> None:
    counts, _ = np.histogram(to_unit(keys(100_000)), bins=100, range=(0, 1))
    assert chisquare(counts).pvalue > 1e-3


def test_the_alias_table_draws_its_distribution() -> None:
    table = AliasTable.build(ITEMS, MASS)
    counts = np.bincount(table.draw(keys(200_000)), minlength=len(ITEMS))
    assert counts[2] == 0  # no mass, no draw
    has = MASS > 0
    assert chisquare(counts[has], (MASS / MASS.sum() * counts.sum())[has]).pvalue > 1e-3
    np.testing.assert_allclose(table.q, MASS / MASS.sum())


def test_no_mass_is_an_error() -> None:
    with pytest.raises(ValueError, match="mass above 0"):
        AliasTable.build(ITEMS, np.zeros(len(ITEMS)))


def draw(
    n: int, forbidden: np.ndarray, kinds: list[int], attempts: int = 30
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    samplers = {UNIFORM: AliasTable.build(ITEMS, np.ones(6)), POPULARITY: AliasTable.build(ITEMS, MASS)}
    slots = np.tile(np.array(kinds), (n, 1))
    return draw_easy(keys(n), slots, np.zeros_like(slots), np.arange(n) % 2, forbidden, WIDTH, samplers, attempts)


def test_draws_skip_the_forbidden_and_never_repeat_in_a_row() -> None:
    forbidden = np.sort(np.array([0 * WIDTH + 34, 0 * WIDTH + 5, 1 * WIDTH + 3]))
    items, kinds, log_q = draw(400, forbidden, [UNIFORM, UNIFORM, POPULARITY], attempts=2000)
    assert (items > 0).all()
    assert not np.isin(items[0::2], [34, 5]).any()
    assert not np.isin(items[1::2], [3]).any()
    assert all(len(set(row)) == 3 for row in items.tolist())
    np.testing.assert_allclose(log_q[:, 0], np.log(1 / 6), rtol=1e-6)
    assert (
        log_q[kinds == POPULARITY]
        == np.log(MASS / MASS.sum())[np.searchsorted(ITEMS, items[kinds == POPULARITY])].astype(np.float32)
    ).all()


def test_a_slot_that_nothing_can_fill_is_empty_and_says_so() -> None:
    everything = np.sort((np.arange(2)[:, None] * WIDTH + ITEMS).ravel())
    items, kinds, log_q = draw(10, everything, [UNIFORM, POPULARITY], attempts=5)
    assert (items == 0).all()
    assert (kinds == NONE).all()
    assert (log_q == 0).all()


def test_a_row_draws_the_same_whatever_stands_beside_it() -> None:
    whole, _, _ = draw(100, np.zeros(0, np.int64), [UNIFORM, POPULARITY])
    part, _, _ = draw(10, np.zeros(0, np.int64), [UNIFORM, POPULARITY])
    np.testing.assert_array_equal(whole[:10], part)


def test_hard_ones_come_from_the_better_tier_first() -> None:
    own = (np.array([0, 0, 1]), np.array([3, 5, 8]))
    other = (np.array([0, 1, 1, 1]), np.array([13, 8, 21, 34]))
    forbidden = np.array([1 * WIDTH + 34])  # the second row's group
    picked = pick_hard(keys(3), 2, [own, other], np.array([0, 1, 0]), forbidden, np.zeros(0, np.int64), WIDTH)
    assert set(picked[0]) == {3, 5}
    assert picked[1].tolist() == [8, 21]
    assert picked[2].tolist() == [0, 0]
