"""Promises of training: it learns, it is reproducible, ranks do not matter, and it fails loudly."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from model.config import LossConfig
from model.data.petastorm_reader import SampleReader, sample_columns
from model.loss.candidates import StepCandidates
from model.loss.objective import batch_loss
from model.serving.embed import embed_users
from model.training.build import build_step
from model.training.checkpoint import WarmStartError, load_checkpoint, read_description, read_state
from model.training.degenerate_loss import DegenerateLossError
from model.training.launch import ROOT, LaunchError, launch
from model.training.step import FIGURES, TEMPERATURES
from model.training.trainer import TrainingLoop, train
from tests.model import toy_night
from tests.model.training import gradients_process


def test_a_run_tells_what_it_did(tmp_path: Path) -> None:
    spec = toy_night.make_spec(
        tmp_path, [500] * 4, training={"learning_rate": 5e-3, "embedding_learning_rate": 2e-2}, epochs=4
    )
    result = launch(spec)
    assert result.rows == 4 * 2000
    assert result.steps == 4 * 32
    assert result.metrics[-1].loss < result.metrics[0].loss
    assert result.epochs[-1].valid_recall_in_batch is not None
    assert all(0 <= point.data_wait_share <= 1 for point in result.metrics)
    assert result.masked["shared"] > 0
    assert result.rows_without_negatives == 0


@pytest.mark.parametrize("optimizer", ["adamw", "adagrad"])
def test_one_seed_gives_the_same_parameters_bit_for_bit(tmp_path: Path, optimizer: str) -> None:
    spec = toy_night.make_spec(
        tmp_path, [60, 61, 62], training={"optimizer": optimizer}, model={"id_dropout": 0.2}, epochs=2
    )
    states = []
    for seed in (7, 7, 8):
        torch.rand(3)  # What the caller draws must not matter.
        train(spec.model_copy(update={"seed": seed}))
        states.append(load_checkpoint(spec.output).state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not all(torch.equal(states[0][name], states[2][name]) for name in states[0])


def run_gradients(specs: list[Any], folder: Path, processes: int) -> list[dict[str, Any]]:
    """What one backward pass gives, on one process (this one) or on several: for all specs at once."""
    out, files = folder / f"gradients{processes}.pt", []
    for number, spec in enumerate(specs):
        files.append(folder / f"spec{number}.json")
        files[-1].write_text(spec.model_dump_json())
    if processes == 1:
        gradients_process.main(str(out), *map(str, files))
    else:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        command += ["-m", "tests.model.training.gradients_process", str(out), *map(str, files)]
        subprocess.run(command, check=True, env=environment, timeout=300)
    return torch.load(out, weights_only=True)


@pytest.mark.processes
def test_two_ranks_on_half_batches_equal_one_rank_on_the_whole(tmp_path: Path) -> None:
    """Loss to 1e-6 and gradients to 1e-5 of the largest (float32 sums in another order), rows unequal by one a rank."""
    losses = [{"kind": kind, "correction": "none"} for kind in ("listwise", "pointwise", "hinge", "logistic")]
    losses += [{"correction": correction} for correction in ("classic", "mns", "revisited")]
    losses += [{"correction": correction, "frequencies": "streaming"} for correction in ("classic", "revisited")]
    losses += [{"self_supervision": {"mask": "complementary", "items": 24, "weight": 1.0}}]
    whole = toy_night.make_spec(
        tmp_path, [21, 20, 20, 20], model={"id_dropout": 0.0, "history_features": ["category"]},
        training={"batch_size": 100},
    )  # fmt: skip
    sparse = whole.training.model_copy(update={"embedding_rows_sparse": 20})
    specs = [
        whole.model_copy(update={"loss": LossConfig(learned_temperature=True, **loss), "training": training})
        for training in (whole.training, sparse)
        for loss in (losses if training is whole.training else losses[-2:-1])
    ]
    only_ids = whole.model.model_copy(update={"tower": "youtube_dnn", "embedding_dim": whole.model.dim})
    specs.append(whole.model_copy(update={"model": only_ids}))
    specs.append(toy_night.versioned(whole, toy_night.earlier_rows()))
    pairs = zip(run_gradients(specs, tmp_path, 1), run_gradients(specs, tmp_path, 2), strict=True)
    seen = set()
    for spec, (one, two) in zip(specs, pairs, strict=True):
        torch.testing.assert_close(one["figures"], two["figures"], rtol=1e-6, atol=0, msg=str(spec.loss))
        figures = dict(zip(FIGURES, one["figures"].tolist(), strict=True))
        assert figures["rows"] == 81
        seen.add(figures["loss"] + figures["self_loss"])
        assert one["gradients"].keys() == two["gradients"].keys()
        needed = {"towers.tables.item_id.weight", "towers.tables.user/age.weight"}
        needed |= {"log_temperature"} if spec.loss.learned_temperature else set()
        assert needed <= one["gradients"].keys()
        largest = max(float(gradient.abs().max()) for gradient in one["gradients"].values())
        for name, gradient in one["gradients"].items():
            message = f"{name} of {spec.loss}"
            torch.testing.assert_close(gradient, two["gradients"][name], rtol=1e-4, atol=1e-5 * largest, msg=message)
        assert one["frequency"].keys() == two["frequency"].keys()
        assert all(torch.equal(values, two["frequency"][name]) for name, values in one["frequency"].items())
    assert len(seen) == len(losses) + 2, "every loss is another one, and so is that of another tower or other features"


@pytest.mark.processes
def test_two_processes_train_like_one(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    spec = toy_night.make_spec(
        tmp_path,
        [40, 40, 41],
        model={"id_dropout": 0.0},
        training={"batch_size": 200, "optimizer": "adagrad"},
        epochs=3,
    )
    one = launch(spec)
    processes = spec.training.model_copy(update={"processes": 2, "threads": None, "timeout_seconds": 60})
    assert "step/s" not in capfd.readouterr().err
    asked = {"training": processes, "output": str(tmp_path / "two"), "progress": True}
    two = launch(spec.model_copy(update=asked))
    bar = [line for line in capfd.readouterr().err.replace("\r", "\n").splitlines() if "step/s" in line]
    assert f"{two.steps}/{two.steps}" in bar[-1], "of rank 0 alone"
    assert (two.steps, two.rows, two.parameters) == (one.steps, one.rows, one.parameters)
    for a, b in zip(one.epochs, two.epochs, strict=True):
        # Three steps of an optimiser that divides by small numbers: not as close as one gradient is.
        assert a.loss == pytest.approx(b.loss, rel=1e-4)
        assert a.valid_loss == pytest.approx(b.valid_loss, rel=1e-4)
    assert load_checkpoint(str(tmp_path / "two")).schema == spec.features


@pytest.mark.processes
def test_a_rank_without_rows_in_some_steps_keeps_up(tmp_path: Path) -> None:
    spec = toy_night.make_spec(tmp_path, [2, 90], training={"processes": 2, "batch_size": 40, "timeout_seconds": 30})
    result = launch(spec)
    assert (result.steps, result.rows) == (5, 92)


@pytest.mark.processes
def test_a_failing_child_is_quoted(tmp_path: Path) -> None:
    spec = toy_night.make_spec(tmp_path, [10], training={"processes": 2})
    with pytest.raises(LaunchError, match="2 processes cannot share 1 row groups"):
        launch(spec)
    assert not Path(spec.output).exists()


def test_a_loss_that_is_no_number_stops_training_by_name(tmp_path: Path) -> None:
    spec = toy_night.make_spec(tmp_path, [50, 50])
    rows = toy_night.sample_rows(50)
    rows["user_income"][3] = np.nan
    pq.write_table(toy_night.table(rows), spec.train[0].url.removeprefix("file://"))
    with pytest.raises(
        DegenerateLossError,
        match=rf"step \d: 1 of \d+ rows .*_index\) \({rows['user_index'][3]}, {rows['item_index'][3]}\)",
    ):
        train(spec)
    assert not Path(spec.output).exists()

    spec = toy_night.make_spec(tmp_path, [50, 50], loss={"temperature": 1e-40})
    with pytest.raises(DegenerateLossError, match="Degenerate loss in step 1"):
        train(spec)


@pytest.mark.parametrize(("column", "value"), [("weight", np.nan), ("weight", np.inf), ("user_income", np.nan)])
@pytest.mark.parametrize("loss", [{"kind": "pointwise"}, {"correction": "revisited"}, {"kind": "hinge"}])
def test_a_row_that_is_no_number_is_named_whatever_the_loss(
    tmp_path: Path, column: str, value: float, loss: dict
) -> None:
    spec = toy_night.make_spec(tmp_path, [50], loss=loss)
    rows = toy_night.sample_rows(50)
    rows[column][3] = value
    pq.write_table(toy_night.table(rows), spec.train[0].url.removeprefix("file://"))
    pair = rf"\({rows['user_index'][3]}, {rows['item_index'][3]}\)"
    with pytest.raises(DegenerateLossError, match=rf"1 of 50 rows have a loss that is not finite, .*_index\) {pair}"):
        train(spec)


def test_a_learned_temperature_stays_within_its_limits_and_comes_back(tmp_path: Path) -> None:
    for start, limit in ((5.0, TEMPERATURES[1]), (0.001, TEMPERATURES[0])):
        loss = {"learned_temperature": True, "temperature": start}
        spec = toy_night.make_spec(tmp_path, [400], loss=loss, training={"learning_rate": 0.02}, epochs=2)
        step = build_step(spec)
        assert float(torch.as_tensor(step.temperature).detach()) == pytest.approx(limit)
        found = train(spec).temperature
        assert TEMPERATURES[0] <= found <= TEMPERATURES[1]
        assert found != pytest.approx(limit, rel=0.01), "it is not stuck there"


def test_a_gradient_that_is_no_number_stops_training_by_name(tmp_path: Path) -> None:
    """A weight near the end of float32: the loss is a number still, its gradient over a temperature is none."""
    spec = toy_night.make_spec(tmp_path, [50], loss={"temperature": 0.01})
    rows = toy_night.sample_rows(50)
    rows["weight"][3] = 1e37
    pq.write_table(toy_night.table(rows), spec.train[0].url.removeprefix("file://"))
    with pytest.raises(
        DegenerateLossError, match=r"norm of the gradient is inf.*\(user_index, item_index\) \(\d+, \d+\)"
    ):
        train(spec)
    assert not Path(spec.output).exists()


@pytest.mark.parametrize(("kind", "correction"), [("listwise", "mns"), ("pointwise", "none"), ("hinge", "classic")])
def test_bfloat16_trains_to_about_the_same_loss(tmp_path: Path, kind: str, correction: str) -> None:
    losses = []
    for precision in ("float32", "bfloat16"):
        loss = {"temperature": 0.05, "kind": kind, "correction": correction}
        spec = toy_night.make_spec(tmp_path, [300], loss=loss, training={"precision": precision}, epochs=2)
        result = train(spec)
        assert result.epochs[-1].loss < result.epochs[0].loss
        losses.append(result.epochs[-1].loss)
        vectors = embed_users(load_checkpoint(spec.output), toy_night.sample_rows(10))
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


def test_sparse_tables_train(tmp_path: Path) -> None:
    for optimizer in ("adamw", "adagrad"):
        spec = toy_night.make_spec(
            tmp_path, [200, 200], training={"embedding_rows_sparse": 20, "optimizer": optimizer}, epochs=3
        )
        result = train(spec)
        assert result.epochs[-1].loss < result.epochs[0].loss


def test_a_checkpoint_gives_the_same_vectors_and_says_what_it_is(tmp_path: Path) -> None:
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
    train(spec)  # Over the old one.


def test_a_checkpoint_of_another_version_is_refused_with_the_remedy(tmp_path: Path) -> None:
    spec = toy_night.make_spec(tmp_path, [50])
    train(spec)
    file = Path(spec.output, "model.json")
    file.write_text(file.read_text().replace('"version": 3', '"version": 1', 1))
    for reader in (load_checkpoint, lambda folder: build_step(spec.model_copy(update={"warm_start": folder}))):
        with pytest.raises(ValueError, match=r"of version 1, this code reads 3: train a new model.*--bootstrap-days"):
            reader(spec.output)


def test_estimated_frequencies_go_on_from_night_to_night(tmp_path: Path) -> None:
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

    grown = toy_night.grown_items(5)
    step = build_step(tomorrow.model_copy(update={"features": grown}))
    assert step.frequency is not None
    new = torch.arange(toy_night.ITEMS + 2, toy_night.ITEMS + 7)
    slots = step.frequency._slots(new)
    assert (step.frequency.last_mH.gather(1, slots) == 4).all(), "the wait for a new item begins tonight"

    fewer = {**streaming, "streaming": {"slots": 500}}
    with pytest.raises(WarmStartError, match=r"had 2 hashes of 1000 slots, has 2 of 500.*--bootstrap-days"):
        train(tomorrow.model_copy(update={"loss": LossConfig.model_validate(fewer)}))

    train(toy_night.make_spec(tmp_path, [64, 64]))  # A night with exact frequencies leaves none behind:
    assert not any(name.startswith("frequency.") for name in read_state(spec.output))
    assert int(build_step(tomorrow).frequency.step) == 0  # type: ignore[union-attr]


def test_candidates_are_expected_as_often_as_they_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A night of few rows: any floor under the chances of a positive would outweigh all draws of the other items."""
    spec = toy_night.make_spec(tmp_path, [12])
    step = build_step(spec)
    stats = pq.read_table(spec.item_stats[0]).to_pydict()
    q = {name: dict(zip(stats["item_index"], stats[f"q_{name}"])) for name in ("in_batch", "uniform", "popularity")}
    asked: list[tuple[StepCandidates, torch.Tensor]] = []

    def listen(*arguments: Any) -> Any:
        asked.append((arguments[4], arguments[5]))
        return batch_loss(*arguments)

    monkeypatch.setattr("model.training.step.batch_loss", listen)
    for files, training in ((spec.train, True), (spec.valid, False)):
        with SampleReader(files, sample_columns(spec.features), spec.training, 0, 0, 1).epoch(0) as batches:
            batch = next(batches)
        step.train(training)(batch, 64)
        candidates, expected_U = asked.pop()
        drawn_alone = 0
        for item, expected in zip(candidates.items_U.tolist(), expected_U.tolist()):
            others = candidates.uniform * q["uniform"][item] + candidates.popularity * q["popularity"][item]
            if item in batch["item_index"] and not q["in_batch"][item]:
                assert not training
                least = min(value for value in q["in_batch"].values() if value)
                assert expected == pytest.approx(others + candidates.rows * least / 2), "half of the rarest positive's"
            else:
                drawn_alone += not q["in_batch"][item]
                assert expected == pytest.approx(others + candidates.rows * q["in_batch"][item])
        assert drawn_alone > 3


