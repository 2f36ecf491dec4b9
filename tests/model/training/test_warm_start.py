"""Checkpoints, and the training that continues from them on the next night."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from model.config import LossConfig
from model.serving.embed import embed_users
from model.training.build import build_step
from model.training.checkpoint import WarmStartError, load_checkpoint, read_description, read_state
from model.training.trainer import TrainingLoop, train
from tests.model import toy_night


def test_a_checkpoint_restores_vectors_temperature_and_description(tmp_path: Path) -> None:
    spec = toy_night.make_spec(
        tmp_path, [50], loss={"learned_temperature": True}, output=f"file://{tmp_path}/night/model"
    )
    result = train(spec)
    model = load_checkpoint(spec.output)
    assert sorted(path.name for path in (tmp_path / "night").rglob("*")) == [
        "model", "model.json", "model.safetensors", "training.safetensors"
    ]  # fmt: skip
    description = read_description(spec.output)
    assert description["result"] == result.without_timings()
    assert result.temperature != spec.loss.temperature
    assert not model.training
    again = build_step(spec.model_copy(update={"warm_start": spec.output}))
    rows = toy_night.sample_rows(10)
    np.testing.assert_array_equal(embed_users(model, rows), embed_users(again.towers, rows))
    assert float(torch.as_tensor(again.temperature).detach()) == pytest.approx(result.temperature)
    train(spec)  # Replaces the old checkpoint.


def test_a_checkpoint_of_another_version_is_refused_with_a_remedy(tmp_path: Path) -> None:
    spec = toy_night.make_spec(tmp_path, [50])
    train(spec)
    file = Path(spec.output, "model.json")
    file.write_text(file.read_text().replace('"version": 3', '"version": 1', 1))
    for reader in (load_checkpoint, lambda folder: build_step(spec.model_copy(update={"warm_start": folder}))):
        with pytest.raises(ValueError, match=r"of version 1, this code reads 3: train a new model.*--bootstrap-days"):
            reader(spec.output)


@pytest.mark.parametrize(("lift", "words"), [(True, "contain popularity, .* lack it"), (False, "lack .* contain it")])
def test_a_model_is_not_continued_with_popularity_in_another_place(tmp_path: Path, lift: bool, words: str) -> None:
    spec = toy_night.make_spec(tmp_path, [50], loss={"lift": not lift})
    train(spec)
    build_step(spec.model_copy(update={"warm_start": spec.output}))
    changed = spec.model_copy(update={"warm_start": spec.output, "loss": LossConfig(lift=lift)})
    with pytest.raises(WarmStartError, match=rf"loss.lift was .*{words}.*--bootstrap-days"):
        build_step(changed)
    if lift:  # Checkpoints of versions without lift do not say so.
        file = Path(spec.output, "model.json")
        file.write_text(re.sub(r",\s*\"lift\": false", "", file.read_text()))
        assert "lift" not in file.read_text()
        with pytest.raises(WarmStartError, match=r"loss\.lift was false"):
            build_step(changed)


def test_estimated_frequencies_continue_from_night_to_night(tmp_path: Path) -> None:
    streaming = {"correction": "mns", "frequencies": "streaming", "streaming": {"slots": 1000}}
    spec = toy_night.make_spec(tmp_path, [64, 64], loss=streaming, training={"batch_size": 32})
    train(spec)
    first = read_state(spec.output)
    assert int(first["frequency.step"]) == 4
    assert int(first["frequency.rows_per_step"]) == 32
    tomorrow = spec.model_copy(update={"warm_start": spec.output, "output": str(tmp_path / "tomorrow")})
    state = build_step(tomorrow).frequency.state_dict()  # type: ignore[union-attr]
    assert all(torch.equal(values, first[f"frequency.{name}"]) for name, values in state.items())
    train(tomorrow)
    second = read_state(tomorrow.output)
    assert int(second["frequency.step"]) == 8
    assert int(second["frequency.hits_mH"].sum()) == 2 * int(first["frequency.hits_mH"].sum())

    grown = toy_night.schema_with_new_items(5)
    step = build_step(tomorrow.model_copy(update={"features": grown}))
    assert step.frequency is not None
    new = torch.arange(toy_night.ITEMS + 2, toy_night.ITEMS + 7)
    slots = step.frequency._slots(new)
    assert (step.frequency.last_mH.gather(1, slots) == 4).all(), "the first gap of a new item is counted from tonight"

    fewer = {**streaming, "streaming": {"slots": 500}}
    with pytest.raises(WarmStartError, match=r"had 2 hashes of 1000 slots, has 2 of 500.*--bootstrap-days"):
        train(tomorrow.model_copy(update={"loss": LossConfig.model_validate(fewer)}))

    train(toy_night.make_spec(tmp_path, [64, 64]))  # A night with exact frequencies saves none:
    assert not any(name.startswith("frequency.") for name in read_state(spec.output))
    assert int(build_step(tomorrow).frequency.step) == 0  # type: ignore[union-attr]


def test_new_rows_of_a_table_are_copies_of_the_default_row(tmp_path: Path) -> None:
    spec = toy_night.make_spec(tmp_path, [50])
    train(spec)
    grown = {
        **toy_night.SCHEMA,
        "user": [{**toy_night.SCHEMA["user"][0], "size": toy_night.USERS + 5}, *toy_night.SCHEMA["user"][1:]],
    }
    before = load_checkpoint(spec.output).tables["user_id"].weight
    after = build_step(
        spec.model_copy(update={"features": toy_night.schema(**grown), "warm_start": spec.output})
    ).towers.tables["user_id"].weight  # fmt: skip
    assert torch.equal(after[: len(before)], before)
    assert (after[len(before) :] == before[1]).all()
    assert len(after) == len(before) + 3


@pytest.mark.parametrize("optimizer", ["adamw", "adagrad"])
def test_the_optimisers_continue_from_the_last_night(tmp_path: Path, optimizer: str) -> None:
    """Also if a table grows and its gradients become sparse."""
    training = {"optimizer": optimizer, "embedding_rows_sparse": 63}
    spec = toy_night.make_spec(tmp_path, [50, 50], training=training)
    train(spec)
    before = read_state(spec.output)
    grown = {
        **toy_night.SCHEMA,
        "user": [{**toy_night.SCHEMA["user"][0], "size": toy_night.USERS + 5}, *toy_night.SCHEMA["user"][1:]],
    }
    tomorrow = spec.model_copy(update={"features": toy_night.schema(**grown), "warm_start": spec.output})
    step = build_step(tomorrow)
    fit = TrainingLoop(step, tomorrow)
    after = fit.state()
    assert after.keys() == before.keys()
    for name, values in before.items():
        assert torch.equal(after[name][: len(values)] if values.dim() else after[name], values), name
    table = "optimizer.towers.tables.user_id.weight/" + ("sum" if optimizer == "adagrad" else "exp_avg_sq")
    assert len(after[table]) == len(before[table]) + 3
    assert (before[table][1] != 0).any()
    assert (after[table][len(before[table]) :] == 0).all(), "a new row does not copy the moments of the default row"
    assert step.towers.tables["user_id"].sparse
    fit.run()
    assert not torch.equal(fit.state()[table][: len(before[table])], before[table])


@pytest.mark.parametrize("optimizer", ["adamw", "adagrad"])
@pytest.mark.parametrize("sparse_rows", [20, 1000])
def test_a_new_row_moves_like_a_row_without_history(tmp_path: Path, optimizer: str, sparse_rows: int) -> None:
    """A gradient moves the row of a new item as far as a row that has never had a gradient."""
    training = {"optimizer": optimizer, "embedding_rows_sparse": sparse_rows}
    spec = toy_night.make_spec(tmp_path, [50, 50], training=training)
    train(spec)
    tomorrow = spec.model_copy(update={"features": toy_night.schema_with_new_items(2), "warm_start": spec.output})
    moved = []
    for fresh in (False, True):
        step = build_step(tomorrow)
        optimizers = TrainingLoop(step, tomorrow).optimizers
        weight = step.towers.tables["item_id"].weight
        new = len(weight) - 1
        states = [optimizer.state[weight] for optimizer in optimizers if weight in optimizer.state]
        assert states
        for values in (values for state in states for key, values in state.items() if fresh and key != "step"):
            values[new] = 0
        before = weight[new].detach().clone()
        step.towers.tables["item_id"](torch.tensor([new])).sum().backward()
        for optimizer in optimizers:
            optimizer.step()
        moved.append((weight[new] - before).detach())
    assert (moved[0] != 0).all()
    torch.testing.assert_close(moved[0], moved[1])


def test_another_optimiser_starts_without_state(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "model")
    spec = toy_night.make_spec(tmp_path, [50, 50])
    train(spec)
    other = spec.training.model_copy(update={"optimizer": "adagrad"})
    train(spec.model_copy(update={"training": other, "warm_start": spec.output}))
    assert "Adagrad cannot continue from a state 'exp_avg'; the optimisers start without state" in caplog.text


@pytest.mark.parametrize("model", [{"history_pooling": "attention"}, {"tower": "sequence"}])
def test_a_model_with_positions_refuses_another_history_length(tmp_path: Path, model: dict) -> None:
    spec = toy_night.make_spec(tmp_path, [50], model=model)
    train(spec)
    longer = toy_night.schema(history={**toy_night.SCHEMA["history"], "length": 8})
    with pytest.raises(WarmStartError, match="the history had length 5, has 8"):
        build_step(spec.model_copy(update={"features": longer, "warm_start": spec.output}))
    if "tower" not in model:
        five = spec.model.model_copy(update={"history_items": 5})
        build_step(spec.model_copy(update={"features": longer, "warm_start": spec.output, "model": five}))
        four = spec.model.model_copy(update={"history_items": 4})
        with pytest.raises(WarmStartError, match="the history had length 5, has 4"):
            build_step(spec.model_copy(update={"warm_start": spec.output, "model": four}))


@pytest.mark.parametrize(
    ("model", "user", "message"),
    [
        ({"dim": 8}, slice(None), "dim was 16, is 8.*--bootstrap-days"),
        ({"share_history": False}, slice(None), "share_history was True, is False"),
        ({}, slice(0, 3), "user feature income was removed.*--bootstrap-days"),
    ],
)
def test_a_warm_start_names_all_other_differences(tmp_path: Path, model: dict, user: slice, message: str) -> None:
    spec = toy_night.make_spec(tmp_path, [50])
    train(spec)
    changed = spec.model_copy(
        update={
            "model": spec.model.model_copy(update=model), "features": toy_night.schema(user=toy_night.SCHEMA["user"][user]),
            "warm_start": spec.output,
        }
    )  # fmt: skip
    with pytest.raises(WarmStartError, match=message):
        train(changed)


def test_a_warm_start_may_change_how_many_items_are_pooled(tmp_path: Path) -> None:
    spec = toy_night.make_spec(tmp_path, [50])
    train(spec)
    fewer = spec.model.model_copy(update={"history_items": 2})
    result = train(
        spec.model_copy(update={"model": fewer, "warm_start": spec.output, "output": str(tmp_path / "other")})
    )
    assert result.steps
    assert load_checkpoint(str(tmp_path / "other")).config.history_items == 2


def test_a_warm_start_may_change_the_dropout(tmp_path: Path) -> None:
    spec = toy_night.make_spec(tmp_path, [50])
    train(spec)
    dropout = spec.model.model_copy(update={"dropout": 0.2, "history_dropout": 0.3, "id_dropout": 0.0})
    step = build_step(spec.model_copy(update={"model": dropout, "warm_start": spec.output}))
    rows = toy_night.sample_rows(10)
    np.testing.assert_array_equal(embed_users(load_checkpoint(spec.output), rows), embed_users(step.towers, rows))


def test_a_sequence_tower_continues_from_the_last_night_and_may_change_its_dropout(tmp_path: Path) -> None:
    spec = toy_night.make_spec(tmp_path, [50], model={"tower": "sequence", "settings": {"width": 16}})
    train(spec)
    rows, vectors = toy_night.sample_rows(10), []
    for settings in ({"width": 16}, {"width": 16, "dropout": 0.5}):
        model = spec.model.model_copy(update={"settings": settings})
        tomorrow = {"model": model, "features": toy_night.schema_with_new_items(5), "warm_start": spec.output}
        vectors.append(embed_users(build_step(spec.model_copy(update=tomorrow)).towers, rows))
        np.testing.assert_array_equal(embed_users(load_checkpoint(spec.output), rows), vectors[-1])
    wider = spec.model.model_copy(update={"settings": {"width": 32}})
    with pytest.raises(WarmStartError, match=r"settings was .*16.* is .*32"):
        build_step(spec.model_copy(update={"model": wider, "warm_start": spec.output}))
