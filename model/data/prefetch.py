"""Prefetching: a thread fills a short queue while the model computes."""

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Generic, TypeVar

Item = TypeVar("Item")

_POLL_SECONDS = 0.1  # How often a blocked thread checks whether the reader has stopped.


class _End:
    """Marks the end of the queue. Carries the exception that ended the source, if there was one."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


class _Reader(Generic[Item]):
    """The thread and its queue. The thread opens, reads and closes the source."""

    def __init__(self, source: Callable[[], Iterator[Item]], depth: int) -> None:
        self._source = source
        self._queue: queue.Queue[Item | _End] = queue.Queue(depth)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="prefetch", daemon=True)

    def _run(self) -> None:
        error: BaseException | None = None
        try:
            with closing(self._source()) as items:  # type: ignore[type-var]
                for item in items:
                    if not self._put(item):
                        return
        except BaseException as problem:  # Raised again in the consumer's thread.
            error = problem
        self._put(_End(error))

    def _put(self, item: Item | _End) -> bool:
        while not self._stop.is_set():
            try:
                self._queue.put(item, timeout=_POLL_SECONDS)
                return True
            except queue.Full:
                continue
        return False

    def __iter__(self) -> Iterator[Item]:
        while not isinstance(item := self._queue.get(), _End):
            yield item
        if item.error:
            raise item.error

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join()


@contextmanager
def prefetched(source: Callable[[], Iterator[Item]], depth: int = 4) -> Iterator[Iterator[Item]]:
    """Yield the items of a generator function, read up to `depth` items ahead in a thread.

    Exceptions of the source are raised in the consumer. Leaving the block stops the thread and closes the source.
    """
    reader = _Reader(source, depth)
    reader.start()
    try:
        yield iter(reader)
    finally:
        reader.close()