def test_a_batch_does_not_tell_of_itself(tmp_path: Path) -> None:
    """The estimator is asked before it is told, and in training only is it told."""
    streaming = {"correction": "mns", "frequencies": "streaming"}
    spec = toy_night.make_spec(tmp_path, [64], loss=streaming, training={"batch_size": 64})
    step = build_step(spec)
    assert step.frequency is not None
    with SampleReader(spec.train, sample_columns(spec.features), spec.training, 0, 0, 1).epoch(0) as batches:
        batch = next(batches)
    items = batch["item_index"].unique()
    told: list[int] = []
    ask = step.frequency.probabilities

    def listen(asked: torch.Tensor, rows: int | None = None) -> torch.Tensor:
        told.append(int(step.frequency.hits_mH.sum()))  # type: ignore[union-attr]
        return ask(asked, rows)

    step.frequency.probabilities = listen  # type: ignore[method-assign]
    for _ in range(2):
        step(batch, 64)
    assert told == [0, 2 * len(items)]
    step.eval()(batch, 64)
    assert int(step.frequency.step) == 2


def test_warm_start_grows_tables_from_the_default_row(tmp_path: Path) -> None:
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
def test_a_night_goes_on_with_the_optimisers_of_the_last(tmp_path: Path, optimizer: str) -> None:
    """While a table grows, and crosses to sparse gradients."""
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
    assert (after[table][len(before[table]) :] == 0).all(), "a new row has no moments of the default row"
    assert step.towers.tables["user_id"].sparse
    fit.run()
    assert not torch.equal(fit.state()[table][: len(before[table])], before[table])


