"""The towers: unit vectors, separate sides, padding, history pooling, id dropout and configs that are refused."""

import numpy as np
import pytest
import torch

from model.config import ModelConfig
from model.data.catalogue import Catalogue
from model.network.embeddings import Batch, HistoryPooling
from model.network.two_tower import TwoTower
from model.serving.embed import batch_columns, embed_items, embed_users
from pipelines.contract.indices import PADDING
from pipelines.contract.schema import FeatureSchema
from tests.model import toy_night


def build(**config: object) -> TwoTower:
    torch.manual_seed(0)
    defaults = {"dim": 8, "hidden": [16], "new_user_share": 0.0}
    return TwoTower(toy_night.schema(), ModelConfig.model_validate(defaults | config))


def batch(rows: int) -> Batch:
    return {name: torch.from_numpy(values) for name, values in toy_night.sample_rows(rows).items()}


def test_vectors_have_unit_length_and_read_only_their_side() -> None:
    model, catalogue = build(id_dropout=0.0), Catalogue(toy_night.schema(), toy_night.item_rows())
    schema = model.schema
    users = model.user_vectors({name: batch(9)[name] for name in schema.user_columns})
    items = model.item_vectors(catalogue.gather(torch.arange(toy_night.ITEMS + 2)))
    for vectors in (users, items):
        np.testing.assert_allclose(vectors.norm(dim=1).detach(), 1, rtol=1e-5)
    with pytest.raises(KeyError, match="lacks column 'item_index'"):
        model.item_vectors({"user_index": torch.zeros(1)})
    with pytest.raises(KeyError, match="lacks column 'user_age'"):
        model.user_vectors({"user_index": torch.tensor([2])})


def test_padding_is_zero_and_stays_zero() -> None:
    model = build()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model.user_vectors(batch(9)).sum().backward()
    optimizer.step()
    assert all((table.weight[PADDING] == 0).all() for table in model.tables.values())  # type: ignore[union-attr, index]


def test_more_padding_changes_no_vector() -> None:
    model, rows = build().eval(), batch(6)
    longer = torch.cat([torch.zeros(6, 7, dtype=torch.int32), rows["history"]], dim=1)
    torch.testing.assert_close(model.user_vectors(rows), model.user_vectors({**rows, "history": longer}))


@pytest.mark.parametrize("pooling", ["mean", "decay", "attention"])
@pytest.mark.parametrize("hashed", [False, True])
def test_only_the_newest_items_are_pooled(pooling: str, hashed: bool) -> None:
    """And the item-item part reads all of them."""
    item_id, *others = toy_night.SCHEMA["item"]
    rows_of_ids = {"rows": {"column": "item_row", "size": 7, "hashed": True}} if hashed else {}
    schema = toy_night.schema(item=[{**item_id, **rows_of_ids}, *others])
    torch.manual_seed(1)
    config = ModelConfig(dim=8, history_items=2, history_features=["category", "tags"], history_pooling=pooling)
    model = TwoTower(schema, config).eval()
    items = toy_night.item_rows()
    catalogue = Catalogue(schema, items | {"item_row": (2 + items["item_index"] % 5).astype(np.int32)})
    rows = batch(40)
    older = torch.where(rows["history"] == PADDING, PADDING, 3).int()
    older[:, -2:] = rows["history"][:, -2:]
    assert not torch.equal(older, rows["history"])

    def vectors(history: torch.Tensor, trimmed: bool = True) -> torch.Tensor:
        read = model.pooled_history(history) if trimmed else history
        columns = catalogue.history_columns(read, model.history_features)
        return model.user_vectors({**rows, "history": history, **columns})

    torch.testing.assert_close(vectors(older), vectors(rows["history"]), rtol=0, atol=0)
    torch.testing.assert_close(vectors(older, trimmed=False), vectors(older), rtol=0, atol=0)
    newer = older.clone()
    newer[:, -1] = 7
    assert not torch.allclose(vectors(newer), vectors(older))


def test_history_shares_the_item_table_by_default() -> None:
    assert "history" not in build().tables
    assert "history" in build(share_history=False).tables


def test_history_features_come_from_the_catalogue() -> None:
    model, rows = build(history_features=["category", "tags"]).eval(), toy_night.sample_rows(6)
    catalogue = Catalogue(toy_night.schema(), toy_night.item_rows())
    vectors = embed_users(model, rows, catalogue)
    history = torch.from_numpy(rows["history"]).long()
    columns = catalogue.history_columns(history, model.history_features)
    assert columns["history_item_tags"].shape == (6, toy_night.HISTORY, 3)
    assert (columns["history_item_category"][history == 0] == 0).all()
    np.testing.assert_array_equal(vectors, embed_users(model, rows | {n: v.numpy() for n, v in columns.items()}))
    with pytest.raises(KeyError, match="history_item_category"):
        embed_users(model, rows)


