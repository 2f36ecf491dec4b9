"""Writes the tuned config: the user's file, with its comments, and a comment beside each value that tuning changed."""

import io
from collections.abc import Mapping
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import CommentMark
from ruamel.yaml.tokens import CommentToken

from jobs.tuning.space import Values

MARK = "# Tuned by jobs.tune"  # The first line of its files starts with it: only such files are overwritten.


def tuned_text(text: str, changed: Values, comments: Mapping[str, str], header: list[str]) -> str:
    """The text of a config file with other values. `comments`: key -> what to write beside it. `header`: lines at the top."""
    yaml = _yaml()
    tree = yaml.load(text)
    if not isinstance(tree, CommentedMap):  # an empty file
        tree = CommentedMap()
    for name, value in changed.items():
        _set(tree, name.split("."), value, comments[name])
    stream = io.StringIO()
    yaml.dump(tree, stream)
    body = stream.getvalue() if tree else ""
    return "\n".join([f"{MARK}: {header[0]}", *(f"# {line}" for line in header[1:])]) + "\n" + body


def _yaml() -> YAML:
    """Reads and writes in the style of the configs of this project."""
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 4096  # no line breaks within values
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.representer.add_representer(
        type(None), lambda representer, _: representer.represent_scalar("tag:yaml.org,2002:null", "null")
    )
    return yaml


def _set(section: CommentedMap, path: list[str], value: Any, comment: str) -> None:
    """Set the value at a path below a section."""
    key, *rest = path
    if section.fa.flow_style():  # {a: 1}: a line has no place for a comment beside one of its values.
        section.fa.set_block_style()
    if not rest:
        last = None if key in section else next(reversed(section), None)
        section[key] = _in_one_line(value)
        _comment(section, key, comment)
        if last is not None and not _is_block(section[last]):  # Else a new key would come after the blank line.
            _move_lines(section, last, section, key)
        return
    if not isinstance(section.get(key), CommentedMap):
        section[key] = CommentedMap()
    child = section[key]
    was_flow = child.fa.flow_style()
    _set(child, rest, value, comment)
    if was_flow:  # {a: 1} has become several lines: what stood in the lines after it now comes after the last of them.
        _move_lines(section, key, child, next(reversed(child)))


def _in_one_line(value: Any) -> Any:
    """Lists and dicts as [a, b] and {a: b}."""
    result: Any = value
    if isinstance(value, dict):
        result = CommentedMap({name: _in_one_line(part) for name, part in value.items()})
    elif isinstance(value, list):
        result = CommentedSeq(_in_one_line(part) for part in value)
    else:
        return result
    result.fa.set_flow_style()
    return result


def _comment(section: CommentedMap, key: str, comment: str) -> None:
    """Put a comment beside a key, before the comment that is there."""
    first, rest = _lines_of(section, key)
    _put(section, key, f"# {comment}" + (f"; {first}" if first else ""), rest)


def _move_lines(section: CommentedMap, key: str, target: CommentedMap, last: str) -> None:
    """Move the lines after a key to after another one."""
    first, rest = _lines_of(section, key)
    if first:
        _put(section, key, f"# {first}", "\n")
    else:
        section.ca.items.pop(key, None)
    _move(rest, target, last)


def _move(rest: str, section: CommentedMap, key: str) -> None:
    """Put lines after a key whose value is in one line, unless there is nothing in them."""
    own, after = _lines_of(section, key)
    if rest != "\n" and after == "\n" and not _is_block(section[key]):
        _put(section, key, f"# {own}" if own else "", rest)


def _is_block(value: Any) -> bool:
    """Whether a value takes several lines."""
    return isinstance(value, CommentedMap | CommentedSeq) and not value.fa.flow_style()


def _lines_of(section: CommentedMap, key: str) -> tuple[str, str]:
    """The comment beside a key without its mark, and the lines after it as ruamel stores them (with line breaks)."""
    tokens = section.ca.items.get(key)
    if not tokens or tokens[2] is None:
        return "", "\n"
    line, newline, rest = tokens[2].value.partition("\n")
    return line.lstrip("# ").rstrip(), newline + rest or "\n"


def _put(section: CommentedMap, key: str, line: str, rest: str) -> None:
    """Set the comment of a key and the lines after it."""
    token = CommentToken(f"{line}{rest}", CommentMark(0), None)
    tokens = section.ca.items.setdefault(key, [None, None, None, None])
    tokens[2] = token
