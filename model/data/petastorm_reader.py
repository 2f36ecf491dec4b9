"""Samples out of Petastorm. The only module that knows it.

Petastorm brings sharding, threads and flow control. What it is slow at, list columns turned to arrays one Python object
a row, is done here instead: its worker hands over the arrays of a row group, and row groups come in the order asked
for, whichever thread finishes first.
"""

import math
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from itertools import islice
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import torch
from petastorm.arrow_reader_worker import ArrowReaderWorker
from petastorm.reader import Reader
from petastorm.workers_pool import EmptyResultError, thread_pool
from pyarrow.filesystem import FileSystem as PetastormFilesystem
from torch import Tensor

from model.config import TrainingConfig
from model.data.batching import Arrays, EpochPlan, batches, plan_epoch, shuffle_shards
from model.data.item_versions import SNAPSHOT
from model.data.prefetch import prefetched
from model.io.arrow import ColumnError, to_arrays
from model.io.urls import naming_broken_file, resolve
from model.seeds import numpy_generator
from pipelines.contract.schema import FeatureSchema
from pipelines.contract.strict import StrictModel

USER = "user_index"
_POLL_SECONDS = 0.02  # How soon threads that read notice that nobody wants more.


class SampleFile(StrictModel):
    """A Parquet file of one row group, and how many rows the manifest says it has."""

    url: str
    rows: int


def sample_columns(schema: FeatureSchema, *, versions: bool = False) -> list[str]:
    """Columns of `samples` that training reads. The user's index is among them even where it is no feature: for masks.

    `versions`: rows see items as of their own snapshot.
    """
    needed = [USER, *schema.user_columns, schema.item_id.column, "weight", "negatives", "negative_kinds"]
    needed += [SNAPSHOT] if versions else []
    return list(dict.fromkeys(needed))


class SampleReader:
    """One split of `samples` as seen by one rank: batches of named tensors, an exact epoch at a time."""

    def __init__(
        self,
        files: Sequence[SampleFile],
        columns: Sequence[str],
        config: TrainingConfig,
        seed: int,
        rank: int,
        world_size: int,
    ) -> None:
        """Raises TooFewRowGroupsError for more ranks than files."""
        self.files = [file for file in files if file.rows]  # An empty file has no row group to shard.
        self.columns, self.config, self.seed = list(columns), config, seed
        self.rank, self.world_size = rank, world_size
        self.plan: EpochPlan = plan_epoch([file.rows for file in self.files], world_size, config.batch_size)

    def epoch(
        self, epoch: int, shuffle: bool = True, skip: int = 0
    ) -> AbstractContextManager[Iterator[dict[str, Tensor]]]:
        """A `with` block over the rank's batches of one epoch: int64 and float32 tensors [rows] or [rows, length].

        Every row of the rank once, in `plan.steps` batches, less the first `skip`: these are read and let go, since what
        was left of one window is shuffled into the next. The order is a function of (seed, epoch, rank).
        Raises ColumnError for nulls, ragged lists or a missing column; BrokenFileError for a file that cannot be read;
        ValueError where rows and manifest disagree.
        """
        return prefetched(lambda: self._batches(epoch, shuffle, skip))

    def _batches(self, epoch: int, shuffle: bool, skip: int) -> Iterator[dict[str, Tensor]]:
        key = (self.seed, epoch, self.rank)
        order = shuffle_shards(len(self.files), self.rank, self.world_size, *key) if shuffle else range(len(self.files))
        files = [self.files[place] for place in order]
        rng = numpy_generator("rows", *key) if shuffle else None
        with _open_reader(files, self.columns, self.rank, self.world_size, self.config.reader_threads) as reader:
            found = batches(
                _in_order(reader, files, self.columns, self.rank, self.world_size),
                self.plan.batch_sizes(self.rank),
                self.config.shuffle_window,
                rng,
            )
            yield from islice(found, skip, None)


class SharedSampleReader:
    """One split as the processes of a run read it together: in `shards` shares, each with its own order.

    As many shares as processes, but for a run that goes on with more or fewer of them: it keeps the shares of the epoch
    it is in, so that every step still has the rows that it would have had.
    """

    def __init__(
        self,
        files: Sequence[SampleFile],
        columns: Sequence[str],
        config: TrainingConfig,
        seed: int,
        rank: int,
        world_size: int,
        shards: int,
        shuffle: bool = True,
    ) -> None:
        """`shuffle`: False keeps the order of the files. Raises TooFewRowGroupsError for more shares than files."""
        self._shuffle = shuffle
        mine = range(rank, shards, world_size)
        # A process without a share reads the first one and takes no row of it: batches that know their columns.
        self._none = not mine
        self._parts = [SampleReader(files, columns, config, seed, shard, shards) for shard in mine or [0]]
        self.steps = self._parts[0].plan.steps
        # Most rows of a process in a step.
        self.capacity = self._parts[0].plan.capacity * math.ceil(shards / world_size)

    @contextmanager
    def epoch(self, epoch: int, skip: int = 0) -> Iterator[Iterator[dict[str, Tensor]]]:
        """A `with` block over this process's batches of one epoch, less the first `skip`: see SampleReader.epoch."""
        with ExitStack() as stack:
            parts = [stack.enter_context(part.epoch(epoch, self._shuffle, skip)) for part in self._parts]
            if self._none:
                yield ({name: values[:0] for name, values in batch.items()} for batch in parts[0])
            elif len(parts) == 1:
                yield parts[0]
            else:
                yield (_joined(shares) for shares in zip(*parts, strict=True))


