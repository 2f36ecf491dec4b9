"""Raw requests as the columns that the user tower reads: what pipelines does with a users snapshot, for one user at a time.

A value that is missing (or null) is what it is in the tables: default (1), the mean, padding. One that the vocabulary lacks
is default too.

Shapes: n requests.
"""

import difflib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from model.serving.vocabulary import Vocabulary, bucket_of
from pipelines.contract.indices import DEFAULT, PADDING
from pipelines.contract.limits import LARGEST, LARGEST_WEIGHT
from pipelines.contract.request_fields import (
    HistoryField,
    MultiValueField,
    NumberField,
    RequestField,
    SingleValueField,
    VocabularyField,
)
from pipelines.contract.schema import FeatureSchema, NumericFeature

Request = Mapping[str, Any]
EXACT = 2**53  # Above it a float does not tell one whole number from the next.
WANTED = {"text": "a text", "integer": "a whole number", "boolean": "true or false"}


class RequestError(ValueError):
    """A request that is not what the release expects. The message holds no value of the request."""


def example_request(fields: Sequence[RequestField]) -> dict[str, Any]:
    """A request with every field, its values from the release's night."""
    found: dict[str, Any] = {}
    for field in fields:
        several = isinstance(field, MultiValueField | HistoryField)
        found[field.name] = [field.example] if several else field.example
        if isinstance(field, MultiValueField) and field.weights:
            found[field.weights] = [1.0]
    return found


class RequestEncoder:
    """Requests of one release -> columns and histories."""

    def __init__(
        self, fields: Sequence[RequestField], schema: FeatureSchema, vocabularies: Mapping[str, Vocabulary]
    ) -> None:
        """`fields`: the manifest's `request`. `vocabularies`: of every field that has no buckets."""
        self.fields, self._vocabularies = fields, vocabularies
        self._means = {feature.column: feature.mean for feature in schema.user if isinstance(feature, NumericFeature)}
        weighted = [field for field in fields if isinstance(field, MultiValueField) and field.weights]
        self.names = [*(field.name for field in fields), *(str(field.weights) for field in weighted)]
        self._numbers = {
            field.column for field in fields if isinstance(field, NumberField) and field.boundaries is None
        }
        self._numbers |= {_weights_column(field) for field in weighted}

    def encode(self, requests: Sequence[Request]) -> tuple[dict[str, np.ndarray], list[np.ndarray]]:
        """Columns [n] or [n, length] as `samples` has them, and the item indices that each request says were had.

        Raises RequestError naming the request, the field, the type of its value and what is expected.
        """
        rows: dict[str, list[Any]] = {}
        had = []
        for place, request in enumerate(requests):
            self._check_names(place, request)
            for field in self.fields:
                try:
                    encoded = self._field(field, request)
                except RequestError as error:
                    raise RequestError(f"request {place}, field {error}") from None
                if isinstance(field, HistoryField):
                    known = encoded.pop("known")
                    had.append(np.array(known, np.int64))
                for column, value in encoded.items():
                    rows.setdefault(column, []).append(value)
        types = {column: np.float32 if column in self._numbers else np.int32 for column in rows}
        return {column: np.array(values, types[column]) for column, values in rows.items()}, had

    def _check_names(self, place: int, request: Request) -> None:
        if not isinstance(request, Mapping):
            raise RequestError(f"request {place} is {_kind(request)}, expected an object of fields and values")
        for name in request:
            if name not in self.names:
                near = difflib.get_close_matches(str(name), self.names, n=1, cutoff=0.5)
                hint = f"did you mean {near[0]!r}?" if near else f"known fields: {', '.join(self.names)}"
                raise RequestError(f"request {place}: there is no field {name!r}; {hint}")

    def _field(self, field: RequestField, request: Request) -> dict[str, Any]:
        value = request.get(field.name)
        if isinstance(field, NumberField):
            return {field.column: self._number(field, value)}
        if isinstance(field, SingleValueField):
            return {field.column: self._index(field, value, field.name)}
        values = [] if value is None else _list(value, field.name, WANTED.get(field.type, WANTED["text"]))
        if isinstance(field, HistoryField):
            if None in values:
                raise RequestError(f"{field.name!r} holds null at place {values.index(None)}, expected ids of items")
            return self._past(field, [self._index(field, item, field.name) for item in values])
        values = values[: field.length]
        indices = [self._index(field, item, field.name) for item in values]
        found = {field.column: _padded(indices, field.length)}
        if field.weights:
            weights = _weights(request.get(field.weights), len(values), field.weights)
            found[_weights_column(field)] = _padded(weights, field.length)
        return found

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
            number = float(np.float32(number))  # The column that the boundaries were laid over has 32 bits.
        return DEFAULT + 1 + sum(number >= edge for edge in field.boundaries)

    def _past(self, field: HistoryField, items: list[int]) -> dict[str, Any]:
        known = items
        if field.order == "leave_one_out":  # Each item once, where it was had last: as the training rows have it.
            items = list(dict.fromkeys(reversed(items)))[::-1]
        found: dict[str, Any] = {"known": [item for item in known if item != DEFAULT]}
        if field.length:
            items = items[-field.length :]
            found[field.column] = [PADDING] * (field.length - len(items)) + items
        return found


