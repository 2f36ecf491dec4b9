"""The study: an Optuna study in sqlite that a later call continues, and which setting to try next.

Every trial suggests all parameters at once, so that TPE models them together; parameters that a tower does not have are
ignored by space.changes. Random draws depend on the seed and the trials before only, so a study that was interrupted
tries what an uninterrupted one would.
"""

import statistics
import tempfile
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from jobs.tuning.space import Parameter, Values, encoded
from model.io.urls import read_bytes, write_folder
from model.seeds import derive_seed
from pipelines.storage.warehouse import Warehouse

STARTUP = 8  # trials before TPE has enough to learn from
FAIR = 4  # trials that end before the first one may be pruned
SLACK = 0.05  # how much lower than the median a trial may be after its first pass; half after the second, and so on
KIND, WHAT, CHANGES, SECONDS, FAILED = "kind", "what", "changes", "seconds", "failed"  # attributes of a trial
DATABASE = "study.db"


class SlackPruner(optuna.pruners.BasePruner):
    """Stops a trial whose best pass is clearly below the median of the completed trials after as many passes.

    Trials near the best one differ by less than chance after the first pass, and some good ones begin more slowly (more
    dropout, lower rates). A plain median would stop half of them. The passes say more and more, so the slack shrinks.
    """

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:  # noqa: D102
        passes = trial.last_step
        if passes is None:
            return False
        others = [
            max(recall for step, recall in other.intermediate_values.items() if step <= passes)
            for other in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
            if passes in other.intermediate_values
        ]
        best = max(trial.intermediate_values.values())
        return len(others) >= FAIR and best < (1 - SLACK / passes) * statistics.median(others)


class OpenTrial:
    """A trial that runs."""

    def __init__(self, study: "Study", trial: optuna.Trial, values: Values) -> None:
        """`values`: of all parameters, as in the config."""
        self._study, self._trial, self.values = study, trial, values
        self.number, self.kind = trial.number, str(trial.user_attrs.get(KIND, "search"))

    def report(self, passes: int, recall: float, *, may_prune: bool) -> None:
        """Record the figure of a pass. Raises optuna.TrialPruned if other trials were clearly better then."""
        self._trial.report(recall, passes)
        if may_prune and self._trial.should_prune():
            raise optuna.TrialPruned

    def begin(self, changed: Values) -> None:
        """Store what the trial changes."""
        self._trial.set_user_attr(CHANGES, changed)

    def finish(self, recall: float, seconds: float) -> None:
        """End the trial with its figure. `seconds`: how long it took."""
        self._trial.set_user_attr(SECONDS, seconds)
        self._study.end(self._trial, TrialState.COMPLETE, recall)

    def prune(self) -> None:
        """End a trial whose passes were worse than those of others."""
        self._study.end(self._trial, TrialState.PRUNED)

    def fail(self, reason: str) -> None:
        """End a trial whose setting cannot be trained."""
        self._trial.set_user_attr(FAILED, reason)
        self._study.end(self._trial, TrialState.FAIL)

    def interrupt(self) -> None:
        """End a trial that was interrupted, unless it has ended. The next call repeats it."""
        self._study.interrupt(self._trial)


class Study:
    """The trials so far, and the next one."""

    def __init__(self, warehouse: Warehouse, folder: str, name: str, seed: int, parameters: list[Parameter]) -> None:
        """Open the study in `folder`, or create it. Trials that a killed call left are repeated."""
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.parameters, self._seed = {parameter.name: parameter for parameter in parameters}, seed
        self._folder, self._copy = f"{folder}/study", None  # type: str, tempfile.TemporaryDirectory[str] | None
        if folder.startswith("file:///"):
            local = Path(folder.removeprefix("file://"))
            local.mkdir(parents=True, exist_ok=True)
        else:  # sqlite needs a local file: work on a copy, and upload it after every trial.
            self._copy = tempfile.TemporaryDirectory(prefix="nightjar-tune-")
            local = Path(self._copy.name)
            if warehouse.exists(f"{self._folder}/{DATABASE}"):
                (local / DATABASE).write_bytes(read_bytes(f"{self._folder}/{DATABASE}"))
        self._file = local / DATABASE
        storage = f"sqlite:///{self._file}"
        self._optuna = optuna.create_study(
            storage=storage, study_name=name, pruner=SlackPruner(), direction="maximize", load_if_exists=True
        )
        for trial in self._optuna.get_trials(states=[TrialState.RUNNING]):
            self._optuna.tell(trial.number, state=TrialState.FAIL)
            self.repeat(trial.params, trial.user_attrs)

    def repeat(self, params: Mapping[str, Any], attributes: Mapping[str, Any]) -> None:
        """Queue a trial with these stored parameters."""
        self._optuna.enqueue_trial(dict(params), user_attrs=dict(attributes))
        self._upload()

    def next(self, kind: str, fixed: Values, what: str = "") -> OpenTrial:
        """Start a trial: one that waits to be repeated, else one with these values; TPE chooses those that are missing.

        `kind`, `what`: see plan.Step.
        """
        if not self._optuna.get_trials(deepcopy=False, states=[TrialState.WAITING]):
            self.repeat({name: encoded(value) for name, value in fixed.items()}, {KIND: kind, WHAT: what})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            self._optuna.sampler = optuna.samplers.TPESampler(
                seed=derive_seed(self._seed, "tune", len(self.ended)) % 2**32,
                n_startup_trials=STARTUP,
                multivariate=True,
            )
        trial = self._optuna.ask({name: _distribution(parameter) for name, parameter in self.parameters.items()})
        values = {name: self.parameters[name].decoded(stored) for name, stored in trial.params.items()}
        return OpenTrial(self, trial, values)

    def end(self, trial: optuna.Trial, state: TrialState, recall: float | None = None) -> None:
        """End a trial."""
        self._optuna.tell(trial, recall, state=state)
        self._upload()

    def interrupt(self, trial: optuna.Trial) -> None:
        """End a running trial and queue it again. If that fails too, opening the study does it."""
        with suppress(Exception):
            running = self._optuna.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
            if any(other.number == trial.number for other in running):
                self._optuna.tell(trial, state=TrialState.FAIL)
                self.repeat(trial.params, trial.user_attrs)

    def _upload(self) -> None:
        if self._copy:
            write_folder(self._folder, {DATABASE: [self._file.read_bytes()]})

    @property
    def ended(self) -> list[FrozenTrial]:
        """The trials that need not be repeated, in order: completed, pruned, or of a setting that cannot be trained."""
        states = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
        trials = self._optuna.get_trials(states=states)
        return [trial for trial in trials if trial.state != TrialState.FAIL or FAILED in trial.user_attrs]

    @property
    def completed(self) -> list[FrozenTrial]:
        """The trials with a figure, in order."""
        return self._optuna.get_trials(states=(TrialState.COMPLETE,))

    def values_of(self, trial: FrozenTrial) -> Values:
        """The values of all parameters of a trial, as in the config."""
        return {name: self.parameters[name].decoded(stored) for name, stored in trial.params.items()}

    @property
    def best(self) -> FrozenTrial:
        """The completed trial with the highest figure; of equal ones that with the fewest changes."""
        return max(self.completed, key=lambda t: (t.value or 0.0, -len(t.user_attrs[CHANGES]), -t.number))


def _distribution(parameter: Parameter) -> BaseDistribution:
    if parameter.choices:
        return CategoricalDistribution([encoded(choice) for choice in parameter.choices])
    if parameter.whole:
        return IntDistribution(int(parameter.low), int(parameter.high))
    return FloatDistribution(parameter.low, parameter.high, log=True)
