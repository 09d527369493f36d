"""Bearer keys: who may ask. A file holds a name and the SHA-256 of each key; the keys themselves are kept nowhere.

python -m serve.keys --file keys.txt add NAME      writes a new key's hash, prints the key once
python -m serve.keys --file keys.txt remove NAME   takes effect without a restart
python -m serve.keys --file keys.txt list
"""

import argparse
import hashlib
import hmac
import os
import re
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path

PREFIX = "rg-"
_NAME = re.compile(r"[\w.-]{1,64}")
_LINE = re.compile(rf"({_NAME.pattern})\s+([0-9a-f]{{64}})")


class Keys:
    """The keys of a file, read again when it changes.

    Raises:
        ValueError: the file cannot be read, or a line of it is not "NAME SHA256".
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._changed: tuple[int, ...] | None = None
        self._hashes: dict[str, str] = {}
        self._read()

    def name_of(self, key: str) -> str | None:
        """Return whose key this is, None if nobody's; how long it takes tells nothing of the keys.

        A file that has become unreadable lets nobody in.
        """
        try:
            self._read()
        except ValueError:
            return None
        found = None
        asked = _hash(key)
        for name, known in self._hashes.items():  # all of them, whichever it is
            if hmac.compare_digest(known, asked):
                found = name
        return found

    def _read(self) -> None:
        try:
            status = self.path.stat()
        except OSError as error:
            raise ValueError(f"cannot read the keys: {error}") from None
        changed = status.st_ino, status.st_ctime_ns, status.st_mtime_ns, status.st_size
        if changed != self._changed:
            self._hashes, self._changed = read_keys(self.path), changed


def read_keys(path: Path) -> dict[str, str]:
    """Return the hashes of the keys of a file by name.

    Raises:
        ValueError: as `Keys`.
    """
    hashes: dict[str, str] = {}
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read the keys: {error}") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        match = _LINE.fullmatch(line.strip())
        if not match or match[1] in hashes:
            raise ValueError(f"{path}, line {number}: not a name of its own and a SHA-256; use python -m serve.keys")
        hashes[match[1]] = match[2]
    return hashes


def _write_keys(path: Path, hashes: dict[str, str]) -> None:
    partial = path.with_name(f".{path.name}.partial")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.writelines(f"{name} {digest}\n" for name, digest in hashes.items())
    partial.replace(path)


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def main(arguments: Sequence[str] | None = None) -> int:
    """Change or list the keys of a file; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m serve.keys", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--file", type=Path, required=True)
    commands = parser.add_subparsers(dest="command", required=True)
    for command in ("add", "remove"):
        commands.add_parser(command).add_argument("name")
    commands.add_parser("list")
    options = parser.parse_args(arguments)
    try:
        hashes = read_keys(options.file) if options.file.exists() else {}
        if options.command == "list":
            print("\n".join(hashes) or "no keys")
        elif options.command == "add":
            if options.name in hashes or not _NAME.fullmatch(options.name):
                raise ValueError(
                    f"{options.name!r} is in use, or not made of up to 64 letters, digits, '.', '-' and '_'"
                )
            key = PREFIX + secrets.token_urlsafe(32)
            _write_keys(options.file, {**hashes, options.name: _hash(key)})
            print(key)
        else:
            if options.name not in hashes:
                raise ValueError(f"no key is named {options.name!r}")
            _write_keys(options.file, {name: digest for name, digest in hashes.items() if name != options.name})
    except (ValueError, OSError) as error:
        print(f"serve.keys: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