def test_id_dropout_applies_only_in_training() -> None:
    model, rows = build(id_dropout=0.9), batch(50)
    vectors = model.eval().user_vectors(rows)
    torch.testing.assert_close(vectors, model.user_vectors(rows))
    unknown = model.user_vectors({**rows, "user_index": torch.ones_like(rows["user_index"])})
    hidden = (model.train().user_vectors(rows) - unknown).abs().amax(1) < 1e-6
    assert 0.7 < hidden.float().mean() < 1.0


@pytest.mark.parametrize(
    "tower", [{}, {"tower": "senet"}, {"tower": "parallel", "dim": 9}], ids=["dssm", "senet", "parallel"]
)
def test_dropout_applies_to_hidden_layers_only_in_training(tower: dict[str, object]) -> None:
    """The same seed drops the same outputs, and parameters have the names that they have without dropout."""
    plain, dropped = (build(id_dropout=0.0, dropout=dropout, **tower) for dropout in (0.0, 0.5))
    assert plain.state_dict().keys() == dropped.state_dict().keys()
    rows = batch(50)
    torch.testing.assert_close(dropped.eval().user_vectors(rows), plain.eval().user_vectors(rows))

    def trained(seed: int, model: TwoTower) -> torch.Tensor:
        torch.manual_seed(seed)
        return model.train().user_vectors(rows)

    assert trained(1, dropped).equal(trained(1, dropped))
    assert (trained(1, dropped) - trained(2, dropped)).abs().amax(1).gt(1e-4).float().mean() > 0.9
    assert trained(1, plain).equal(trained(2, plain))


def test_dropout_does_not_apply_to_the_last_layer() -> None:
    model = build(id_dropout=0.0, dropout=0.9, hidden=[])
    assert model.train().user_vectors(batch(9)).equal(model.user_vectors(batch(9)))


@pytest.mark.parametrize("pooling", ["mean", "decay", "attention"])
def test_history_dropout_hides_items_with_their_features_only_in_training(pooling: str) -> None:
    model = build(id_dropout=0.0, history_dropout=0.5, history_features=["category", "tags"], history_pooling=pooling)
    history = torch.from_numpy(toy_night.sample_rows(200)["history"]).long()
    catalogue = Catalogue(toy_night.schema(), toy_night.item_rows())
    rows = {**batch(200), "history": history, **catalogue.history_columns(history, model.history_features)}
    hidden = model.train()._with_hidden_items(rows)
    was = history != PADDING
    drop = was & (hidden["history"] == PADDING)
    assert 0.4 < drop.sum() / was.sum() < 0.6
    assert (hidden["history_item_tags"][drop] == PADDING).all()
    stays = was & ~drop
    for name in ("history", "history_item_category", "history_item_tags"):
        assert hidden[name][stays].equal(rows[name][stays])
    assert model.eval()._with_hidden_items(rows) is rows
    with torch.no_grad():
        expected = model.user_vectors(hidden)
        model.train()
        torch.testing.assert_close(model.user_vectors(rows).shape, expected.shape)
        assert (model.user_vectors(rows) - model.eval().user_vectors(rows)).abs().amax(1).gt(1e-5).float().mean() > 0.5


@pytest.mark.parametrize("pooling", ["mean", "decay", "attention"])
def test_some_rows_are_shown_as_those_of_a_new_user_only_in_training(pooling: str) -> None:
    model = build(id_dropout=0.0, new_user_share=0.3, history_features=["category"], history_pooling=pooling)
    rows = batch(400) | {"user_index": torch.arange(400) % 50 + 2}
    catalogue = Catalogue(toy_night.schema(), toy_night.item_rows())
    rows |= catalogue.history_columns(rows["history"].long(), model.history_features)
    shown = model.train()._with_hidden_items(rows)
    new = shown["user_index"] == 1
    assert 0.2 < new.float().mean() < 0.4
    assert (shown["history"][new] == PADDING).all()
    assert (shown["history_item_category"][new] == PADDING).all()
    for name, values in rows.items():
        assert shown[name][~new].equal(values[~new]), name
    assert shown["user_age"].equal(rows["user_age"]), "the features of a new user are known"
    assert model.eval()._with_hidden_items(rows) is rows


def test_items_without_a_row_have_default_features() -> None:
    features = Catalogue(toy_night.schema(), toy_night.item_rows()).gather(torch.tensor([1, toy_night.ITEMS + 1, 2]))
    assert features["item_category"][:2].tolist() == [1, 1]
    assert features["item_tags"].tolist()[1] == [1, 0, 0]
    assert features["item_tags_weights"].tolist()[1] == [1, 0, 0]
    assert features["item_index"].tolist() == [1, toy_night.ITEMS + 1, 2]


def test_embed_users_ignores_example_age_and_reads_arrow_batches() -> None:
    model, rows = build().eval(), toy_night.sample_rows(20)
    columns = [name for name in model.schema.user_columns if name != "example_age"]
    arrow = toy_night.table(rows).to_batches()[0].slice(3, 10)
    served = embed_users(model, batch_columns(arrow, columns))
    assert served.dtype == np.float32
    aged = {name: values[3:13] for name, values in rows.items()} | {"example_age": np.full(10, 99.0)}
    np.testing.assert_array_equal(served, embed_users(model, aged))
    assert embed_items(model, toy_night.item_rows()).shape == (toy_night.ITEMS - 1, 8)


