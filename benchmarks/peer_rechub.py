"""Times torch-rechub in a separate virtual environment.

    PEER/bin/python benchmarks/peer_rechub.py ROWS.npz MODEL BATCH WORKERS

Trains one of its models for two epochs with its documented classes (MatchDataGenerator and MatchTrainer, both with defaults)
and prints the seconds of the second epoch. benchmarks/training.py runs this file; it imports nothing from this project.

    dssm    DSSM, point-wise (mode 0): a row is a user and an item, with label 1 or 0
    sbc     YoutubeSBC, list-wise (mode 2): in-batch negatives, corrected by the items' sampling probabilities
"""

import sys
import time

import numpy as np
import torch
from torch_rechub.basic.features import DenseFeature, SequenceFeature, SparseFeature
from torch_rechub.models.matching import DSSM, YoutubeSBC
from torch_rechub.trainers import MatchTrainer
from torch_rechub.utils.data import MatchDataGenerator


def main(path: str, kind: str, batch: int, workers: int) -> float:
    """Seconds of the second epoch."""
    with np.load(path) as file:
        rows = {name: file[name] for name in file.files}
    sizes = dict(zip(("users", "items", "categories", "embedding", "hidden", "dim"), rows.pop("sizes").tolist()))
    length = sizes["embedding"]
    user = [
        SparseFeature("user_id", vocab_size=sizes["users"], embed_dim=length),
        SequenceFeature(
            "history", vocab_size=sizes["items"], embed_dim=length, pooling="mean", shared_with="item_id", padding_idx=0
        ),
    ]
    item = [
        SparseFeature("item_id", vocab_size=sizes["items"], embed_dim=length),
        SparseFeature("category", vocab_size=sizes["categories"], embed_dim=length),
    ]
    tower = {"dims": [sizes["hidden"], sizes["dim"]]}
    labels = rows.pop("label")
    torch.manual_seed(0)
    if kind == "dssm":
        rows.pop("sample_weight", None)
        model, mode = DSSM(user, item, user_params=tower, item_params=tower), 0
    else:
        weight = [DenseFeature("sample_weight")]
        model, mode = YoutubeSBC(user, item, weight, user_params=tower, item_params=tower, batch_size=batch), 2
    few = {name: values[:2] for name, values in rows.items()}
    loader, _, _ = MatchDataGenerator(x=rows, y=labels).generate_dataloader(few, few, batch, num_workers=workers)
    trainer = MatchTrainer(model, mode=mode)
    trainer.train_one_epoch(loader)
    started = time.perf_counter()
    trainer.train_one_epoch(loader)
    return time.perf_counter() - started


if __name__ == "__main__":
    print(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
