"""`pip install rayguard[serve]` is enough: serving needs nothing of training or of attacking."""

import subprocess
import sys
from pathlib import Path

from tests.tiny_guard import tiny_guard

ROOT = Path(__file__).parents[2]

# Finders that cannot find some packages are what a machine without them has. (One that raised would also break the
# checks "is it installed?" of transformers.)
_SCRIPT = """
import sys

ABSENT = ("vllm", "sklearn", "scipy", "datasets", "pandas", "ray.data", "ray.rllib", "ray.train")

class Hiding:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        is_absent = any(name == absent or name.startswith(absent + ".") for absent in ABSENT)
        return None if is_absent else self.finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = [Hiding(finder) for finder in sys.meta_path]
for absent in ABSENT:
    try:
        __import__(absent)
    except ImportError:
        continue
    raise SystemExit(f"{absent} is not hidden")

import serve.__main__
from pathlib import Path
from guardrail.promotion import load_checked
from serve.app import build
from serve.config import ModeratorArgs
from serve.moderation import moderation_response

directory = Path(sys.argv[1])
build(ModeratorArgs(guard=directory))
guard = load_checked(directory)
verdicts = guard.classify(["hello", "bye"])
answer = moderation_response(verdicts, [False, False], guard.card.thresholds, guard.card.version)
print(len(answer.results))
"""


def test_serving_needs_nothing_of_training(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT, str(tiny_guard(tmp_path / "guard"))],
        cwd=ROOT,  # in front of the path, as for `python -m serve`
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout.splitlines()[-1:]) == (0, ["2"]), done.stderr
