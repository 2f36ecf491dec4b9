# Every target creates its virtual environment if it does not exist.
#   make setup | demo | demo-grocery | test | test-fast | test-slow | test-long | test-crash | test-gpu | lint | bench (or one: bench-samples | bench-loss | bench-frequency |
#   bench-consistency | bench-towers | bench-index | bench-training | bench-nights | bench-links LINKS=folder of Wikispeedia)      SPARK=4 runs the same on pyspark 4.0
#   bench-quality: beside tuned peers, hours: MOVIELENS=folder WIKISPEEDIA=folder QUALITY="other flags"; SMOKE=1 runs tiny worlds
PYTHON ?= $(firstword $(shell command -v python3.11 python3.12 python3.10 python3))
SPARK  ?= 3
ifeq ($(SPARK),4)
VENV := .venv-spark4
PIN  := pyspark==4.0.1
else
VENV := .venv
PIN  := $(shell grep '^pyspark==' constraints.txt)
endif
BIN   := $(VENV)/bin
STAMP := $(VENV)/.nightjar-installed

BENCHES := bench-samples bench-loss bench-frequency bench-consistency bench-towers bench-index bench-training bench-nights
.PHONY: setup demo demo-grocery test test-fast test-slow test-long test-crash test-gpu bench $(BENCHES) bench-links bench-quality lint clean
.DEFAULT_GOAL := setup

setup: $(STAMP)

# Exact versions of all packages; pyspark and py4j come from PIN, so that SPARK=4 differs in nothing else.
$(STAMP): setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	grep -vE '^(pyspark|py4j)==' constraints.txt > $(VENV)/constraints.txt
	$(BIN)/python -m pip install -q -c $(VENV)/constraints.txt '$(PIN)' -e '.[dev,grocery]'
	touch $@

demo: $(STAMP)
	$(BIN)/python -m jobs.simulate_logs --config conf/demo.yaml
	$(BIN)/python -m jobs.nightly --config conf/demo.yaml --from 2024-03-07 --to 2024-03-09 --bootstrap-days 6

demo-grocery: $(STAMP)
	$(BIN)/python -m jobs.import_grocery --config conf/grocery.yaml
	$(BIN)/python -m jobs.nightly --config conf/grocery.yaml --ds 2017-11-27 --bootstrap-days 330
	$(BIN)/python -m jobs.nightly --config conf/grocery.yaml --from 2017-11-28 --to 2017-11-30
	$(BIN)/python -m jobs.report --config conf/grocery.yaml --from 2017-11-27 --to 2017-11-30

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Two workers. Files that use the same session fixture run on the same worker (tests/conftest.py).
PYTEST := $(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

# Tables must not depend on how Spark executes joins: tests marked `joins` run again with every join sorted and merged.
test: $(STAMP)
	$(PYTEST) -m 'not slow'
	NIGHTJAR_JOINS=shuffled $(PYTEST) -m 'joins and not any_joins and not slow' tests/pipelines

# Tests that start no JVM and no other process, and train no model for more than a second or two.
test-fast: $(STAMP)
	$(PYTEST) -m 'not slow and not jvm and not processes and not trains'

# Trains a small night on a GPU and compares its losses with those on the CPU. Skipped without a GPU.
test-gpu: $(STAMP)
	$(BIN)/python -m pytest -q -rs tests/model/training/test_gpu.py

# End to end: nights, updates, servers, a cluster, the MLflow UI, notebooks, convergence.
test-slow: $(STAMP)
	$(PYTEST) -m 'slow and not long'

# Before a release: killed processes and executors, full disks, 400,000 items, tuning, benchmarks, the commands of the docs,
# and the slow tests of tables with sorted and merged joins.
test-long: $(STAMP)
	$(PYTEST) -m long
	NIGHTJAR_JOINS=shuffled $(PYTEST) -m 'joins and not any_joins and (slow or processes)' tests/pipelines tests/jobs/test_nightly.py

# Two nights that are killed 40 times: docs/faults.md.
test-crash: export NIGHTJAR_KILLS ?= 40
test-crash: $(STAMP)
	$(BIN)/python -m pytest -q -s tests/jobs/test_crash.py

bench: $(BENCHES)

$(BENCHES): bench-%: $(STAMP)
	$(BIN)/python -m benchmarks.$*

bench-links: $(STAMP)
	$(BIN)/python -m benchmarks.links $(LINKS)

bench-quality: $(STAMP)
	$(BIN)/python -m benchmarks.quality $(if $(SMOKE),--smoke) $(if $(MOVIELENS),--movielens $(MOVIELENS)) \
		$(if $(WIKISPEEDIA),--wikispeedia $(WIKISPEEDIA)) $(QUALITY)

clean:
	rm -rf warehouse warehouse-* spark-warehouse .pytest_cache .mypy_cache .ruff_cache
