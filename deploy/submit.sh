#!/usr/bin/env bash
# spark-submit on a Java that the installed Spark supports, with the workers on this environment's Python:
#   deploy/submit.sh --master local[2] jobs/build_negatives.py --config conf/demo.yaml --ds 2024-03-07
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
bin=${NIGHTJAR_BIN:-$here/.venv/bin}
JAVA_HOME=$("$bin/python" -m pipelines.session)
export JAVA_HOME PYSPARK_PYTHON=${PYSPARK_PYTHON:-$bin/python}
exec "$bin/spark-submit" "$@"
