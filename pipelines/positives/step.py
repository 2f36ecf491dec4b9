"""What all parts of the step build_positives share."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pyspark.sql import DataFrame

from pipelines.features.side import Side, context_side, sides
from pipelines.night import Night, SampleConfig
from pipelines.positives.read import InputDays, NightInputs
from pipelines.storage.manifest import Manifest, Recipe


@dataclass(frozen=True)
class PositivesStep:
    """One run of build_positives: its config, its checked inputs, and the partitions that it reads and writes."""

    night: Night
    config: SampleConfig
    recipe: Recipe
    days: InputDays
    inputs: NightInputs
    item_days: DataFrame  # positives by item and day (popularity.count_days); persisted
    held_back: Manifest | None  # positives of the night before, if tonight trains on rows that it held back

    @property
    def user_side(self) -> Side:
        """The features of users."""
        return sides(self.config.features)[0]

    @property
    def item_side(self) -> Side:
        """The features of items."""
        return sides(self.config.features)[1]

    @property
    def context_side(self) -> Side:
        """The features of requests."""
        return context_side(self.config.features)

    def read(self, table: str) -> DataFrame:
        """A table of this ds, which an earlier part of the step has written."""
        return self.night.warehouse.read(table, self.night.ds)

    def read_previous(self, table: str) -> DataFrame | None:
        """A table of the night before; None in a bootstrap."""
        return self.night.warehouse.read(table, self.night.yesterday) if self.night.yesterday else None

    def write(
        self,
        rows: DataFrame,
        table: str,
        *,
        facts: dict[str, Any] | Callable[[DataFrame, str], dict[str, Any]] | None = None,
        may_be_empty: bool = False,
    ) -> Manifest:
        """Write a table of this ds (Warehouse.write)."""
        return self.night.warehouse.write(
            rows, table, self.night.ds, self.recipe, facts=facts, may_be_empty=may_be_empty
        )


@contextmanager
def persisted(frame: DataFrame) -> Iterator[DataFrame]:
    """Persist the frame for the duration of the block."""
    frame.persist()
    try:
        yield frame
    finally:
        frame.unpersist()
