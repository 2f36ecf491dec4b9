"""Reads samples with Petastorm. The only module that imports Petastorm.

Petastorm provides sharding, threads and flow control. Its conversion of list columns creates one Python object per row,
which is slow. This module replaces it: the worker publishes the numpy arrays of a row group. Row groups are returned in the
requested order, whichever thread finishes first.
"""

import math
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from itertools import islice
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
from petastorm.arrow_reader_worker import ArrowReaderWorker
from petastorm.reader import Reader
from petastorm.workers_pool import EmptyResultError, thread_pool
from pyarrow.filesystem import FileSystem as PetastormFilesystem
from pydantic import Field
from torch import Tensor

from model.config import TrainingConfig
from model.data.batching import Arrays, EpochPlan, batches, plan_epoch, rows_of_positives, shuffle_shards
from model.data.item_versions import SNAPSHOT
from model.data.packed_rows import Packing, concatenate, require_unpacked, unpack
from model.data.prefetch import prefetched
from model.io.arrow import ColumnError, to_arrays
from model.io.urls import naming_broken_file, resolve
from model.seeds import numpy_generator
from pipelines.contract.schema import FeatureSchema
from pipelines.contract.strict import StrictModel

USER = "user_index"
_POLL_SECONDS = 0.02  # How often reader threads check whether they should stop.


class SampleFile(StrictModel):
    """A Parquet file with one row group, and its counts according to the manifest."""

    url: str
    rows: int
    positives: int | None = Field(None, description="Positives in its packed rows. None: one per row.")


def sample_columns(schema: FeatureSchema, *, versions: bool = False, packing: Packing | None = None) -> list[str]:
    """Columns of `samples` that training reads. The user index is always included, because masks need it.

    `versions`: include the items snapshot that each row sees. `packing`: include the columns that only packed rows have.
    """
    needed = [USER, *schema.user_columns, schema.item_id.column, "weight", "negatives", "negative_kinds"]
    needed += [SNAPSHOT] if versions else []
    needed += packing.columns if packing else []
    return list(dict.fromkeys(needed))


def plan_files(files: Sequence[SampleFile], world_size: int, batch_size: int) -> EpochPlan:
    """Plan an epoch over files: see plan_epoch. Empty files have no row group and are left out."""
    files = [file for file in files if file.rows]
    positives = sum(file.rows if file.positives is None else file.positives for file in files)
    return plan_epoch([file.rows for file in files], world_size, batch_size, positives)


class SampleReader:
    """Reads one split of `samples` as one rank. Yields batches of named tensors; an epoch reads each row exactly once.

    Batches of packed rows are unpacked: they have one row per positive (model/data/packed_rows.py).
    """

    def __init__(
        self,
        files: Sequence[SampleFile],
        columns: Sequence[str],
        config: TrainingConfig,
        seed: int,
        rank: int,
        world_size: int,
        packing: Packing | None = None,
    ) -> None:
        """`packing`: the layout of packed rows; None: not packed. Raises TooFewRowGroupsError for more ranks than files."""
        self.files = [file for file in files if file.rows]  # An empty file has no row group.
        self.columns, self.config, self.seed = list(columns), config, seed
        self.rank, self.world_size, self.packing = rank, world_size, packing
        self.plan: EpochPlan = plan_files(self.files, world_size, config.batch_size)

    def epoch(
        self, epoch: int, shuffle: bool = True, skip: int = 0
    ) -> AbstractContextManager[Iterator[dict[str, Tensor]]]:
        """A `with` block over the batches of one epoch: int64 and float32 tensors [positives] or [positives, length].

        Reads each row of the rank once, in `plan.steps` batches, without the first `skip` batches. Skipped batches are read
        and dropped, because the rest of one window is shuffled into the next. The order depends only on (seed, epoch, rank).
        Raises ColumnError for nulls, ragged lists or a missing column; BrokenFileError for a file that cannot be read;
        ValueError if the number of rows differs from the manifest.
        """
        return prefetched(lambda: self._batches(epoch, shuffle, skip))

    def _batches(self, epoch: int, shuffle: bool, skip: int) -> Iterator[dict[str, Tensor]]:
        key = (self.seed, epoch, self.rank)
        order = shuffle_shards(len(self.files), self.rank, self.world_size, *key) if shuffle else range(len(self.files))
        files = [self.files[place] for place in order]
        rng = numpy_generator("rows", *key) if shuffle else None
        window = rows_of_positives(self.config.shuffle_window, sum(self.plan.rank_rows), self.plan.positives)
        packing = self.packing
        with _open_reader(files, self.columns, self.rank, self.world_size, self.config.reader_threads) as reader:
            all_batches = batches(
                _in_order(reader, files, self.columns, self.rank, self.world_size, packing),
                self.plan.batch_sizes(self.rank),
                window,
                rng,
                # In this thread, with numpy: see batching._Window.
                partial(unpack, schema=packing.schema, pack=packing.pack) if packing else None,
            )
            yield from islice(all_batches, skip, None)


