"""Self-supervision: masks, the loss against its formula, and training that pulls views of an item together."""

from pathlib import Path

import numpy as np
import pytest
import torch

from model.config import ModelConfig, SelfSupervisionConfig
from model.data.catalogue import Catalogue
from model.loss.self_supervision import SelfSupervision, drop_half, half_mask, hide_fields, random_mask, related_fields
from model.network.two_tower import TwoTower
from model.seeds import torch_generator
from model.training.checkpoint import load_checkpoint
from model.training.trainer import train
from tests.model import toy_night

RELATIONS = [[3.0, 1.0, 1.5], [1.0, 1.2, 0.4], [1.5, 0.4, 2.0]]
MASKS = ("random", "dropout", "complementary", "correlated")


def make(mask: str, seed: int = 0, **config: object) -> SelfSupervision:
    settings = SelfSupervisionConfig.model_validate({"mask": mask, "items": 16, **config})
    return SelfSupervision(settings, Catalogue(toy_night.schema(), toy_night.item_rows()), seed, RELATIONS)


def towers(**config: object) -> TwoTower:
    torch.manual_seed(0)
    return TwoTower(
        toy_night.schema(), ModelConfig.model_validate({"dim": 8, "hidden": [16], "id_dropout": 0.0, **config})
    )


def test_masks_hide_the_stated_share_of_fields() -> None:
    rng = torch_generator(1)
    hidden = random_mask(4000, 3, rng)
    assert not hidden.all(1).any(), "at least one field of each row stays"
    assert abs(float(hidden.float().mean()) - (12 / 24 - 1 / 24)) < 0.02, (
        "1/2, minus the field that stays if all were hidden"
    )
    halves = half_mask(4000, 4, rng)
    assert (halves.sum(1) == 2).all()
    subsets = {tuple(row) for row in halves.tolist()}
    assert len(subsets) == 6
    counts = np.array([(halves == torch.tensor(subset)).all(1).sum() for subset in subsets])
    assert counts.min() > 0.8 * 4000 / 6
    assert (half_mask(10, 5, rng).sum(1) == 2).all()


def test_drop_half_keeps_the_larger_half_of_the_values() -> None:
    torch.manual_seed(0)
    values = torch.tensor([[5, 6, 7, 8, 0], [5, 6, 7, 0, 0], [5, 0, 0, 0, 0], [0, 0, 0, 0, 0]]).repeat(200, 1)
    dropped = drop_half(values)
    assert (dropped != 0).sum(1).reshape(200, 4).unique(dim=0).tolist() == [[2, 2, 1, 0]]
    assert ((dropped == values) | (dropped == 0)).all()
    kept_share = (dropped.reshape(200, 4, 5)[:, 0] != 0).float().mean(0)[:4]
    assert (kept_share - 0.5).abs().max() < 0.12, "each value is kept equally often"


def test_related_fields_are_hidden_together() -> None:
    """Of four fields, 0 and 2 have high mutual information, and so have 1 and 3."""
    relations = torch.tensor([[9, 0.1, 2, 0.3], [0.1, 9, 0.2, 5], [2, 0.2, 9, 0.1], [0.3, 5, 0.1, 9]])
    assert related_fields(relations).tolist() == [
        [True, False, True, False], [False, True, False, True], [True, False, True, False], [False, True, False, True],
    ]  # fmt: skip
    with pytest.raises(ValueError, match="mutual information of 3 item features, but got none"):
        SelfSupervision(SelfSupervisionConfig(), Catalogue(toy_night.schema(), toy_night.item_rows()), 0, None)
    only_id = toy_night.schema(item=[toy_night.SCHEMA["item"][0]])
    with pytest.raises(ValueError, match="the item side has only its id"):
        SelfSupervision(SelfSupervisionConfig(), Catalogue(only_id, toy_night.item_rows()), 0, RELATIONS)


def test_a_tower_that_reads_only_ids_is_refused(tmp_path: Path) -> None:
    supervision = {"self_supervision": {"mask": "random"}}
    spec = toy_night.make_spec(tmp_path, [50], model={"tower": "youtube_dnn", "dim": 16}, loss=supervision)
    with pytest.raises(ValueError, match="tower youtube_dnn does not read them"):
        train(spec)


