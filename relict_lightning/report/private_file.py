"""Writing a file that shows patients: whole or not at all, and readable by its owner only."""

import os
import tempfile
from pathlib import Path

from relict_lightning.errors import UnreadableDataError


def write_private(path: Path, content: str | bytes) -> Path:
    """Write `content` to `path` with mode 0600, so that a reader finds the old file or the new one, never a part.

    Args:
        path: Where to write; missing parent directories are created with mode 0700.
        content: What to write; text as UTF-8.

    Returns:
        The absolute path.

    Raises:
        UnreadableDataError: If the file cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     written = write_private(Path(folder) / "report.html", "<p>local</p>")
        ...     oct(written.stat().st_mode & 0o777)
        '0o600'
    """
    path = path.expanduser().absolute()
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # mkstemp creates with mode 0600, so that there is no moment at which others can read it.
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".partial")
        try:
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(content.encode("utf-8") if isinstance(content, str) else content)
                stream.flush()
                os.fsync(stream.fileno())
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        _sync_directory(path.parent)
    except OSError as error:
        raise UnreadableDataError(
            f"Cannot write {path}: {error.strerror or error}. Expected a file name in a folder that this user "
            f"may write to; choose another path, or free space on the disk."
        ) from error
    return path


def _sync_directory(directory: Path) -> None:
    """Make a rename in `directory` survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
