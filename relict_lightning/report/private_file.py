"""Writing a file that shows patients: whole or not at all, and readable by its owner only."""

from pathlib import Path

from relict_lightning.errors import UnreadableDataError
from relict_lightning.whole_files import write_whole


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
        data = content.encode("utf-8") if isinstance(content, str) else content
        return write_whole(path.parent, lambda file: file.write(data), name=lambda: path.name)
    except OSError as error:
        raise UnreadableDataError(
            f"Cannot write {path}: {error.strerror or error}. Expected a file name in a folder that this user "
            f"may write to; choose another path, or free space on the disk."
        ) from error
