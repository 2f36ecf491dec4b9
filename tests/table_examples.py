"""Reads the examples of docs/tables.md, and runs them."""

import ast
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

PAGE = Path(__file__).resolve().parents[1] / "docs" / "tables.md"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TITLE = re.compile(r"# (\w+): .+\n")


def examples() -> dict[str, str]:
    """Table -> its example: a block that begins with the comment `# TABLE: what it shows`."""
    blocks = BLOCK.findall(PAGE.read_text(encoding="utf-8"))
    return {title[1]: block for block in blocks if (title := TITLE.match(block))}


def preamble() -> str:
    """The lines that the examples need before them: the first block."""
    return BLOCK.findall(PAGE.read_text(encoding="utf-8"))[0]


def answers(code: str, names: dict[str, Any]) -> list[Any]:
    """Run a block and return the values of its expressions; `names` are its global variables."""
    values = []
    for statement in ast.parse(code).body:
        text = ast.unparse(statement)
        if isinstance(statement, ast.Expr):
            values.append(eval(text, names))
        else:
            exec(text, names)
    return values


def rows_of(answer: Any) -> list[tuple[str, ...]]:
    """The rows of an answer of DuckDB, pandas or Spark, sorted, with values that can be compared."""
    if isinstance(answer, pd.DataFrame):
        rows = answer.itertuples(index=False, name=None)
    elif hasattr(answer, "fetchall"):
        rows = answer.fetchall()
    else:
        rows = (tuple(row) for row in answer.collect())
    return sorted(tuple(_comparable(value) for value in row) for row in rows)


def _comparable(value: Any) -> str:
    if value is None or value != value:  # NaN is pandas' null.
        return "null"
    return f"{value:.5f}" if isinstance(value, float | np.floating) else str(value)
