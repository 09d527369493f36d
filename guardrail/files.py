"""Files that are written whole or not at all."""

import os
import shutil
import tempfile
from pathlib import Path


def check_writable(path: Path) -> None:
    """Make the folder of a file that `write_text` is to write later.

    Raises:
        OSError: the folder cannot be made, or no file be written there.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        real = Path(os.path.realpath(path))
        if real.is_file() or not real.exists():
            tempfile.TemporaryFile(dir=real.parent).close()
    except OSError as error:
        raise OSError(f"{path} cannot be written: {error.strerror}") from error


def write_text(path: Path, text: str) -> None:
    """Write a file so that `path` is either what it was or the whole new text, in UTF-8; a link stays one."""
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file():  # a pipe, a terminal
        path.write_text(text, encoding="utf-8")
        return
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_text(text, encoding="utf-8")
        if path.exists():
            shutil.copymode(path, partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
