"""A chat in a terminal: what it answers, what it says of errors, what it saves, and how it ends."""

import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch
from PIL import Image

from llava import mm_utils
from llava.inference.embedded import EMBEDDED_CHECKPOINT
from llava.model import sequences
from llava.serve import loading, terminal
from llava.serve.cli import load_image, main
from visionzip_patch import VisionZipConfig

ROOT = Path(__file__).parents[3]
SIGN = ROOT / "playground" / terminal.EMBEDDED_PICTURE
WORD, COUNT = "what word is on the green sign?", "how many signs are there?"
COST = re.compile(r"\[(\d+) visual tokens \((.*?)\); (\d+) tokens computed, (\d+) reused; first words after \d+ ms.*\]")


@pytest.fixture(scope="module")
def loaded():
    from llava.model.builder import load_pretrained_model

    return load_pretrained_model(str(ROOT / "playground" / EMBEDDED_CHECKPOINT), device="cpu")[:3]


@pytest.fixture
def chat(loaded, monkeypatch, capsys):
    """Runs the command on lines: `chat("what?", "/full")` -> exit status, stdout, stderr. The model is loaded once."""

    def load(checkpoint, *, visionzip, **options):
        terminal.set_budget(loaded[1], visionzip)
        return loaded

    def run(*lines, options=(), is_person=False):
        stdin = io.TextIOWrapper(io.BytesIO("\n".join(lines).encode(errors="surrogateescape")))
        monkeypatch.setattr(stdin, "isatty", lambda: is_person, raising=False)
        monkeypatch.setattr("sys.stdin", stdin)
        return main(list(map(str, options))), *capsys.readouterr()

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(loading, "load", load)
    return run


@pytest.fixture
def stops(monkeypatch):
    """From now on Ctrl-C is pressed when so many tokens were chosen: `stops(after=2)`."""

    def make(after: int):
        choose, left = sequences.choose, [after]

        def choose_or_stop(*args):
            left[0] -= 1
            if left[0] == -1:
                raise KeyboardInterrupt
            return choose(*args)

        monkeypatch.setattr(sequences, "choose", choose_or_stop)

    return make


def costs(out: str) -> list[tuple]:
    """(visual tokens, budget, computed, reused) of each turn."""
    return [(int(n), budget, int(computed), int(reused)) for n, budget, computed, reused in COST.findall(out)]


def test_turns_of_the_embedded_model(chat):
    status, out, err = chat(WORD, COUNT)
    assert (status, err) == (0, "")
    assert f"> {WORD}\nsale\n[64 visual" in out
    assert f"> {COUNT}\n2" in out
    assert "'Answer the question using a single word or phrase.' (--suffix '' leaves it out)" in out
    assert "sign000000000.png (112×112)" in out
    (_, _, first, _), (_, _, second, reused) = costs(out)
    assert first > 64 > second
    assert first - 4 < reused <= first


def test_another_budget_in_the_middle(chat):
    status, out, _ = chat(WORD, "/budget 6 1", COUNT, "/new", WORD, "/full", COUNT, "/budget 5", COUNT)
    assert status == 0
    assert out.count("\nsale\n") == 2
    assert out.count("\n2") == 3
    assert "6+1 tokens per crop. The pictures so far are encoded anew; what was said stays" in out
    assert [(n, budget) for n, budget, *_ in costs(out)] == [
        *((64, "full"), (7, "6+1"), (7, "6+1"), (64, "full")),
        (5, "5-per-image"),
    ]
    (_, _, first, _), (_, _, second, reused), (_, _, anew, _), *_ = costs(out)
    assert second + reused > first - 57 + 20  # what was said stays
    assert anew < second  # and is forgotten


def test_budget_alone_says_what_holds_and_how_to_change_it(chat):
    status, out, err = chat("/budget", "/budget 6 1", "/budget")
    assert (status, err) == (0, "")
    first, last = (line for line in out.splitlines() if line.startswith("Now: "))
    assert first.startswith("Now: all tokens. Write /budget D C to keep D tokens of each crop and merge the rest")
    assert last.startswith("Now: 6+1 tokens per crop. Write /budget D C")


def test_another_budget_merges_as_the_one_before(chat, loaded):
    chat("/budget 5 2", options=["--dominant", 6, "--contextual", 1, "--merge", "mean"])
    assert loaded[1].get_vision_tower().reducer.config == VisionZipConfig(5, 2, merge="mean")


def test_another_budget_chooses_as_the_one_before(chat, loaded):
    asked = ["--dominant", 6, "--contextual", 1, "--selector", "random", "--selector-seed", 4]
    _, out, _ = chat("/budget 20", options=asked)
    expected = VisionZipConfig(tokens_per_image=20, selector="random", seed=4)
    assert loaded[1].get_vision_tower().reducer.config == expected
    assert "From now on: 20 tokens per image, selector random." in out


