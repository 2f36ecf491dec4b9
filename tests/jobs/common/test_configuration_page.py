"""docs/configuration.md describes every setting of the config as it is now."""

from jobs.common.config import Config
from jobs.common.configuration_page import PAGE, page


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run python -m jobs.common.configuration_page"


def test_every_setting_has_a_description() -> None:
    """A section is described by the docstring of its class."""
    schema = Config.model_json_schema()
    undescribed = [
        f"{definition['title']}.{key}"
        for definition in (schema, *schema["$defs"].values())
        for key, value in definition["properties"].items()
        if "description" not in value and "$ref" not in value and key != "kind"
    ]
    assert undescribed == []
    assert [name for name, definition in schema["$defs"].items() if not definition.get("description")] == []


def test_types_limits_and_defaults_are_those_of_the_config() -> None:
    rows = page().splitlines()
    assert "| `seed` | integer | `17` | determines every random choice, together with ds. |" in rows
    assert any(row.startswith("| `id_dropout` | number, at least 0, below 1 | `0.1` |") for row in rows)
    assert any(row.startswith("| `per_user_cap` | integer, at least 1 or null | `50` |") for row in rows)
    assert any(row.startswith("| `downsample` | [section](#positivesdownsample) or null |") for row in rows)
    assert {"## training", "### positives.downsample", "### features.context: kind hour"} <= set(rows)
