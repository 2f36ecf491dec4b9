"""Checks and converts the values of a request, field by field. Messages name the field and never the value."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from model.network.sequence_encoder import OLDEST_AGE, UNKNOWN_AGE
from pipelines.contract.indices import DEFAULT, FIRST
from pipelines.contract.limits import LARGEST, LARGEST_WEIGHT
from pipelines.contract.request_fields import HistoryField, TimeField, VectorField

EXACT = 2**53  # Floats represent all integers below this exactly.
EXPECTED = {"text": "a string", "integer": "a whole number", "boolean": "true or false"}


class RequestError(ValueError):
    """A request that does not fit the release. The message contains no value of the request, which may be private."""


def text_of(value: Any, kind: str, name: str) -> str:
    """The string that represents a value in the vocabulary."""
    if kind == "integer":
        is_integer = isinstance(value, int) and not isinstance(value, bool)
        if isinstance(value, float) and value.is_integer() and abs(value) < EXACT:
            is_integer, value = True, int(value)
        if is_integer:
            return str(value)
    elif kind == "boolean":
        if isinstance(value, bool):
            return str(value).lower()
    elif isinstance(value, str):
        return value
    raise RequestError(f"{name!r} is {type_of(value)}, expected {EXPECTED.get(kind, EXPECTED['text'])}")


def finite(value: Any, boolean: bool, name: str) -> float | None:
    """The number as a double; None for NaN, which the tables treat as missing."""
    if isinstance(value, bool) != boolean or not isinstance(value, int | float):
        raise RequestError(f"{name!r} is {type_of(value)}, expected {EXPECTED['boolean'] if boolean else 'a number'}")
    if abs(value) > LARGEST:
        raise RequestError(
            f"{name!r} is infinite or beyond {LARGEST:g}, expected a number that float32 can compute with"
        )
    return None if math.isnan(value) else float(value)


def part_of_time(field: TimeField, value: Any) -> int:
    """The index of an hour or a weekday; DEFAULT for null."""
    first, last = (0, 23) if field.kind == "hour" else (1, 7)
    if value is None:
        return DEFAULT
    number = int(text_of(value, "integer", field.name))
    if not first <= number <= last:
        raise RequestError(f"{field.name!r} is a number outside {first} to {last}, expected the {field.kind}")
    return FIRST + number - first


def vector_of(field: VectorField, value: Any) -> list[float]:
    """The numbers of a vector; zeros if it is missing."""
    if value is None:
        return [0.0] * field.length
    elements = list_of(value, field.name, "a number")
    if len(elements) != field.length:
        raise RequestError(f"{field.name!r} holds {len(elements)} numbers, expected {field.length}")
    numbers = []
    for position, element in enumerate(elements):
        number = finite(element, False, field.name)
        if number is None:
            raise RequestError(f"{field.name!r} holds NaN at place {position}, expected finite numbers")
        numbers.append(number)
    return numbers


def weights_of(value: Any, count: int, name: str) -> list[float]:
    """One weight per value. Without a list all weights are 1; values beyond the end of the list get weight 0."""
    if value is None:
        return [1.0] * count
    weights = []
    for position, weight in enumerate(list_of(value, name, "a number")[:count]):
        number = 0.0 if weight is None else finite(weight, False, name)
        if number is None or abs(number) > LARGEST_WEIGHT:
            raise RequestError(
                f"{name!r} holds NaN or a number that is too large at place {position}, expected finite numbers up to "
                f"{LARGEST_WEIGHT:g}"
            )
        weights.append(number)
    return weights + [0.0] * (count - len(weights))


def ages_of(value: Any, items: list[int], field: HistoryField) -> list[int]:
    """Seconds from each item of the history to the request. UNKNOWN_AGE where they are missing."""
    name = str(field.ages)
    if value is None:
        return [UNKNOWN_AGE] * len(items)
    elements = list_of(value, name, "a number of seconds or null")
    require_one_per_item(len(elements), "numbers", len(items), name, field)
    ages = []
    for position, element in enumerate(elements):
        seconds = None if element is None else finite(element, False, name)
        if seconds is not None and seconds < 0:
            raise RequestError(
                f"{name!r} holds a negative number at place {position}, expected seconds before the request"
            )
        ages.append(UNKNOWN_AGE if seconds is None else min(int(seconds), OLDEST_AGE))
    return ages


def require_one_per_item(values: int, what: str, items: int, name: str, field: HistoryField) -> None:
    """Raises RequestError if a list that goes with a history has another length."""
    if values != items:
        raise RequestError(
            f"{name!r} holds {values} {what}, expected one for each of the {items} items of {field.name!r}"
        )


def list_of(value: Any, name: str, expected: str) -> list[Any]:
    """The elements of a list as plain Python values. `expected`: what each element should be, for the message."""
    if isinstance(value, str) or not isinstance(value, Sequence | np.ndarray):
        raise RequestError(f"{name!r} is {type_of(value)}, expected a list, each of its elements {expected}")
    return [item.item() if isinstance(item, np.generic) else item for item in value]


def type_of(value: Any) -> str:
    """Describes a value in a message by its type only: the value may be private, and messages go to logs."""
    return f"of type {type(value).__name__}"