@pytest.mark.parametrize("optimizer", ["adamw", "adagrad"])
@pytest.mark.parametrize("sparse_rows", [20, 1000])
def test_a_new_row_moves_like_a_fresh_one(tmp_path: Path, optimizer: str, sparse_rows: int) -> None:
    """A gradient moves the row of a new item as far as it moves any row that has never had one."""
    training = {"optimizer": optimizer, "embedding_rows_sparse": sparse_rows}
    spec = toy_night.make_spec(tmp_path, [50, 50], training=training)
    train(spec)
    tomorrow = spec.model_copy(update={"features": toy_night.grown_items(2), "warm_start": spec.output})
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
        for of_table in optimizers:
            of_table.step()
        moved.append((weight[new] - before).detach())
    assert (moved[0] != 0).all()
    torch.testing.assert_close(moved[0], moved[1])


def test_another_optimiser_begins_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "model")
    spec = toy_night.make_spec(tmp_path, [50, 50])
    train(spec)
    other = spec.training.model_copy(update={"optimizer": "adagrad"})
    train(spec.model_copy(update={"training": other, "warm_start": spec.output}))
    assert "Adagrad cannot continue from a state 'exp_avg'; the optimisers start without state" in caplog.text


def test_attention_refuses_another_length_of_the_history(tmp_path: Path) -> None:
    spec = toy_night.make_spec(tmp_path, [50], model={"history_pooling": "attention"})
    train(spec)
    longer = toy_night.schema(history={**toy_night.SCHEMA["history"], "length": 8})
    with pytest.raises(WarmStartError, match="the history had length 5, has 8"):
        build_step(spec.model_copy(update={"features": longer, "warm_start": spec.output}))


@pytest.mark.parametrize(
    ("model", "user", "message"),
    [
        ({"dim": 8}, slice(None), "dim was 16, is 8.*--bootstrap-days"),
        ({"share_history": False}, slice(None), "share_history was True, is False"),
        ({}, slice(0, 3), "user feature income was removed.*--bootstrap-days"),
    ],
)
def test_warm_start_refuses_other_differences_by_name(tmp_path: Path, model: dict, user: slice, message: str) -> None:
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
