"""A release behind MLflow's scoring server. MLflow copies this file into the model version and runs it there: no pickle."""

from typing import Any

import mlflow
import pandas as pd

from model.requests import RequestError
from model.retriever import Retriever


class Served(mlflow.pyfunc.PythonModel):
    """Requests in, one a row -> item_ids and scores of each."""

    def load_context(self, context: Any) -> None:
        """Open the release that the version names."""
        self._retriever = Retriever(context.model_config["release"])

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> list[Any]:
        """`params`: k, exclude_seen. A wrong request is answered with 400 and what is wrong with it."""
        # A table has a place for every field of every row: those that a request left out are null there, or NaN.
        rows = [
            {name: value for name, value in row.items() if value is not None and value == value}
            for row in model_input.astype(object).to_dict("records")
        ]
        try:
            found = self._retriever.retrieve(rows, **(params or {}))
        except RequestError as error:
            raise mlflow.exceptions.MlflowException.invalid_parameter_value(str(error)) from None
        return [one._asdict() for one in found]


mlflow.models.set_model(Served())
