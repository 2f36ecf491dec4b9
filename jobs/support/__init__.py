"""What the entry points share: the config tree, the runner with its exit codes, MLflow, plots."""
