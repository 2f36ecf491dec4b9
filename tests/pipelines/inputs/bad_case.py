"""A case of docs/bad-inputs.md."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipelines.storage.warehouse import Warehouse
from tests.pipelines.inputs.good_inputs import night


@dataclass(frozen=True)
class Case:
    """A bad input: its title on the page, parts of the expected message, the change of the inputs and the step to run."""

    title: str
    expected: list[str]
    change: Callable[[Path], object] = lambda root: None
    run: Callable[[Warehouse], object] = night
    exit_code: int = 3
