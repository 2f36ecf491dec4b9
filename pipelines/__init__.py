"""Spark: pure DataFrame -> DataFrame functions, and the tables that they meet in. Never torch, mlflow or model."""
