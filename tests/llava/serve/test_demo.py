"""The web demo without a browser: what it draws, what it refuses, and that its page can be built."""

import asyncio
import json
import re
import socket
import urllib.error
import urllib.request
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from llava.model.builder import load_pretrained_model
from llava.serve import demo, markup, samples, web
from llava.serve.comparison import Answer, ComparisonServer, Turn
from llava.serve.handlers import handlers
from llava.serve.timing import AnswerCost
from visionzip_patch import VisionZipConfig

COST = AnswerCost(visual_tokens=64, computed=121, reused=0, first_ms=41.26, ms_per_token=3.0)
ANSWER = Answer("a <b>cat</b> & more", COST, cache_bytes=1536, peak_bytes=None)


class Words(HTMLParser):
    """The text of some HTML, which must be well-formed."""

    def __init__(self, source: str):
        super().__init__()
        self.words, self.opened = [], []
        self.feed(source)
        assert self.opened == []

    def handle_starttag(self, tag, attrs):
        self.opened.append(tag)

    def handle_endtag(self, tag):
        assert self.opened.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture(scope="module")
def server(golden):
    loaded = load_pretrained_model(golden / "models/llava-v1.5-tiny", device="cpu")[:3]
    return ComparisonServer(*loaded, budget=VisionZipConfig(dominant=20, contextual=3), visitors=2)


def test_a_turn_in_the_making_and_whole():
    assert Words(markup.talk([])).words == [markup.HINT]
    waiting = Words(markup.talk([Turn("is 1 < 2?", False, ANSWER)])).words
    assert waiting[:4] == ["is 1 < 2?", "All tokens", "64 visual tokens", "a <b>cat</b> & more"]
    assert waiting[-2:] == ["VisionZip", "…"]
    cheap = COST._replace(visual_tokens=1, computed=60, ms_per_token=None)
    source = markup.talk([Turn("?", True, ANSWER, ANSWER._replace(cost=cheap, peak_bytes=5 * 2**30))])
    words = Words(source).words
    assert words[words.index("Picked by hand") + 1] == "1 visual token"
    assert [words[words.index(name) + 1] for name in ("first words after", "then, per token", "tokens computed")] == [
        *("41.3 ms", "3 ms", "121")
    ]
    assert words.count("then, per token") == 1  # nothing followed on the other side
    assert words.count("GPU memory, peak") == 1
    shares = re.findall(r"--share:([\d.]+)", source)
    assert shares == ["1.000"] * 4 + ["1.000", "0.496", "1.000", "1.000"]


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (2**20, "1 MiB"), (28 * 2**30, "28 GiB")]
)
def test_sizes(count, text):
    assert markup.size(count) == text


def test_counts(server, golden):
    comparison = server.enter("a")
    assert Words(markup.count(comparison)).words == ["No picture yet."]
    comparison.show(Image.open(next((golden / "images").glob("*.png"))))
    assert "".join(Words(markup.count(comparison)).words[:3]) == "23 of 576 tokensCLS + 19 patches + 3 merged"
    comparison.clear()
    comparison.set_budget(20, 0)
    comparison.pick(1, 1)
    assert "".join(Words(markup.count(comparison)).words[:3]) == "2 of 576 tokensCLS + 1 patch by hand"
    assert Words(markup.refusal("3 < 4")).words == ["3 < 4"]
    assert "All crops keep equally many" not in markup.count(comparison)
    tiled = SimpleNamespace(crops=(1, 2), dominant=6, contextual=2, tokens=10, patches=1152, has_cls=True)
    words = "".join(Words(markup.count(SimpleNamespace(view=tiled, manual=None))).words)
    assert words.startswith("10 tokens for 1,152 patches2 CLS + 6 patches + 2 mergedClick")
    assert "All crops keep equally many" in words


def test_the_page_can_be_built(server, tmp_path):
    pytest.importorskip("gradio", reason="gradio is not installed: the demo extra has it")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    page = web.build(server, markup.heading("a <model>", "CPU", "Be short."), samples.list_samples(str(tmp_path)))
    config = page.get_config_file()
    assert not any(entry["api_visibility"] == "public" for entry in config["dependencies"] if entry["backend_fn"])
    assert not page.analytics_enabled
    sliders = [part["props"] for part in config["components"] if part["type"] == "slider"]
    assert [(slider["minimum"], slider["maximum"]) for slider in sliders] == [(1, 577), (0, 576)]


