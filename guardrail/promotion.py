"""Which guard is in use: a link that names its directory. `make serve` follows it, without losing a request.

python -m guardrail.promotion LINK GUARD    tries the guard, has the link name it, and says how to go back
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from guardrail.backends import BackendName
from guardrail.guard import Guard

_SMOKE_TEXT = "How do I kill a Python process?"


def load_checked(directory: Path, backend: BackendName = "torch") -> Guard:
    """Load a guard and have it judge a sentence and a text of more than one window.

    Raises:
        ValueError: it is no guard directory, is damaged, cannot read its window, or its scores are not numbers.
        OSError: its files cannot be read.
    """
    guard = Guard.from_pretrained(directory, backend=backend)
    # The second is longer than a window: positions that the model does not have show there first.
    try:
        guard.classify([_SMOKE_TEXT, "a " * (guard.card.window + 1)])
    except FloatingPointError as error:
        raise ValueError(f"{directory}: {error}") from error
    except (IndexError, RuntimeError) as error:
        raise ValueError(
            f"the guard in {directory} cannot read a window of {guard.card.window} tokens ({error})"
        ) from error
    return guard


def promote(link: Path, directory: Path) -> None:
    """Have a link name a guard's directory: at every moment it names the one before or this one.

    Raises:
        FileExistsError: something else than a link stands there.
        OSError: it cannot be written.
    """
    if link.exists() and not link.is_symlink():
        raise FileExistsError(f"{link} is no link, and would be lost; name another, and serve that")
    partial = link.with_name(f".{link.name}")
    partial.unlink(missing_ok=True)
    partial.symlink_to(os.path.relpath(directory.resolve(), link.parent.resolve()))
    partial.replace(link)


def main(arguments: Sequence[str] | None = None) -> int:
    """Promote a guard by hand; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m guardrail.promotion", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("link", type=Path, help="as RUN/guard")
    parser.add_argument("guard", type=Path, help="guard directory, as RUN/rounds/02/guard")
    options = parser.parse_args(arguments)
    try:
        before = options.link.resolve() if options.link.is_symlink() else None
        card = load_checked(options.guard).card
        promote(options.link, options.guard)
    except (ValueError, OSError) as error:
        print(f"guardrail.promotion: {error}", file=sys.stderr)
        return 2
    print(f"{options.link} names guard {card.version} (digest {card.digest}).")
    if before:
        print(f"Go back with: python -m guardrail.promotion {options.link} {before}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
