"""Encodes raw requests as the columns that the user tower reads, as the pipelines encode rows of a users snapshot.

A missing or null value gets the same encoding as in the tables: DEFAULT (1), the mean, or padding. So does a value that is
not in the vocabulary: DEFAULT. Only a missing hour or weekday is that of the current time; null is DEFAULT.

Shapes: n requests.
"""

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np

from model.network.sequence_encoder import OLDEST_AGE, UNKNOWN_AGE
from model.serving.vocabulary import Vocabulary, bucket_of
from pipelines.contract.indices import DEFAULT, FIRST, PADDING
from pipelines.contract.limits import LARGEST, LARGEST_WEIGHT
from pipelines.contract.request_fields import (
    HistoryField,
    MultiValueField,
    NumberField,
    RequestField,
    SingleValueField,
    TimeField,
    VectorField,
    VocabularyField,
)
from pipelines.contract.schema import FeatureSchema, NumericFeature

Request = Mapping[str, Any]
_KNOWN = "known items"  # Key of the history items that the vocabulary has, beside the encoded columns.
EXACT = 2**53  # Floats represent all integers below this exactly.
EXPECTED = {"text": "a string", "integer": "a whole number", "boolean": "true or false"}


class RequestError(ValueError):
    """A request that does not fit the release. The message contains no value of the request, which may be private."""


def example_request(fields: Sequence[RequestField]) -> dict[str, Any]:
    """A request with every field, with example values from the night of the release."""
    request: dict[str, Any] = {}
    for field in fields:
        is_list = isinstance(field, MultiValueField | HistoryField)
        request[field.name] = [field.example] if is_list else field.example
        if isinstance(field, MultiValueField) and field.weights:
            request[field.weights] = [1.0]
        if isinstance(field, HistoryField) and field.ages:
            request[field.ages] = [3600.0]
        if isinstance(field, HistoryField) and field.actions:
            request[field.actions.name] = [field.actions.example]
    return request


def vocabularies_of(fields: Sequence[RequestField]) -> set[str]:
    """Names of the vocabularies that encode the fields."""
    encoded: list[VocabularyField] = [field for field in fields if isinstance(field, VocabularyField)]
    encoded += [field.actions for field in fields if isinstance(field, HistoryField) and field.actions]
    return {field.vocabulary for field in encoded if field.buckets is None}


