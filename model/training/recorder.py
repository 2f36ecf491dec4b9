"""Records the metrics of a run as at most POINTS points, each the mean over consecutive steps."""

import time
from collections.abc import Callable

import torch
from torch import Tensor

from model.training.health import Health
from model.training.spec import RecorderState, StepMetrics
from model.training.step import FIGURES

POINTS = 200  # Enough for a chart, and model.json stays small.


class Recorder:
    """Sums the figures of steps and appends a point at regular intervals."""

    def __init__(self, total_steps: int) -> None:
        self.points: list[StepMetrics] = []
        self.totals = torch.zeros(len(FIGURES), dtype=torch.float64)
        self.step = 0
        self._every, self._total = max(1, -(-total_steps // POINTS)), total_steps
        self._started = self._since = time.perf_counter()
        self._reset()

    def _reset(self) -> None:
        self._figures = torch.zeros_like(self.totals)
        self._steps, self._waited, self._norms = 0, 0.0, 0.0

    def add(
        self,
        figures: Tensor,
        gradient_norm: float,
        waited: float,
        learning_rate: float,
        measure_health: Callable[[], Health],
    ) -> None:
        """Add one step. figures: summed over ranks, in the order of FIGURES. waited: seconds spent waiting for data.

        `measure_health` is called only if this step completes a point.
        """
        self.step += 1
        self._steps += 1
        self._figures += figures
        self.totals += figures
        self._norms += gradient_norm
        self._waited += waited
        if self.step % self._every and self.step != self._total:
            return
        now = time.perf_counter()
        seconds = max(now - self._since, 1e-9)
        self.points.append(
            StepMetrics(
                step=self.step,
                loss=self._mean("loss"),
                self_loss=self._mean("self_loss"),
                stage_loss=self._mean("stage_loss"),
                learning_rate=learning_rate,
                gradient_norm=self._norms / self._steps,
                rows_per_second=float(self._figures[FIGURES.index("rows")]) / seconds,
                data_wait_share=min(1.0, self._waited / seconds),
                step_seconds=seconds / self._steps,
                seconds=now - self._started,
                **measure_health().model_dump(),
            )
        )
        self._since = time.perf_counter()  # Leaves out the time of measure_health.
        self._reset()

    def state(self) -> RecorderState:
        """The state, for an intermediate checkpoint."""
        now = time.perf_counter()
        return RecorderState(
            step=self.step,
            points=self.points,
            totals=self.totals.tolist(),
            figures=self._figures.tolist(),
            steps=self._steps,
            norms=self._norms,
            waited=self._waited,
            elapsed=now - self._since,
            seconds=now - self._started,
        )

    def resume(self, state: RecorderState) -> None:
        """Restore a state. The time since it was saved does not count."""
        now = time.perf_counter()
        self.step, self.points = state.step, list(state.points)
        self.totals, self._figures = (torch.tensor(v, dtype=torch.float64) for v in (state.totals, state.figures))
        self._steps, self._norms, self._waited = state.steps, state.norms, state.waited
        self._since, self._started = now - state.elapsed, now - state.seconds

    def _mean(self, name: str) -> float:
        return float(self._figures[FIGURES.index(name)]) / self._steps

    def total(self, name: str) -> float:
        """The sum of a figure over all steps."""
        return float(self.totals[FIGURES.index(name)])

    def skip_time(self, seconds: float) -> None:
        """Exclude time that was not spent on training, such as validation, from the rates."""
        self._since += seconds