def test_a_budget_to_begin_with(chat):
    _, out, _ = chat(WORD, options=["--dominant", 6, "--contextual", 1])
    assert [(n, budget) for n, budget, *_ in costs(out)] == [(7, "6+1")]
    assert "6+1 tokens per crop" in out.splitlines()[0]


def test_pictures_come_with_the_next_question(chat, tmp_path):
    other = tmp_path / "with a blank.png"
    Image.open(SIGN).rotate(180).save(other)
    status, out, _ = chat(WORD, f"/image {other}", f"/image '{other}'", COUNT, "/new", COUNT, "/clear", COUNT)
    assert status == 0
    assert [n for n, *_ in costs(out)] == [64, 192, 192, 0]
    _, out, _ = chat(COUNT, options=["--image-file", SIGN, other, "--image-file", other])
    assert [n for n, *_ in costs(out)] == [192]


def test_a_second_picture_gives_a_hint_where_the_model_knows_one(chat, monkeypatch):
    hint = "llava-signs was trained with one picture per conversation"
    _, out, _ = chat(f"/image {SIGN}", "/clear", f"/image {SIGN}")
    assert out.count(hint) == 1
    assert out.index(hint) < out.index("> /clear")
    assert chat("/help", options=["--image-file", SIGN, SIGN])[1].count(hint) == 1
    assert hint not in chat("/help", "/budget 6 1", options=["--image-file", SIGN])[1]
    monkeypatch.setattr(loading, "playground", lambda: Path("elsewhere"))  # the same model as anybody's
    options = ["--model-path", ROOT / "playground" / EMBEDDED_CHECKPOINT, "--image-file", SIGN, SIGN]
    assert hint not in chat("/help", options=options)[1]


def test_undo_takes_back_a_question_and_its_pictures(chat, tmp_path):
    _, out, _ = chat(WORD, "/undo", f"/save {tmp_path / 'a.md'}", COUNT, f"/save {tmp_path / 'a.json'}")
    assert f"Taken back: {WORD}" in out
    (turn,) = json.loads((tmp_path / "a.json").read_text())["turns"]
    assert turn["question"] == COUNT
    assert len(turn["pictures"]) == 1
    assert not (tmp_path / "a.md").exists()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("/image nope.png", r"nope.png: cannot be read \(No such file"),
        ("/image pyproject.toml", "pyproject.toml: not an image of a known format"),
        ("/image http://127.0.0.1:9/x.png", r"http://127.0.0.1:9/x.png: cannot be fetched \(.*refused"),
        ("/budget 60 10", "asks for 70 tokens, but the vision tower gives 65"),
        ("/budget 0 1", "dominant=0"),
        ("/budget many few", "/budget many few is no budget. Write /budget D C to keep D tokens of each crop"),
        ("/budget 1 2 3", "/budget 1 2 3 is no budget. Write /budget D C"),
        ("/budget ²", "/budget ² is no budget"),
        ("/save", "'/save' is no command"),
        ("/save talk.txt", "ends in .md or .json"),
        ("/save nowhere/talk.md", "cannot be written"),
        ("/undo 3", "is no command"),
        ("what is <image>?", "stands for an image"),
    ],
)
def test_errors_are_said_and_the_chat_goes_on(chat, line, said):
    status, out, err = chat(WORD, line, COUNT)
    assert re.search(said, err)
    assert len(err.splitlines()) == 1
    assert "\n2" in out
    assert costs(out)[1][0] == 64  # nothing has changed
    assert status == 1
    assert chat(line, WORD, is_person=True)[0] == 0  # who has seen it


def test_out_of_memory_is_said(chat, monkeypatch):
    def fail(*_):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(sequences, "choose", fail)
    status, out, err = chat(WORD, "/full")
    assert status == 1
    assert "From now on: all tokens" in out
    assert "Out of memory. Ask with fewer tokens" in err


@pytest.mark.parametrize("suffix", [".md", ".json"])
def test_what_is_saved(chat, tmp_path, suffix):
    path = tmp_path / f"talk{suffix}"
    status, *_ = chat(WORD, "/budget 6 1", f"/save {path}", COUNT, f"/save {path}")
    assert status == 0
    assert list(tmp_path.iterdir()) == [path]
    if suffix == ".json":
        content = json.loads(path.read_text())
        assert content["suffix"] == "Answer the question using a single word or phrase."
        first, second = content["turns"]
        assert (first["question"], first["answer"], second["answer"][:1]) == (WORD, "sale", "2")
        assert (first["visual_tokens"], second["visual_tokens"], second["budget"]) == (64, 7, "6+1")
        assert first["pictures"] == [f"playground/{terminal.EMBEDDED_PICTURE}"]
        assert second["pictures"] == []
        assert first["first_ms"] > 0 < first["ms_per_token"]
    else:
        text = path.read_text()
        assert f"**You:** {WORD}\n\n**llava-signs:** sale\n\n*64 visual tokens (full); " in text
        link = re.search(r"!\[picture\]\(<(.*)>\)", text)[1]
        assert (tmp_path / link).samefile(SIGN)