def test_a_schema_that_mixes_two_nights_is_refused() -> None:
    history = {**toy_night.SCHEMA["history"], "size": 99}
    with pytest.raises(ValueError, match="history has vocabulary item_id of size 99, items have item_id of size 42"):
        FeatureSchema.model_validate({**toy_night.SCHEMA, "history": history})
    with pytest.raises(ValueError, match=r"'item_category' holds indices from 2 to 7, the schema has 6"):
        Catalogue(toy_night.schema(), toy_night.item_rows() | {"item_category": np.arange(toy_night.ITEMS - 1) % 6 + 2})


def test_features_can_be_left_out() -> None:
    schema = toy_night.schema().without(["user_id", "tags", "history", "example_age"])
    assert [feature.name for feature in (*schema.user, *schema.item)] == [
        "age",
        "tenure",
        "income",
        "item_id",
        "category",
    ]
    assert schema.history is None
    assert schema.example_age is None
    assert toy_night.schema().without([]) == toy_night.schema()
    with pytest.raises(ValueError, match=r"no feature colour, item_id can be left out, only age, category, .*history"):
        toy_night.schema().without(["colour", "item_id"])
    model = TwoTower(toy_night.schema().without(["age"]), ModelConfig(dim=8))
    users = batch(5)
    del users["user_age"]
    assert model.user_vectors(users).shape == (5, 8)


def test_history_pooling_by_hand() -> None:
    table = torch.nn.Embedding.from_pretrained(torch.tensor([[0.0], [9.0], [1.0], [2.0], [4.0]]), padding_idx=0)
    history = torch.tensor([[0, 2, 3, 4], [0, 0, 0, 0]])
    mean = HistoryPooling(4, ModelConfig(embedding_dim=1))
    assert mean(table, history).squeeze(1).tolist() == pytest.approx([7 / 3, 0])
    decay = HistoryPooling(4, ModelConfig(embedding_dim=1, history_pooling="decay", history_decay=0.5))
    assert decay(table, history).squeeze(1).tolist() == pytest.approx([(4 + 2 / 2 + 1 / 4) / 1.75, 0])
    of_values = decay.fixed_weights(history[:, :, None].expand(2, 4, 3))
    assert of_values is not None
    assert of_values[0].tolist() == [0.125] * 3 + [0.25] * 3 + [0.5] * 3 + [1.0] * 3
    attention = HistoryPooling(4, ModelConfig(embedding_dim=1, history_pooling="attention"))
    with torch.no_grad():
        attention.query.weight.fill_(0)
    assert attention(table, history).squeeze(1).tolist() == pytest.approx([7 / 3, 0]), "equal scores give the mean"
    with torch.no_grad():
        attention.query.weight.fill_(1)
        attention.mix.weight.fill_(0)
        attention.mix.bias.fill_(0)
        attention.position_Le[3] = 50
    e = np.exp(1)
    assert attention(table, history)[0].item() == pytest.approx((4 * e + 1 + 2) / (e + 2)), (
        "tanh is 1 at the last position"
    )


@pytest.mark.parametrize(("tower", "of_ids"), [("dssm", 0.1), ("sequence", 1.0)])
def test_rows_of_ids_start_short_unless_a_transformer_reads_them(tower: str, of_ids: float) -> None:
    model = build(tower=tower)
    lengths = {name: float(table.weight[1:].norm(dim=1).mean()) for name, table in model.tables.items()}
    ids = {"user_id", "item_id"}
    assert ids < set(lengths)
    for name, length in lengths.items():
        assert length == pytest.approx(of_ids if name in ids else 1.0, rel=0.25), name


def test_decay_depends_on_positions() -> None:
    model, rows = build(history_pooling="decay").eval(), batch(6)
    turned = {**rows, "history": rows["history"].flip(1)}
    assert (model.user_vectors(rows) - model.user_vectors(turned)).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"tower": "dnn"}, "'dnn' is not a tower; the towers are dssm, parallel, senet, sequence, youtube_dnn"),
        ({"tower": "senet", "settings": {"reduction": 0}}, "reduction"),
        ({"tower": "parallel", "settings": {"channels": ["dnn", "dnn"]}}, "a channel is listed twice"),
        ({"settings": {"depth": 3}}, "depth"),
    ],
)
def test_unknown_towers_and_settings_are_refused(config: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TwoTower(toy_night.schema(), ModelConfig.model_validate(config))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"tower": "parallel", "dim": 8}, "dim is 8, which 3 channels cannot share"),
        ({"tower": "youtube_dnn", "dim": 8}, "dim is 8 and model.embedding_dim 128.*same length"),
    ],
)
def test_a_dim_that_does_not_fit_the_tower_is_refused(config: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**config)
