"""The sequence tower: causal states, packed histories, padding, times, and configs that are refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from model.config import ModelConfig
from model.data.catalogue import Catalogue
from model.data.item_versions import NEVER_REPLACED, packed_snapshots
from model.network.embeddings import Batch
from model.network.sequence_encoder import Dropout
from model.network.two_tower import TwoTower
from model.serving.embed import embed_items, embed_users
from model.training.checkpoint import load_checkpoint
from model.training.spec import TrainingSpec
from model.training.trainer import train
from pipelines.contract.schema import FeatureSchema
from tests.model import toy_night

L = toy_night.HISTORY
SETTINGS = {"width": 16, "time": "gaps", "actions": True}
# Two packed histories, oldest item first, and the number of items that each of their positives sees.
HISTORY = torch.tensor([[0, 0, 7, 9, 11], [3, 4, 5, 6, 7]])
AGES = torch.tensor([[0, 0, 90, 31, 30], [5000, 4000, 100, 100, 0]])
ACTIONS = torch.tensor([[0, 0, 2, 3, 1], [4, 4, 2, 3, 2]])
ROW = torch.tensor([0, 0, 0, 0, 1, 1, 1])
SEEN = torch.tensor([0, 1, 3, 2, 5, 4, 1])
LAG = torch.tensor(
    [2000, 33, 0, 31, 0, 10, 200]
)  # Seconds from the positive's request to the newest request of the row.


def schema(facts: bool = True) -> FeatureSchema:
    """`facts`: with ages and actions of history items."""
    return toy_night.schema(history=toy_night.FULL_HISTORY if facts else toy_night.SCHEMA["history"])


def build(facts: bool = True, history: bool = True, **config: Any) -> TwoTower:
    torch.manual_seed(0)
    base = {
        "tower": "sequence",
        "dim": 8,
        "hidden": [16],
        "settings": SETTINGS,
        "history_features": ["category", "tags"],
    }
    features = schema(facts) if history else schema().without(["history"])
    model = TwoTower(features, ModelConfig.model_validate({**base, **config}))
    with torch.no_grad():
        for parameter in model.encoder.parameters():  # type: ignore[union-attr]
            if not parameter.any():
                parameter.normal_()  # Gaps start at 0, so that they would change nothing.
    return model


def catalogue() -> Catalogue:
    return Catalogue(toy_night.schema(), toy_night.item_rows())


def packed_batch(model: TwoTower, history: torch.Tensor = HISTORY, actions: torch.Tensor = ACTIONS) -> Batch:
    """The positives of the packed histories, with all columns that the user tower reads."""
    rows = {name: torch.from_numpy(values) for name, values in toy_night.sample_rows(len(ROW)).items()}
    packed = {"packed_history": history, "packed_ages": AGES, "packed_row": ROW, "packed_seen": SEEN}
    packed["packed_actions"] = actions
    return rows | packed | unpacked() | catalogue().history_columns(history, model.history_features)


def unpacked() -> Batch:
    """`history`, `history_ages` and `history_actions` of each positive, one at a time."""
    rows: dict[str, list[torch.Tensor]] = {"history": [], "history_ages": [], "history_actions": []}
    for row, seen, lag in zip(ROW.tolist(), SEEN.tolist(), LAG.tolist()):
        start = int((HISTORY[row] == 0).sum())
        padding = torch.zeros(L - seen, dtype=torch.int64)
        rows["history"].append(torch.cat([padding, HISTORY[row][start : start + seen]]))
        rows["history_ages"].append(torch.cat([padding, AGES[row][start : start + seen] - lag]))
        rows["history_actions"].append(torch.cat([padding, ACTIONS[row][start : start + seen]]))
    return {name: torch.stack(values) for name, values in rows.items()}


def plain_batch(model: TwoTower) -> Batch:
    """The same positives, not packed."""
    batch = {name: values for name, values in packed_batch(model).items() if not name.startswith("packed_")}
    return batch | catalogue().history_columns(batch["history"], model.history_features)


@pytest.mark.parametrize("settings", [SETTINGS, {"width": 16, "blocks": 1, "heads": 1}, {"width": 32, "blocks": 3}])
def test_a_packed_history_gives_the_vectors_and_gradients_of_its_rows(settings: dict[str, Any]) -> None:
    results = []
    for batch_of in (packed_batch, plain_batch):
        model = build(settings=settings).eval()
        vectors = model.user_vectors(batch_of(model))
        (vectors * torch.arange(vectors.numel()).view_as(vectors)).sum().backward()
        results.append((vectors, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}))
    (packed, of_packed), (plain, of_plain) = results
    assert (packed[0] - packed[2]).abs().max() > 1e-3
    torch.testing.assert_close(packed, plain, rtol=0, atol=1e-5)
    assert of_packed.keys() == of_plain.keys()
    assert {name.split(".")[0] for name in of_packed} == {"encoder", "tables", "user_tower"}
    largest = max(float(gradient.abs().max()) for gradient in of_plain.values())
    for name, gradient in of_plain.items():
        torch.testing.assert_close(of_packed[name], gradient, rtol=1e-4, atol=1e-5 * largest, msg=name)


@pytest.mark.parametrize("item", range(3))
@pytest.mark.parametrize("changed", ["item", "action"])
def test_a_state_depends_only_on_the_items_and_actions_before_it(item: int, changed: str) -> None:
    model = build().eval()
    history, actions = HISTORY.clone(), ACTIONS.clone()
    if changed == "item":
        history[0, 2 + item] = 33
    else:
        actions[0, 2 + item] = 4
    before, after = model.user_vectors(packed_batch(model)), model.user_vectors(packed_batch(model, history, actions))
    differs = (before - after).abs().amax(1) > 1e-4
    assert differs.tolist() == ((ROW == 0) & (item < SEEN)).tolist()
    torch.testing.assert_close(before[~differs], after[~differs])


def test_neither_padding_nor_the_other_rows_of_a_batch_change_a_vector() -> None:
    model = build().eval()
    batch = plain_batch(model)
    vectors = model.user_vectors(batch)
    alone = torch.cat([model.user_vectors({n: v[[row]] for n, v in batch.items()}) for row in range(len(ROW))])
    torch.testing.assert_close(alone, vectors)
    wider = {
        name: torch.cat([torch.zeros_like(values[:, :2]), values], dim=1) if name.startswith("history") else values
        for name, values in batch.items()
    }
    torch.testing.assert_close(model.user_vectors(wider), vectors)


def test_a_batch_may_be_empty_or_have_no_history() -> None:
    model = build(history_dropout=0.2)
    batch = plain_batch(model)
    for rows in (batch, {name: values[:0] for name, values in batch.items()}):
        vectors = model.user_vectors(
            {n: torch.zeros_like(v) if n.startswith("history") else v for n, v in rows.items()}
        )
        assert vectors.shape == (len(rows["history"]), 8)
        model.zero_grad()
        vectors.sum().backward()
        trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
        assert {name for name, _ in model.named_parameters() if name.startswith("encoder.")} <= trained, "DDP needs all"


def test_the_order_of_a_history_matters_and_the_times_if_they_are_read() -> None:
    for time in ("none", "gaps"):
        model = build(settings={"width": 16, "time": time}, history_features=[]).eval()
        batch = plain_batch(model)
        vectors = model.user_vectors(batch)
        history = batch["history"]
        swapped = torch.where(history[:, 3:4] > 0, history[:, [0, 1, 2, 4, 3]], history)
        differs = (model.user_vectors({**batch, "history": swapped}) - vectors).abs().amax(1) > 1e-4
        assert differs.tolist() == (SEEN > 1).tolist()
        later = {**batch, "history_ages": batch["history_ages"] * 3}
        differs = (model.user_vectors(later) - vectors).abs().amax(1) > 1e-4
        assert differs.tolist() == ((SEEN > 0) & (batch["history_ages"].amax(1) > 0) & (time == "gaps")).tolist()


def test_gaps_are_in_buckets_of_powers_of_two() -> None:
    encoder = build().encoder
    assert encoder is not None
    gaps = torch.tensor([-5, 0, 1, 2, 3, 4, 7, 8, 2**24 - 1, 2**24, 2**30 - 1, 2**30, 2**31 - 1])
    assert encoder._bucket(gaps).tolist() == [1, 1, 2, 3, 3, 4, 4, 5, 25, 26, 31, 32, 32]
    assert encoder.gap_before.num_embeddings == 33


@pytest.mark.parametrize(("column", "unknown"), [("history_ages", -1), ("history_actions", 1)])
def test_unknown_facts_are_equal_to_no_facts_and_training_sees_them(column: str, unknown: int) -> None:
    model = build(id_dropout=0.0, settings=SETTINGS | {"dropout": 0.0}).eval()
    batch = plain_batch(model)
    without = model.user_vectors({name: values for name, values in batch.items() if name != column})
    of_unknown = model.user_vectors({**batch, column: (batch["history"] > 0) * unknown})
    torch.testing.assert_close(without, of_unknown)
    one = {name: values[[5]].expand(400, *values.shape[1:]) for name, values in batch.items()}
    hidden = (model.train().user_vectors(one) - without[5]).abs().amax(1) < 1e-5
    assert 0.01 < hidden.float().mean() < 0.15


def test_history_dropout_hides_items_only_in_training() -> None:
    model = build(id_dropout=0.0, history_dropout=0.5, settings={"width": 16, "dropout": 0.0})
    batch = {name: values[[4]].expand(200, *values.shape[1:]) for name, values in plain_batch(model).items()}
    vectors = model.eval().user_vectors(batch)
    torch.testing.assert_close(vectors, vectors[:1].expand_as(vectors))
    hidden = len(np.unique(model.train().user_vectors(batch).detach().numpy().round(4), axis=0))
    assert 20 < hidden <= 2**5


@pytest.mark.parametrize("chance", [0.0, 0.2, 0.9])
def test_dropout_keeps_the_mean_and_the_chosen_share(chance: float) -> None:
    torch.manual_seed(1)
    dropout, values = Dropout(chance), torch.ones(333, 301)
    dropped = dropout.train()(values)
    assert float((dropped == 0).float().mean()) == pytest.approx(chance, abs=0.005)
    assert float(dropped.mean()) == pytest.approx(1, rel=0.03)
    assert len(dropped.unique()) == (2 if chance else 1)
    columns = (dropped == 0).float().mean(0)
    assert float(columns.std()) == pytest.approx((chance * (1 - chance) / 333) ** 0.5, rel=0.2)
    assert torch.equal(dropout.eval()(values), values)


def test_the_item_tower_may_be_the_embedding_of_the_id() -> None:
    ids = build(settings={"width": 16, "items": "ids"}, embedding_dim=8).eval()
    items = {"item_index": torch.tensor([2, 3])}
    expected = torch.nn.functional.normalize(ids.tables["item_id"](items["item_index"]), dim=1)
    torch.testing.assert_close(ids.item_vectors(items), expected)
    assert "history" not in ids.tables, "tokens and items share the table"


def test_item_features_of_a_packed_history_are_no_newer_than_its_earliest_positive() -> None:
    days = torch.tensor([5, 6, 9, 7, 9, 8, 4])
    snapshots = packed_snapshots(HISTORY, {"item_snapshot": days, "packed_row": ROW, "packed_seen": SEEN})
    # Row 0: item 1 is seen by the positives of days 6, 9 and 7, item 2 by those of 9 and 7, item 3 by that of 9.
    assert snapshots[0, 2:].tolist() == [6, 7, 9]
    assert snapshots[1].tolist() == [4, 8, 8, 8, 9]
    unseen = packed_snapshots(
        HISTORY, {"item_snapshot": days[:1], "packed_row": torch.tensor([1]), "packed_seen": torch.tensor([3])}
    )
    assert unseen[1].tolist() == [5, 5, 5, NEVER_REPLACED, NEVER_REPLACED]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"settings": {"width": 10, "heads": 3}}, "10 cannot be shared by 3 heads: take a multiple of 3"),
        (
            {"settings": {"layers": 2}},
            "layers.*its settings: blocks, heads, width, feed_forward, dropout, time, actions, items",
        ),
        ({"settings": {"items": "ids"}}, "tower sequence with items: ids: model.dim is 8 and model.embedding_dim 128"),
        ({"settings": {"time": "gaps"}, "facts": False}, "time: gaps needs .* set features.history.ages: true"),
        ({"settings": {"actions": True}, "facts": False}, "actions: true needs .* set features.history.actions: true"),
        ({"history_pooling": "decay"}, "history_pooling: decay has no effect"),
        ({"history": False, "history_features": []}, "sequence: reads the user's history.*set features.history"),
    ],
)
def test_configs_that_do_not_fit_are_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**config)


def ordered_night(folder: Path, model: dict[str, Any]) -> TrainingSpec:
    """A night whose positives follow from the last item of the history. The other items and features say nothing."""
    rates = {"learning_rate": 5e-3, "embedding_learning_rate": 2e-2}
    model = {"leave_out": ["user_id", "age", "tenure", "income", "category", "tags"], **model}
    spec = toy_night.make_spec(folder, [400] * 4, model, {"correction": "none"}, rates, epochs=4)
    for file in (*spec.train, *spec.valid):
        path = file.url.removeprefix("file://")
        pq.write_table(toy_night.table(ordered_rows(pq.read_table(path).num_rows, len(path))), path)
    return spec.model_copy(update={"features": spec.features.without(spec.model.leave_out)})


def ordered_rows(rows: int, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    samples = toy_night.sample_rows(rows)
    history = rng.integers(2, toy_night.ITEMS + 2, (rows, L)).astype(np.int32)
    history[np.arange(L) < rng.integers(0, L - 1, rows)[:, None]] = 0
    return samples | {"history": history, "item_index": (2 + (history[:, -1] + 5) % toy_night.ITEMS).astype(np.int32)}


@pytest.mark.trains
def test_the_sequence_tower_learns_an_order_that_mean_pooling_cannot_see(tmp_path: Path) -> None:
    hits = {}
    settings = {"width": 32, "dropout": 0.0}
    for name, model in {"dssm": {}, "sequence": {"tower": "sequence", "settings": settings}}.items():
        spec = ordered_night(tmp_path / name, model)
        train(spec)
        towers, rows = load_checkpoint(spec.output), ordered_rows(300, seed=99)
        items = {"item_index": np.arange(2, toy_night.ITEMS + 2)}
        best = (embed_users(towers, rows) @ embed_items(towers, items).T).argmax(1)
        hits[name] = float((best == rows["item_index"] - 2).mean())
    assert hits["sequence"] > 0.9, hits
    assert hits["dssm"] < 0.6, hits
