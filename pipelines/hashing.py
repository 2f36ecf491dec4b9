"""Random choices as pure functions of a row's keys and the seed: the same on one core, on a cluster and after a retry.

Spark columns use xxhash64. In numpy batches, 64-bit keys are mixed with the finaliser of SplitMix64
(Steele, Lea and Flood, OOPSLA 2014), which passes BigCrush as a counter-based generator.
"""

import numpy as np
import numpy.typing as npt
from pyspark.sql import Column
from pyspark.sql import functions as F

UInt64 = npt.NDArray[np.uint64]
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def hashed(purpose: str, seed: int, *keys: Column) -> Column:
    """A 64-bit hash of the keys. It differs for each purpose ("keep", "cap", "shuffle") and seed."""
    return F.xxhash64(F.lit(purpose), F.lit(seed), *keys)


def unit(purpose: str, seed: int, *keys: Column) -> Column:
    """A number in [0, 1), uniform over keys: the upper 53 bits of the hash."""
    return F.shiftrightunsigned(hashed(purpose, seed, *keys), 11) * F.lit(2.0**-53)


def mix(keys: UInt64, *salts: npt.NDArray[np.generic] | int) -> UInt64:
    """Hash 64-bit keys [n] and salts (numbers or arrays [n]) to 64 well-mixed bits [n]."""
    with np.errstate(over="ignore"):
        mixed = keys.astype(np.uint64)
        for salt in salts:
            mixed = _finalise(mixed + _GOLDEN * (np.asarray(salt).astype(np.uint64) + np.uint64(1)))
    return mixed


def _finalise(z: UInt64) -> UInt64:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def to_unit(bits: UInt64) -> npt.NDArray[np.float64]:
    """Map 64-bit hashes to numbers in [0, 1)."""
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
