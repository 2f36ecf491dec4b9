"""Encodes raw requests as the columns that the user tower reads, as the pipelines encode rows of a users snapshot.

A missing or null value gets the same encoding as in the tables: DEFAULT (1), the mean, or padding. So does a value that is
not in the vocabulary: DEFAULT. Only a missing hour or weekday is that of the current time; null is DEFAULT.

Shapes: n requests.
"""

import difflib
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np

from model.serving.request_values import (
    EXPECTED,
    RequestError,
    ages_of,
    finite,
    list_of,
    part_of_time,
    require_one_per_item,
    text_of,
    type_of,
    vector_of,
    weights_of,
)
from model.serving.vocabulary import Vocabulary, bucket_of
from pipelines.contract.indices import DEFAULT, PADDING
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
            raise RequestError(f"request {number} is {type_of(request)}, expected an object of fields and values")
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
            return {field.column: vector_of(field, value)}
        if isinstance(field, TimeField):
            return {field.column: part_of_time(field, value if field.name in request else self._now(field))}
        if isinstance(field, SingleValueField):
            return {field.column: self._index(field, value, field.name)}
        values = [] if value is None else list_of(value, field.name, EXPECTED.get(field.type, EXPECTED["text"]))
        if isinstance(field, HistoryField):
            if None in values:
                raise RequestError(f"{field.name!r} holds null at place {values.index(None)}, expected ids of items")
            items = [self._index(field, item, field.name) for item in values]
            of_items = {field.column: items}
            if field.ages:
                of_items[_ages_column(field)] = ages_of(request.get(field.ages), items, field)
            if field.actions:
                of_items[field.actions.column] = self._actions(field, field.actions, request, len(items))
            return self._history(field, of_items)
        values = values[: field.length]
        indices = [self._index(field, item, field.name) for item in values]
        columns = {field.column: _padded(indices, field.length)}
        if field.weights:
            weights = weights_of(request.get(field.weights), len(values), field.weights)
            columns[_weights_column(field)] = _padded(weights, field.length)
        return columns

    def _now(self, field: TimeField) -> int:
        local = self._clock().astimezone(ZoneInfo(field.zone))
        return local.hour if field.kind == "hour" else local.isoweekday()

    def _index(self, field: VocabularyField, value: Any, name: str) -> int:
        if value is None:
            return DEFAULT
        text = text_of(value, field.type, name)
        if field.buckets is not None:
            return bucket_of(field.vocabulary, text, field.buckets)
        return self._vocabularies[field.vocabulary].index(text)

    def _number(self, field: NumberField, value: Any) -> float | int:
        number = None if value is None else finite(value, field.type == "boolean", field.name)
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
        elements = list_of(value, name, "the name of an action or null")
        require_one_per_item(len(elements), "actions", count, name, field)
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


def _padded(values: list[Any], length: int) -> list[Any]:
    return values + [PADDING] * (length - len(values))


def _ages_column(field: HistoryField) -> str:
    return f"{field.column}_ages"


def _weights_column(field: MultiValueField) -> str:
    return f"{field.column}_weights"
