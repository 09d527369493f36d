"""Bearer keys: who may ask. A file holds a name and the SHA-256 of each key; the keys themselves are kept nowhere.

python -m serve.keys --file keys.txt add NAME      writes a new key's hash, prints the key once
                       [--policy POLICY]           that its requests are judged by unless they name another
                       [--tokens-per-minute N]     that the service reads for it
python -m serve.keys --file keys.txt remove NAME   takes effect without a restart
python -m serve.keys --file keys.txt list
"""

import argparse
import contextlib
import dataclasses
import hashlib
import hmac
import os
import re
import secrets
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

PREFIX = "rg-"
_NAME = re.compile(r"[\w.-]{1,64}")
_LINE = re.compile(
    rf"(?P<name>{_NAME.pattern})\s+(?P<sha256>[0-9a-f]{{64}})"
    rf"(\s+policy=(?P<policy>{_NAME.pattern}))?(\s+tokens-per-minute=(?P<tokens>[1-9][0-9]{{0,11}}))?"
)


@dataclasses.dataclass(frozen=True)
class Key:
    """A key, but for itself.

    Attributes:
        name: whose it is.
        sha256: its hash, hexadecimal.
        policy: that its requests are judged by unless they name another.
        tokens_per_minute: that the service reads for it; None: any number.
    """

    name: str
    sha256: str
    policy: str | None = None
    tokens_per_minute: int | None = None

    def line(self) -> str:
        """Return the key's line of a file."""
        more = {"policy": self.policy, "tokens-per-minute": self.tokens_per_minute}
        return " ".join(
            [self.name, self.sha256, *(f"{name}={value}" for name, value in more.items() if value is not None)]
        )


class Keys:
    """The keys of a file, read again when it changes.

    Args:
        path: of the file.
        unreadable_for_now: whether one that cannot be read is taken, too: it lets nobody in until it can.

    Raises:
        ValueError: the file cannot be read, or a line of it is no key's.
    """

    def __init__(self, path: Path, *, unreadable_for_now: bool = False) -> None:
        self.path = path
        self._changed: tuple[int, ...] | None = None
        self._keys: dict[str, Key] = {}
        with contextlib.suppress(*[ValueError] if unreadable_for_now else []):
            self._read()

    def find(self, key: str) -> Key | None:
        """Return which key this is, None if none; how long it takes tells nothing of the keys.

        A file that has become unreadable lets nobody in.
        """
        try:
            self._read()
        except ValueError:
            return None
        found = None
        asked = _hash(key)
        for known in self._keys.values():  # all of them, whichever it is
            if hmac.compare_digest(known.sha256, asked):
                found = known
        return found

    def _read(self) -> None:
        try:
            status = self.path.stat()
        except OSError as error:
            raise ValueError(f"cannot read the keys: {error}") from None
        changed = status.st_ino, status.st_ctime_ns, status.st_mtime_ns, status.st_size
        if changed != self._changed:
            self._keys, self._changed = read_keys(self.path), changed


def read_keys(path: Path) -> dict[str, Key]:
    """Return the keys of a file by name.

    Raises:
        ValueError: as `Keys`.
    """
    keys: dict[str, Key] = {}
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read the keys: {error}") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        match = _LINE.fullmatch(line.strip())
        if not match or match["name"] in keys:
            raise ValueError(f"{path}, line {number}: not a name of its own and a SHA-256; use python -m serve.keys")
        tokens = int(match["tokens"]) if match["tokens"] else None
        keys[match["name"]] = Key(match["name"], match["sha256"], match["policy"], tokens)
    return keys


def _write_keys(path: Path, keys: Iterable[Key]) -> None:
    partial = path.with_name(f".{path.name}.partial")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.writelines(key.line() + "\n" for key in keys)
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
    adding = commands.add_parser("add")
    for command in (adding, commands.add_parser("remove")):
        command.add_argument("name")
    adding.add_argument("--policy", help="that its requests are judged by unless they name another")
    adding.add_argument(
        "--tokens-per-minute",
        type=int,
        help="that the service reads for it, each replica an equal part; more is refused (429)",
    )
    commands.add_parser("list")
    options = parser.parse_args(arguments)
    try:
        keys = read_keys(options.file) if options.file.exists() else {}
        if options.command == "list":
            print("\n".join(key.line().replace(f" {key.sha256}", "") for key in keys.values()) or "no keys")
        elif options.command == "add":
            secret = PREFIX + secrets.token_urlsafe(32)
            key = Key(options.name, _hash(secret), options.policy, options.tokens_per_minute)
            if options.name in keys or not _LINE.fullmatch(key.line()):
                raise ValueError(
                    f"{options.name!r} is in use, or a name is not made of up to 64 letters, digits, '.', '-' and '_', "
                    "or the number of tokens not above 0"
                )
            _write_keys(options.file, [*keys.values(), key])
            print(secret)
        else:
            if options.name not in keys:
                raise ValueError(f"no key is named {options.name!r}")
            _write_keys(options.file, [key for name, key in keys.items() if name != options.name])
    except (ValueError, OSError) as error:
        print(f"serve.keys: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