@pytest.mark.parametrize("name", ["README.md", "data.json"])
@pytest.mark.parametrize("content", [b"", b"mine", b'{"turns": [], "saved": "sha256 %s"}' % (b"0" * 64), b"\xff\x00"])
def test_saving_replaces_nothing_of_others(chat, tmp_path, name, content):
    path, link = tmp_path / name, tmp_path / f"link{Path(name).suffix}"
    path.write_bytes(content)
    link.symlink_to(path)
    status, _, err = chat(WORD, f"/save {path}", f"/save {link}")
    assert status == 1
    assert err.count("is there, and is no conversation saved here, or was changed since") == 2
    assert path.read_bytes() == content
    assert sorted(tmp_path.iterdir()) == sorted([path, link])
    assert link.is_symlink()


@pytest.mark.parametrize("suffix", [".md", ".json"])
def test_a_saved_conversation_that_was_changed_is_somebodys(chat, tmp_path, suffix):
    path = tmp_path / f"talk{suffix}"
    chat(f"what of sha256 {'ab' * 32} and sha256 {'0' * 64}?", f"/save {path}")
    assert chat(WORD, f"/save {path}")[0] == 0  # by another chat, too
    path.write_bytes(path.read_bytes() + b"\n")
    assert "was changed since" in chat(WORD, f"/save {path}")[2]


@pytest.mark.parametrize(("make", "kind"), [(Path.mkdir, "a folder"), (os.mkfifo, "a pipe")])
def test_saving_replaces_files_alone(chat, tmp_path, make, kind):
    path = tmp_path / "talk.md"
    make(path)
    status, _, err = chat(WORD, f"/save {path}")
    assert (status, err) == (1, f"{path}: no regular file but {kind}. Name a file.\n")


def test_ctrl_c_stops_an_answer_but_not_the_chat(chat, stops, tmp_path):
    stops(after=2)
    status, out, _ = chat(WORD, f"/save {tmp_path / 'a.json'}", COUNT, is_person=True, options=["--suffix", ""])
    assert status == 0
    assert out.count("; stopped]") == 1
    assert len(costs(out)) == 2
    (turn,) = json.loads((tmp_path / "a.json").read_text())["turns"]
    assert turn["stopped"]
    assert turn["answer"] in out


def test_ctrl_c_before_an_answer_begins_changes_nothing(chat, stops):
    stops(after=0)
    status, out, _ = chat(WORD, "/undo", WORD, is_person=True)
    assert status == 0
    assert "\nStopped: nothing has changed." in out
    assert "Taken back" not in out
    assert [n for n, *_ in costs(out)] == [64]  # the picture was still waiting


def test_ctrl_c_ends_what_reads_from_a_pipe(chat, stops):
    stops(after=0)
    status, out, err = chat(WORD, COUNT)
    assert (status, err) == (130, "Stopped.\n")
    assert COUNT not in out


@pytest.mark.parametrize("end", [KeyboardInterrupt, EOFError])
def test_a_person_ends_it_at_the_prompt(chat, monkeypatch, end):
    def press(prompt):
        raise end

    monkeypatch.setattr("builtins.input", press)
    assert chat(is_person=True)[0] == 0


def test_quit_help_and_empty_lines(chat):
    status, out, _ = chat("", "  ", "/help", "/quit", WORD)
    assert status == 0
    assert terminal.HELP in out
    assert costs(out) == []


def test_bytes_that_are_no_text(chat):
    status, out, _ = chat("what \udcff?")
    assert status == 0
    assert "> what \ufffd?\n" in out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--image-file", "nope.png"], "nope.png: cannot be read"),
        (["--dominant", "5"], "--dominant and --contextual go together"),
        (["--dominant", "80", "--contextual", "1"], "asks for 81 tokens, but the vision tower gives 65"),
        (["--conv-mode", "latin"], "conv_mode='latin' is unknown"),
        (["--model-path", "nowhere/at-all"], "nowhere/at-all"),
    ],
)
def test_bad_requests(chat, options, said):
    status, out, err = chat(WORD, options=options)
    assert status == 2
    assert said in err
    assert "sale" not in out


