"""Random generators. All seeds are derived from the seed in the config."""

import hashlib

import numpy as np
import torch


def derive_seed(*parts: int | str) -> int:
    """Hash any parts, e.g. (seed, epoch, rank), to a positive 63-bit seed. Never 0: some libraries read 0 as "no seed"."""
    digest = hashlib.blake2b("/".join(str(part) for part in parts).encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 1) | 1


def torch_generator(*parts: int | str) -> torch.Generator:
    """A new torch generator. Its sequence does not depend on draws elsewhere."""
    return torch.Generator().manual_seed(derive_seed(*parts))


def numpy_generator(*parts: int | str) -> np.random.Generator:
    """A new numpy generator, for the reader thread: torch must not run there (model/data/batching.py)."""
    return np.random.default_rng(derive_seed(*parts))
