"""The queue of a server: what arrives together and is alike is worked on together, in the order of arrival."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

__all__ = ["BatchingQueue", "QueueFull"]


class QueueFull(Exception):
    """So many requests wait that another one is not taken."""


@dataclass(eq=False)
class _Item:
    kind: Hashable
    what: Any
    future: Future[Any] = field(default_factory=Future)


class BatchingQueue:
    """Hands items to one worker thread, several of one kind at a time."""

    def __init__(
        self,
        work: Callable[[Sequence[Any]], Sequence[Any]],
        *,
        max_batch: int,
        max_waiting: int,
        window_s: float,
    ) -> None:
        """Start the worker.

        Args:
            work: Returns a result for each item, all of one kind.
            max_batch: Items that are worked on together at most.
            max_waiting: Items that may wait.
            window_s: Seconds that the first of a batch waits for others, as long as the batch is not full.
        """
        self._work, self._max_batch, self._max_waiting, self._window_s = work, max_batch, max_waiting, window_s
        self._waiting: deque[_Item] = deque()
        self._changed = threading.Condition()
        self._is_closed = False
        self.num_batches, self.num_done, self.work_s = 0, 0, 0.0
        self._thread = threading.Thread(target=self._run, daemon=True, name="serve-worker")
        self._thread.start()

    def __len__(self) -> int:
        """Number of items that wait."""
        return len(self._waiting)

    def submit(self, kind: Hashable, *items: Any) -> list[Future[Any]]:
        """Put items of one kind into the queue, all or none of them: QueueFull."""
        made = [_Item(kind, item) for item in items]
        with self._changed:
            if len(self._waiting) + len(made) > self._max_waiting or self._is_closed:
                raise QueueFull
            self._waiting.extend(made)
            self._changed.notify_all()
        return [item.future for item in made]

    def close(self) -> None:
        """Let the batch under way end, and drop what waits."""
        with self._changed:
            self._is_closed = True
            for item in self._waiting:
                item.future.cancel()
            self._waiting.clear()
            self._changed.notify_all()
        self._thread.join()

    def _run(self) -> None:
        while batch := self._next_batch():
            started_s = time.monotonic()
            try:
                results = self._work([item.what for item in batch])
                for item, result in zip(batch, results, strict=True):
                    item.future.set_result(result)
            except Exception as error:  # handed to those who wait; the server goes on
                for item in batch:
                    if not item.future.done():
                        item.future.set_exception(error)
            self.work_s += time.monotonic() - started_s
            self.num_batches, self.num_done = self.num_batches + 1, self.num_done + len(batch)

    def _next_batch(self) -> list[_Item]:
        """Wait for the next batch; empty once the queue is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._is_closed)
            deadline_s = time.monotonic() + self._window_s
            while not self._is_closed and len(self._alike()) < self._max_batch:
                if not self._changed.wait(max(0.0, deadline_s - time.monotonic())):
                    break
            batch = self._alike()
            for item in batch:
                self._waiting.remove(item)
            return batch

    def _alike(self) -> list[_Item]:
        """The first that waits, and those of its kind."""
        kind = self._waiting[0].kind if self._waiting else None
        return [item for item in self._waiting if item.kind == kind][: self._max_batch]
