"""The contract between pipelines and model. Importing it needs neither pyspark nor torch."""