def _joined(batches: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}


def _in_order(
    reader: Reader, files: Sequence[SampleFile], columns: Sequence[str], rank: int, world_size: int
) -> Iterator[Arrays]:
    """The rank's row groups in the order of `files`, each checked against the manifest."""
    early: dict[int, Arrays] = {}
    for place in range(rank, len(files), world_size):
        while place not in early:
            got, arrays = next(reader, (None, {}))
            if got is None or got % world_size != rank:
                raise ValueError(
                    f"row group {got} arrived at rank {rank} of {world_size} in place of {files[place].url}"
                )
            early[got] = arrays
        arrays = early.pop(place)
        lacking = sorted(set(columns) - set(arrays))
        if lacking:
            raise ColumnError(f"{files[place].url} lacks {', '.join(lacking)}; the schema was made for another table")
        rows = len(arrays[columns[0]])
        if rows != files[place].rows:
            raise ValueError(
                f"{files[place].url} has {rows} rows, its manifest says {files[place].rows}: write the table again"
            )
        yield arrays


class _RowGroupWorker(ArrowReaderWorker):
    """Publishes (place of the file, arrays of its row group). Runs in Petastorm's threads."""

    def process(self, piece_index: int, worker_predicate: Any, shuffle_row_drop_partition: Any) -> None:
        """Read one row group. The arguments but the first are options that are not used here."""
        piece = self._split_pieces[piece_index]
        if len(self._split_pieces) != len(self._dataset_path_or_paths):
            raise ValueError(
                f"{len(self._dataset_path_or_paths)} sample files hold {len(self._split_pieces)} row groups; sharding "
                "by file needs one row group a file: write the samples again with build_negatives"
            )
        with naming_broken_file(piece.path), self._filesystem.open(piece.path) as file:
            # One thread a row group: Petastorm's pool is the parallelism.
            table = pq.ParquetFile(file).read_row_group(
                piece.row_group, columns=list(self._schema.fields), use_threads=False
            )
        self.publish_func((piece_index, to_arrays(table, piece.path)))

    @staticmethod
    def new_results_queue_reader() -> "_ResultsReader":
        """Petastorm's seam for how published results become what the reader yields."""
        return _ResultsReader()


class _ResultsReader:
    """Hands on what the worker published, as it is."""

    batched_output = True

    def read_next(self, workers_pool: thread_pool.ThreadPool, schema: Any, ngram: Any) -> tuple[int, Arrays]:
        try:
            return workers_pool.get_results()
        except EmptyResultError:
            raise StopIteration from None


class _ArrowFilesystem(PetastormFilesystem):
    """Arrow's filesystems in the clothes of the old interface: the only one that Petastorm works with on pyarrow 14.

    (Its own resolver ends in libhdfs3, which is gone, or in fsspec, which that pyarrow sends down another path.)
    """

    def __init__(self, filesystem: pafs.FileSystem) -> None:
        self._filesystem = filesystem

    def isfile(self, path: str) -> bool:
        return True  # The manifest says so; asking a remote store file by file is slow, and opening tells.

    def isdir(self, path: str) -> bool:
        return False

    def open(self, path: str, mode: str = "rb") -> BinaryIO:
        return self._filesystem.open_input_file(path)


def _open_reader(
    files: Sequence[SampleFile], columns: Sequence[str], rank: int, world_size: int, threads: int
) -> Reader:
    _silence_petastorm()
    # Its threads ask a thousand times a second whether they are to end, which costs the training beside them 6% of its speed.
    # What is to be read, or room for what was, wakes them up by itself.
    thread_pool.IO_TIMEOUT_INTERVAL_S = _POLL_SECONDS
    resolved = [resolve(file.url) for file in files]
    try:
        return Reader(
            _ArrowFilesystem(resolved[0][0]),
            [path for _, path in resolved],
            schema_fields=[re.escape(column) for column in columns],  # Petastorm reads them as regular expressions.
            worker_class=_RowGroupWorker,
            reader_pool=thread_pool.ThreadPool(threads, results_queue_size=threads),
            shuffle_row_groups=False,  # The order of `files` is the shuffle.
            cur_shard=rank,
            shard_count=world_size,
            is_batched_reader=True,
        )
    except (pa.ArrowException, OSError):
        for file, (filesystem, path) in zip(files, resolved, strict=True):  # It does not say which one.
            with naming_broken_file(file.url), filesystem.open_input_file(path) as opened:
                pq.ParquetFile(opened)
        raise


def _silence_petastorm() -> None:
    """Petastorm calls what pyarrow 14 deprecates, and the dependency windows pin that: nothing to be told of.

    Nor of its patterns no longer matching the beginning of a name (`history` and history_until): ours are whole names.
    """
    message = ".*(ParquetDataset|use_legacy_dataset|metadata_nthreads)"
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"petastorm\.", message=message)
    warnings.filterwarnings("ignore", module=r"petastorm\.", message="schema_fields behavior has changed")
