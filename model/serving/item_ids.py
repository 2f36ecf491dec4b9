"""Item ids of a release, in one array, so that the cost of an answer does not depend on the number of items.

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
    """Maps item indices to item ids, integers or strings as in the items table."""

    def __init__(self, index: Ints, ids: Sequence[pa.Array]) -> None:
        """`index`: item indices. `ids`: their ids, in the same order, as consecutive arrays of integers or strings.

        Raises ValueError if an index occurs twice.
        """
        size = int(index.max(initial=-1)) + 1
        self._row_M: Ints = np.full(size, -1, np.int64)
        self._row_M[index] = np.arange(len(index))
        if int((self._row_M >= 0).sum()) != len(index):
            raise ValueError(f"of {len(index):,} rows some have the same item_index")
        numbers = all(pa.types.is_integer(part.type) for part in ids)
        # One array with 64-bit offsets: 32-bit offsets end at 2 GiB of text, and every look-up in a chunked array searches
        # for the chunk.
        self._ids: np.ndarray | pa.Array = (
            np.concatenate([part.to_numpy() for part in ids])
            if numbers
            else pa.concat_arrays([part.cast(pa.large_string()) for part in ids])
        )

    @classmethod
    def read(cls, urls: Sequence[str], *, integers: bool = False) -> "ItemIds":
        """Read item_index and item_id from Parquet files. `integers`: the ids are integers, which the files store as text.

        Files of earlier versions store integers as integers. Raises ValueError if an index occurs twice, or if an id is not
        an integer although `integers` says so.
        """
        index, ids = [], []
        for url in urls:
            filesystem, path = resolve(url)
            with filesystem.open_input_file(path) as file:
                table = pq.ParquetFile(file).read(columns=["item_index", "item_id"])
            index.append(table["item_index"].to_numpy().astype(np.int64))
            ids += (table["item_id"].cast(pa.int64()) if integers else table["item_id"]).chunks
        return cls(np.concatenate(index), ids)

    def __len__(self) -> int:
        return len(self._ids)

    def contains(self, items: Ints) -> np.ndarray:
        """[n] bool: whether each item index has an id."""
        inside = (items >= 0) & (items < len(self._row_M))
        return inside & (self._row_M[np.where(inside, items, 0)] >= 0)

    def ids_of(self, items: Ints) -> list[Any]:
        """Ids of the item indices [n] as Python values. Every index must have an id (`contains`)."""
        rows_n = self._row_M[items]
        if isinstance(self._ids, np.ndarray):
            return list(self._ids[rows_n].tolist())
        return list(self._ids.take(pa.array(rows_n)).to_pylist())
