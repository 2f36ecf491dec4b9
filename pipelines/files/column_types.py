"""The types of Parquet columns in Spark's names, and the type that holds all values of two of them without loss."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
from pyspark.sql import types as T

VOID = "void"  # Every value is null: data frames write columns without a value with no type.
NANOSECONDS = "timestamp_ns"  # Spark lacks this type: it reads the nanoseconds as bigint.
TIMES = {"timestamp", "timestamp_ntz", NANOSECONDS}
FRACTIONS = {"float", "double"}
DIGITS = {"tinyint": 3, "smallint": 5, "int": 10, "bigint": 19}  # Decimal digits of the largest value.
MOST_DIGITS = 38  # Of a decimal.

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
    """The columns of a file as (name, type, number of Parquet columns that hold it), in order.

    `schema`: pyarrow's ParquetSchema, which knows how values are stored; `fields`: the same as an Arrow schema, which knows
    which Parquet columns make a list, a map or a struct.
    """
    stored = (schema.column(number) for number in range(len(schema)))
    return [(field.name, _column_type(field.type, stored), _width(field.type)) for field in fields]


def data_type(kind: str) -> T.DataType | None:
    """The Spark type in which a column of this type is read from a file; None where Spark cannot read it."""
    if found := _DECIMAL.fullmatch(kind):
        return T.DecimalType(int(found[1]), int(found[2]))
    if kind.startswith("array<"):
        element = element_of(kind)
        inner = None if element == NANOSECONDS else data_type(element)
        return None if inner is None else T.ArrayType(inner)
    return _SPARK.get(kind)


def element_of(kind: str) -> str:
    """The type of the elements of an array."""
    return kind.removeprefix("array<").removesuffix(">")


def widest(one: str, other: str, *, number: bool) -> str | None:
    """The type that holds the values of both without loss; None where no type does.

    `number`: the column is read as a number. Then fractions and whole numbers meet in double, as they do later in any
    case. A value that is read as text (an id, a category) would change: 7 would become 7.0.
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
    if digits <= MOST_DIGITS:
        return f"decimal({digits},{fraction})"
    return "double" if number else None


def _digits(kind: str) -> tuple[int, int]:
    """Digits of a whole number or decimal, before and after the point."""
    found = _DECIMAL.fullmatch(kind)
    return (int(found[1]) - int(found[2]), int(found[2])) if found else (DIGITS[kind], 0)


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
    """How many Parquet columns hold a field of this type."""
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
    """The Spark type of a Parquet column of single values; where Spark has none, Parquet's own name in lower case."""
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
