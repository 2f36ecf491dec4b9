"""Everything that Nightjar writes to MLflow: one run per night, one child run per job, one model version per release.

Only this package imports mlflow. It sets MLflow's environment before the import. All calls go through a client object and
never through the thread's "active run", because jobs nest and Spark uses threads.
"""

import logging
import os

os.environ.setdefault("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "false")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # A server would print a URL for every run.
for _name in ("alembic", "mlflow.store.db.utils", "mlflow.tracking.fluent", "mlflow.pyfunc"):
    logging.getLogger(_name).setLevel(logging.WARNING)  # A new sqlite store would log thirty migrations.