@pytest.mark.parametrize("mask", MASKS)
def test_vectors_are_hidden_like_other_features(mask: str) -> None:
    """A hidden vector is the projection of zeros. It has no mutual information with other features."""
    schema = toy_night.vector_schema()
    items = toy_night.item_rows() | {"item_look": toy_night.vectors("item", toy_night.ITEMS - 1)}
    relations = [[*row, 0.0] for row in RELATIONS] + [[0.0] * 4]
    settings = SelfSupervisionConfig.model_validate({"mask": mask, "items": 16})
    supervision = SelfSupervision(settings, Catalogue(schema, items), 0, relations)
    torch.manual_seed(0)
    towers = TwoTower(schema, ModelConfig(dim=8, hidden=[16]))
    loss = supervision.loss(towers)
    loss.backward()
    assert torch.isfinite(loss)
    weight = towers.projections["item_look"].linear.weight
    assert weight.grad is not None
    assert weight.grad.abs().sum() > 0


def test_hidden_fields_get_the_default() -> None:
    fields = [torch.ones(2, 3), 2 * torch.ones(2, 1)]
    defaults = [torch.full((1, 3), -1.0), torch.full((1, 1), -2.0)]
    fields = hide_fields(fields, defaults, torch.tensor([[True, False], [False, True]]))
    assert [field.tolist() for field in fields] == [[[-1, -1, -1], [1, 1, 1]], [[2], [-2]]]


@pytest.mark.parametrize("mask", MASKS)
def test_the_loss_equals_its_formula(mask: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compares with a loop over rows, from the recorded outputs of the item tower."""
    objective, model = make(mask, temperature=0.3), towers()
    outputs: list[torch.Tensor] = []
    forward = model.item_tower.forward

    def record(fields: list[torch.Tensor]) -> torch.Tensor:
        outputs.append(forward(fields))
        return outputs[-1]

    monkeypatch.setattr(model.item_tower, "forward", record)
    items = make(mask).catalogue.present[
        torch.randint(toy_night.ITEMS - 1, (16,), generator=torch_generator(0, "self-supervision", 0))
    ]
    assert len(set(items.tolist())) < 16, "some item is drawn twice"
    loss = objective.loss(model).detach()
    one, other = (vectors.detach().double().numpy() for vectors in outputs)
    expected = 0.0
    for i in range(16):
        terms = [one[i] @ other[j] / 0.3 for j in range(16) if j == i or items[j] != items[i]]
        expected += (np.logaddexp.reduce(terms) - one[i] @ other[i] / 0.3) / 16
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    assert float(loss) != float(objective.loss(model).detach()), "each call draws new items and masks"
    if mask != "dropout":
        assert float(make(mask, temperature=0.3).loss(model).detach()) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    "mask", [pytest.param(mask, marks=pytest.mark.slow) if mask != "random" else mask for mask in MASKS]
)
@pytest.mark.trains
def test_training_pulls_views_of_an_item_together(tmp_path: Path, mask: str) -> None:
    """The self-supervised loss is lower than in a model trained without it. It is recorded separately from the main loss."""
    losses = {}
    for weight in (None, 2.0):
        supervision = None if weight is None else {"weight": weight, "mask": mask, "items": 32, "temperature": 0.2}
        spec = toy_night.make_spec(
            tmp_path, [400, 400], loss={"self_supervision": supervision}, item_relations=RELATIONS,
            model={"id_dropout": 0.0}, training={"learning_rate": 1e-2, "embedding_learning_rate": 2e-2}, epochs=3,
        )  # fmt: skip
        result = train(spec)
        assert (result.metrics[0].self_loss > 0) == (weight is not None)
        if weight:
            assert result.metrics[-1].self_loss < result.metrics[0].self_loss
        with torch.no_grad():
            probe, model = make(mask, seed=5, items=32, temperature=0.2), load_checkpoint(spec.output)
            losses[weight] = np.mean([float(probe.loss(model)) for _ in range(20)])
    assert losses[2.0] < losses[None] - 0.1
