"""The features of the samples, checked against those of the config before a training starts."""

from collections.abc import Iterator

from pydantic import ValidationError

from jobs.common.config import Config
from jobs.common.config_checks import expected_schema
from pipelines.contract.errors import InputError
from pipelines.contract.schema import FeatureSchema
from pipelines.storage.manifest import Manifest


def schema_of(samples: Manifest, config: Config) -> FeatureSchema:
    """The schema in the manifest of `samples`. InputError if it cannot be read or has other features than the config."""
    place, remedy = (
        f"table samples ds={samples.ds}",
        f"run build_positives and build_negatives for ds={samples.ds} again",
    )
    try:
        schema = FeatureSchema.model_validate(samples.facts["schema"])
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in ("schema", *first["loc"]))
        raise InputError(
            f"{place}: {field} in its manifest cannot be read ({first['msg'].removeprefix('Value error, ')}; "
            f"{error.error_count()} such errors). Another version of Nightjar may have written it: {remedy} with --force"
        ) from None
    if differences := list(_differences(schema, expected_schema(config))):
        raise InputError(
            f"{place} was made with another config: {'; '.join(differences)}. To use the features of this config, {remedy}; "
            "otherwise train with the config that the samples were made with"
        )
    return schema


def _differences(samples: FeatureSchema, config: FeatureSchema) -> Iterator[str]:
    """Features that one of the two lacks, or that are of another kind."""
    for side in ("user", "item", "context"):
        before = {feature.name: feature.kind for feature in getattr(samples, side)}
        now = {feature.name: feature.kind for feature in getattr(config, side)}
        for name in sorted(before.keys() | now.keys()):
            if name not in before:
                yield f"{side} feature {name} is in the config and not in the samples"
            elif name not in now:
                yield f"{side} feature {name} is in the samples and not in the config"
            elif before[name] != now[name]:
                yield f"{side} feature {name} is {before[name]} in the samples and {now[name]} in the config"
        lengths = {feature.name: feature.length for feature in getattr(config, side) if feature.kind == "vector"}
        for feature in getattr(samples, side):
            if feature.kind == "vector" and (length := lengths.get(feature.name, feature.length)) != feature.length:
                yield f"{side} feature {feature.name} has length {feature.length} in the samples and {length} in the config"
    for name in ("history", "example_age"):
        made, wanted = (getattr(schema, name) is not None for schema in (samples, config))
        if made != wanted:
            yield f"features.{name} was {'on' if made else 'off'} for the samples and is {'on' if wanted else 'off'} now"
    if samples.history and config.history:
        for name, field in (("ages", "ages_column"), ("actions", "actions")):
            made, wanted = (getattr(history, field) is not None for history in (samples.history, config.history))
            if made != wanted:
                was, is_now = ("on" if on else "off" for on in (made, wanted))
                yield f"features.history.{name} was {was} for the samples and is {is_now} now"