class RequestEncoder:
    """Encodes requests to one release: fields and values -> columns of the user tower."""

    def __init__(
        self,
        fields: Sequence[RequestField],
        schema: FeatureSchema,
        vocabularies: Mapping[str, Vocabulary],
        clock: Callable[[], datetime] = lambda: datetime.now(timezone.utc),
    ) -> None:
        """`fields`: `request` of the manifest. `vocabularies`: those of all fields without buckets. `clock`: the current
        time."""
        self.fields, self._vocabularies, self._clock = fields, vocabularies, clock
        numbers = [feature for feature in schema.of_user_tower if isinstance(feature, NumericFeature)]
        self._means = {feature.column: feature.mean for feature in numbers}
        weighted = [field for field in fields if isinstance(field, MultiValueField) and field.weights]
        histories = [field for field in fields if isinstance(field, HistoryField)]
        of_history = [field.ages for field in histories if field.ages]
        of_history += [field.actions.name for field in histories if field.actions]
        self.names = [*(field.name for field in fields), *(str(field.weights) for field in weighted), *of_history]
        self._numbers = {
            field.column for field in fields if isinstance(field, NumberField) and field.boundaries is None
        }
        self._numbers |= {_weights_column(field) for field in weighted}
        self._numbers |= {field.column for field in fields if isinstance(field, VectorField)}

    def encode(self, requests: Sequence[Request]) -> tuple[dict[str, np.ndarray], list[np.ndarray]]:
        """Columns [n] or [n, length] as in `samples`, and the known items in the history of each request, as item indices.

        Raises RequestError that names the request, the field, the type of its value and what is expected.
        """
        rows: dict[str, list[Any]] = {}
        known_items = []
        for number, request in enumerate(requests):
            self._check_names(number, request)
            for field in self.fields:
                try:
                    encoded = self._field(field, request)
                except RequestError as error:
                    raise RequestError(f"request {number}, field {error}") from None
                if isinstance(field, HistoryField):
                    known_items.append(np.array(encoded.pop(_KNOWN), np.int64))
                for column, value in encoded.items():
                    rows.setdefault(column, []).append(value)
        types = {column: np.float32 if column in self._numbers else np.int32 for column in rows}
        return {column: np.array(values, types[column]) for column, values in rows.items()}, known_items

    def _check_names(self, number: int, request: Request) -> None:
        if not isinstance(request, Mapping):
            raise RequestError(f"request {number} is {_type(request)}, expected an object of fields and values")
        for name in request:
            if name not in self.names:
                near = difflib.get_close_matches(str(name), self.names, n=1, cutoff=0.5)
                hint = f"did you mean {near[0]!r}?" if near else f"the fields are {', '.join(self.names)}"
                raise RequestError(f"request {number}: unknown field {name!r}; {hint}")

    def _field(self, field: RequestField, request: Request) -> dict[str, Any]:
        """Column -> encoded value of one field."""
        value = request.get(field.name)
        if isinstance(field, NumberField):
            return {field.column: self._number(field, value)}
        if isinstance(field, VectorField):
            return {field.column: _vector(field, value)}
        if isinstance(field, TimeField):
            return {field.column: _part_of_time(field, value if field.name in request else self._now(field))}
        if isinstance(field, SingleValueField):
            return {field.column: self._index(field, value, field.name)}
        values = [] if value is None else _list(value, field.name, EXPECTED.get(field.type, EXPECTED["text"]))
        if isinstance(field, HistoryField):
            if None in values:
                raise RequestError(f"{field.name!r} holds null at place {values.index(None)}, expected ids of items")
            items = [self._index(field, item, field.name) for item in values]
            of_items = {field.column: items}
            if field.ages:
                of_items[_ages_column(field)] = _ages(request.get(field.ages), items, field)
            if field.actions:
                of_items[field.actions.column] = self._actions(field, field.actions, request, len(items))
            return self._history(field, of_items)
        values = values[: field.length]
        indices = [self._index(field, item, field.name) for item in values]
        columns = {field.column: _padded(indices, field.length)}
        if field.weights:
            weights = _weights(request.get(field.weights), len(values), field.weights)
            columns[_weights_column(field)] = _padded(weights, field.length)
        return columns

    def _now(self, field: TimeField) -> int:
        local = self._clock().astimezone(ZoneInfo(field.zone))
        return local.hour if field.kind == "hour" else local.isoweekday()

    def _index(self, field: VocabularyField, value: Any, name: str) -> int:
        if value is None:
            return DEFAULT
        text = _text(value, field.type, name)
        if field.buckets is not None:
            return bucket_of(field.vocabulary, text, field.buckets)
        return self._vocabularies[field.vocabulary].index(text)

    def _number(self, field: NumberField, value: Any) -> float | int:
        number = None if value is None else _finite(value, field.type == "boolean", field.name)
        if field.boundaries is None:
            return float(self._means[field.column]) if number is None else number
        if number is None:
            return DEFAULT
        if field.type == "float":
            number = float(np.float32(number))  # The boundaries were computed from a float32 column.
        return DEFAULT + 1 + sum(number >= edge for edge in field.boundaries)

    def _actions(self, field: HistoryField, actions: VocabularyField, request: Request, count: int) -> list[int]:
        """The index of each item's action. DEFAULT where it is missing or not in the vocabulary."""
        value, name = request.get(actions.name), actions.name
        if value is None:
            return [DEFAULT] * count
        elements = _list(value, name, "the name of an action or null")
        _one_per_item(len(elements), "actions", count, name, field)
        return [self._index(actions, element, name) for element in elements]

    def _history(self, field: HistoryField, of_items: dict[str, list[int]]) -> dict[str, Any]:
        """The columns of a history. `of_items`: column -> a value per item; the column of the field has the items."""
        items = of_items[field.column]
        columns: dict[str, Any] = {_KNOWN: [item for item in items if item != DEFAULT]}
        places = list(range(len(items)))
        if field.order == "leave_one_out":  # As in the training rows: each item once, at its last occurrence.
            places = sorted({item: place for place, item in enumerate(items)}.values())
        if field.length:
            for column, values in of_items.items():
                kept = [values[place] for place in places[-field.length :]]
                columns[column] = [PADDING] * (field.length - len(kept)) + kept
        return columns


