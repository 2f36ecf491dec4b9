"""The base class of all models that are read from YAML or JSON."""

from pydantic import BaseModel, ConfigDict


class StrictModel(BaseModel):
    """Rejects unknown keys, so that a misspelt setting is an error. Instances are frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())