class SharedSampleReader:
    """Reads one split with all processes of a run, in `shards` shards, each with its own order.

    There is one shard per process. Only a run that resumes with another number of processes keeps the shards of its current
    epoch, so that each step has the same rows as before.
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
        packing: Packing | None = None,
    ) -> None:
        """`shuffle`: False keeps the order of the files. `packing`: the layout of packed rows; None: not packed.

        Raises TooFewRowGroupsError if there are more shards than files.
        """
        self._shuffle = shuffle
        mine = range(rank, shards, world_size)
        # A process without a shard reads the first one and takes no rows, so that its batches have columns.
        self._without_shard = not mine
        self._parts = [SampleReader(files, columns, config, seed, shard, shards, packing) for shard in mine or [0]]
        self.steps = self._parts[0].plan.steps
        # Largest number of rows of a process in a step. The positives of packed rows are only known when they are read.
        self.capacity = None if packing else self._parts[0].plan.capacity * math.ceil(shards / world_size)

    @contextmanager
    def epoch(self, epoch: int, skip: int = 0) -> Iterator[Iterator[dict[str, Tensor]]]:
        """A `with` block over this process's batches of one epoch, without the first `skip`: see SampleReader.epoch."""
        with ExitStack() as stack:
            parts = [stack.enter_context(part.epoch(epoch, self._shuffle, skip)) for part in self._parts]
            if self._without_shard:
                yield ({name: values[:0] for name, values in batch.items()} for batch in parts[0])
            elif len(parts) == 1:
                yield parts[0]
            else:
                yield (concatenate(shares) for shares in zip(*parts, strict=True))


def _in_order(
    reader: Reader,
    files: Sequence[SampleFile],
    columns: Sequence[str],
    rank: int,
    world_size: int,
    packing: Packing | None,
) -> Iterator[Arrays]:
    """The rank's row groups in the order of `files`. Checks each against the manifest."""
    early: dict[int, Arrays] = {}
    for place in range(rank, len(files), world_size):
        while place not in early:
            group, arrays = next(reader, (None, {}))
            if group is None or group % world_size != rank:
                raise ValueError(
                    f"row group {group} arrived at rank {rank} of {world_size} instead of {files[place].url}"
                )
            early[group] = arrays
        arrays = early.pop(place)
        _check(arrays, files[place], columns, packing)
        yield arrays


def _check(arrays: Arrays, file: SampleFile, columns: Sequence[str], packing: Packing | None) -> None:
    """Compare a row group with the schema and the manifest."""
    missing = sorted(set(columns) - set(arrays))
    if packing and (unknown := [column for column in packing.columns if column in missing]):
        raise ColumnError(
            f"{file.url} lacks {', '.join(unknown)}, which packed rows of samples have, but its manifest says pack = "
            f"{packing.pack}: write the samples again with build_negatives"
        )
    if missing:
        raise ColumnError(f"{file.url} lacks {', '.join(missing)}; the schema belongs to another table")
    counts = {"rows": (len(arrays[columns[0]]), file.rows)}
    if packing is None:
        require_unpacked(arrays, file.url)
    else:
        packing.check(arrays, file.url)
        counts["positives"] = (packing.count_positives(arrays), file.positives or 0)
    for name, (count, expected) in counts.items():
        if count != expected:
            raise ValueError(f"{file.url} has {count} {name}, its manifest says {expected}: write the table again")


