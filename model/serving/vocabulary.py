"""Vocabularies outside Spark: the index of a value, as the tables have it."""

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

_SPARK_SEED = 42  # What xxhash64 of Spark begins with; it hashes one column after another, each seeded by the last.


_text = methodcaller("as_py")


class Vocabulary:
    """Values of one feature, as Arrow holds them: a Python dict of a hundred million users would not fit."""

    def __init__(self, values: pa.Array, indices: npt.NDArray[np.int32]) -> None:
        """`values`: large_string, in any order; `indices`: of each."""
        order = pc.array_sort_indices(values)
        self._values, self._indices = values.take(order), indices[order.to_numpy()]

    def __len__(self) -> int:
        return len(self._values)

    @property
    def largest(self) -> int:
        """The largest index; that of the default where there is no value."""
        return int(self._indices.max(initial=DEFAULT))

    def index(self, value: str) -> int:
        """The index of a value; default (1) for one that is not there."""
        # Arrow sorts the bytes of UTF-8, whose order is that of Python's texts.
        place = bisect_left(self._values, value, key=_text)
        known = place < len(self._values) and self._values[place].as_py() == value
        return int(self._indices[place]) if known else DEFAULT


def read_vocabularies(urls: Sequence[str], features: Collection[str]) -> dict[str, Vocabulary]:
    """The vocabularies of some features from the Parquet files of a night's table: feature, value, index."""
    parts = []
    for url in urls:
        filesystem, path = resolve(url)
        with filesystem.open_input_file(path) as file:
            table = pq.ParquetFile(file).read(columns=["feature", "value", "index"])
        parts.append(table.filter(pc.is_in(table["feature"], pa.array(sorted(features), pa.string()))))
    whole = pa.concat_tables(parts)
    found = {}
    for feature in features:
        words = whole.filter(pc.equal(whole["feature"], feature))
        values = pa.concat_arrays([chunk.cast(pa.large_string()) for chunk in words["value"].chunks] or [_NO_VALUES])
        found[feature] = Vocabulary(values, words["index"].to_numpy().astype(np.int32))
    return found


_NO_VALUES = pa.array([], pa.large_string())


def bucket_of(feature: str, value: str, buckets: int) -> int:
    """The index of a hashed value: 2 + hash mod buckets, with the hash that Spark takes of ("bucket", 0, feature, value)."""
    seed = _SPARK_SEED
    for part in (b"bucket", (0).to_bytes(4, "little"), feature.encode(), value.encode()):
        seed = xxhash.xxh64_intdigest(part, seed)
    signed = seed - 2**64 if seed >= 2**63 else seed
    return DEFAULT + 1 + signed % buckets
