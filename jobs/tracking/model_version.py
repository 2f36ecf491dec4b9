"""A release as an MLflow model that `mlflow models serve` can run."""

import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlflow
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
from mlflow.types.schema import Array

import model
import pipelines
from model.serving.request_encoder import example_request
from pipelines.contract.request_fields import (
    HistoryField,
    MultiValueField,
    NumberField,
    RequestField,
    RequestFields,
    VectorField,
)

# The packages that serving needs. A model version lists them as its requirements.
SERVING = ["faiss-cpu", "mlflow", "numpy", "pandas", "petastorm", "psutil", "pyarrow", "pydantic", "safetensors"]
SERVING += ["torch", "tqdm", "xxhash"]


def save_model_version(folder: Path, manifest: dict[str, Any], uri: str) -> None:
    """Write the MLflow model of a release: jobs/tracking/pyfunc.py, the packages it imports, and a signature.

    The model holds the URI of the release and not its files, which may have many gigabytes.
    """
    fields = RequestFields.validate_python(manifest["request"])
    signature = ModelSignature(Schema(_columns(fields)), _answer(fields), _params())
    # This flag makes MLflow pass requests on as they were sent. Without it MLflow builds a pandas table from them: it drops
    # unknown fields, turns whole numbers into floats if one is missing, and refuses 3 where it expects 3.0.
    signature._is_signature_from_type_hint = True
    with warnings.catch_warnings(record=True) as caught:
        mlflow.pyfunc.save_model(
            folder,
            python_model=str(Path(__file__).with_name("pyfunc.py")),
            code_paths=[str(Path(str(package.__file__)).parent) for package in (model, pipelines)],
            model_config={"release": uri},
            signature=signature,
            input_example=([example_request(fields)], {"k": 10}),
            metadata={"release_id": manifest["release_id"], "request": manifest["request"]},
            pip_requirements=[f"{package}=={version(package)}" for package in SERVING],
        )
    for warning in caught:
        if "Add type hints to the `predict`" not in str(warning.message):  # pyfunc.py says why it has none.
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


def _columns(fields: list[RequestField]) -> list[ColSpec]:
    columns = []
    for field in fields:
        kind = _type_of(field)
        is_list = isinstance(field, MultiValueField | HistoryField | VectorField)
        columns.append(ColSpec(Array(kind) if is_list else kind, field.name, required=False))
        if isinstance(field, MultiValueField) and field.weights:
            columns.append(ColSpec(Array(DataType.double), field.weights, required=False))
        if isinstance(field, HistoryField) and field.ages:
            columns.append(ColSpec(Array(DataType.double), field.ages, required=False))
        if isinstance(field, HistoryField) and field.actions:
            columns.append(ColSpec(Array(DataType.string), field.actions.name, required=False))
    return columns


def _answer(fields: list[RequestField]) -> Schema:
    answer = {"item_ids": Array(_type_of(fields[-1])), "scores": Array(DataType.double)}
    answer |= {"k": DataType.long, "release_id": DataType.string}
    return Schema([ColSpec(kind, name) for name, kind in answer.items()])


def _params() -> ParamSchema:
    return ParamSchema([ParamSpec("k", DataType.long, 100), ParamSpec("exclude_seen", DataType.boolean, False)])


def _type_of(field: RequestField) -> DataType:
    """The MLflow type of one value of a request field."""
    if field.type in ("integer", "boolean"):
        return DataType.long if field.type == "integer" else DataType.boolean
    return DataType.double if isinstance(field, NumberField | VectorField) else DataType.string
