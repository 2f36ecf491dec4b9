"""Fields of a request, as the manifest of a release lists them: what a server needs to encode a user."""

from typing import Annotated, Any, Literal

from pydantic import Field as Discriminated
from pydantic import PositiveInt, TypeAdapter

from pipelines.contract.strict import StrictModel


class Words(StrictModel):
    """A field whose values have indices. `buckets`: hashed to so many, instead of a vocabulary."""

    name: str
    column: str
    type: Literal["text", "integer", "boolean", "float", "double"]
    vocabulary: str
    buckets: PositiveInt | None = None
    example: Any = None


class One(Words):
    """One value: the id of the user, or a categorical feature."""

    kind: Literal["id", "categorical"]


class Several(Words):
    """Up to `length` values; `weights` names the field that has one weight a value."""

    kind: Literal["multi_categorical"]
    length: PositiveInt
    weights: str | None = None


class Past(Words):
    """Items that the user had, newest last. `length`: how many the model reads; None: it reads none."""

    kind: Literal["history"]
    length: PositiveInt | None = None
    order: Literal["strictly_before", "leave_one_out"] | None = None


class Number(StrictModel):
    """A number, as it is, or the bucket between `boundaries` that it lies in."""

    kind: Literal["numeric"]
    name: str
    column: str
    type: Literal["integer", "boolean", "float", "double"]
    boundaries: list[float] | None = None
    example: Any = None


Field = Annotated[One | Several | Past | Number, Discriminated(discriminator="kind")]
Fields = TypeAdapter(list[Field])
