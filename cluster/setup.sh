#!/usr/bin/env bash
# Creates VENV and installs the lock and rayguard into it. Called by make before everything else, so the usual case, that
# nothing is to do, is a comparison of two lines. A stamp is written last: an install that was cut short is done again.
set -euo pipefail
cd "$(dirname "$0")/.."
VENV=${VENV:-.venv}
PYTHON=${PYTHON:-python3}
STAMP="$VENV/installed"

fail() { printf 'setup: %s\n' "$*" >&2; exit 1; }

wanted=$(cat requirements.lock pyproject.toml | sha256sum | cut -d' ' -f1)
[ "$(cat "$STAMP" 2>/dev/null)" = "$wanted" ] && exit 0

# Two makes at once: the second waits, and then finds the work done.
exec 9>".setup.lock"
flock 9
[ "$(cat "$STAMP" 2>/dev/null)" = "$wanted" ] && exit 0

command -v "$PYTHON" >/dev/null || fail "no $PYTHON found; install Python 3.11, or name one: make PYTHON=/path/to/python3.11"
"$PYTHON" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 12))' ||
  fail "$("$PYTHON" --version) cannot install the lock, which is for Python 3.11; name one: make PYTHON=python3.11"

rm -f "$STAMP"
# A folder without a working pip is what is left of a venv that was cut short.
"$VENV/bin/python" -m pip --version >/dev/null 2>&1 || { rm -rf "$VENV"; "$PYTHON" -m venv "$VENV"; } ||
  fail "$PYTHON cannot create a virtual environment; install its venv module (python3.11-venv on Debian and Ubuntu)"

log=$(mktemp)
trap 'rm -f "$log"' EXIT
# Returns what pip returned, not what the filter behind it did. Most of 4 GB is never imported: Python compiles what is.
install() {
  "$VENV/bin/python" -m pip install --disable-pip-version-check --no-deps --no-compile --progress-bar off "$@" 2>&1 | tee "$log" |
    { grep -vE '^(Looking|Requirement already|Collecting|  )' || true; }
  return "${PIPESTATUS[0]}"
}

echo "setup: installing $(grep -c '==' requirements.lock) packages into $VENV (about three minutes)"
# torch's CPU build has an index of its own; a mirror may have it as well, so that one is asked first.
install -r requirements.lock ||
  { grep -q 'torch==' "$log" && install -r requirements.lock --extra-index-url https://download.pytorch.org/whl/cpu; } || {
    grep -qiE 'connection|resolution|network|timed out|retries|proxy' "$log" &&
      fail "no package index could be reached (see above); check the network or PIP_INDEX_URL, then run the same command again"
    fail "the install failed (see above); the same command goes on where it stopped"
  }
install --no-build-isolation -e . || fail "rayguard itself could not be installed (see above)"
printf '%s\n' "$wanted" > "$STAMP"
echo "setup: done"
