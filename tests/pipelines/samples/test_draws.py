"""Draws follow their distribution, never return forbidden items, and depend only on the keys of rows."""

import numpy as np
import pytest
from scipy.stats import chisquare

from pipelines.contract.negative_kinds import COARSE, NONE, POPULARITY, UNIFORM
from pipelines.hashing import mix, to_unit
from pipelines.samples.draws import (
    AliasProposals,
    AliasTable,
    CandidateLists,
    Forbidden,
    WrittenProposals,
    draw_easy,
    draw_from_lists,
)

ITEMS = np.array([3, 5, 8, 13, 21, 34])
MASS = np.array([1.0, 4.0, 0.0, 2.0, 0.5, 8.0])
WIDTH = 50
NO_PAIRS = np.zeros(0, np.int64)


def keys(n: int, seed: int = 0) -> np.ndarray:
    return mix(np.arange(n, dtype=np.uint64), seed)


def test_hashes_are_uniform() -> None:
    counts, _ = np.histogram(to_unit(keys(100_000)), bins=100, range=(0, 1))
    assert chisquare(counts).pvalue > 1e-3


def test_an_alias_table_draws_from_its_distribution() -> None:
    table = AliasTable.build(ITEMS, MASS)
    counts = np.bincount(table.draw(keys(200_000)), minlength=len(ITEMS))
    assert counts[2] == 0  # mass 0: never drawn
    positive = MASS > 0
    assert chisquare(counts[positive], (MASS / MASS.sum() * counts.sum())[positive]).pvalue > 1e-3
    np.testing.assert_allclose(np.exp(table.log_q), MASS / MASS.sum(), rtol=1e-6)


def test_masses_that_sum_to_zero_are_refused() -> None:
    with pytest.raises(ValueError, match="mass above 0"):
        AliasTable.build(ITEMS, np.zeros(len(ITEMS)))


def proposals(n: int, limit: int) -> dict[int, AliasProposals]:
    tables = {UNIFORM: AliasTable.build(ITEMS, np.ones(6)), POPULARITY: AliasTable.build(ITEMS, MASS)}
    return {kind: AliasProposals(table, keys(n), kind, limit) for kind, table in tables.items()}


