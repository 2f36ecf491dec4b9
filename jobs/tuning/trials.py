"""Trains and judges one setting: the product's training on the tables of the bootstrap, then Recall@K on the judged users.

Results are stored, so that no setting is trained twice with the same seed.
"""

import copy
import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from jobs import train
from jobs.common.config import Config
from jobs.common.runner import Context, log
from jobs.night.evaluations import headline_k
from jobs.night.mutual_information import item_relations
from jobs.night.steps import open_night, sample_config
from jobs.night.training_inputs import TrainingInputs
from jobs.release.item_item import fit_of_night, part_of_night
from jobs.tracking.job_run import JobRun
from jobs.tuning.judged_users import JudgedUsers, judged_users
from jobs.tuning.scoring import Judge
from jobs.tuning.space import with_changes
from jobs.tuning.tail import Tail
from model.network.two_tower import TwoTower
from model.training.checkpoint import item_item_part, load_checkpoint, read_description, write_item_item
from model.training.item_item_fit import ItemItemFit
from model.training.launch import launch
from model.training.spec import EpochMetrics, TrainingSpec
from pipelines.config import Inputs
from pipelines.contract.errors import InputError
from pipelines.positives.build import build_positives
from pipelines.samples.build import build_negatives
from pipelines.storage.manifest import digest
from pipelines.storage.warehouse import Warehouse

SAMPLED = ("features", "positives", "negatives", "samples")  # sections of the config that determine the sample tables
AfterEpoch = Callable[[int, float], None]  # gets the number of passes so far and Recall@K; may raise to end the trial


@dataclass(frozen=True)
class Measured:
    """The result of one training."""

    by_user: list[float]  # Recall@K of each judged user
    users: str  # JudgedUsers.name
    seconds: float
    epochs: list[float] = field(default_factory=list)  # Recall@K after each pass, of a part of the users


