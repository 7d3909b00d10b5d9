"""Files are read if they are files, and written whole, over nothing that is somebody's."""

import os
import socket
from pathlib import Path

import pytest

from llava.mm_utils import load_image
from llava.utils.files import (
    UNSEALED,
    is_sealed,
    read_bytes,
    read_json,
    read_jsonl,
    require_apart,
    require_distinct,
    require_own,
    seal,
    whole_file,
    write_text,
)


@pytest.fixture(params=["a folder", "a pipe", "a device", "a socket"])
def special(request, tmp_path, monkeypatch):
    """(its path, what it is called)"""
    monkeypatch.chdir(tmp_path)  # a socket's name has to be short
    path = Path("special.json")
    if request.param == "a folder":
        path.mkdir()
    elif request.param == "a pipe":
        os.mkfifo(path)
    elif request.param == "a device":
        path = Path("/dev/zero")
    else:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(str(path))
    return path, request.param


@pytest.mark.parametrize("read", [read_bytes, read_json, read_jsonl, load_image])
def test_what_is_no_file_is_refused_by_name(special, read):
    path, kind = special
    with pytest.raises(ValueError, match=f"^{path}: no regular file but {kind}. Name a file.$"):
        read(path)


def test_what_is_no_file_is_not_written_over(special):
    path, kind = special
    with pytest.raises(ValueError, match=f"^{path.absolute()}: no regular file but {kind}"):
        write_text(path, "new")
    assert not path.is_file()


def test_a_missing_file_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match=r"nope: cannot be read \(No such file or directory\)"):
        read_bytes(tmp_path / "nope")


def test_a_link_stays_one(tmp_path):
    file, link, nowhere = (tmp_path / name for name in ("file", "link", "nowhere"))
    file.write_text("old")
    link.symlink_to(file)
    nowhere.symlink_to(tmp_path / "made")
    write_text(link, "new")
    write_text(nowhere, "new")
    assert (file.read_text(), (tmp_path / "made").read_text()) == ("new", "new")
    assert link.is_symlink()
    assert nowhere.is_symlink()


def test_a_failed_write_leaves_what_was_there(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(TypeError), whole_file(path) as file:
        file.writelines([b"half", None])
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_seal_is_known_until_its_text_is_changed():
    content = seal(f"a text, {UNSEALED}, and more")
    assert is_sealed(content)
    assert not is_sealed(content.replace(b"more", b"less"))
    assert not is_sealed(content + b"\n")
    assert not is_sealed(f"a text, {UNSEALED}".encode())
    assert not is_sealed(b"")


def test_what_is_read_is_not_written_over_by_any_name(tmp_path):
    path, link, hard = (tmp_path / name for name in ("in.json", "link.json", "hard.json"))
    path.write_text("{}")
    link.symlink_to(path)
    os.link(path, hard)
    for output in (path, link, hard, tmp_path / "." / "in.json"):
        with pytest.raises(ValueError, match=r"would be written over, and .*in\.json is read"):
            require_apart([tmp_path / "new.json", output], [tmp_path / "missing", path])
    require_apart([tmp_path / "new.json"], [path])


def test_own_files_are_replaced_and_others_are_not(tmp_path):
    outputs = [tmp_path / "report.md", tmp_path / "report.csv"]
    require_own(outputs, "tokens,score")
    outputs[0].write_text("# Mine")
    with pytest.raises(ValueError, match=r"report\.md: already there, and not what this command has written"):
        require_own(outputs, "tokens,score")
    outputs[1].write_text("tokens,score\n64,1.0\n")
    require_own(outputs, "tokens,score")


def test_two_outputs_need_two_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    require_distinct({"--a": "x", "--b": "y", "--c": None, "--d": None})
    (tmp_path / "link").symlink_to(tmp_path / "x")
    for same in ("x", tmp_path / "x", "sub/../x", "link"):
        with pytest.raises(ValueError, match=rf"^--a and --b both name {same}: give each a file of its own\.$"):
            require_distinct({"--a": "x", "--b": same})
