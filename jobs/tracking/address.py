"""The address of the MLflow record. It needs no mlflow, so that jobs that only print it start fast."""

from jobs.common.config import Config
from pipelines.contract.errors import UsageError


def tracking_uri(config: Config, root: str) -> str:
    """The MLflow tracking URI: `tracking.uri`, else a sqlite file in a local warehouse.

    Raises UsageError if `tracking.uri` is not set and the warehouse is not local.
    """
    if config.tracking.uri:
        return config.tracking.uri
    if not root.startswith("file://"):
        raise UsageError(f"tracking.uri is not set, and the warehouse {root} is not local: name an MLflow server")
    return f"sqlite:///{root.removeprefix('file://')}/mlflow.db"