class _RowGroupWorker(ArrowReaderWorker):
    """Publishes (position of the file, arrays of its row group). Runs in Petastorm's threads."""

    def process(self, piece_index: int, worker_predicate: Any, shuffle_row_drop_partition: Any) -> None:
        """Read one row group. Only the first argument is used; the others are options of Petastorm."""
        piece = self._split_pieces[piece_index]
        if len(self._split_pieces) != len(self._dataset_path_or_paths):
            raise ValueError(
                f"{len(self._dataset_path_or_paths)} sample files hold {len(self._split_pieces)} row groups; sharding "
                "by file needs one row group per file: write the samples again with build_negatives"
            )
        with naming_broken_file(piece.path), self._filesystem.open(piece.path) as file:
            # One thread per row group: the parallelism comes from Petastorm's pool.
            table = pq.ParquetFile(file).read_row_group(
                piece.row_group, columns=list(self._schema.fields), use_threads=False
            )
        self.publish_func((piece_index, to_arrays(table, piece.path)))

    @staticmethod
    def new_results_queue_reader() -> "_ResultsReader":
        """Petastorm calls this to convert published results to what the reader yields."""
        return _ResultsReader()


class _ResultsReader:
    """Returns the published results unchanged."""

    batched_output = True

    def read_next(self, workers_pool: thread_pool.ThreadPool, schema: Any, ngram: Any) -> tuple[int, Arrays]:
        try:
            return workers_pool.get_results()
        except EmptyResultError:
            raise StopIteration from None


class _ArrowFilesystem(PetastormFilesystem):
    """Adapts Arrow's file systems to the legacy interface, the only one that Petastorm supports with pyarrow 14.

    Petastorm's own resolver needs libhdfs3, which no longer exists, or fsspec, which takes another code path on pyarrow 14.
    """

    def __init__(self, filesystem: pafs.FileSystem) -> None:
        self._filesystem = filesystem

    def isfile(self, path: str) -> bool:
        return True  # The manifest lists only files. Checking each file in a remote store is slow; opening it fails anyway.

    def isdir(self, path: str) -> bool:
        return False

    def open(self, path: str, mode: str = "rb") -> BinaryIO:
        return self._filesystem.open_input_file(path)


def _open_reader(
    files: Sequence[SampleFile], columns: Sequence[str], rank: int, world_size: int, threads: int
) -> Reader:
    _silence_petastorm()
    # By default Petastorm's threads check for shutdown 1,000 times per second, which makes training 6% slower. New work and
    # free space in the queue wake them up without polling.
    thread_pool.IO_TIMEOUT_INTERVAL_S = _POLL_SECONDS
    resolved = [resolve(file.url) for file in files]
    try:
        return Reader(
            _ArrowFilesystem(resolved[0][0]),
            [path for _, path in resolved],
            schema_fields=[re.escape(column) for column in columns],  # Petastorm reads them as regular expressions.
            worker_class=_RowGroupWorker,
            reader_pool=thread_pool.ThreadPool(threads, results_queue_size=threads),
            shuffle_row_groups=False,  # `files` is already shuffled.
            cur_shard=rank,
            shard_count=world_size,
            is_batched_reader=True,
        )
    except (pa.ArrowException, OSError):
        for file, (filesystem, path) in zip(files, resolved, strict=True):  # Petastorm's error does not name the file.
            with naming_broken_file(file.url), filesystem.open_input_file(path) as opened:
                pq.ParquetFile(opened)
        raise


def _silence_petastorm() -> None:
    """Silence warnings that users cannot act on.

    Petastorm calls functions that pyarrow 14 deprecates, and the pinned dependencies require both. It also warns that
    patterns no longer match prefixes (`history` and history_until); ours are full names.
    """
    message = ".*(ParquetDataset|use_legacy_dataset|metadata_nthreads)"
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"petastorm\.", message=message)
    warnings.filterwarnings("ignore", module=r"petastorm\.", message="schema_fields behavior has changed")
