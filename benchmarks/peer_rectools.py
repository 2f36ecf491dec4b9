"""Times RecTools' SASRec in a separate virtual environment.

    PEER/bin/python benchmarks/peer_rectools.py EVENTS.npz LOSS NEGATIVES WIDTH BLOCKS HEADS LENGTH BATCH EPOCHS

Trains its SASRecModel on the events (arrays `users`, `items`, `order`) with its defaults except for the given settings, and
prints the seconds of each epoch after the first, as JSON. benchmarks/sequence.py runs this file; it imports nothing from
this project.
"""

import json
import sys
import time
import warnings
from typing import Any

import numpy as np
import pandas as pd
from pytorch_lightning import Callback, Trainer, seed_everything
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import SASRecModel

warnings.filterwarnings("ignore")


class EpochTimes(Callback):
    """The seconds of each training epoch."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._started = 0.0

    def on_train_epoch_start(self, *_: Any) -> None:
        """Start the clock."""
        self._started = time.perf_counter()

    def on_train_epoch_end(self, *_: Any) -> None:
        """Stop the clock."""
        self.seconds.append(time.perf_counter() - self._started)


def main(path: str, loss: str, *settings: int) -> list[float]:
    """Seconds of each epoch but the first."""
    negatives, width, blocks, heads, length, batch, epochs = settings
    with np.load(path) as file:
        events = pd.DataFrame({Columns.User: file["users"], Columns.Item: file["items"], Columns.Weight: 1.0})
        events[Columns.Datetime] = pd.to_datetime(file["order"], unit="s")
    seed_everything(0, verbose=False)

    def trainer() -> Trainer:
        quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
        return Trainer(
            max_epochs=epochs, accelerator="cpu", callbacks=[EpochTimes()], enable_checkpointing=False, **quiet
        )

    model = SASRecModel(
        n_blocks=blocks,
        n_heads=heads,
        n_factors=width,
        session_max_len=length,
        loss=loss,
        n_negatives=negatives,
        batch_size=batch,
        get_trainer_func=trainer,
    )
    model.fit(Dataset.construct(events))
    times = next(callback for callback in model.fit_trainer.callbacks if isinstance(callback, EpochTimes))
    return times.seconds[1:]


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:]))))