def _text(value: Any, kind: str, name: str) -> str:
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
    raise RequestError(f"{name!r} is {_type(value)}, expected {EXPECTED.get(kind, EXPECTED['text'])}")


def _finite(value: Any, boolean: bool, name: str) -> float | None:
    """The number as a double; None for NaN, which the tables treat as missing."""
    if isinstance(value, bool) != boolean or not isinstance(value, int | float):
        raise RequestError(f"{name!r} is {_type(value)}, expected {EXPECTED['boolean'] if boolean else 'a number'}")
    if abs(value) > LARGEST:
        raise RequestError(
            f"{name!r} is infinite or beyond {LARGEST:g}, expected a number that float32 can compute with"
        )
    return None if math.isnan(value) else float(value)


def _part_of_time(field: TimeField, value: Any) -> int:
    """The index of an hour or a weekday; DEFAULT for null."""
    first, last = (0, 23) if field.kind == "hour" else (1, 7)
    if value is None:
        return DEFAULT
    number = int(_text(value, "integer", field.name))
    if not first <= number <= last:
        raise RequestError(f"{field.name!r} is a number outside {first} to {last}, expected the {field.kind}")
    return FIRST + number - first


def _vector(field: VectorField, value: Any) -> list[float]:
    """The numbers of a vector; zeros if it is missing."""
    if value is None:
        return [0.0] * field.length
    elements = _list(value, field.name, "a number")
    if len(elements) != field.length:
        raise RequestError(f"{field.name!r} holds {len(elements)} numbers, expected {field.length}")
    numbers = []
    for position, element in enumerate(elements):
        number = _finite(element, False, field.name)
        if number is None:
            raise RequestError(f"{field.name!r} holds NaN at place {position}, expected finite numbers")
        numbers.append(number)
    return numbers


def _weights(value: Any, count: int, name: str) -> list[float]:
    """One weight per value. Without a list all weights are 1; values beyond the end of the list get weight 0."""
    if value is None:
        return [1.0] * count
    weights = []
    for position, weight in enumerate(_list(value, name, "a number")[:count]):
        number = 0.0 if weight is None else _finite(weight, False, name)
        if number is None or abs(number) > LARGEST_WEIGHT:
            raise RequestError(
                f"{name!r} holds NaN or a number that is too large at place {position}, expected finite numbers up to "
                f"{LARGEST_WEIGHT:g}"
            )
        weights.append(number)
    return weights + [0.0] * (count - len(weights))


def _ages(value: Any, items: list[int], field: HistoryField) -> list[int]:
    """Seconds from each item of the history to the request. UNKNOWN_AGE where they are missing."""
    name = str(field.ages)
    if value is None:
        return [UNKNOWN_AGE] * len(items)
    elements = _list(value, name, "a number of seconds or null")
    _one_per_item(len(elements), "numbers", len(items), name, field)
    ages = []
    for position, element in enumerate(elements):
        seconds = None if element is None else _finite(element, False, name)
        if seconds is not None and seconds < 0:
            raise RequestError(
                f"{name!r} holds a negative number at place {position}, expected seconds before the request"
            )
        ages.append(UNKNOWN_AGE if seconds is None else min(int(seconds), OLDEST_AGE))
    return ages


def _one_per_item(values: int, what: str, items: int, name: str, field: HistoryField) -> None:
    """Raises RequestError if a list that goes with a history has another length."""
    if values != items:
        raise RequestError(
            f"{name!r} holds {values} {what}, expected one for each of the {items} items of {field.name!r}"
        )


def _list(value: Any, name: str, expected: str) -> list[Any]:
    if isinstance(value, str) or not isinstance(value, Sequence | np.ndarray):
        raise RequestError(f"{name!r} is {_type(value)}, expected a list, each of its elements {expected}")
    return [item.item() if isinstance(item, np.generic) else item for item in value]


def _padded(values: list[Any], length: int) -> list[Any]:
    return values + [PADDING] * (length - len(values))


def _ages_column(field: HistoryField) -> str:
    return f"{field.column}_ages"


def _weights_column(field: MultiValueField) -> str:
    return f"{field.column}_weights"


def _type(value: Any) -> str:
    """Describes a value in a message by its type only: the value may be private, and messages go to logs."""
    return f"of type {type(value).__name__}"
