import pytest

from guardrail.files import write_text


def test_a_file_is_the_old_one_or_the_whole_new_one(tmp_path, monkeypatch):
    path = tmp_path / "told.json"
    write_text(path, "straße")
    assert path.read_bytes() == "straße".encode()

    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="No space"):
        write_text(path, "other")
    assert path.read_text("utf-8") == "straße" and list(tmp_path.iterdir()) == [path]