def test_another_template_and_no_suffix(chat, tmp_path):
    options = ["--suffix", "", "--conv-mode", "v0", "--max-new-tokens", 2, "--temperature", 0.5, "--image-file", SIGN]
    status, out, _ = chat("what?", f"/save {tmp_path / 'a.json'}", options=options)
    assert status == 0
    assert "Under every question" not in out
    content = json.loads((tmp_path / "a.json").read_text())
    assert (content["suffix"], content["conv_mode"], content["temperature"]) == ("", "v0", 0.5)


def test_another_model_gets_no_suffix_and_no_picture(chat, golden):
    options = ["--model-path", golden / "models/llava-v1.5-tiny"]
    status, out, _ = chat("/quit", options=options)  # the fixture's model answers
    assert status == 0
    assert out.startswith("llava-v1.5-tiny on CPU")
    assert "Under every question" not in out
    assert "without a new picture" in out


def test_a_photo_is_shown_upright(tmp_path):
    held, exif = Image.new("RGB", (30, 20)), Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    held.save(tmp_path / "photo.jpg", exif=exif)
    assert terminal.load_picture(str(tmp_path / "photo.jpg")).image.size == (20, 30)
    held.save(tmp_path / "damaged.jpg", exif=b"Exif\0\0garbage")
    assert terminal.load_picture(str(tmp_path / "damaged.jpg")).image.size == (30, 20)


class Server(BaseHTTPRequestHandler):
    """Serves the sign, pages that are none, and errors."""

    def do_GET(self):
        self.send_response(404 if "missing" in self.path else 200)
        self.end_headers()
        self.wfile.write(SIGN.read_bytes() if "sign" in self.path else b"x" * 100)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def url():
    server = HTTPServer(("127.0.0.1", 0), Server)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_pictures_from_the_web(chat, url, monkeypatch, tmp_path):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    options = ["--image-file", f"{url}/sign.png"]
    status, out, _ = chat(WORD, f"/image {url}/sign.png?2", COUNT, f"/save {tmp_path / 'a.md'}", options=options)
    assert status == 0
    assert "\nsale\n" in out
    assert [n for n, *_ in costs(out)] == [64, 128]
    assert f"![picture](<{url}/sign.png>)" in (tmp_path / "a.md").read_text()
    monkeypatch.setattr(mm_utils, "MOST_BYTES", 99)
    for name, said in (("missing", "cannot be fetched (Not Found)"), ("page", "more than 0 MiB")):
        assert said in chat(f"/image {url}/{name}")[2]
    monkeypatch.setattr(mm_utils, "MOST_BYTES", 100)
    assert f"{url}/page: not an image of a known format (100 bytes)" in chat(f"/image {url}/page")[2]


def test_questions_of_a_notebook(chat, monkeypatch, capsys):
    """A stream that is no file of the system stands in for stdin."""
    assert chat()[0] == 0  # sets what is loaded
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{WORD}\n"))
    assert main([]) == 0
    assert "\nsale\n" in capsys.readouterr().out


def test_an_image_as_upstreams_programs_open_it(url, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert load_image(f"{url}/sign.png").mode == load_image(str(SIGN)).mode == "RGB"
    with pytest.raises(ValueError, match=r"none\.png"):
        load_image("none.png")


@pytest.mark.slow
@pytest.mark.usefixtures("interruptible")
def test_in_a_terminal(golden):
    here, there = pty.openpty()
    command = [sys.executable, "-m", "llava.serve.cli", "--model-path", str(golden / "models/llava-v1.5-tiny")]
    environment = {**os.environ, "TERM": "xterm"}
    with subprocess.Popen(command, cwd=ROOT, stdin=there, stdout=there, stderr=there, env=environment) as process:
        os.close(there)
        read_until(here, b"> ")
        os.write(here, b"hello\n")
        read_until(here, b"hello\r\n")
        os.read(here, 1)  # of the answer
        process.send_signal(signal.SIGINT)
        assert b"stopped]" in read_until(here, b"> ")
        os.write(here, b"/full\n")
        assert b"From now on: all tokens" in read_until(here, b"> ")
        os.write(here, b"\x04")
        assert process.wait() == 0
    os.close(here)


def read_until(terminal: int, end: bytes) -> bytes:
    content = b""
    while end not in content:
        content += os.read(terminal, 1024)
    return content


@pytest.mark.slow
def test_from_a_pipe():
    command = [sys.executable, "-m", "llava.serve.cli"]
    lines = f"{WORD}\n/image nope.png\n{COUNT}\n".encode()
    done = subprocess.run(command, cwd=ROOT, input=lines, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    assert done.returncode == 1
    assert re.search(r"sale\n.*nope.png: cannot be read.*\n2", done.stdout.decode(), re.DOTALL)  # in this order
