"""Seeds for every place that draws at random, all derived from the one in the config."""

import hashlib

import numpy as np
import torch


def derive_seed(*parts: int | str) -> int:
    """A positive 63-bit seed from any parts, e.g. (seed, epoch, rank). Never 0, which some libraries take for none."""
    digest = hashlib.blake2b("/".join(str(part) for part in parts).encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 1) | 1


def torch_generator(*parts: int | str) -> torch.Generator:
    """A generator of its own, so that no other draw can shift its sequence."""
    return torch.Generator().manual_seed(derive_seed(*parts))


def numpy_generator(*parts: int | str) -> np.random.Generator:
    """The same for the thread that reads, where torch must not work (batching.py)."""
    return np.random.default_rng(derive_seed(*parts))
