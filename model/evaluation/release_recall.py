"""Recall of a release on held-out events, over all of its items, with the model and index that serve requests.

Shapes: B events, K items per ranking, U users.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import faiss
import numpy as np
import numpy.typing as npt

from model.data.catalogue import Catalogue
from model.evaluation.ranking_metrics import bootstrap_interval
from model.io.arrow import ColumnError
from model.network.embeddings import has_table
from model.network.two_tower import TwoTower
from model.serving.embed import embed_users
from model.serving.faiss_index import search
from pipelines.contract.indices import DEFAULT
from pipelines.contract.schema import FeatureSchema

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class HeldOutEvents:
    """Events that a release was not trained on."""

    columns: Arrays  # User columns at the time of each event, [B] or [B, length], and the item index of the event.
    owners_B: npt.NDArray[np.int64]  # Number of the user of each event, from 0.
    excluded: list[npt.NDArray[np.int64]] | None = None  # Per event, the items to leave out of its ranking.

    @property
    def users(self) -> int:
        """U: number of users."""
        return len(np.unique(self.owners_B))


@dataclass(frozen=True)
class RecallResult:
    """Hits of one release. Recall is averaged per user first, so that heavy users do not dominate."""

    hits_B: npt.NDArray[np.float64]  # 1 if the event's item is among the K best, else 0.
    owners_B: npt.NDArray[np.int64]  # Number of the user of each event, from 0.
    coverage: float  # Share of the release's items that are recommended for at least one event.

    def by_user(self) -> npt.NDArray[np.float64]:
        """[U] share of each user's events that are hits."""
        return np.bincount(self.owners_B, self.hits_B) / np.bincount(self.owners_B)

    @property
    def recall(self) -> float:
        """Mean over users."""
        return float(self.by_user().mean())


def measure_recall(
    model: TwoTower, index: faiss.Index, events: HeldOutEvents, k: int, catalogue: Catalogue | None
) -> RecallResult:
    """Search the index for every event. Events whose item is not in the index count as misses.

    Indices beyond the model's tables become DEFAULT. `catalogue`: needed if the model pools features over the history.
    """
    vectors = embed_users(model, user_columns_of(model.schema, events.columns), catalogue)
    items_BK = search(index, vectors, k, events.excluded)[1]
    targets_B = events.columns[model.schema.item_id.column].astype(np.int64)
    return RecallResult(
        hits_B=(items_BK == targets_B[:, None]).any(1).astype(np.float64),
        owners_B=events.owners_B,
        coverage=len(np.unique(items_BK[items_BK >= 0])) / max(int(index.ntotal), 1),
    )


def measure_ranking_recall(
    items: npt.NDArray[np.int64], events: HeldOutEvents, item_column: str, k: int
) -> RecallResult:
    """Recall of one ranking for all users, such as popularity. `items`: item indices, best first.

    Each event gets the first k items that it does not exclude, so `items` should have k more than any event excludes.
    """
    targets_B = events.columns[item_column].astype(np.int64)
    hits_B, recommended = np.zeros(len(targets_B)), set()
    for event, target in enumerate(targets_B):
        ranking = items if events.excluded is None else items[~np.isin(items, events.excluded[event])]
        hits_B[event] = float(target in ranking[:k])
        recommended.update(ranking[:k].tolist())
    return RecallResult(hits_B, events.owners_B, len(recommended) / max(len(items), 1))


def user_columns_of(schema: FeatureSchema, events: Arrays) -> dict[str, np.ndarray]:
    """User columns of the events, with indices beyond the schema's sizes replaced by DEFAULT.

    Vocabularies only grow, so all other indices mean the same in both. Raises ColumnError if the events lack a column.
    """
    age = {schema.example_age.column} if schema.example_age else set()  # embed_users sets it to 0.
    names = [name for name in schema.user_columns if name not in age]
    if missing := sorted(set(names) - set(events)):
        raise ColumnError(
            f"the release in use reads {', '.join(missing)}, which tonight's tables no longer have: set the features of the "
            "config back, or train a new model from the past days with --bootstrap-days"
        )
    columns = {name: events[name] for name in names}
    indices = [feature for feature in schema.of_user_tower if has_table(feature)]
    for feature in [*indices, *(schema.history.indexed if schema.history else [])]:
        values = columns[feature.column]
        columns[feature.column] = np.where(values < feature.size, values, DEFAULT).astype(values.dtype)
    return columns


def recall_loss_bound(
    before_U: npt.NDArray[np.float64], now_U: npt.NDArray[np.float64], samples: int, seed: int
) -> float:
    """Lower bound, at 97.5% confidence, of the loss in mean recall from before to now; negative if it may be a gain.

    Paired bootstrap over users (Efron and Tibshirani, 1993, chapter 16): both arrays are of the same users.
    """
    return bootstrap_interval(before_U - now_U, samples, seed)[0]


def recall_ratio(
    now_U: npt.NDArray[np.float64], base_U: npt.NDArray[np.float64], samples: int, seed: int
) -> tuple[float, float, float] | None:
    """Mean recall divided by that of a baseline on the same users, with the ends of its 95% interval (paired bootstrap).

    None if the baseline's recall is 0 in some resample: the interval then has no upper end.
    """
    rng = np.random.default_rng(seed)
    resamples = (rng.integers(len(now_U), size=len(now_U)) for _ in range(samples))
    means = np.array([(now_U[users].mean(), base_U[users].mean()) for users in resamples])
    if (means[:, 1] == 0).any():
        return None
    low, high = np.percentile(means[:, 0] / means[:, 1], [2.5, 97.5])
    return float(now_U.mean() / base_U.mean()), float(low), float(high)
