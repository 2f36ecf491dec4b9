"""Vocabularies without Spark: map a value to the index that it has in the tables."""

from bisect import bisect_left
from collections.abc import Collection, Sequence
from operator import methodcaller

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash

from model.io.urls import resolve
from pipelines.contract.indices import DEFAULT

# Initial seed of Spark's xxhash64. It hashes one column after another; the hash of each is the seed of the next.
_SPARK_SEED = 42


_as_py = methodcaller("as_py")


class Vocabulary:
    """Values of one feature with their indices, in Arrow: a Python dict of a hundred million users would not fit in memory."""

    def __init__(self, values: pa.Array, indices: npt.NDArray[np.int32]) -> None:
        """`values`: large_string, in any order. `indices`: the index of each value."""
        order = pc.array_sort_indices(values)
        self._values, self._indices = values.take(order), indices[order.to_numpy()]

    def __len__(self) -> int:
        return len(self._values)

    @property
    def largest(self) -> int:
        """The largest index; DEFAULT if the vocabulary is empty."""
        return int(self._indices.max(initial=DEFAULT))

    def index(self, value: str) -> int:
        """The index of a value; DEFAULT (1) if the vocabulary does not have it."""
        # Arrow sorts by UTF-8 bytes, which is the same order as that of Python strings.
        position = bisect_left(self._values, value, key=_as_py)
        match = position < len(self._values) and self._values[position].as_py() == value
        return int(self._indices[position]) if match else DEFAULT


def read_vocabularies(urls: Sequence[str], features: Collection[str]) -> dict[str, Vocabulary]:
    """Read the vocabularies of `features` from Parquet files of the table `vocabularies` (feature, value, index)."""
    parts = []
    for url in urls:
        filesystem, path = resolve(url)
        with filesystem.open_input_file(path) as file:
            table = pq.ParquetFile(file).read(columns=["feature", "value", "index"])
        parts.append(table.filter(pc.is_in(table["feature"], pa.array(sorted(features), pa.string()))))
    whole = pa.concat_tables(parts)
    vocabularies = {}
    for feature in features:
        rows = whole.filter(pc.equal(whole["feature"], feature))
        values = pa.concat_arrays([chunk.cast(pa.large_string()) for chunk in rows["value"].chunks] or [_NO_VALUES])
        vocabularies[feature] = Vocabulary(values, rows["index"].to_numpy().astype(np.int32))
    return vocabularies


_NO_VALUES = pa.array([], pa.large_string())


def bucket_of(feature: str, value: str, buckets: int) -> int:
    """The index of a hashed value: 2 + hash mod buckets, where hash is Spark's xxhash64("bucket", 0, feature, value)."""
    seed = _SPARK_SEED
    for part in (b"bucket", (0).to_bytes(4, "little"), feature.encode(), value.encode()):
        seed = xxhash.xxh64_intdigest(part, seed)
    signed = seed - 2**64 if seed >= 2**63 else seed
    return DEFAULT + 1 + signed % buckets
