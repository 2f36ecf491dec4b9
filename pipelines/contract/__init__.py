"""What pipelines and model agree on: needs neither pyspark nor torch."""
