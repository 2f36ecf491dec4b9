"""A release behind MLflow's scoring server. MLflow copies this file into the model version and runs it there: no pickle."""

from typing import Any

import mlflow

from model.serving.request_encoder import RequestError
from model.serving.retriever import Retriever


class Served(mlflow.pyfunc.PythonModel):
    """Requests -> item_ids and scores of each, with the k and the release that they were answered with."""

    def load_context(self, context: Any) -> None:
        """Open the release that the version names."""
        self._retriever = Retriever(context.model_config["release"])

    # Without annotations, which MLflow would take for a schema to hold the requests against.
    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
        """`model_input`: a list of requests; `params`: k, exclude_seen. A wrong request is answered with 400 and why."""
        try:
            found = self._retriever.retrieve(model_input, **(params or {}))
        except RequestError as error:
            raise mlflow.exceptions.MlflowException.invalid_parameter_value(str(error)) from None
        return [one._asdict() for one in found]


mlflow.models.set_model(Served())