class Trials:
    """Trains settings of a study. Sample tables are built once for each choice of the settings that determine them."""

    def __init__(self, context: Context, tail: Tail, inputs: Inputs, folder: str) -> None:
        """`context`: of the job, with the user's config. `inputs`, `folder`: see tail.tuning_inputs."""
        self.context, self.tail, self.folder = context, tail, folder
        # The truth of simulated logs is not asked for; the input tables are outside the folder.
        evaluation = context.config.evaluation.model_copy(update={"simulated_truth": False})
        self.config = context.config.model_copy(update={"inputs": inputs, "evaluation": evaluation})
        self.k = headline_k(evaluation.ks)
        self._judges: dict[str, Judge] = {}
        self._fits: dict[str, ItemItemFit | None] = {}
        self._seconds: dict[str, float] = {}
        self._users: JudgedUsers | None = None

    @property
    def users(self) -> JudgedUsers:
        """The judged users."""
        assert self._users is not None, "no tables have been built"
        return self._users

    def judge(self, changed: Mapping[str, Any]) -> Judge:
        """The judge of a setting. Builds its sample tables first, unless they exist."""
        config = with_changes(self.config, changed)
        name = config.hash_of(*SAMPLED)
        if name not in self._judges:
            started = time.monotonic()
            warehouse = Warehouse(self.context.spark, f"{self.folder}/tables-{name}")
            days = self.tail.bootstrap_days
            context = replace(
                self.context, config=config, warehouse=warehouse, ds=self.tail.last, force=False, bootstrap_days=days
            )
            last_out = config.evaluation.split == "last_positive"
            settings = sample_config(config)
            build_positives(open_night(context, days), settings, name, keep_last_out=last_out)
            samples, built = build_negatives(open_night(context), settings, name, keep_last_out=last_out)
            users = judged_users(context, self.tail)
            if self._users is not None and users.name != self._users.name:
                raise InputError(
                    "the users of the validation tail differ between sample tables: an input table changed while tuning. Run "
                    "the same command again"
                )
            self._users = users
            self._judges[name] = Judge(context, users, self.k)
            self._seconds[name] = time.monotonic() - started
            log.info(
                "tune %s: %s sample tables%s (%s rows) in %.0f s, %s users judge",
                self.tail.ds, "built" if built else "found", _named(changed, config), f"{samples.rows:,}",
                self._seconds[name], f"{len(users):,}",
            )  # fmt: skip
        return self._judges[name]

    @property
    def table_seconds(self) -> float:
        """The longest time that sample tables took."""
        return max(self._seconds.values(), default=0.0)

    def stored(self, changed: Mapping[str, Any], seed: int) -> Measured | None:
        """The result of an earlier training of this setting, if any."""
        uri = self._file(changed, seed)
        warehouse = self.context.warehouse
        return Measured(**json.loads(warehouse.read_text(uri))) if warehouse.exists(uri) else None

    def _file(self, changed: Mapping[str, Any], seed: int) -> str:
        return f"{self.folder}/results/{digest([dict(changed), seed])}.json"

    def measure(self, changed: Mapping[str, Any], seed: int, job: JobRun, after_epoch: AfterEpoch) -> Measured:
        """Train a setting and judge it, unless its result is stored."""
        if measured := self.stored(changed, seed):
            return measured
        judge = self.judge(changed)
        started, config = time.monotonic(), with_changes(self.config, changed)
        context = replace(judge.context, config=config)
        epochs: list[float] = []
        staging = context.warehouse.new_staging("models", context.ds)
        try:
            fit = self._train(context, judge, staging, seed, job, epochs, after_epoch)
            if fit:
                write_item_item(staging, fit.tables)
            temperature = float(read_description(staging)["result"]["temperature"])
            recall = judge.recall(load_checkpoint(staging), config, temperature)
        finally:
            context.warehouse.delete(staging)
        measured = Measured(recall.tolist(), judge.users.name, time.monotonic() - started, epochs)
        self.context.warehouse.write_text(self._file(changed, seed), json.dumps(asdict(measured)))
        return measured

    def _train(
        self,
        context: Context,
        judge: Judge,
        staging: str,
        seed: int,
        job: JobRun,
        epochs: list[float],
        after_epoch: AfterEpoch,
    ) -> ItemItemFit | None:
        """Write the checkpoint of a training to `staging`, and append the figure of each pass to `epochs`.

        Returns the item-item part, with which each pass is judged.
        """
        inputs, config = TrainingInputs.require(context), context.config
        offered, schema = inputs.schemas(config)
        spec = train.training_spec(context, inputs, schema, train.training_of_night(context, inputs), staging)
        relations = item_relations(context, offered.item, schema.item, job) if config.loss.self_supervision else None
        resume = f"{staging}-progress" if spec.early_stopping else None  # where early stopping keeps the best pass
        training = spec.training.model_copy(update={"checkpoint_steps": None})
        spec = spec.model_copy(
            update={
                "seed": seed,
                "item_relations": relations,
                "resume": resume,
                "training": training,
                "progress": False,
            }
        )

        fit = self._fit_of(context, spec)

        def judge_epoch(past: list[EpochMetrics], towers: TwoTower) -> None:
            on_cpu = towers if towers_device(towers) == "cpu" else copy.deepcopy(towers).cpu()
            on_cpu = on_cpu.with_item_item(item_item_part(on_cpu, fit.tables if fit else None))
            epochs.append(float(np.mean(judge.recall(on_cpu, config, config.loss.temperature, few=True))))
            after_epoch(len(past), epochs[-1])

        lines = logging.getLogger("nightjar.training")
        level = lines.level
        lines.setLevel(logging.WARNING)  # One line per trial is enough.
        try:
            launch(spec, judge_epoch if spec.training.processes == 1 else None)
        finally:
            lines.setLevel(level)
            if resume:
                context.warehouse.delete(resume)
        return fit

    def _fit_of(self, context: Context, spec: TrainingSpec) -> ItemItemFit | None:
        """The item-item part of a setting. Trials with the same `fit_key` share it."""
        key = fit_key(spec, context.warehouse.require("user_histories", context.ds, "").fingerprint)
        if key not in self._fits:
            self._fits[key] = fit_of_night(context, spec)
        return self._fits[key]


def fit_key(spec: TrainingSpec, histories: str) -> str:
    """Names what the fit of the item-item part depends on. `histories`: fingerprint of user_histories."""
    part = part_of_night(spec)
    return digest([histories, part.model_dump(exclude={"weight", "rank"}), spec.model.item_item_rank] if part else [])


def towers_device(towers: TwoTower) -> str:
    """The kind of device that holds the towers."""
    return next(towers.parameters()).device.type


def _named(changed: Mapping[str, Any], config: Config) -> str:
    sampled = [f"{name}={value}" for name, value in changed.items() if name.partition(".")[0] in SAMPLED]
    return f" with {', '.join(sampled)}" if sampled else ""