@pytest.fixture
def visitor(server, golden, monkeypatch):
    """A comparison with a picture, what is done when its page asks, and that page's request."""
    gradio = pytest.importorskip("gradio", reason="gradio is not installed: the demo extra has it")
    comparison = server.enter("a")
    comparison.show(Image.open(next((golden / "images").glob("*.png"))))
    said = []
    monkeypatch.setattr(gradio, "Warning", said.append)
    return comparison, handlers(server, []), gradio.Request(session_hash="a"), said


def test_a_budget_that_is_refused_puts_the_sliders_back(visitor):
    comparison, do, request, _ = visitor
    _, _, _, *sliders = do.set_budget(30, 2, "Tokens", request)
    assert not any(isinstance(slider, int) for slider in sliders)  # they may be on their way further
    _, count, _, *sliders = do.set_budget(600, 2, "Tokens", request)
    assert "asks for 602 tokens" in count
    assert "<b>32</b>" in count
    assert sliders == [30, 2] == [comparison.dominant, comparison.contextual]


def test_what_fails_is_said_and_logged(visitor, monkeypatch, caplog):
    comparison, do, request, said = visitor
    for error, reason in ((torch.OutOfMemoryError(), "Out of memory"), (KeyError("x"), "This failed")):
        with monkeypatch.context() as patch:
            patch.setattr(comparison, "view_by", fail_with(error))
            assert reason in do.set_budget(30, 3, "Tokens", request)[1]
        with monkeypatch.context() as patch:
            patch.setattr(comparison, "answers", fail_with(error))
            (last,) = do.ask("What?", request)
        assert reason in said.pop()
        assert last[2].interactive is False  # Stop
        assert comparison.turns == []
        assert not comparison.is_busy
    assert caplog.text.count("KeyError") == 2


def test_an_answer_that_fails_half_way_leaves_nothing(visitor, monkeypatch):
    comparison, do, request, said = visitor
    steps = do.ask("What?", request)
    _, box, stop = next(steps)
    assert (box, stop.interactive) == ("", True)
    monkeypatch.setattr(markup, "talk", lambda turns: len(turns))
    monkeypatch.setattr(comparison.sessions[0], "embed", fail_with(KeyError("x")))
    monkeypatch.setattr(comparison.sessions[1], "embed", fail_with(KeyError("x")))
    talk, box, stop = list(steps)[-1]
    assert (talk, stop.interactive) == (0, False)
    assert not isinstance(box, str)  # what is typed meanwhile stays
    assert len(said) == 1


@pytest.mark.parametrize("index", [None, 7, "xy", [1], [1, 2, 3], [None, 2], ["a", "b"], [float("nan"), 1], {"x": 1}])
def test_places_that_no_page_sends_are_refused_without_a_trace(visitor, index, caplog):
    comparison, do, request, said = visitor
    before = comparison.view
    do.pick("Tokens", SimpleNamespace(index=index), request)
    assert said == ["This is no place in the picture."]
    assert comparison.view is before
    assert not caplog.records


def test_other_values_that_no_page_sends_are_taken_for_the_usual(visitor, caplog):
    _, do, request, said = visitor
    assert do.redraw(None, request)[0] is not None
    list(do.ask(None, request))
    assert said == ["There is no question yet: write one."]
    assert not caplog.records


