"""The item-item part of vectors: the closed form, its approximation, and the components of users and items."""

from pathlib import Path

import numpy as np
import pytest
import torch

from model.config import ModelConfig
from model.item_item_config import ItemItemConfig
from model.network.item_item import ItemItemPart, ItemItemTables
from model.network.two_tower import TwoTower
from model.serving.embed import embed_items, embed_users
from model.training.checkpoint import copy_item_item, load_checkpoint, save_checkpoint, write_item_item
from model.training.item_item_fit import DENSE, ItemItemFit, KnownItems, ease, fit_item_item
from model.training.spec import TrainingResult
from pipelines.contract.errors import UsageError
from tests.model import toy_night

FIRST = 2  # Indices below are padding and the default.
SIZE = toy_night.schema().item_id.size
CONFIG = ModelConfig(dim=8, item_item=ItemItemConfig(weight=0.25))


def random_pairs(users: int, items: int, seed: int = 3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(users and items of distinct pairs, X): popular items first, and items that come in twos."""
    rng = np.random.default_rng(seed)
    chance = np.linspace(0.6, 0.1, items)
    taken_Un = rng.random((users, items)) < chance
    taken_Un[:, 1::2] |= taken_Un[:, ::2][:, : items // 2] & (rng.random((users, items // 2)) < 0.5)
    rows, columns = np.nonzero(taken_Un)
    return rows, columns + FIRST, taken_Un.astype(float)


def fit_pairs(users: np.ndarray, items: np.ndarray, size: int, rank: int, config: ItemItemConfig) -> ItemItemFit:
    """Fit on pairs in any order. All items are live."""
    order = np.argsort(users, kind="stable")
    starts = np.searchsorted(users[order], np.arange(int(users.max(initial=-1)) + 2))
    return fit_item_item(KnownItems(starts, items[order].astype(np.int32)), np.ones(size, bool), rank, config)


def whole(tables: ItemItemTables) -> tuple[np.ndarray, np.ndarray]:
    """F and E by item index."""
    place_V = tables.place_V.numpy()
    return tables.of_history.numpy()[place_V], tables.of_items.numpy()[place_V]


def random_tables(size: int, fitted: list[int]) -> ItemItemTables:
    """Tables of rank 3 of these items, among `size` indices."""
    place_V = torch.zeros(size, dtype=torch.int32)
    place_V[fitted] = torch.arange(1, len(fitted) + 1, dtype=torch.int32)
    rows = torch.randn(2, len(fitted) + 1, 3, generator=torch.Generator().manual_seed(2))
    rows[:, 0] = 0
    return ItemItemTables(place_V, rows[0], rows[1])


def test_each_column_of_b_is_the_ridge_regression_on_the_other_items() -> None:
    _, _, x_Un = random_pairs(200, 9)
    b_nn = ease(x_Un.T @ x_Un, 5.0)
    for item in range(9):
        others = [other for other in range(9) if other != item]
        rest = x_Un[:, others]
        expected = np.linalg.solve(rest.T @ rest + 5.0 * np.eye(8), rest.T @ x_Un[:, item])
        np.testing.assert_allclose(b_nn[others, item], expected, atol=1e-9)
        assert b_nn[item, item] == 0


@pytest.mark.parametrize("rank", [1, 4, 8])
def test_the_scores_are_those_of_ease_up_to_the_smallest_singular_values(rank: int) -> None:
    """No matrix of this rank is nearer: the squared distance is the sum of the singular values left out (Eckart and Young)."""
    users, items, x_Un = random_pairs(200, 9)
    fit = fit_pairs(users, items, FIRST + 9, rank, ItemItemConfig(penalty=2.0))
    f_Vr, e_Vr = whole(fit.tables)
    scores_Un = x_Un @ ease(x_Un.T @ x_Un, 2.0 * len(users) / 9)
    ours_Un = x_Un @ (f_Vr @ e_Vr.T)[FIRST:, FIRST:]
    left_out = np.linalg.svd(scores_Un, compute_uv=False)[rank:]
    np.testing.assert_allclose(((scores_Un - ours_Un) ** 2).sum(), (left_out**2).sum(), rtol=1e-3, atol=1e-6)
    assert (fit.users, fit.items, fit.pairs) == (len(np.unique(users)), 9, len(users))


@pytest.mark.parametrize("exponent", [0.5, 1.0])
def test_the_popularity_exponent_divides_the_score_of_an_item_by_a_power_of_its_users(exponent: float) -> None:
    users, items, x_Un = random_pairs(200, 9)
    config = ItemItemConfig(penalty=2.0, popularity_exponent=exponent)
    f_Vr, e_Vr = whole(fit_pairs(users, items, FIRST + 9, 8, config).tables)
    counts = np.bincount(items - FIRST)
    expected = x_Un @ ease(x_Un.T @ x_Un, 2.0 * len(users) / 9) / (counts / counts.mean()) ** exponent
    left_out = np.linalg.svd(expected, compute_uv=False)[8:]
    np.testing.assert_allclose(x_Un @ (f_Vr @ e_Vr.T)[FIRST:, FIRST:], expected, atol=left_out.sum() + 1e-5)
    assert expected.std() > 3 * left_out.sum(), "rank 8 of 9 items leaves nearly nothing out"


def test_the_fit_does_not_depend_on_the_order_of_pairs_or_on_the_names_of_users() -> None:
    users, items, _ = random_pairs(300, 20)
    order = np.random.default_rng(1).permutation(len(users))
    one = fit_pairs(users, items, 30, 6, ItemItemConfig())
    other = fit_pairs(1000 - users[order], items[order], 30, 6, ItemItemConfig())
    for table, same in zip(one.tables, other.tables):
        torch.testing.assert_close(table, same, rtol=0, atol=0)


def test_blocks_of_users_give_the_same_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    users, items, _ = random_pairs(300, 20)
    users[users > 250] += 7  # Users without items.
    whole_fit = fit_pairs(users, items, 30, 6, ItemItemConfig())
    for block in (1, 37, 500):
        monkeypatch.setattr("model.training.item_item_fit.BLOCK", block)
        fit = fit_pairs(users, items, 30, 6, ItemItemConfig())
        assert fit[1:] == whole_fit[1:]
        for table, same in zip(whole_fit.tables, fit.tables):
            torch.testing.assert_close(table, same, rtol=0, atol=0)


def test_items_that_are_gone_have_no_score_but_count_in_histories() -> None:
    users, items, x_Un = random_pairs(300, 12)
    order = np.argsort(users, kind="stable")
    starts = np.searchsorted(users[order], np.arange(301))
    known, live = KnownItems(starts, items[order].astype(np.int32)), np.ones(FIRST + 12, bool)
    gone = np.array([0, 3, 7])
    live[FIRST + gone] = False
    f_Vr, e_Vr = whole(fit_item_item(known, live, 9, ItemItemConfig(penalty=2.0)).tables)
    expected = x_Un @ ease(x_Un.T @ x_Un, 2.0 * len(users) / 12)
    expected[:, gone] = 0
    scores = x_Un @ (f_Vr @ e_Vr.T)[FIRST:, FIRST:]
    np.testing.assert_allclose(scores, expected, atol=1e-4)  # 9 live items have rank 9.
    assert np.abs(f_Vr[FIRST + gone]).sum() > 0
    # They take no place of a live item, however many users they have.
    few = fit_item_item(known, live, 4, ItemItemConfig(items=9))
    assert not few.tables.place_V[FIRST + gone].any()
    assert (few.tables.place_V > 0).sum() == 9


def test_a_penalty_without_an_inverse_is_named() -> None:
    users = np.repeat(np.arange(50), 4)
    items = FIRST + np.tile(np.arange(4), 50)  # All columns are equal.
    with pytest.raises(UsageError, match=r"model\.item_item\.penalty: .* has no inverse: raise the penalty"):
        fit_pairs(users, items, 10, 2, ItemItemConfig(penalty=1e-300))


def test_only_the_items_with_the_most_users_are_fitted() -> None:
    users, items, _ = random_pairs(300, 20)
    fit = fit_pairs(users, items, 30, 4, ItemItemConfig(items=7))
    most = set(np.argsort(-np.bincount(items, minlength=30), kind="stable")[:7])
    for table_Vr in whole(fit.tables):
        assert set(np.flatnonzero(np.abs(table_Vr).sum(1))) == most
    assert fit.items == 7
    assert len(fit.tables.of_items) == 8, "the tables grow with the fitted items, not with the catalogue"


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_vectors_have_one_length_however_few_items_there_are(count: int) -> None:
    users, items, _ = random_pairs(50, count)
    f_Vr, e_Vr = whole(fit_pairs(users, items, 12, 5, ItemItemConfig()).tables)
    assert f_Vr.shape == e_Vr.shape == (12, 5)
    assert np.isfinite(f_Vr).all()
    assert bool(np.abs(e_Vr).sum()) == (count == 3)


@pytest.mark.parametrize("items", [20, DENSE + 20])
def test_users_of_one_item_each_say_nothing_of_pairs(items: int) -> None:
    """All eigenvalues are 0 then."""
    tables = fit_pairs(np.arange(3 * items), FIRST + np.arange(3 * items) % items, 2000, 4, ItemItemConfig()).tables
    np.testing.assert_allclose((tables.of_history @ tables.of_items.T).numpy(), 0, atol=1e-6)


def test_products_and_the_whole_matrix_give_the_same_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    users, items, _ = random_pairs(300, 40)
    dense = fit_pairs(users, items, 50, 6, ItemItemConfig()).tables
    monkeypatch.setattr("model.training.item_item_fit.DENSE", 10)
    other = fit_pairs(users, items, 50, 6, ItemItemConfig()).tables
    torch.testing.assert_close(
        other.of_history @ other.of_items.T, dense.of_history @ dense.of_items.T, atol=1e-5, rtol=0
    )


def test_a_history_adds_up_each_of_its_items_once() -> None:
    tables = random_tables(6, [2, 3, 5])  # Item 4 was not fitted.
    part = ItemItemPart(tables, size=8, weight=0.5)
    f_Vr = np.pad(whole(tables)[0], ((0, 2), (0, 0)))
    histories = [[0, 0, 0, 0], [0, 5, 3, 5], [2, 3, 4, 5], [0, 0, 0, 1], [6, 2, 7, 2]]
    expected = np.stack([f_Vr[sorted(set(items))].sum(0) for items in histories])
    np.testing.assert_allclose(part.users(torch.tensor(histories)), expected, atol=1e-6)
    np.testing.assert_allclose(part.items(torch.tensor([3, 4, 7])), 0.5 * whole(tables)[1][[3, 4, 4]], atol=1e-6)


def checkpoint_of(folder: Path) -> TwoTower:
    torch.manual_seed(1)
    model = TwoTower(toy_night.schema(), CONFIG)
    save_checkpoint(str(folder), model, {}, TrainingResult.model_construct())
    return model.eval()


@pytest.mark.parametrize("fitted_items", [SIZE, SIZE - 3])
def test_the_score_of_a_loaded_checkpoint_is_the_cosine_and_the_weighted_item_item_score(
    tmp_path: Path, fitted_items: int
) -> None:
    """Items without a row, which came after the fit, add nothing."""
    users, items = toy_night.sample_rows(40), toy_night.item_rows()
    towers = checkpoint_of(tmp_path / "one")
    tables = random_tables(fitted_items, list(range(5, fitted_items)))
    write_item_item(str(tmp_path / "one"), tables)
    model = load_checkpoint(str(tmp_path / "one"))
    assert model.dim == 8 + 3
    f_Vr, e_Vr = whole(tables)
    whole_VV = np.zeros((SIZE, SIZE), np.float32)
    whole_VV[:fitted_items, :fitted_items] = f_Vr @ e_Vr.T
    history, index = model.schema.history, items[model.schema.item_id.table_column]
    assert history is not None
    sums = [whole_VV[np.unique(row)].sum(0)[index] for row in users[history.column]]
    cosines = embed_users(towers, users) @ embed_items(towers, items).T
    scores = embed_users(model, users) @ embed_items(model, items).T
    np.testing.assert_allclose(scores, cosines + 0.25 * np.array(sums), atol=1e-4)


def test_a_copy_has_the_part_of_its_source_and_a_checkpoint_without_one_has_none(tmp_path: Path) -> None:
    for name in ("one", "other"):
        checkpoint_of(tmp_path / name)
    assert not copy_item_item(str(tmp_path / "one"), str(tmp_path / "other"))
    assert load_checkpoint(str(tmp_path / "other")).dim == 8
    write_item_item(str(tmp_path / "one"), random_tables(SIZE, [3, 4, 5]))
    assert copy_item_item(str(tmp_path / "one"), str(tmp_path / "other"))
    files = [(tmp_path / name / "item_item.safetensors").read_bytes() for name in ("one", "other")]
    assert files[0] == files[1]
