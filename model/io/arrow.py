"""Converts Arrow columns to numpy arrays without creating a Python object per row."""

import numpy as np
import pyarrow as pa


class ColumnError(ValueError):
    """A column breaks the contract of its table: nulls, lists of unequal lengths or an unexpected type (exit 3)."""

    exit_code = 3


def to_arrays(table: pa.Table | pa.RecordBatch, source: str = "") -> dict[str, np.ndarray]:
    """Convert every column of a table: scalars to [rows], lists of equal length to [rows, length].

    `source` names the file in errors. A list column is read as its flat values and reshaped. Stacking its rows one by one
    is about 15 times slower.

    Raises ColumnError with the column, the number of bad rows and the remedy.
    """
    place = f" of {source}" if source else ""
    return {name: _to_array(table.column(name), f"column {name!r}{place}") for name in table.schema.names}


def _to_array(column: pa.ChunkedArray | pa.Array, name: str) -> np.ndarray:
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(array, pa.ChunkedArray):  # Some pyarrow releases return a single chunk as a ChunkedArray.
        array = array.chunk(0) if array.num_chunks else pa.array([], array.type)
    if array.null_count:
        raise ColumnError(
            f"{name}: {array.null_count} of {len(array)} rows are null; encoded tables contain no nulls "
            "(a missing value is index 1). Rerun the job that writes the table."
        )
    if pa.types.is_fixed_size_list(array.type):
        return _values(array, name).reshape(len(array), array.type.list_size)
    if pa.types.is_list(array.type) or pa.types.is_large_list(array.type):
        lengths = np.diff(array.offsets.to_numpy())
        ragged = int((lengths != lengths[0]).sum()) if len(lengths) else 0
        if ragged:
            raise ColumnError(
                f"{name}: lists have {lengths.min()} to {lengths.max()} values, {ragged} of {len(lengths)} rows differ "
                "from the first; encoded lists are padded to one length. Rerun the job that writes the table."
            )
        return _values(array, name).reshape(len(array), int(lengths[0]) if len(lengths) else 0)
    if not (pa.types.is_integer(array.type) or pa.types.is_floating(array.type) or pa.types.is_boolean(array.type)):
        raise ColumnError(f"{name}: type {array.type} is not a number; encoded columns contain indices and numbers")
    return array.to_numpy(zero_copy_only=False)


def _values(array: pa.ListArray | pa.FixedSizeListArray, name: str) -> np.ndarray:
    values = array.flatten()
    if values.null_count:
        raise ColumnError(
            f"{name}: {values.null_count} null values inside its lists; padding is 0. "
            "Rerun the job that writes the table."
        )
    return _to_array(values, name)
