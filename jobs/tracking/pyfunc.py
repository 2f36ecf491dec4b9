"""Answers requests under MLflow's scoring server. MLflow copies this file into each model version (no pickle)."""

from typing import Any

import mlflow

from model.serving.request_values import RequestError
from model.serving.retriever import Retriever


class ReleaseModel(mlflow.pyfunc.PythonModel):
    """Answers each request with item_ids and scores, and with the k and the release_id that it used."""

    def load_context(self, context: Any) -> None:
        """Open the release that the model version names."""
        self._retriever = Retriever(context.model_config["release"])

    # Without type hints: MLflow would read them as a schema and check the requests against it.
    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
        """`model_input`: a list of requests. `params`: k, exclude_seen. A wrong request gets status 400 and the reason."""
        try:
            answers = self._retriever.retrieve(model_input, **(params or {}))
        except RequestError as error:
            raise mlflow.exceptions.MlflowException.invalid_parameter_value(str(error)) from None
        return [answer._asdict() for answer in answers]


mlflow.models.set_model(ReleaseModel())
