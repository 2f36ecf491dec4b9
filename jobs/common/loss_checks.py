"""Checks of the section `loss`: options that the kind of loss or the negatives of the samples do not support."""

from collections.abc import Iterator

from model.config import LossConfig
from pipelines.config import Negatives
from pipelines.contract.negative_kinds import HARD, KINDS


def loss_faults(loss: LossConfig) -> Iterator[str]:
    """Options of one kind of loss that another kind would ignore."""
    if loss.top_k and loss.kind != "listwise":
        yield (
            f"loss.top_k: weights the positives of the listwise loss, and loss.kind is {loss.kind}: set loss.kind: listwise, "
            "or loss.top_k: null"
        )
    elif loss.top_k and loss.correction == "none":
        yield (
            "loss.top_k: needs the expected counts of the candidates to estimate the K-th best score of the catalogue, and "
            "loss.correction is none: set loss.correction: classic, or loss.top_k: null"
        )
    if loss.gbce_calibration and loss.kind != "pointwise":
        yield (
            f"loss.gbce_calibration: changes the pointwise loss, and loss.kind is {loss.kind}: set loss.kind: pointwise, or "
            "loss.gbce_calibration: 0"
        )


def hard_negative_faults(loss: LossConfig, negatives: Negatives) -> Iterator[str]:
    """Options of hard negatives that the loss cannot have, or that no negative would read."""
    quotas = [KINDS[kind] for kind in HARD]
    defaults = LossConfig()
    options = [
        n
        for n in ("hard_weight", "hard_temperature", "hard_ramp", "hard_rows")
        if getattr(loss, n) != getattr(defaults, n)
    ]
    if options and not any(getattr(negatives, kind) for kind in quotas):
        yield (
            f"loss.{options[0]}: is for hard negatives, and negatives.{', '.join(quotas)} are all 0: set one of them, or "
            f"remove loss.{options[0]}"
        )
    if loss.hard_weight != 1 and loss.kind != "listwise":
        yield (
            f"loss.hard_weight: is a weight in the softmax of listwise, and loss.kind is {loss.kind}: set loss.hard_share "
            "instead, the weight of hard negatives in its mean"
        )
    if loss.hard_temperature and loss.learned_temperature:
        yield (
            "loss.hard_temperature: is fixed, and loss.learned_temperature trains the other one, so their ratio would drift: "
            "set loss.learned_temperature: false, or loss.hard_temperature: null"
        )
    lacking = [kind for kind in ("coarse", "fine") if not getattr(negatives, kind)]
    if loss.stage_weight not in (0, defaults.stage_weight) and lacking:
        yield (
            f"loss.stage_weight: compares the fine negatives of a row with its coarse ones, and negatives.{lacking[0]} is 0: "
            "set it, or remove loss.stage_weight"
        )
    if loss.hard_rows == "own":
        return
    if loss.kind != "listwise" or loss.correction == "revisited":
        other = f"loss.kind is {loss.kind}" if loss.kind != "listwise" else "loss.correction is revisited"
        yield (
            f"loss.hard_rows: all is for the listwise loss with correction classic, mns or none, and {other}: change that, or "
            "set loss.hard_rows: own"
        )
    if loss.hard_temperature:
        yield (
            "loss.hard_rows: all makes hard negatives part of the shared candidates, which have one temperature, and "
            "loss.hard_temperature is set: set loss.hard_temperature: null, or loss.hard_rows: own"
        )
    if loss.stage_weight:
        yield (
            "loss.hard_rows: all gives the hard negatives to all rows, and loss.stage_weight compares those of one row: set "
            "loss.stage_weight: 0, or loss.hard_rows: own"
        )
