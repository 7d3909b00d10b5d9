"""The page of the web demo, and its server. What it shows comes from `server`, how that looks from `cards`."""

import argparse
import contextlib
import html
import io
import logging
import math
import os
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import torch
from PIL import Image

from llava.inference.budget import choose_budget, most_crops
from llava.inference.embedded import playground
from llava.mm_utils import decode_image, find_pictures, upright
from llava.serve import markup
from llava.serve.comparison import Comparison, ComparisonServer
from llava.serve.layout import LAYERS, lay_out
from llava.serve.loading import read_options
from llava.utils.environment import describe_device
from llava.utils.files import read_json, shorten
from llava.visualize import overlay
from visionzip_patch import VisionZipConfig
from visionzip_patch.once import warn_once
from visionzip_patch.reducer import VisionZip

SIGNS = "data/eval/signs"  # relative to playground/
SAMPLES, QUESTIONS = 8, 4  # of each sample
MOST_BYTES, MOST_PIXELS = 20 * 2**20, 50_000_000  # of a picture that is uploaded
WAITING = 32  # requests that may wait for the model
POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'self'"
SYSTEM_FONT, SYSTEM_MONO = ("system-ui", "sans-serif"), ("ui-monospace", "monospace")
TOGGLE_DARK = "() => { document.body.classList.toggle('dark') }"

logger = logging.getLogger(__name__)


class Sample(NamedTuple):
    """A picture to pick, and questions about it."""

    path: Path
    questions: list[str]


class ContentPolicy:
    """Middleware that has browsers ask nobody but this server for anything, whatever gradio's page says.

    A request that fails in gradio, as one that no page sends, is answered with status 500.
    """

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        is_answered = False

        async def send_with_policy(message):
            nonlocal is_answered
            is_answered = True
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"content-security-policy", POLICY.encode())]
            await send(message)

        try:
            await self.app(scope, receive, send_with_policy)
        except Exception:
            note_failure()
            if scope["type"] == "http" and not is_answered:
                await send_with_policy({"type": "http.response.start", "status": 500, "headers": []})
                await send({"type": "http.response.body", "body": b"This request failed."})


def note_failure() -> None:
    """Log the error that is being handled in a line, once for each kind, and with --verbose where it comes from.

    Anybody can send what gradio fails at: whoever serves the page need not read a trace of each.
    """
    kind, error, _ = sys.exc_info()
    what = f"{kind.__name__}, {shorten(str(error))}"
    warn_once(logger, "A request failed in gradio, which is answered so: %s", what, about=kind)
    logger.debug("Where it comes from:", exc_info=True)


def page_class() -> type:
    """Make the class of the page: a `gradio.Blocks` whose failed requests are noted, in place of a trace of each.

    Whatever a page asks for goes through `process_api`; what fails before that, `ContentPolicy` answers.
    """
    import gradio as gr

    class Page(gr.Blocks):
        async def process_api(self, *args, **kwargs):
            try:
                return await super().process_api(*args, **kwargs)
            except gr.Error as error:  # of a handler, which has said it; or of gradio, about a value
                if error.print_exception:
                    note_failure()
                    error.print_exception = False
                raise
            except Exception:
                note_failure()
                raise gr.Error("This request failed.", print_exception=False) from None

    return Page


def serve(args: argparse.Namespace) -> int:
    """Do what `llava.serve.demo` was asked for, until Ctrl-C; returns the exit status."""
    require_gradio()
    require_free(args.host, args.port)
    samples = list_samples(args.pictures)  # before the model, which may have to be fetched
    server, heading = open_server(args)
    Image.MAX_IMAGE_PIXELS = MOST_PIXELS  # Pillow's own, for this process: looked at before a picture is decoded
    with tempfile.TemporaryDirectory() as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        with running(build(server, heading, samples), args.host, args.port) as url:
            print(f"The demo is at {url} (Ctrl-C ends it).", flush=True)
            with contextlib.suppress(KeyboardInterrupt):
                threading.Event().wait()
            print("\nEnded.")
    return 0


def open_server(args: argparse.Namespace) -> tuple[ComparisonServer, str]:
    """The model that was asked for, warm; and the head of its page."""
    asked = read_options(args)
    budget = per_crop(choose_budget(args, asked.config, asked.tower), asked.config, asked.tower)
    server = ComparisonServer(*asked.load(), asked.decoding, budget=budget, suffix=asked.suffix, visitors=args.visitors)
    warm_up(server)
    return server, markup.heading(asked.name, describe_device(asked.device), asked.suffix)


