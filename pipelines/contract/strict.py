"""The base class of everything that is read from YAML or JSON."""

from pydantic import BaseModel, ConfigDict


class StrictModel(BaseModel):
    """Refuses unknown keys, so that a misspelt setting is an error and not a default. Frozen after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())
