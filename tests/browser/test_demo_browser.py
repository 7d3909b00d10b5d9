"""The web demo in a real browser: `bash scripts/test.sh -m browser`. Leaves a screenshot of each step to look at.

Needs the `browser` extra and Chromium, found on PATH or named by the variable CHROMIUM.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from llava.model import sequences
from llava.serve.demo import parse_arguments

pytestmark = pytest.mark.browser

ROOT = Path(__file__).parents[2]
PICTURES = ROOT / "playground/results/demo"  # made at each run
DESK, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}
WORD, NUMBER = "what word is on the green sign?", "what number is on the black sign?"


@pytest.fixture(scope="module")
def chromium():
    sync_api = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: the browser extra has it"
    )
    pytest.importorskip("gradio", reason="gradio is not installed: the browser extra has it")
    program = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("no chromium on PATH: install it (apt install chromium), or name one by the variable CHROMIUM")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def served(chromium, tmp_path_factory):
    """The server behind the page, and its address."""
    from llava.serve import samples, web

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("gradio")))
        patch.setattr(Image, "MAX_IMAGE_PIXELS", web.MOST_PIXELS)
        server, heading = web.open_server(parse_arguments([]))
        with web.running(web.build(server, heading, samples.list_samples(None)), "127.0.0.1", free_port()) as url:
            yield server, url


@pytest.fixture
def visit(chromium, served):
    """Opens the page as a new visitor: `visit(color_scheme="dark")`. Nobody asks anyone but the server."""
    asked, wrong, contexts = [], [], []

    def make(viewport=DESK, **options):
        contexts.append(chromium.new_context(viewport=viewport, **options))
        page = contexts[-1].new_page()
        page.set_default_timeout(20_000)
        page.on("request", lambda request: asked.append(request.url))
        page.on("websocket", lambda socket: asked.append(socket.url))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
        page.goto(served[1])
        page.wait_for_selector("#vz-ideas button")
        page.wait_for_selector("#vz-picture img")
        return page

    yield make
    for context in contexts:
        context.close()
    assert len(asked) > 5
    assert [url for url in asked if not url.startswith((served[1], "data:", "blob:"))] == []
    assert wrong == []


@pytest.fixture
def slow_words(monkeypatch):
    """The model goes on and on, a token every 30 ms."""

    def choose(logits, config):
        time.sleep(0.03)
        return torch.tensor([300])

    monkeypatch.setattr(sequences, "choose", choose)


def shoot(page, name: str, **options) -> None:
    PICTURES.mkdir(parents=True, exist_ok=True)
    page.wait_for_timeout(400)  # toasts slide in
    page.screenshot(path=PICTURES / f"{name}.png", **options)


def expect(page, selector: str, text: str) -> None:
    """Waits until an element says `text`, and perhaps more."""
    page.locator(selector, has_text=re.compile(text)).first.wait_for()


def expect_picture(page, before: str) -> str:
    """Waits for another picture than `before`; its address."""
    page.wait_for_function("old => document.querySelector('#vz-picture img').src !== old", arg=before)
    return picture(page)


def picture(page) -> str:
    return page.get_attribute("#vz-picture img", "src")


def ask(page, question: str, turn: int) -> list[str]:
    """Both answers to a question, the `turn`-th from 1."""
    page.fill("#vz-question textarea", question)
    page.keyboard.press("Enter")
    card = page.locator("#vz-talk article").nth(turn - 1)
    card.locator(".vz-few dl").wait_for()
    page.locator("button:text-is('Stop'):disabled").wait_for()
    assert card.locator(".vz-question").inner_text() == question
    return card.locator(".vz-text").all_inner_texts()


def click_patch(page, row: int, col: int) -> None:
    box = page.locator("#vz-picture img").bounding_box()
    page.mouse.click(box["x"] + box["width"] * (col + 0.5) / 8, box["y"] + box["height"] * (row + 0.5) / 8)


def test_a_conversation(served, visit):
    page, server = visit(), served[0]
    expect(page, "#vz-count", "7 of 64 tokensCLS \\+ 5 patches \\+ 1 merged")
    assert "Answer the question using a single word or phrase" in page.inner_text("#vz-top")
    assert page.locator("#vz-samples img").count() == 8
    shoot(page, "1_opened")
    first = ask(page, WORD, 1)
    shoot(page, "2_asked")
    page.locator("#vz-ideas button", has_text=NUMBER).click()
    page.wait_for_function(f"document.querySelector('#vz-question textarea').value === {NUMBER!r}")
    second = ask(page, NUMBER, 2)
    shoot(page, "3_second_turn")
    (comparison,) = server.visitors.values()
    assert [[turn.full.text, turn.few.text] for turn in comparison.turns] == [first, second]
    assert first[0]
    assert comparison.turns[1].few.cost.reused >= 64
    assert comparison.turns[0].few.cost.computed == comparison.turns[0].full.cost.computed - 57
    assert "57" not in page.locator(".vz-few h2").first.inner_text()
    page.get_by_role("button", name="Take back").click()
    page.wait_for_function("document.querySelectorAll('#vz-talk article').length === 1")
    page.get_by_role("button", name="New conversation").click()
    expect(page, "#vz-talk", "Ask about the picture")
    page.get_by_role("button", name="Take back").click()
    expect(page, ".toast-body", "There is no question to take back")


def test_sliders(visit):
    page = visit()
    seen = picture(page)
    page.fill("#vz-dominant input[type=number]", "12")
    page.keyboard.press("Tab")
    expect(page, "#vz-count", "13 of 64 tokensCLS \\+ 11 patches \\+ 1 merged")
    seen = expect_picture(page, seen)
    page.locator("#vz-contextual input[type=range]").focus()
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    expect(page, "#vz-count", "16 of 64 tokensCLS \\+ 11 patches \\+ 4 merged")
    seen = expect_picture(page, seen)
    shoot(page, "4_sliders")
    for layer in ("Scores", "Picture"):
        page.get_by_label(layer).check()
        seen = expect_picture(page, seen)
        shoot(page, f"4_{layer.lower()}")
    page.fill("#vz-dominant input[type=number]", "64")
    page.keyboard.press("Tab")
    expect(page, "#vz-count", "asks for 68 tokens, but the vision tower gives 65")
    expect(page, "#vz-count", "16 of 64 tokens")
    page.wait_for_function("document.querySelector('#vz-dominant input[type=number]').value === '12'")
    shoot(page, "4_too_large")
    ask(page, WORD, 1)
    assert "16 visual tokens" in page.locator(".vz-few h2").inner_text()


def test_patches_by_hand(served, visit):
    page = visit()
    (comparison,) = served[0].visitors.values()
    seen = picture(page)
    click_patch(page, 7, 7)
    expect(page, "#vz-count", "8 of 64 tokensCLS \\+ 6 patches by hand \\+ 1 merged")
    expect_picture(page, seen)
    assert 63 in {pick.patch for pick in comparison.manual.kept}
    shoot(page, "5_picked")
    click_patch(page, 7, 7)
    expect(page, "#vz-count", "7 of 64 tokensCLS \\+ 5 patches by hand")
    page.get_by_role("button", name="Clear").click()
    expect(page, "#vz-count", "2 of 64 tokensCLS \\+ 0 patches by hand")
    for row, col in ((3, 1), (4, 1), (4, 2), (3, 2)):  # on the black sign
        click_patch(page, row, col)
    expect(page, "#vz-count", "6 of 64 tokensCLS \\+ 4 patches by hand")
    assert {pick.patch for pick in comparison.manual.kept} == {25, 33, 34, 26}
    ask(page, NUMBER, 1)
    assert page.locator(".vz-few h2").inner_text().startswith("Picked by hand")
    assert comparison.turns[0].few.cost.visual_tokens == 6
    shoot(page, "5_asked_by_hand")
    page.get_by_role("button", name="VisionZip chooses").click()
    expect(page, "#vz-count", "7 of 64 tokensCLS \\+ 5 patches \\+ 1 merged")


def test_pictures_good_and_bad(visit, tmp_path):
    page = visit()
    seen = picture(page)
    page.locator("#vz-samples button").nth(2).click()
    seen = expect_picture(page, seen)
    expect(page, "#vz-ideas", "white")
    ask(page, "how many signs are there?", 1)

    good, broken, huge, heavy = (tmp_path / name for name in ("my own.png", "broken.png", "huge.png", "heavy.png"))
    broken.write_bytes(b"no picture at all")
    Image.new("1", (9000, 9000)).save(huge)
    heavy.write_bytes(bytes(21 * 2**20))
    for file, reason in (
        (broken, "broken.png: not an image of a known format \\(17 bytes\\)"),
        (huge, "huge.png: cannot be decoded \\(9000x9000 pixels, the limit is 50000000\\)"),
        (heavy, "maximum allowed size of 20"),
    ):
        page.set_input_files("input[type=file]", file)
        expect(page, ".toast-body", reason)
        shoot(page, f"6_{file.stem}")
        for button in page.locator(".toast-close").all():
            button.click()
        assert picture(page) == seen
        assert page.locator("#vz-talk article").count() == 1
        assert page.locator("#vz-ideas button").count() == 4

    Image.new("RGB", (300, 200), "#c03040").save(good)
    page.set_input_files("input[type=file]", good)
    expect_picture(page, seen)
    expect(page, "#vz-talk", "Ask about the picture")
    ask(page, "how many signs are there?", 1)
    shoot(page, "6_uploaded")


def test_nothing_asked_and_letters_that_are_html(visit):
    page = visit()
    page.locator("#vz-question textarea").press("Enter")
    expect(page, ".toast-body", "There is no question yet: write one")
    page.fill("#vz-question textarea", "what is <image>?")
    page.keyboard.press("Enter")
    expect(page, ".toast-body", "The text holds '<image>', which stands for an image")
    shoot(page, "7_refused")
    ask(page, "is <b>this</b> bold?", 1)


def test_stop(served, visit, slow_words):
    page = visit()
    page.fill("#vz-question textarea", WORD)
    page.keyboard.press("Enter")
    stop = page.locator("button:text-is('Stop'):enabled")
    for side in ("full", "few"):
        expect(page, f".vz-{side} .vz-text", "[a-z]")
        shoot(page, f"8_{side}_streams")
        page.fill("#vz-question textarea", "typed meanwhile")
        stop.click()
    page.locator("button:text-is('Stop'):disabled").wait_for()
    (comparison,) = served[0].visitors.values()
    assert 0 < comparison.turns[0].few.cost.computed < 300
    assert not comparison.is_busy
    assert page.input_value("#vz-question textarea") == "typed meanwhile"


def test_visitors_are_apart_and_leave_nothing(served, visit, slow_words):
    server, pages = served[0], [visit(), visit()]
    assert len(server.visitors) == 2
    one, other = server.visitors.values()
    click_patch(pages[0], 0, 0)
    expect(pages[0], "#vz-count", "by hand")
    assert (one.manual is None, other.manual is None) == (False, True)
    assert one.sessions == ()
    pages[0].fill("#vz-question textarea", WORD)
    pages[0].keyboard.press("Enter")
    expect(pages[0], ".vz-full .vz-text", "[a-z]")
    assert pages[1].locator("#vz-talk article").count() == 0
    pages[0].close()  # in the middle of an answer
    wait_until(lambda: list(server.visitors.values()) == [other])
    assert one.is_closed
    assert not any(session.sequences.is_open for session in one.sessions)
    wait_until(lambda: not one.is_busy)
    server.leave(next(iter(server.visitors)))
    click_patch(pages[1], 0, 0)
    expect(pages[1], ".toast-body", "This conversation has ended.*Reload it")
    shoot(pages[1], "9_gone")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def wait_until(condition) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [DESK, PHONE], ids=["desk", "phone"])
def test_light_and_dark_desk_and_phone(visit, scheme, viewport, request):
    page = visit(viewport, color_scheme=scheme)
    ask(page, WORD, 1)
    ask(page, NUMBER, 2)
    shoot(page, f"10_{request.node.callspec.id}", full_page=True)
    channels = "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3).map(Number)"
    assert (sum(page.evaluate(channels)) < 300) == (scheme == "dark")
    assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
    page.locator("#vz-theme").click()
    page.wait_for_function(f"(({channels}).reduce((a, b) => a + b) < 300) !== {str(scheme == 'dark').lower()}")


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_ends_it_and_a_port_that_is_taken_is_named(chromium):
    port = str(free_port())
    command = [sys.executable, "-m", "llava.serve.demo", "--port", port]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    options = {"stdout": -1, "stderr": -1, "text": True, "env": environment}
    with subprocess.Popen(command, **options) as server:
        assert f"http://127.0.0.1:{port}" in server.stdout.readline()
        second = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert second.returncode == 2
        assert f"--port {port}: cannot be served (Address already in use)" in second.stderr
        server.send_signal(signal.SIGINT)
        out, err = server.communicate()
    assert (server.returncode, out.strip()) == (0, "Ended.")
    assert "Traceback" not in err
