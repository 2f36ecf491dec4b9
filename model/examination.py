"""A release on held-out events: what it would have recalled of them, over all items, as it is served.

Shapes: B events, K places, V items of the release, M indices.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import faiss
import numpy as np
import numpy.typing as npt

from model.arrays import ColumnError
from model.catalogue import Catalogue
from model.evaluation import bootstrap_interval
from model.files import read_columns
from model.index import search
from model.retrieval import embed_users
from model.schema import DEFAULT, FeatureSchema, NumericFeature
from model.two_tower import TwoTower

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Examination:
    """How one release did. Events of a user count together, so that heavy users do not decide."""

    hits_B: npt.NDArray[np.float64]  # 1 where the event's item is among the K.
    owners_B: npt.NDArray[np.int64]  # The user of each event, 0 …; an unknown user is one of their own.
    covered: float  # Share of the release's items that anybody gets.

    def by_user(self) -> npt.NDArray[np.float64]:
        """[users] share of each user's events that were recalled."""
        return np.bincount(self.owners_B, self.hits_B) / np.bincount(self.owners_B)

    @property
    def recall(self) -> float:
        """Mean over users."""
        return float(self.by_user().mean())


def held_out(urls: Sequence[str], schema: FeatureSchema, most: int) -> dict[str, np.ndarray]:
    """Up to `most` events of `samples`, spread over its rows, which are shuffled: what users are, and what they took."""
    columns = dict.fromkeys(["user_index", *schema.user_columns, schema.item_id.column])
    rows = read_columns(urls, list(columns))
    count = len(rows["user_index"])
    places = np.linspace(0, count - 1, min(most, count)).round().astype(np.int64)
    return {name: values[places] for name, values in rows.items()}


def examine(model: TwoTower, index: faiss.Index, events: Arrays, k: int, catalogue: Catalogue | None) -> Examination:
    """Search for every event. Indices that are newer than the model are unknown to it, and what it has not it misses."""
    found_BK = search(index, embed_users(model, known_to(model.schema, events), catalogue), k)[1]
    wanted_B = events[model.schema.item_id.column].astype(np.int64)
    users_B = events["user_index"].astype(np.int64)
    apart = np.where(users_B > DEFAULT, users_B, -1 - np.arange(len(users_B)))
    return Examination(
        hits_B=(found_BK == wanted_B[:, None]).any(1).astype(np.float64),
        owners_B=np.unique(apart, return_inverse=True)[1],
        covered=len(np.unique(found_BK[found_BK >= 0])) / max(int(index.ntotal), 1),
    )


def known_to(schema: FeatureSchema, events: Arrays) -> dict[str, np.ndarray]:
    """The user side with indices beyond the schema's as default: vocabularies only grow, so an index keeps its meaning.

    Raises ColumnError where the events lack a column.
    """
    age = {schema.example_age.column} if schema.example_age else set()  # It counts as 0.
    columns = [name for name in schema.user_columns if name not in age]
    if lacking := sorted(set(columns) - set(events)):
        raise ColumnError(
            f"the release in use reads {', '.join(lacking)}, which samples no longer have: set the features of the config "
            "back, or train a new model from the past days with --bootstrap-days"
        )
    known = {name: events[name] for name in columns}
    features = [*schema.user, *([schema.history] if schema.history else [])]
    for feature in features:
        if not isinstance(feature, NumericFeature):
            values = known[feature.column]
            known[feature.column] = np.where(values < feature.size, values, DEFAULT).astype(values.dtype)
    return known


def certain_loss(before_U: npt.NDArray[np.float64], now_U: npt.NDArray[np.float64], samples: int, seed: int) -> float:
    """What mean recall has lost against before at least, with 97.5% confidence; negative where it may have gained.

    Paired bootstrap over users (Efron and Tibshirani, 1993, chapter 16): the same users had both.
    """
    return bootstrap_interval(before_U - now_U, samples, seed)[0]
