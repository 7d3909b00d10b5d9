"""Build the page of the web demo, and serve it.

`layout` says what is where, `handlers` what happens when, `markup` how a comparison looks, `comparison` what it is.
"""

import argparse
import contextlib
import logging
import os
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from types import SimpleNamespace

from PIL import Image

from llava.inference.budget import choose_budget, most_crops
from llava.serve import markup
from llava.serve.comparison import ComparisonServer
from llava.serve.handlers import handlers
from llava.serve.layout import lay_out
from llava.serve.loading import read_options
from llava.serve.samples import Sample, list_samples
from llava.utils.environment import describe_device
from llava.utils.files import shorten
from visionzip_patch import VisionZipConfig
from visionzip_patch.once import warn_once
from visionzip_patch.reducer import VisionZip

MOST_BYTES, MOST_PIXELS = 20 * 2**20, 50_000_000  # of a picture that is uploaded
WAITING = 32  # requests that may wait for the model
POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'self'"
SYSTEM_FONT, SYSTEM_MONO = ("system-ui", "sans-serif"), ("ui-monospace", "monospace")
TOGGLE_DARK = "() => { document.body.classList.toggle('dark') }"

logger = logging.getLogger(__name__)


class ContentPolicy:
    """Middleware that keeps browsers from asking any other server, whatever gradio's page says.

    A request that fails in gradio, such as one that no page sends, is answered with status 500.
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
    """Log the error that is being handled in one line, once for each kind; with --verbose also its trace.

    Anybody can send what gradio fails at, so not every failure gets a trace in the server's log.
    """
    kind, error, _ = sys.exc_info()
    assert kind, "called while an error is handled"
    what = f"{kind.__name__}, {shorten(str(error))}"
    warn_once(logger, "A request failed in gradio, which is answered so: %s", what, about=kind)
    logger.debug("Where it comes from:", exc_info=True)


def page_class() -> type:
    """Make the class of the page: a `gradio.Blocks` that notes failed requests in a line each.

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
    """Serve the page until Ctrl-C; returns the exit status."""
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
    """Load the model and have it answer once; returns it as a server of comparisons, and the head of its page."""
    options = read_options(args)
    chosen = choose_budget(args, options.config, options.tower)
    assert chosen, "there is a usual budget"
    budget = per_crop(chosen, options.config, options.tower)
    loaded = options.load()
    server = ComparisonServer(*loaded, options.decoding, budget=budget, suffix=options.suffix, visitors=args.visitors)
    warm_up(server)
    return server, markup.heading(options.name, describe_device(options.device), options.suffix)


@contextlib.contextmanager
def running(page, host: str, port: int) -> Iterator[str]:
    """Serve a page for the length of a `with` block; yields its address."""
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
    """Build the page, a `gradio.Blocks`. Visitors share the model and nothing else."""
    with page_class()(title="VisionZip", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        parts = lay_out(heading, [sample.path for sample in samples], server.most_tokens)
        connect(page, parts, handlers(server, samples))
    return page


def connect(page, parts: SimpleNamespace, do: SimpleNamespace) -> None:
    """Connect the events of the page's parts to their handlers, and the results to parts."""
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


def warm_up(server: ComparisonServer) -> None:
    """Have the model answer once, so that the first visitor waits no longer than later ones."""
    comparison = server.enter("")
    comparison.show(Image.new("RGB", (64, 64)))
    for _ in comparison.ask("What is it?"):
        pass
    server.leave("")


def per_crop(budget: VisionZipConfig, config, tower) -> VisionZipConfig:
    """Convert a budget to dominant and contextual tokens of a crop, which the sliders show."""
    available = VisionZip(budget, tower).available
    dominant, contextual = budget.per_crop(most_crops(config, tower), available)
    return replace(budget, dominant=dominant, contextual=contextual, tokens_per_image=None)


def require_gradio() -> None:
    """Raise ImportError, which says how to install it, if gradio is missing."""
    try:
        import gradio  # noqa: F401
    except ImportError:
        raise ImportError("The web demo needs gradio: pip install 'gradio>=6,<7', or run scripts/demo.sh.") from None


def require_free(host: str, port: int) -> None:
    """Raise ValueError if the address cannot be served, before a model is loaded."""
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
