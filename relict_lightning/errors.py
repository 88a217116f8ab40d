"""Errors and warnings.

Every error derives from `RelictError` and from the builtin that it refines, so that both `except` clauses work.
A message says what was expected, what came, and what to do.
"""


class RelictError(Exception):
    """The root of every error that this package raises on purpose."""


class InvalidImageError(RelictError, ValueError):
    """Images have a wrong shape, a wrong dtype, or values that are not finite."""


class EmptyDataError(RelictError, ValueError):
    """A set of images is empty, or too small for what was asked of it."""


class NondeterministicDataError(RelictError, ValueError):
    """Two reads of one item of a data set differ, so it cannot serve as a reference."""


class UnreadableDataError(RelictError, OSError):
    """A file is missing, corrupt, or of a format that cannot be read."""


class MissingControlError(RelictError, RuntimeError):
    """A number was asked for that only held-out images can give, and there are none."""


class NotFittedError(RelictError, RuntimeError):
    """A detector was used before `fit`."""


class IndexCorruptError(RelictError, OSError):
    """A cached index fails its checksum or cannot be parsed."""


class CacheWriteError(RelictError, OSError):
    """The cache cannot be written: the disk is full, or the folder is read-only."""

    def __str__(self) -> str:
        """Return the message alone, without the error's number."""
        return str(self.args[-1])


class IndexStaleError(RelictError, ValueError):
    """A saved index belongs to other data, another encoder, or other settings."""


class SamplerError(RelictError, ValueError):
    """A sampler cannot be found, or returns something that is not the images asked for."""


class DrawingInterrupted(RelictError, RuntimeError):  # noqa: N818 - says what happened; nothing went wrong
    """The run was told to end while samples were drawn; they were left between two chunks, on all processes."""


class OtherProcessError(RelictError, RuntimeError):
    """Another process of a distributed run failed; its own error says why."""


class CheckingProcessError(RelictError, RuntimeError):
    """The process that checks samples beside training ended, or failed by an error that cannot be passed on."""


class MissingDependencyError(RelictError, ImportError):
    """An optional package is needed and not installed."""


class ConfigurationError(RelictError, ValueError):
    """Arguments contradict each other, or lie outside their range."""


class RelictWarning(UserWarning):
    """The result is right, and there is something that its reader should know."""
