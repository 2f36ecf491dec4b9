"""Types of Parquet columns under their Spark names, and the common type of two of them."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
from pyspark.sql import types as T

VOID = "void"  # Every value is null: data frames write an all-null column without a type.
NANOSECONDS = "timestamp_ns"  # Spark has no such type and reads the nanoseconds as bigint.
TIMES = {"timestamp", "timestamp_ntz", NANOSECONDS}
FRACTIONS = {"float", "double"}
DIGITS = {"tinyint": 3, "smallint": 5, "int": 10, "bigint": 19}  # Decimal digits of the largest value.
MAX_DECIMAL_DIGITS = 38

_UNSIGNED = {8: "smallint", 16: "int", 32: "bigint", 64: "decimal(20,0)"}
_SIGNED = {8: "tinyint", 16: "smallint", 32: "int", 64: "bigint"}
_PLAIN = {
    "BOOLEAN": "boolean",
    "INT32": "int",
    "INT64": "bigint",
    "INT96": "timestamp",
    "FLOAT": "float",
    "DOUBLE": "double",
    "BYTE_ARRAY": "binary",
    "FIXED_LEN_BYTE_ARRAY": "binary",
}
_TEXT = {"String", "Enum", "JSON"}
_SPARK: dict[str, T.DataType] = {
    "boolean": T.BooleanType(),
    "tinyint": T.ByteType(),
    "smallint": T.ShortType(),
    "int": T.IntegerType(),
    "bigint": T.LongType(),
    "float": T.FloatType(),
    "double": T.DoubleType(),
    "string": T.StringType(),
    "binary": T.BinaryType(),
    "date": T.DateType(),
    "timestamp": T.TimestampType(),
    "timestamp_ntz": T.TimestampNTZType(),
    NANOSECONDS: T.LongType(),
}
_DECIMAL = re.compile(r"decimal\((\d+),(-?\d+)\)")


def column_types(schema: Any, fields: pa.Schema) -> list[tuple[str, str, int]]:
    """The columns of a file in order, as (name, type, number of Parquet leaf columns).

    `schema`: pyarrow's ParquetSchema, which says how values are stored. `fields`: the same schema in Arrow, which says which
    leaf columns belong to a list, a map or a struct.
    """
    stored = (schema.column(number) for number in range(len(schema)))
    return [(field.name, _column_type(field.type, stored), _width(field.type)) for field in fields]


def data_type(kind: str) -> T.DataType | None:
    """The Spark type for reading a column of this type; None if Spark cannot read it."""
    if match := _DECIMAL.fullmatch(kind):
        return T.DecimalType(int(match[1]), int(match[2]))
    if kind.startswith("array<"):
        element = element_of(kind)
        inner = None if element == NANOSECONDS else data_type(element)
        return None if inner is None else T.ArrayType(inner)
    return _SPARK.get(kind)


def element_of(kind: str) -> str:
    """The element type of an array type."""
    return kind.removeprefix("array<").removesuffix(">")


def widest(one: str, other: str, *, number: bool) -> str | None:
    """The common type that holds the values of both types without loss; None if no type does.

    `number`: the column is read as a number, so fractions and whole numbers are combined into double, as in the later
    steps. A value that is read as text (an id, a category) would change: 7 would become 7.0.
    """
    if one == other:
        return one
    if VOID in (one, other):
        return other if one == VOID else one
    if {one, other} <= TIMES:
        return "timestamp"
    if one.startswith("array<") and other.startswith("array<"):
        inner = widest(element_of(one), element_of(other), number=number)
        return None if inner is None else f"array<{inner}>"
    return _widest_number(one, other, number)


def _widest_number(one: str, other: str, number: bool) -> str | None:
    kinds = {one, other}
    if not all(kind in DIGITS or kind in FRACTIONS or kind.startswith("decimal") for kind in kinds):
        return None
    if kinds & FRACTIONS:
        return "double" if number else None
    if kinds <= DIGITS.keys():
        return max(kinds, key=DIGITS.__getitem__)
    (whole, scale), (other_whole, other_scale) = _digits(one), _digits(other)
    fraction = max(scale, other_scale)
    digits = max(whole, other_whole) + fraction
    if digits <= MAX_DECIMAL_DIGITS:
        return f"decimal({digits},{fraction})"
    return "double" if number else None


def _digits(kind: str) -> tuple[int, int]:
    """Number of digits before and after the decimal point."""
    match = _DECIMAL.fullmatch(kind)
    return (int(match[1]) - int(match[2]), int(match[2])) if match else (DIGITS[kind], 0)


def _column_type(kind: pa.DataType, stored: Iterator[Any]) -> str:
    if isinstance(kind, pa.BaseExtensionType):
        return _column_type(kind.storage_type, stored)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        element = _column_type(kind.value_type, stored)
        return VOID if element == VOID else f"array<{element}>"
    if pa.types.is_nested(kind):
        for _ in range(_width(kind)):
            next(stored)
        return "map" if pa.types.is_map(kind) else "struct"
    return _stored_type(next(stored))


def _width(kind: pa.DataType) -> int:
    """Number of Parquet leaf columns that hold a field of this type."""
    if isinstance(kind, pa.BaseExtensionType):
        return _width(kind.storage_type)
    if pa.types.is_map(kind):
        return _width(kind.key_type) + _width(kind.item_type)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return _width(kind.value_type)
    if pa.types.is_struct(kind):
        return sum(_width(kind.field(number).type) for number in range(kind.num_fields))
    return 1


def _stored_type(column: Any) -> str:
    """The Spark type of a Parquet leaf column. If Spark has no such type: the Parquet name in lower case."""
    logical = json.loads(column.logical_type.to_json())
    name = logical["Type"]
    if name == "None":
        return _PLAIN[column.physical_type]
    if name == "Null":
        return VOID
    if name in _TEXT:
        return "string"
    if name == "Int":
        return (_SIGNED if logical["isSigned"] else _UNSIGNED)[logical["bitWidth"]]
    if name == "Decimal":
        return f"decimal({logical['precision']},{logical['scale']})"
    if name == "Timestamp":
        if logical["timeUnit"] == "nanoseconds":
            return NANOSECONDS
        return "timestamp" if logical["isAdjustedToUTC"] else "timestamp_ntz"
    return "binary" if name == "BSON" else str(name).lower()
