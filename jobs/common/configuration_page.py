"""Writes docs/configuration.md, the reference of all settings, from the typed config.

python -m jobs.common.configuration_page
"""

import json
import re
from pathlib import Path
from typing import Any

from jobs.common.config import Config

PAGE = Path(__file__).resolve().parents[2] / "docs" / "configuration.md"
INTRODUCTION = """# Configuration

Every setting of the YAML config, with its type, its default and its meaning. Every setting has a default, except those
that a table marks as required, so an empty file is a valid config. An unknown key or a value outside its limits is
refused when the config is read (exit 2), with the nearest known name.

[conf/production.example.yaml](../conf/production.example.yaml) is a commented example to copy. On the command line,
`--set SECTION.KEY=VALUE` overrides a setting, for example `--set training.epochs=2`.

This page is generated from the classes that check the config. After a change: `python -m jobs.common.configuration_page`.
"""
LIMITS = {
    "minimum": "at least {}",
    "exclusiveMinimum": "above {}",
    "maximum": "at most {}",
    "exclusiveMaximum": "below {}",
}
WORDS = {"string": "text", "boolean": "true or false"}
Schema = dict[str, Any]


def page() -> str:
    """The whole page as Markdown."""
    schema = Config.model_json_schema()
    definitions = schema["$defs"]
    paths = _paths(schema, definitions)
    headings = {name: _heading(definitions[name], found) for name, found in paths.items()}
    top = _table(schema, {name: value for name, value in schema["properties"].items() if not _refs(value)}, headings)
    parts = [INTRODUCTION, f"## Top level\n\n{top}"]
    for name in paths:
        definition = definitions[name]
        level = "##" if "." not in paths[name][0] and "kind" not in definition["properties"] else "###"
        described = _cell(definition.get("description", "").partition("\n\n")[0])
        table = _table(definition, definition["properties"], headings)
        parts.append(f"{level} {headings[name]}\n\n{described}\n\n{table}")
    return "\n".join(parts)


def _paths(schema: Schema, definitions: dict[str, Schema]) -> dict[str, list[str]]:
    """Class -> the keys whose value it describes, in the order of the config."""
    paths: dict[str, list[str]] = {}

    def visit(properties: dict[str, Schema], prefix: str) -> None:
        for key, value in properties.items():
            for name in _refs(value):
                paths.setdefault(name, []).append(prefix + key)
                visit(definitions[name]["properties"], f"{prefix}{key}.")

    visit(schema["properties"], "")
    return paths


def _refs(value: Any) -> list[str]:
    """The classes that a value may have."""
    if isinstance(value, list):
        return [name for part in value for name in _refs(part)]
    if not isinstance(value, dict):
        return []
    own = [value["$ref"].rpartition("/")[2]] if "$ref" in value else []
    inner = [_refs(value[key]) for key in ("anyOf", "oneOf", "allOf", "items", "additionalProperties") if key in value]
    return own + [name for names in inner for name in names]


def _heading(definition: Schema, found: list[str]) -> str:
    kind = definition["properties"].get("kind", {}).get("const")
    return ", ".join(found) + (f": kind {kind}" if kind else "")


def _table(definition: Schema, properties: dict[str, Schema], headings: dict[str, str]) -> str:
    rows = ["| key | type | default | meaning |", "|---|---|---|---|"]
    first = [key for key in ("kind", "name") if key in properties]
    for key in dict.fromkeys([*first, *properties]):
        value = properties[key]
        if key in definition.get("required", []):
            default = "required"
        else:
            default = "" if _refs(value) and value.get("default") else f"`{json.dumps(value.get('default'))}`"
        # A section has its text below its own heading.
        text = "kind of the feature" if key == "kind" else value.get("description", "")
        meaning = "" if value.get("$ref") else _cell(text)
        rows.append(f"| `{key}` | {_type(value, headings)} | {default} | {meaning} |")
    return "\n".join(rows) + "\n"


def _type(value: Schema, headings: dict[str, str]) -> str:
    """The type and the limits of a value in words."""
    if "$ref" in value:
        heading = headings[value["$ref"].rpartition("/")[2]]
        _, is_kind, kind = heading.partition(": kind ")
        return f"[{kind if is_kind else 'section'}](#{_anchor(heading)})"
    for union in ("anyOf", "oneOf"):
        if union in value:
            return " or ".join(_type(part, headings) for part in value[union])
    if "const" in value:
        return f"`{value['const']}`"
    if "enum" in value:
        return " or ".join(f"`{choice}`" for choice in value["enum"])
    if value.get("type") == "array":
        return f"list of {_type(value['items'], headings)}"
    if value.get("type") == "object":
        values = value.get("additionalProperties")
        return f"mapping to {_type(values, headings)}" if isinstance(values, dict) else "mapping"
    name = WORDS.get(value["type"], str(value["type"]))
    limits = [text.format(f"{value[limit]:,.12g}") for limit, text in LIMITS.items() if limit in value]
    return ", ".join([name, *limits])


def _anchor(heading: str) -> str:
    """The anchor that GitHub gives to a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def _cell(text: str) -> str:
    """A description as one line of a table that ends with a full stop."""
    text = " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
    return text if not text or text.endswith(".") else f"{text}."


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
