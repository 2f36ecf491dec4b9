"""Settings of the item-item part of vectors."""

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from pipelines.contract.strict import StrictModel


class ItemItemConfig(StrictModel):
    """The item-item part of vectors: EASE in closed form and of low rank, fitted each night (docs/algorithms.md)."""

    rank: PositiveInt | None = Field(
        None, description="Components that it adds to vectors; null: as many as the towers give, `model.dim`."
    )
    weight: PositiveFloat = Field(
        0.5, description="Factor of its score, which is added to the cosine of the towers' vectors."
    )
    penalty: PositiveFloat = Field(
        3.0,
        description="L2 penalty of EASE, in units of the mean number of users of a fitted item. More is smoother.",
    )
    popularity_exponent: NonNegativeFloat = Field(
        0.0,
        le=1.0,
        description="Divides the score of an item by (its users / those of the mean fitted item) to this power. 0: popular "
        "items score higher, as EASE prefers them. 0.5: rare items are found more often (docs/ablations.md).",
    )
    items: PositiveInt = Field(
        6000,
        description="Fits at most this many items: of those that are published, the ones with the most users. The time of the "
        "fit grows with its cube, the memory of the driver with its square (6000: about 0.8 GB).",
    )
    users: PositiveInt = Field(
        200_000,
        description="Fits on at most this many users, chosen by hash, with the last 500 items of each. The driver needs 12 "
        "bytes for each of their items while it counts them (200,000 users of 500 items: 1.2 GB), then 4.",
    )
