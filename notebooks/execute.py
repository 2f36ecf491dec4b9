"""Runs notebooks and stores their outputs, without times and without what libraries print to stderr.

.venv/bin/python notebooks/execute.py               # all notebooks, on the warehouse of `make demo`
.venv/bin/python notebooks/execute.py 03            # those whose name begins with 03
"""

import os
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parent


def execute(path: Path) -> None:
    """Run a notebook from its first cell to its last, and write it with the outputs."""
    notebook = nbformat.read(path, as_version=4)
    started = time.monotonic()
    NotebookClient(notebook, timeout=600, record_timing=False, resources={"metadata": {"path": str(FOLDER)}}).execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
            for data in (output["data"] for output in cell.outputs if "text/html" in output.get("data", {})):
                if data.get("text/plain", "").startswith("<"):  # an address in memory
                    del data["text/plain"]
    notebook.metadata["language_info"] = {"name": "python"}
    nbformat.write(notebook, path)
    print(f"{path.name}: {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    os.environ["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"
    for file in sorted(FOLDER.glob("*.ipynb")):
        if file.name.startswith(tuple(sys.argv[1:] or [""])):
            execute(file)
