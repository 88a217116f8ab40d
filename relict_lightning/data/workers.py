"""Worker processes that work ahead of the main process, in order, and with the same results.

The workers are those of torch's data loader, which sets their threads to one, so that they do not wait for threads of
OpenMP that a fork leaves behind, and ends them with the main process. Results travel as plain pickles through a pipe:
neither file descriptors nor `/dev/shm` run out, at the price of a copy, which is small beside decoding a file. What is
sent should therefore be NumPy arrays: torch's tensors would travel through shared memory.
"""

import multiprocessing
import pickle
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, final

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from relict_lightning.errors import ConfigurationError, UnreadableDataError

Job = TypeVar("Job")
Result = TypeVar("Result")

# Elsewhere a forked process may crash in libraries of the system; what is read is then pickled to the workers.
_START_METHOD = "fork" if sys.platform == "linux" else None


def map_ahead(
    open_function: Callable[[], Callable[[Job], Result]], jobs: Sequence[Job], *, num_workers: int
) -> Iterator[Result]:
    """Return the result of every job, in order, computed by worker processes ahead of the consumer.

    The global random state of this process stays as it is. Workers end when the iterator ends, fails or is closed.

    Args:
        open_function: Called once in every worker; returns what turns a job into its result.
        jobs: The arguments.
        num_workers: Number of processes, at least 1. Each holds up to two results that the consumer has not yet taken.

    Returns:
        An iterator over the results.

    Raises:
        ConfigurationError: If workers cannot be started.
        UnreadableDataError: If a worker is killed.
        Exception: While iterating, what the function raises, with its class and message; the traceback in the worker
            is its cause.

    Example:
        >>> list(map_ahead(lambda: str.upper, ["a", "b", "c"], num_workers=2))
        ['A', 'B', 'C']
    """
    return _results(_Jobs(open_function, jobs), num_workers=min(num_workers, max(1, len(jobs))))


def iterate_ahead(open_iterator: Callable[[], Iterator[Result]]) -> Iterator[Result]:
    """Return what an iterator gives, in order, computed by one worker process ahead of the consumer.

    Args:
        open_iterator: Called once in the worker; returns the iterator.

    Returns:
        An iterator over the same values. Errors are those of `map_ahead`.

    Example:
        >>> list(iterate_ahead(lambda: iter("abc")))
        ['a', 'b', 'c']
    """
    return _results(_Stream(open_iterator), num_workers=1)


def may_start_workers() -> bool:
    """Return whether this process can have workers; one that is itself a worker cannot."""
    return not multiprocessing.current_process().daemon


class _RemoteTraceback(Exception):  # noqa: N818 - it is the cause of an error, and shown as one
    """Where in a worker an error was raised."""

    def __str__(self) -> str:
        return f'\n"""\n{self.args[0]}"""'


@final
@dataclass(frozen=True)
class _Failure:
    """An error on its way from a worker to the main process."""

    error: Exception
    trace: str

    @classmethod
    def of(cls, error: Exception) -> "_Failure":
        trace = traceback.format_exc()
        try:
            pickle.loads(pickle.dumps(error))  # noqa: S301 - made one line above
        # Errors may hold anything, or want arguments that pickle does not know of.
        except Exception:  # noqa: BLE001 - the error itself is what is reported
            error = UnreadableDataError(
                f"Reading in a worker process failed with {type(error).__qualname__}: {error}. Read with "
                f"num_workers=0 to have the error itself."
            )
        return cls(error, trace)

    def reraise(self) -> None:
        raise self.error from _RemoteTraceback(self.trace)


@final
class _Jobs(Dataset[Any]):
    def __init__(self, open_function: Callable[[], Callable[[Any], Any]], jobs: Sequence[Any]) -> None:
        self._open = open_function
        self._jobs = jobs
        self._function: Callable[[Any], Any] | None = None

    def __len__(self) -> int:
        return len(self._jobs)

    def __getitem__(self, index: int) -> Any:
        try:
            if self._function is None:
                self._function = self._open()
            return self._function(self._jobs[index])
        except Exception as error:  # noqa: BLE001 - raised again in the main process
            return _Failure.of(error)


@final
class _Stream(IterableDataset[Any]):
    def __init__(self, open_iterator: Callable[[], Iterator[Any]]) -> None:
        self._open = open_iterator

    def __iter__(self) -> Iterator[Any]:
        try:
            yield from self._open()
        except Exception as error:  # noqa: BLE001 - raised again in the main process
            yield _Failure.of(error)


def _results(dataset: Dataset[Any], *, num_workers: int) -> Iterator[Any]:
    results = _started(dataset, num_workers=num_workers)
    try:
        while True:
            try:
                result = next(results)
            except StopIteration:
                return
            except RuntimeError as error:
                # What the function raises arrives as a value, so this is the loader's own.
                raise UnreadableDataError(
                    f"A worker process that reads images ended unexpectedly ({error}). If memory ran out, use fewer "
                    f"workers, or read with num_workers=0."
                ) from error
            if isinstance(result, _Failure):
                result.reraise()
            yield result
    finally:
        # The last reference: the workers end here, and not when the garbage is collected.
        del results


def _started(dataset: Dataset[Any], *, num_workers: int) -> Iterator[Any]:
    with warnings.catch_warnings():
        # Files on a server are read faster by more workers than there are cores, and the caller chose their number.
        warnings.filterwarnings("ignore", message="This DataLoader will create", category=UserWarning)
        # Python warns of threads at every fork; the workers use none of their parent's.
        warnings.filterwarnings("ignore", message=".*multi-threaded, use of fork", category=DeprecationWarning)
        # The error that follows says it.
        warnings.filterwarnings("ignore", message="Got pickle error", category=UserWarning)
        loader: DataLoader[Any] = DataLoader(
            dataset,
            batch_size=None,
            num_workers=num_workers,
            collate_fn=_as_it_is,
            multiprocessing_context=_START_METHOD,
            # Else the seed of the workers is drawn from the global generator.
            generator=torch.Generator(),
        )
        try:
            return iter(loader)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise ConfigurationError(
                f"{num_workers} worker processes cannot be started ({type(error).__name__}: {error}). On this system "
                f"a data set must be picklable to be read in workers, without lambdas or local classes. Make it so, "
                f"or read with num_workers=0."
            ) from error


def _as_it_is(result: Any) -> Any:
    return result