@contextlib.contextmanager
def running(page, host: str, port: int) -> Iterator[str]:
    """Serve a page for the length of a `with` block; gives its address."""
    import gradio as gr
    from starlette.middleware import Middleware

    theme = gr.themes.Base(
        primary_hue="orange", neutral_hue="zinc", radius_size="lg", font=SYSTEM_FONT, font_mono=SYSTEM_MONO
    ).set(body_text_color_subdued="*neutral_500", body_text_color_subdued_dark="*neutral_400")
    page.queue(max_size=WAITING, default_concurrency_limit=1)
    _, url, _ = page.launch(
        server_name=host,
        server_port=port,
        share=False,
        theme=theme,
        css=markup.style(),
        footer_links=[],
        max_file_size=MOST_BYTES,
        app_kwargs={"middleware": [Middleware(ContentPolicy)]},
        ssr_mode=False,
        enable_monitoring=False,
        prevent_thread_lock=True,
        quiet=True,
    )
    try:
        yield url
    finally:
        page.close(verbose=False)


def build(server: ComparisonServer, heading: str, samples: Sequence[Sample]):
    """The page, a `gradio.Blocks`. Visitors share the model and nothing else."""
    with page_class()(title="VisionZip", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        parts = lay_out(heading, [sample.path for sample in samples], server.most_tokens)
        connect(page, parts, handlers(server, samples))
    return page


def connect(page, parts: SimpleNamespace, do: SimpleNamespace) -> None:
    """Say what is done when, and which parts take what comes of it."""
    sliders, state = [parts.dominant, parts.contextual], [parts.picture, parts.count, parts.talk]
    at_once = {"show_progress": "hidden", "api_visibility": "private"}
    with_progress = {"show_progress": "minimal", "show_progress_on": parts.talk, "api_visibility": "private"}
    page.load(do.enter, parts.layer, [*state, parts.ideas, *sliders], **at_once)
    page.unload(do.leave)
    parts.theme.click(None, js=TOGGLE_DARK)
    parts.gallery.select(do.show_sample, parts.layer, [*state, parts.ideas], **at_once)
    parts.upload.upload(do.show_upload, [parts.upload, parts.layer], [*state, parts.ideas], **at_once)
    parts.layer.input(do.redraw, parts.layer, state, **at_once)
    parts.picture.select(do.pick, parts.layer, state, trigger_mode="multiple", **at_once)
    for slider in sliders:
        slider.input(do.set_budget, [*sliders, parts.layer], [*state, *sliders], trigger_mode="always_last", **at_once)
    parts.clear.click(do.clear, parts.layer, state, **at_once)
    parts.choose.click(do.let_visionzip_choose, parts.layer, state, **at_once)
    parts.undo.click(do.undo, parts.layer, state, **at_once)
    parts.anew.click(do.begin_anew, parts.layer, state, **at_once)
    parts.ideas.click(lambda row: row[0], parts.ideas, parts.question, **at_once)
    parts.question.submit(do.ask, parts.question, [parts.talk, parts.question, parts.stop], **with_progress)
    parts.stop.click(do.stop, queue=False, **at_once)


def handlers(server: ComparisonServer, samples: Sequence[Sample]) -> SimpleNamespace:
    """What `connect` has done. Those that change what is shown return picture, count and talk."""
    import gradio as gr

    def warn(message: str) -> None:
        gr.Warning(html.escape(message))

    def fail(message: str) -> None:
        raise gr.Error(html.escape(message), print_exception=False)

    def found(request: gr.Request) -> Comparison:
        with reporting_to(fail):
            return server.find(request.session_hash)

    def drawn(comparison: Comparison, layer: str) -> tuple:
        image = overlay(comparison.view, **LAYERS.get(layer, LAYERS["Tokens"])) if comparison.view else None
        return image, markup.count(comparison), markup.talk(comparison.turns)

    def after(change: Callable[[Comparison], None]) -> Callable:
        """A handler that changes what the visitor has, or says why not, and draws what they have then."""

        def handle(layer, request: gr.Request):
            comparison = found(request)
            with reporting_to(warn):
                change(comparison)
            return drawn(comparison, layer)

        return handle

    def enter(layer, request: gr.Request):
        with reporting_to(fail):
            comparison = server.enter(request.session_hash)
        return *show(samples[0], layer, request), comparison.dominant, comparison.contextual

    def leave(request: gr.Request):
        server.leave(request.session_hash)

    def show(sample: Sample, layer: str, request: gr.Request):
        comparison = found(request)
        before = comparison.encoded
        state = after(lambda comparison: comparison.show(open_picture(sample.path)))(layer, request)
        ideas = gr.Dataset(samples=[[text] for text in sample.questions], visible=bool(sample.questions))
        return *state, gr.skip() if comparison.encoded is before else ideas

    def show_sample(layer, event: gr.SelectData, request: gr.Request):
        return show(samples[event.index], layer, request)

    def show_upload(path, layer, request: gr.Request):
        return show(Sample(Path(path), []), layer, request)

    def pick(layer, event: gr.SelectData, request: gr.Request):
        return after(lambda comparison: comparison.pick(*point_of(event.index)))(layer, request)

    def set_budget(dominant, contextual, layer, request: gr.Request):
        comparison, refusals = found(request), []
        with reporting_to(refusals.append):
            comparison.set_budget(dominant, contextual)
        if refusals:  # the sliders go back to what holds
            count = markup.count(comparison) + markup.refusal(refusals[0])
            return gr.skip(), count, gr.skip(), comparison.dominant, comparison.contextual
        return *drawn(comparison, layer), gr.skip(), gr.skip()

    def ask(question, request: gr.Request):
        """Talk, text of the question's box, whether there is something to stop."""
        comparison = found(request)
        with reporting_to(warn):
            for step, _ in enumerate(comparison.ask(question or "")):
                is_first = step == 0  # after it the box is the visitor's again; before it nothing is taken from there
                talk, button = markup.talk(comparison.turns), gr.Button(interactive=True)
                yield (talk, "", button) if is_first else (talk, gr.skip(), gr.skip())
        yield markup.talk(comparison.turns), gr.skip(), gr.Button(interactive=False)

    def stop(request: gr.Request):
        found(request).stop()

    return SimpleNamespace(
        enter=enter,
        leave=leave,
        show_sample=show_sample,
        show_upload=show_upload,
        redraw=after(lambda comparison: None),
        pick=pick,
        set_budget=set_budget,
        clear=after(Comparison.clear),
        let_visionzip_choose=after(Comparison.let_visionzip_choose),
        undo=after(Comparison.undo),
        begin_anew=after(Comparison.begin_anew),
        ask=ask,
        stop=stop,
    )


def point_of(index) -> tuple[float, float]:
    """Where a picture was clicked. Raises ValueError for what no page sends."""
    if not isinstance(index, list | tuple) or len(index) != 2 or not all(map(is_finite, index)):
        raise ValueError("This is no place in the picture.")
    return tuple(index)


def is_finite(value) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


@contextlib.contextmanager
def reporting_to(say: Callable[[str], None]) -> Iterator[None]:
    """Says what cannot be done, or has failed, and goes on after the block."""
    try:
        yield
    except ValueError as error:
        say(str(error))
    except torch.OutOfMemoryError:
        say("Out of memory: begin a new conversation, or keep fewer tokens.")
    except Exception:
        logger.exception("A visitor's request failed:")
        say("This failed, and whoever serves this page can read why. Try again, or reload the page.")


def warm_up(server: ComparisonServer) -> None:
    """Have the model answer once, so that the first visitor's times are like those of others."""
    comparison = server.enter("")
    comparison.show(Image.new("RGB", (64, 64)))
    for _ in comparison.ask("What is it?"):
        pass
    server.leave("")


def open_picture(path: Path) -> Image.Image:
    """Upright. Raises ValueError if the file is no picture, is damaged, or has too many pixels to be decoded."""
    return upright(decode_image(io.BytesIO(path.read_bytes()), path.name))


def list_samples(folder: str | None) -> list[Sample]:
    """Pictures to pick: a folder's first, or embedded ones with the questions that are asked about them."""
    home = Path(folder).expanduser() if folder else playground() / SIGNS / "train_images"
    paths = find_pictures(home)[:SAMPLES]
    if folder:
        return [Sample(path, []) for path in paths]
    asked: dict[str, list[str]] = {}
    for row in read_json(playground() / SIGNS / "TextVQA_0.5.1_val.json")["data"]:
        asked.setdefault(row["image_id"], []).append(row["question"])
    return [Sample(path, asked[path.stem][:QUESTIONS]) for path in paths]


def per_crop(budget: VisionZipConfig, config, tower) -> VisionZipConfig:
    """The same budget in dominant and contextual tokens of a crop, which the sliders show."""
    available = VisionZip(budget, tower).available
    dominant, contextual = budget.per_crop(most_crops(config, tower), available)
    return replace(budget, dominant=dominant, contextual=contextual, tokens_per_image=None)


def require_gradio() -> None:
    try:
        import gradio  # noqa: F401
    except ImportError:
        raise ImportError("The web demo needs gradio: pip install 'gradio>=6,<7', or run scripts/demo.sh.") from None


def require_free(host: str, port: int) -> None:
    """Raises ValueError if nobody can be served there, before a model is loaded."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(address)
    except OSError as error:
        raise ValueError(
            f"--host {host} --port {port}: cannot be served ({error.strerror}). Another program may have it: choose "
            f"another port."
        ) from None