def draw(
    n: int, forbidden: np.ndarray, kinds: list[int], limit: int = 100
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    kinds_NK = np.tile(np.array(kinds), (n, 1))
    items = np.zeros_like(kinds_NK)
    log_q = draw_easy(items, kinds_NK, np.arange(n) % 2, Forbidden.build(forbidden), WIDTH, proposals(n, limit))
    return items, kinds_NK, log_q


def test_a_row_gets_no_forbidden_item_and_no_item_twice() -> None:
    forbidden = np.array([0 * WIDTH + 34, 0 * WIDTH + 5, 1 * WIDTH + 3])
    items, kinds, log_q = draw(400, forbidden, [UNIFORM, UNIFORM, POPULARITY], limit=2000)
    assert (items > 0).all()
    assert not np.isin(items[0::2], [34, 5]).any()
    assert not np.isin(items[1::2], [3]).any()
    assert all(len(set(row)) == 3 for row in items.tolist())
    np.testing.assert_allclose(log_q[:, 0], np.log(1 / 6), rtol=1e-6)
    q = dict(zip(ITEMS.tolist(), MASS / MASS.sum()))
    np.testing.assert_allclose(np.exp(log_q[:, 2]), [q[item] for item in items[:, 2].tolist()], rtol=1e-6)
    assert (kinds[:, 2] == POPULARITY).all()


def test_allowed_items_keep_their_proportions() -> None:
    """Skipping forbidden items gives the conditional distribution of the others: q_j / (1 - q_forbidden)."""
    items, _, _ = draw(100_000, np.array([0 * WIDTH + 34, 1 * WIDTH + 34]), [POPULARITY])
    counts = np.array([(items == item).sum() for item in ITEMS])
    allowed = (MASS > 0) & (ITEMS != 34)
    assert counts[~allowed].sum() == 0
    assert chisquare(counts[allowed], (MASS[allowed] / MASS[allowed].sum()) * counts.sum()).pvalue > 1e-3


def test_a_slot_without_allowed_items_gets_item_0_and_kind_none() -> None:
    all_items = np.sort((np.arange(2)[:, None] * WIDTH + ITEMS).ravel())
    items, kinds, log_q = draw(10, all_items, [UNIFORM, POPULARITY], limit=5)
    assert (items == 0).all()
    assert (kinds == NONE).all()
    assert (log_q == 0).all()


def test_slots_of_other_kinds_do_not_change() -> None:
    kinds = np.array([[COARSE, UNIFORM, NONE]])
    items = np.array([[0, 0, 8]])
    draw_easy(items, kinds, np.zeros(1, np.int64), Forbidden.build(NO_PAIRS), WIDTH, proposals(1, 100))
    assert kinds.tolist() == [[COARSE, UNIFORM, NONE]]
    assert items[0, 0] == 0
    assert items[0, 1] not in (0, 8)


def test_the_draws_of_a_row_do_not_depend_on_other_rows() -> None:
    whole, _, _ = draw(100, NO_PAIRS, [UNIFORM, POPULARITY])
    part, _, _ = draw(10, NO_PAIRS, [UNIFORM, POPULARITY])
    np.testing.assert_array_equal(whole[:10], part)


def test_written_draws_are_used_in_order() -> None:
    written = WrittenProposals(np.array([[7, 7, 9, 4]]), np.array([[-1.0, -1.0, -2.0, -3.0]], np.float32))
    items, kinds = np.zeros((1, 3), np.int64), np.full((1, 3), UNIFORM)
    log_q = draw_easy(items, kinds, np.zeros(1, np.int64), Forbidden.build(np.array([9])), WIDTH, {UNIFORM: written})
    assert items.tolist() == [[7, 4, 0]]  # the second 7 is a repeat, 9 is forbidden, then no draws are left
    assert log_q.tolist() == [[-1.0, -3.0, 0.0]]
    assert kinds.tolist() == [[UNIFORM, UNIFORM, NONE]]


def lists(*values: list[int]) -> CandidateLists:
    stops = np.cumsum([len(v) for v in values])
    return CandidateLists(
        np.array([item for v in values for item in v], np.int64), stops - [len(v) for v in values], stops
    )


def test_slots_are_filled_from_the_own_list_first_and_then_from_the_wider_list() -> None:
    own, wider = lists([3, 5], [8], []), lists([3, 5, 13], [8, 21, 34], [])
    items = np.zeros((3, 4), np.int64)
    draw_from_lists(items, range(0, 3), own, wider, keys(3), attempts=200)
    assert set(items[0, :3].tolist()) == {3, 5, 13}
    assert items[0, 2] == 13
    assert items[1, 0] == 8
    assert set(items[1, :3].tolist()) == {8, 21, 34}
    assert (items[2] == 0).all()
    assert (items[:, 3] == 0).all()  # slot 3 is not in `slots`


def test_all_subsets_of_the_own_list_are_equally_likely() -> None:
    n = 60_000
    own = CandidateLists(np.arange(10, 15), np.zeros(n, np.int64), np.full(n, 5))
    items = np.zeros((n, 2), np.int64)
    draw_from_lists(items, range(2), own, own, keys(n), attempts=0)
    pairs, counts = np.unique(np.sort(items, axis=1), axis=0, return_counts=True)
    assert len(pairs) == 10  # 2 of 5 without replacement
    assert chisquare(counts).pvalue > 1e-3


def test_items_that_a_row_holds_are_not_drawn_again() -> None:
    items = np.array([[0, 0, 5]])
    draw_from_lists(items, range(2), lists([5, 5]), lists([5, 5]), keys(1), attempts=10)
    assert items.tolist() == [[0, 0, 5]]


@pytest.mark.parametrize("number", [0, 1, 50, 20_000])
def test_contains_is_true_for_exactly_the_forbidden_pairs(number: int) -> None:
    values = np.random.default_rng(number).integers(0, 2**40, 2 * number + 10)
    pairs, others = values[:number], values[number:]
    forbidden = Forbidden.build(pairs)
    assert forbidden.contains(pairs).all()
    np.testing.assert_array_equal(forbidden.contains(others), np.isin(others, pairs))


def test_of_group_has_the_pairs_of_one_group() -> None:
    forbidden = Forbidden.build(np.array([2 * WIDTH + 4, 7, WIDTH + 4, WIDTH + 9]))
    assert forbidden.of_group(1, WIDTH).pairs.tolist() == [4, 9]
    assert forbidden.of_group(1, WIDTH).contains(np.array([4, 7, 9, WIDTH + 4])).tolist() == [True, False, True, False]
