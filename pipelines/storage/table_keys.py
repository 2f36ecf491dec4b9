"""Keys of the written tables, checked on the staged rows before they are moved into place."""

from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import ArrayType

from pipelines.contract.errors import InputError

# Each tuple of columns is unique in its table. Tables that are not listed have no key.
KEYS: dict[str, tuple[tuple[str, ...], ...]] = {
    "vocabularies": (("feature", "value"), ("feature", "index")),
    "user_histories": (("user_id",),),
    "item_stats": (("item_index",), ("item_id",)),
    "item_features": (("item_index",), ("item_id",)),
    "item_versions": (("item_index", "valid_before"),),
    # row_key is a hash, and two events among a billion may share it. Together with the ids it is unique.
    "positives": (("row_key", "user_id", "item_id"),),
    "holdout": (("user_id",),),
    "mined_candidates": (("user_id",),),
    "samples": (("row_key", "user_id", "item_id"),),
    "item_priors": (("item_index",), ("item_id",)),
    "item_embeddings": (("item_index",), ("item_id",)),
    "item_neighbours": (("item_index",),),
    "feature_information": (("feature", "other"),),
    "evaluations": (("model", "metric", "slice", "k"),),
}


def check_keys(staged: DataFrame, table: str, ds: str) -> None:
    """Raise InputError if two staged rows have the same key.

    One pass over 64-bit hashes of the keys detects possible repeats. Only if there are any, the keys are compared.
    """
    keys = KEYS.get(table, ())
    if not keys:
        return
    # The number of the key is part of the hash, so that different keys of one table do not collide.
    staged = _with_one_key_per_row(staged, keys)
    hashes = [F.xxhash64(F.lit(number), *key) for number, key in enumerate(keys)]
    hashed = staged.select((hashes[0] if len(hashes) == 1 else F.explode(F.array(*hashes))).alias("hash"))
    if hashed.groupBy("hash").count().where("count > 1").isEmpty():
        return
    for key in keys:
        repeated = staged.groupBy(*key).count().where("count > 1")
        row = repeated.agg(
            F.count(F.lit(1)).alias("keys"),
            F.sum("count").alias("rows"),
            F.min(F.to_json(F.struct(*key))).alias("example"),
        ).first()
        assert row is not None
        if row["keys"]:
            raise InputError(
                f"table {table} ds={ds}: {row['keys']} values of ({', '.join(key)}) have {row['rows']} rows instead of one "
                f"each, for example {row['example']}. Nothing was written; please report this"
            )


def _with_one_key_per_row(staged: DataFrame, keys: tuple[tuple[str, ...], ...]) -> DataFrame:
    """The key columns. A row with arrays of keys (packed samples) becomes one row per element."""
    columns = dict.fromkeys(name for key in keys for name in key)
    arrays = [name for name in columns if isinstance(staged.schema[name].dataType, ArrayType)]
    if not arrays:
        return staged
    others = [name for name in columns if name not in arrays]
    return staged.select(*others, F.inline(F.arrays_zip(*arrays)))
