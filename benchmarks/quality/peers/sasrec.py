"""SASRec (Kang and McAuley, ICDM 2018) of the package RecTools."""

import logging
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.quality.peers.implicit_models import grid
from benchmarks.quality.peers.search import Setting
from benchmarks.quality.question import Question
from benchmarks.quality.ranking import LISTED, by_popularity, lists_of
from model.evaluation.ranking_metrics import NO_ITEM

EPOCHS = 100  # at most; the number is tuned
# Epochs between two results. For many epochs its lists are those of popularity: with a result after each, the trial would end.
EVERY = 5
WHOLE_SOFTMAX = 20_000  # with more items, the softmax over all of them does not fit in memory


class SasRec:
    """Width, length, loss, dropout, learning rate and epochs are tuned. Users without a list get the most popular items."""

    def settings(self, question: Question) -> list[Setting]:
        """A random order of a grid."""
        seen = int((question.counts() > 0).sum())
        losses: tuple[Any, ...] = (("softmax", 1), ("gBCE", 256)) if seen <= WHOLE_SOFTMAX else (("gBCE", 256),)
        losses += (("sampled_softmax", 256),)
        return grid(
            loss=losses, width=(64, 128), length=(50, 100), dropout=(0.2, 0.5), rate=(1e-3, 3e-3), epochs=(EPOCHS,)
        )

    def rankings(
        self, question: Question, setting: Setting, seed: int, last: bool
    ) -> Iterator[tuple[Setting, np.ndarray]]:
        """The lists after every 5th epoch."""
        from pytorch_lightning import Trainer, seed_everything
        from rectools import Columns
        from rectools.dataset import Dataset
        from rectools.models import SASRecModel

        warnings.filterwarnings("ignore")
        logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)  # several lines per epoch
        seed_everything(seed, verbose=False)

        def trainer() -> Any:
            quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
            return Trainer(max_epochs=EVERY, accelerator="cpu", enable_checkpointing=False, **quiet)

        events = pd.DataFrame(
            {Columns.User: question.event_user, Columns.Item: question.event_item, Columns.Weight: 1.0}
        )
        # Events of one time keep their order.
        events[Columns.Datetime] = pd.to_datetime(question.event_time * 10**9 + np.arange(len(events)))
        dataset = Dataset.construct(events)
        loss, negatives = setting["loss"]
        model = SASRecModel(
            n_factors=setting["width"],
            n_heads=2,
            session_max_len=setting["length"],
            dropout_rate=setting["dropout"],
            loss=loss,
            n_negatives=negatives,
            lr=setting["rate"],
            get_trainer_func=trainer,
        )
        for epoch in range(EVERY, setting["epochs"] + 1, EVERY):
            model.fit_partial(dataset, min_epochs=EVERY, max_epochs=EVERY)
            if not last or epoch == setting["epochs"]:
                yield setting | {"epochs": epoch}, recommended(question, model, dataset)


def recommended(question: Question, model: Any, dataset: Any) -> np.ndarray:
    """The model's lists, with the most popular items where it has none. RecTools leaves out the items of a user itself."""
    ties = by_popularity(question)
    lists = lists_of(question, lambda block: np.broadcast_to(ties, (len(block), len(ties))))
    known = np.isin(question.asked, question.event_user)
    found = model.recommend(
        question.asked[known],
        dataset,
        k=LISTED,
        filter_viewed=len(question.excluded[0]) > 0,
        on_unsupported_targets="ignore",
    )
    row_of = np.full(len(question.users), -1)
    row_of[question.asked] = np.arange(len(question.asked))
    rows = row_of[found["user_id"].to_numpy()]
    lists[np.unique(rows)] = NO_ITEM
    lists[rows, found["rank"].to_numpy() - 1] = found["item_id"].to_numpy()
    return lists
