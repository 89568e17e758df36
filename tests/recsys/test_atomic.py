from pathlib import Path

import pytest

from recsys.atomic import whole_file, write_json, write_text


def test_a_write_that_fails_half_way_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    write_text(tmp_path / "page.html", "é")

    def interrupted() -> None:
        with whole_file(tmp_path / "page.html") as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert (tmp_path / "page.html").read_bytes() == "é".encode()
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_readers_see_nothing_until_the_end(tmp_path: Path) -> None:
    with whole_file(tmp_path / "a" / "b.json") as file:
        file.write(b"{}")
        assert not (tmp_path / "a" / "b.json").exists()
        assert not [path for path in (tmp_path / "a").glob("*.json")]
    assert (tmp_path / "a" / "b.json").read_text() == "{}"


def test_what_json_cannot_hold_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    write_json(tmp_path / "a/figures.json", {"x": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a/figures.json", {"x": tmp_path})
    assert (tmp_path / "a/figures.json").read_text() == '{\n  "x": 1\n}\n'
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["figures.json"]