def _text(value: Any, kind: str, name: str) -> str:
    """The text of a value under which the vocabulary has it."""
    if kind == "integer":
        whole = isinstance(value, int) and not isinstance(value, bool)
        if isinstance(value, float) and value.is_integer() and abs(value) < EXACT:
            whole, value = True, int(value)
        if whole:
            return str(value)
    elif kind == "boolean":
        if isinstance(value, bool):
            return str(value).lower()
    elif isinstance(value, str):
        return value
    raise RequestError(f"{name!r} is {_kind(value)}, expected {WANTED.get(kind, WANTED['text'])}")


def _finite(value: Any, boolean: bool, name: str) -> float | None:
    """The number as a double; None for NaN, which the tables take for a missing number."""
    if isinstance(value, bool) != boolean or not isinstance(value, int | float):
        raise RequestError(f"{name!r} is {_kind(value)}, expected {WANTED['boolean'] if boolean else 'a number'}")
    if abs(value) > LARGEST:
        raise RequestError(
            f"{name!r} is infinite or beyond {LARGEST:g}, expected a number that float32 can compute with"
        )
    return None if math.isnan(value) else float(value)


def _weights(value: Any, count: int, name: str) -> list[float]:
    """One weight a value: all alike where none are given; the values behind a shorter list weigh nothing."""
    if value is None:
        return [1.0] * count
    given = _list(value, name, "a number")[:count]
    weights = []
    for place, weight in enumerate(given):
        number = 0.0 if weight is None else _finite(weight, False, name)
        if number is None or abs(number) > LARGEST_WEIGHT:
            wanted = f"expected finite numbers up to {LARGEST_WEIGHT:g}"
            raise RequestError(f"{name!r} holds NaN or a number that is too large at place {place}, {wanted}")
        weights.append(number)
    return weights + [0.0] * (count - len(weights))


def _list(value: Any, name: str, wanted: str) -> list[Any]:
    if isinstance(value, str) or not isinstance(value, Sequence | np.ndarray):
        raise RequestError(f"{name!r} is {_kind(value)}, expected a list, each of its elements {wanted}")
    return [item.item() if isinstance(item, np.generic) else item for item in value]


def _padded(values: list[Any], length: int) -> list[Any]:
    return values + [PADDING] * (length - len(values))


def _weights_column(field: MultiValueField) -> str:
    return f"{field.column}_weights"


def _kind(value: Any) -> str:
    """What a message says of a value: never the value, which may be private and would end up in logs."""
    return f"of type {type(value).__name__}"
