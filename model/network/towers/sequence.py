"""Sequence: a causal transformer reads the user's history in its order (Kang and McAuley, ICDM 2018: SASRec).

The state of the newest item and the other fields of the user go through an MLP. Items have the tower of dssm, or only ids.
"""

from collections.abc import Sequence
from typing import Literal

from pydantic import Field as Setting
from torch import nn

from model.network.sequence_encoder import SequenceEncoder, TokenPart, TransformerSettings
from model.network.towers import Field
from model.network.towers.dssm import Dssm
from model.network.towers.youtube_dnn import id_tower
from pipelines.contract.schema import HistoryFeature


class Settings(TransformerSettings):
    """Settings of the transformer, and the item tower."""

    items: Literal["features", "ids"] = Setting(
        "features",
        description="features: an MLP over all features of the item; ids: only the embedding of its id, as in SASRec.",
    )


def history_encoder(
    history: HistoryFeature, parts: Sequence[TokenPart], settings: Settings, history_dropout: float
) -> SequenceEncoder:
    """The transformer. Raises ValueError if the settings do not fit the history."""
    return SequenceEncoder(history, parts, settings, history_dropout)


def build(
    user: Sequence[Field], item: Sequence[Field], dim: int, hidden: Sequence[int], settings: Settings
) -> tuple[nn.Module, nn.Module]:
    """Build both sides. Raises ValueError if items are ids whose embeddings do not have length dim."""
    item_tower = id_tower("sequence with items: ids", item, dim) if settings.items == "ids" else Dssm(item, dim, hidden)
    return Dssm(user, dim, hidden), item_tower
