"""Bearer keys: made, known, revoked without a restart, kept as hashes alone."""

from pathlib import Path

import pytest

from serve.keys import Keys, main


def added(path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["--file", str(path), "add", name]) == 0
    return capsys.readouterr().out.strip()


def name(keys: Keys, key: str) -> str | None:
    found = keys.find(key)
    return found.name if found else None


def test_a_key_is_known_until_it_is_removed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "keys.txt"
    first, second = added(path, "proxy", capsys), added(path, "tests", capsys)
    keys = Keys(path)
    assert [name(keys, key) for key in (first, second, first + "x", "", "\ud800")] == ["proxy", "tests"] + [None] * 3
    assert first not in path.read_text() and path.stat().st_mode & 0o077 == 0
    assert main(["--file", str(path), "remove", "proxy"]) == 0
    assert [name(keys, key) for key in (first, second)] == [None, "tests"]
    assert main(["--file", str(path), "list"]) == 0
    assert capsys.readouterr().out == "tests\n"


def test_a_file_that_cannot_be_read_any_more_lets_nobody_in(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "keys.txt"
    key = added(path, "proxy", capsys)
    keys = Keys(path)
    good = path.read_text()
    path.write_text("proxy not-a-hash\n")
    assert keys.find(key) is None
    path.unlink()
    assert keys.find(key) is None
    path.write_text(good)
    assert name(keys, key) == "proxy"


def test_a_mounted_secret_that_is_exchanged_is_followed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for version in ("1", "2"):
        (tmp_path / version).mkdir()
    old, new = (added(tmp_path / version / "keys.txt", "proxy", capsys) for version in ("1", "2"))
    (tmp_path / "data").symlink_to("1")
    (tmp_path / "keys.txt").symlink_to("data/keys.txt")
    keys = Keys(tmp_path / "keys.txt")
    assert name(keys, old) == "proxy"
    (tmp_path / "next").symlink_to("2")
    (tmp_path / "next").replace(tmp_path / "data")
    assert (name(keys, old), name(keys, new)) == (None, "proxy")


@pytest.mark.parametrize("content", ["proxy", "proxy 12ab", f"a {'0' * 64}\na {'1' * 64}", "ä " + "0" * 64])
def test_a_broken_file_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "keys.txt"
    path.write_text(content)
    with pytest.raises(ValueError, match="line|cannot read the keys"):
        Keys(path)


@pytest.mark.parametrize(
    "command",
    [
        ["add", "a b"],
        ["add", "tests"],
        ["remove", "nobody"],
        ["add", "a", "--tokens-per-minute", "0"],
        ["add", "a", "--policy", "x y"],
    ],
)
def test_what_cannot_be_done_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str], command: list[str]) -> None:
    path = tmp_path / "keys.txt"
    added(path, "tests", capsys)
    before = path.read_text()
    assert main(["--file", str(path), *command]) == 2
    assert command[1] in capsys.readouterr().err and path.read_text() == before


def test_a_key_has_its_policy_and_its_limit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "keys.txt"
    assert main(["--file", str(path), "add", "app", "--policy", "strict", "--tokens-per-minute", "500"]) == 0
    found = Keys(path).find(capsys.readouterr().out.strip())
    assert found and (found.name, found.policy, found.tokens_per_minute) == ("app", "strict", 500)
    assert main(["--file", str(path), "list"]) == 0
    assert capsys.readouterr().out == "app policy=strict tokens-per-minute=500\n"
