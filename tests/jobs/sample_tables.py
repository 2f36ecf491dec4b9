"""Builds the sample tables of the first small night. test_cluster.py submits it to several kinds of masters.

Arguments: warehouse, folder of the input tables.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from pipelines.config import Inputs
from pipelines.session import open_session
from pipelines.storage.warehouse import Warehouse
from tests.two_nights import FIRST, run_nights


def main(root: str, inputs: str) -> None:
    """Build the first night in the warehouse `root`."""
    spark = open_session("sample-tables")
    tables = Inputs.model_validate({name: {"path": f"{inputs}/{name}"} for name in Inputs.model_fields})
    run_nights(Warehouse(spark, root), tables, last=FIRST)
    spark.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
