"""Batches that are made ahead of the training step, by threads or processes, and resume exactly."""

import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Self

from data.document import DataError
from data.rows import Batch
from data.workers import exit_with_parent

_NUM_BATCHES = 2**40  # of an endless iterator; grain wants a number


class Batches(Iterator[Batch]):
    """The endless training batches of one process; `get_state` and `set_state` make them resumable.

    `make` makes a batch of its number, `identity` says which batches these are. Close it when it is no longer needed,
    or use it in a `with` statement: it may have worker processes.
    """

    def __init__(self, make: Callable[[int], Batch], identity: dict[str, object], *, num_workers: int, prefetch: int):
        self._source, self._identity = _BatchSource(make), identity
        self._num_workers, self._prefetch = num_workers, prefetch
        self._next_batch = 0
        self._running: list = []  # grain's iterator, once it is started
        # At the end of the program, too: before the modules that grain needs for closing are gone.
        weakref.finalize(self, _close, self._running)

    def __next__(self) -> Batch:
        if not self._running:
            self._running.append(_start(self._source, self._next_batch, self._num_workers, self._prefetch))
        batch = next(self._running[0])
        self._next_batch += 1
        return batch

    def get_state(self) -> dict[str, object]:
        """Returns what `set_state` needs, as JSON: the next batch, and what decides which batch that is."""
        return {"next_batch": self._next_batch, **self._identity}

    def set_state(self, state: dict[str, object]) -> None:
        """Goes on at the batch of `state`, with any number of workers and processes.

        Raises DataError that names what differs if `state` belongs to other batches.
        """
        if not isinstance(state, dict) or type(state.get("next_batch")) is not int or state["next_batch"] < 0:
            raise DataError(f"this is not the state of a data iterator: {state!r}")
        differing = [
            f"{name} (saved {state.get(name)!r}, now {value!r})"
            for name, value in self._identity.items()
            if state.get(name) != value
        ]
        if differing:
            raise DataError("the data are not those of the saved state; different: " + ", ".join(differing))
        self.close()
        self._next_batch = state["next_batch"]

    def close(self) -> None:
        """Ends threads and worker processes. The next batch, if asked for, starts them again."""
        _close(self._running)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


@dataclass(frozen=True)
class _BatchSource:
    """One process's part of each global batch, by the batch's number: what grain reads, in any order."""

    make: Callable[[int], Batch]
    start: int = 0

    def __len__(self) -> int:
        return _NUM_BATCHES - self.start

    def __getitem__(self, index: int) -> Batch:
        return self.make(self.start + int(index))


def _start(source: _BatchSource, start: int, num_workers: int, prefetch: int):
    """Returns grain's iterator over the batches from number `start`."""
    import grain
    from absl import flags

    from_start = grain.MapDataset.source(replace(source, start=start))
    threads = 0 if num_workers else min(2, prefetch)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=0 if num_workers else prefetch)
    dataset = from_start.to_iter_dataset(options)
    if num_workers:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # grain reads absl flags, which only absl's own main function parses
        ahead = grain.MultiprocessingOptions(
            num_workers=num_workers, per_worker_buffer_size=max(1, prefetch // num_workers)
        )
        dataset = dataset.mp_prefetch(ahead, worker_init_fn=_start_worker)
        # Pipes, not shared memory: quick enough for batches, and nothing is left behind by a killed process.
        dataset = grain.experimental.WithOptionsIterDataset(
            dataset, grain.experimental.DatasetOptions(min_shm_size=2**62)
        )
    return iter(dataset)


def _close(running: list) -> None:
    while running:
        running.pop().close()


def _start_worker(index: int, count: int) -> None:
    exit_with_parent()
