"""The two-tower model: features, towers, losses, data and training. Reads tables as Parquet files and never imports Spark."""

import pyarrow  # noqa: F401  Import pyarrow before torch: the other order has crashed on some platforms.
