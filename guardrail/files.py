"""Files that are written whole or not at all."""

import os
import shutil
from pathlib import Path


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
