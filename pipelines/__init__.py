"""The Spark side: pure DataFrame -> DataFrame functions, and the tables between them. Imports no torch, mlflow or model."""
