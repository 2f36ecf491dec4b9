"""Everything that Nightjar writes to MLflow: one run per night, one child run per job, one model version per release.

Only this package imports mlflow. It sets MLflow's environment before the import. All calls go through a client object and
never through the thread's "active run", because jobs nest and Spark uses threads.
"""

import logging
import os

os.environ.setdefault("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "false")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # A server would print a URL for every run.
os.environ.setdefault("MLFLOW_CONFIGURE_LOGGING", "false")  # Its log has the format of the job's log.
for _name in ("alembic", "mlflow", "mlflow.tracking.fluent"):
    logging.getLogger(_name).setLevel(logging.WARNING)  # A new sqlite store would log thirty migrations.
logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # It logs the stack of each error that it raises.
