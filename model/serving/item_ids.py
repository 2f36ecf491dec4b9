"""Ids of a release's items: one array, so that an answer reads the rows that it needs and nothing else.

Shapes: M indices of the item vocabulary, n items of an answer.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from model.io.urls import resolve
from model.serving.faiss_index import Ints


class ItemIds:
    """The id of each item index, in the type that the items table has."""

    def __init__(self, index: Ints, ids: Sequence[pa.Array]) -> None:
        """`index`: item indices; `ids`: the ids of these, as consecutive arrays of integers or strings.

        Raises ValueError where an item is there twice.
        """
        size = int(index.max(initial=-1)) + 1
        self._row_M: Ints = np.full(size, -1, np.int64)
        self._row_M[index] = np.arange(len(index))
        if int((self._row_M >= 0).sum()) != len(index):
            raise ValueError(f"of {len(index):,} rows some have the same item_index")
        numbers = all(pa.types.is_integer(part.type) for part in ids)
        # Offsets of 32 bits end at 2 GiB of text, and an array in chunks is searched through for every id.
        self._ids: np.ndarray | pa.Array = (
            np.concatenate([part.to_numpy() for part in ids])
            if numbers
            else pa.concat_arrays([part.cast(pa.large_string()) for part in ids])
        )

    @classmethod
    def read(cls, urls: Sequence[str]) -> "ItemIds":
        """From Parquet files with item_index and item_id."""
        index, ids = [], []
        for url in urls:
            filesystem, path = resolve(url)
            with filesystem.open_input_file(path) as file:
                table = pq.ParquetFile(file).read(columns=["item_index", "item_id"])
            index.append(table["item_index"].to_numpy().astype(np.int64))
            ids += table["item_id"].chunks
        return cls(np.concatenate(index), ids)

    def __len__(self) -> int:
        return len(self._ids)

    def contains(self, items: Ints) -> np.ndarray:
        """Whether each item index has an id, [n] bool."""
        inside = (items >= 0) & (items < len(self._row_M))
        return inside & (self._row_M[np.where(inside, items, 0)] >= 0)

    def ids_of(self, items: Ints) -> list[Any]:
        """The ids of item indices [n] that are known, as Python values."""
        rows_n = self._row_M[items]
        if isinstance(self._ids, np.ndarray):
            return list(self._ids[rows_n].tolist())
        return list(self._ids.take(pa.array(rows_n)).to_pylist())
