"""Fields of a request, as listed in the manifest of a release: what a server needs to encode a user."""

from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, TypeAdapter

from pipelines.contract.strict import StrictModel


class VocabularyField(StrictModel):
    """A field whose values are mapped to indices: by a vocabulary, or by a hash into `buckets` buckets."""

    name: str
    column: str
    type: Literal["text", "integer", "boolean", "float", "double"]
    vocabulary: str
    buckets: PositiveInt | None = None
    example: Any = None


class SingleValueField(VocabularyField):
    """One value: the user id or a categorical feature."""

    kind: Literal["id", "categorical"]


class MultiValueField(VocabularyField):
    """Up to `length` values. `weights` names the field with one weight per value."""

    kind: Literal["multi_categorical"]
    length: PositiveInt
    weights: str | None = None


class HistoryField(VocabularyField):
    """Past items of the user, newest last. `length`: the number of items that the model reads; None: it reads none.

    `ages`: names the field with the seconds from each item to the request; None: the model does not read them. `actions`:
    the field with the action of each item; None: the model does not read them.
    """

    kind: Literal["history"]
    length: PositiveInt | None = None
    order: Literal["strictly_before", "leave_one_out", "ahead"] | None = None
    ages: str | None = None
    actions: VocabularyField | None = None


class NumberField(StrictModel):
    """A number, read as it is or, if `boundaries` is set, as the index of its bucket."""

    kind: Literal["numeric"]
    name: str
    column: str
    type: Literal["integer", "boolean", "float", "double"]
    boundaries: list[float] | None = None
    example: Any = None


class VectorField(StrictModel):
    """A vector of `length` numbers."""

    kind: Literal["vector"]
    name: str
    column: str
    type: Literal["float", "double"]
    length: PositiveInt
    example: Any = None


class TimeField(StrictModel):
    """The hour (0 to 23) or the weekday (1 is Monday) of the request in a time zone."""

    kind: Literal["hour", "weekday"]
    name: str
    column: str
    type: Literal["integer"]
    zone: str
    example: Any = None


RequestField = Annotated[
    SingleValueField | MultiValueField | HistoryField | NumberField | VectorField | TimeField,
    Field(discriminator="kind"),
]
RequestFields = TypeAdapter(list[RequestField])
