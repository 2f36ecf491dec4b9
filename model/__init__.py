"""The model room: features, towers, losses, data and training. Knows tables as Parquet files, never as Spark."""

import pyarrow  # noqa: F401  Before torch, always: the other order has crashed on some platforms.