def send(url, **body):
    """Status and content of gradio's answer to a request of a page."""
    data = json.dumps({"session_hash": "a", **body}).encode()
    request = urllib.request.Request(f"{url}gradio_api/run/predict", data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_what_no_page_sends_is_answered_and_noted_in_a_line(server, caplog, capfd):
    pytest.importorskip("gradio", reason="gradio is not installed: the demo extra has it")
    page = web.build(server, "", [])
    enter, redraw = (next(i for i, fn in page.fns.items() if fn.name == name) for name in ("enter", "handle"))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    with web.running(page, "127.0.0.1", port) as url:
        for _ in range(2):
            status, content = send(url, fn_index=enter, data=[])
            assert status == 500
            assert "This request failed." in content
        assert send(url, fn_index=redraw, data=["Hostile"])[0] == 500
    noted = [record.getMessage() for record in caplog.records if record.name == "llava.serve.web"]
    assert [line.split(":")[1].split(",")[0] for line in noted] == [" ValueError", " Error"]
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("begins", [False, True])
def test_a_request_that_fails_is_answered(begins, caplog):
    """The server would log a trace of what comes through here."""

    async def app(scope, receive, send):
        if begins:
            await send({"type": "http.response.start", "status": 200, "headers": []})
        raise KeyError(999)

    sent = []

    async def send(message):
        sent.append(message)

    asyncio.run(web.ContentPolicy(app)({"type": "http"}, None, send))
    assert sent[0]["status"] == (200 if begins else 500)
    assert len(sent) == 2 - begins
    assert caplog.messages == ["A request failed in gradio, which is answered so: KeyError, '999'"]


def fail_with(error):
    def fail(*_):
        raise error

    return fail


def test_samples(tmp_path):
    found = samples.list_samples(None)
    assert len(found) == samples.SAMPLES
    assert all(sample.path.is_file() and 3 <= len(sample.questions) <= samples.QUESTIONS for sample in found)
    with pytest.raises(ValueError, match="no pictures in this folder"):
        samples.list_samples(str(tmp_path))
    with pytest.raises(ValueError, match="no such folder"):
        samples.list_samples(str(tmp_path / "absent"))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_uploads(tmp_path, monkeypatch):
    Image.new("RGB", (30, 20), "red").save(tmp_path / "good.png")
    assert samples.open_picture(tmp_path / "good.png").getpixel((0, 0)) == (255, 0, 0)
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    Image.new("L", (30, 20)).save(tmp_path / "photo.jpg", exif=exif)
    assert samples.open_picture(tmp_path / "photo.jpg").size == (20, 30)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 599)
    with pytest.raises(ValueError, match=r"^good.png: cannot be decoded \(30x20 pixels, the limit is 599\)"):
        samples.open_picture(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"^bad.png: not an image of a known format \(7 bytes\)"):
        samples.open_picture(tmp_path / "bad.png")


def test_budgets(golden):
    from llava.inference.embedded import EMBEDDED_CHECKPOINT, playground
    from llava.model.description import read_config

    def budget(name, *flags):
        known = read_config(golden / "models" / name)
        chosen = web.per_crop(web.choose_budget(demo.parse_arguments([*flags]), *known), *known)
        return chosen.dominant, chosen.contextual

    assert budget("llava-v1.5-tiny") == (54, 10)
    assert budget((playground() / EMBEDDED_CHECKPOINT).absolute()) == (6, 1)
    assert budget("llava-v1.6-tiny", "--dominant", "30", "--contextual", "2") == (30, 2)
    assert budget("llava-v1.5-tiny", "--tokens-per-image", "64") == (54, 10)
    with pytest.raises(ValueError, match="go together"):
        budget("llava-v1.5-tiny", "--dominant", "30")
    with pytest.raises(ValueError, match="asks for 610 tokens"):
        budget("llava-v1.5-tiny", "--dominant", "600", "--contextual", "10")


def test_flags():
    args = demo.parse_arguments([])
    assert (args.checkpoint, args.host, args.port) == (None, "127.0.0.1", 7860)
    assert demo.parse_arguments(["--port", "65535"]).port == 65535
    for port in ("0", "65536", "http"):
        with pytest.raises(SystemExit):
            demo.parse_arguments(["--port", port])


def test_a_port_that_is_taken_is_named(monkeypatch, capsys):
    monkeypatch.setattr(web, "require_gradio", lambda: None)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert demo.main(["--port", str(port)]) == 2
    assert f"--host 127.0.0.1 --port {port}: cannot be served" in capsys.readouterr().err
    web.require_free("127.0.0.1", port)


def test_the_policy_goes_with_every_answer():
    import asyncio

    sent = []

    async def page(scope, receive, send):
        await send({"type": "http.response.start", "headers": [(b"a", b"b")]})
        await send({"type": "http.response.body"})

    async def send(message):
        sent.append(message)

    asyncio.run(web.ContentPolicy(page)({}, None, send))
    assert sent[0]["headers"] == [(b"a", b"b"), (b"content-security-policy", web.POLICY.encode())]
    assert sent[1] == {"type": "http.response.body"}
    assert "http" not in web.POLICY
