"""A release on events that it was not trained on: what it would have recalled of them, over all items, as it is served.

Shapes: B events, K places, U users, V items of the release, M indices.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import faiss
import numpy as np
import numpy.typing as npt

from model.data.catalogue import Catalogue
from model.evaluation.ranking_metrics import bootstrap_interval
from model.io.arrow import ColumnError
from model.network.two_tower import TwoTower
from model.serving.embed import embed_users
from model.serving.faiss_index import search
from pipelines.contract.indices import DEFAULT
from pipelines.contract.schema import FeatureSchema, NumericFeature

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class HeldOutEvents:
    """Events to ask a release for."""

    columns: Arrays  # The user side as of each event, [B] or [B, length], and the index of the item that was taken.
    owners_B: npt.NDArray[np.int64]  # The user of each event, 0 …
    had: list[npt.NDArray[np.int64]] | None = None  # Items that a ranking leaves out, by event.

    @property
    def users(self) -> int:
        """U: number of users."""
        return len(np.unique(self.owners_B))


@dataclass(frozen=True)
class RecallResult:
    """How one release did. Events of a user count together, so that heavy users do not decide."""

    hits_B: npt.NDArray[np.float64]  # 1 where the event's item is among the K.
    owners_B: npt.NDArray[np.int64]  # The user of each event, 0 …
    coverage: float  # Share of the release's items that anybody gets.

    def by_user(self) -> npt.NDArray[np.float64]:
        """[users] share of each user's events that were recalled."""
        return np.bincount(self.owners_B, self.hits_B) / np.bincount(self.owners_B)

    @property
    def recall(self) -> float:
        """Mean over users."""
        return float(self.by_user().mean())


def measure_recall(
    model: TwoTower, index: faiss.Index, events: HeldOutEvents, k: int, catalogue: Catalogue | None
) -> RecallResult:
    """Search for every event, without what its user had. Indices that are newer than the model are default to it, and
    items absent from the index count as misses."""
    vectors = embed_users(model, user_columns_of(model.schema, events.columns), catalogue)
    found_BK = search(index, vectors, k, events.had)[1]
    wanted_B = events.columns[model.schema.item_id.column].astype(np.int64)
    return RecallResult(
        hits_B=(found_BK == wanted_B[:, None]).any(1).astype(np.float64),
        owners_B=events.owners_B,
        coverage=len(np.unique(found_BK[found_BK >= 0])) / max(int(index.ntotal), 1),
    )


def measure_ranking_recall(
    items: npt.NDArray[np.int64], events: HeldOutEvents, item_column: str, k: int
) -> RecallResult:
    """One ranking for everybody (`items`, best first), such as popularity: each event gets the first k that its user did
    not have. `items` should hold k more than any user had."""
    wanted_B = events.columns[item_column].astype(np.int64)
    hits_B, given = np.zeros(len(wanted_B)), set()
    for event, wanted in enumerate(wanted_B):
        left = items if events.had is None else items[~np.isin(items, events.had[event])]
        hits_B[event] = float(wanted in left[:k])
        given.update(left[:k].tolist())
    return RecallResult(hits_B, events.owners_B, len(given) / max(len(items), 1))


def user_columns_of(schema: FeatureSchema, events: Arrays) -> dict[str, np.ndarray]:
    """The user side with indices beyond the schema's as default: vocabularies only grow, so an index keeps its meaning.

    Raises ColumnError where the events lack a column.
    """
    age = {schema.example_age.column} if schema.example_age else set()  # It counts as 0.
    columns = [name for name in schema.user_columns if name not in age]
    if lacking := sorted(set(columns) - set(events)):
        raise ColumnError(
            f"the release in use reads {', '.join(lacking)}, which tonight's tables no longer have: set the features of the "
            "config back, or train a new model from the past days with --bootstrap-days"
        )
    known = {name: events[name] for name in columns}
    features = [*schema.user, *([schema.history] if schema.history else [])]
    for feature in features:
        if not isinstance(feature, NumericFeature):
            values = known[feature.column]
            known[feature.column] = np.where(values < feature.size, values, DEFAULT).astype(values.dtype)
    return known


def recall_loss_bound(
    before_U: npt.NDArray[np.float64], now_U: npt.NDArray[np.float64], samples: int, seed: int
) -> float:
    """What mean recall has lost against before at least, with 97.5% confidence; negative where it may have gained.

    Paired bootstrap over users (Efron and Tibshirani, 1993, chapter 16): the same users had both.
    """
    return bootstrap_interval(before_U - now_U, samples, seed)[0]


def recall_ratio(
    now_U: npt.NDArray[np.float64], base_U: npt.NDArray[np.float64], samples: int, seed: int
) -> tuple[float, float, float] | None:
    """Mean recall as a multiple of a baseline's on the same users, and the ends of its 95% interval (paired bootstrap).

    None if the baseline recalls nothing in some resample: the ratio then has no upper end.
    """
    rng = np.random.default_rng(seed)
    chosen = (rng.integers(len(now_U), size=len(now_U)) for _ in range(samples))
    means = np.array([(now_U[users].mean(), base_U[users].mean()) for users in chosen])
    if (means[:, 1] == 0).any():
        return None
    low, high = np.percentile(means[:, 0] / means[:, 1], [2.5, 97.5])
    return float(now_U.mean() / base_U.mean()), float(low), float(high)
