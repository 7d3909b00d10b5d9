"""Answer the requests of the web demo's pages: what a visitor's click or question changes, and what is shown then."""

import contextlib
import html
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import torch

from llava.serve import markup
from llava.serve.comparison import Comparison, ComparisonServer
from llava.serve.layout import LAYERS
from llava.serve.samples import Sample, open_picture
from llava.visualize import overlay

logger = logging.getLogger(__name__)


class Visits:
    """What all handlers do: find the comparison of a page, report what cannot be done, show what a visitor has."""

    def __init__(self, server: ComparisonServer):
        import gradio

        self.gradio, self.server = gradio, server

    def warn(self, message: str) -> None:
        """Show a message on the page, and go on."""
        self.gradio.Warning(html.escape(message))

    def fail(self, message: str) -> None:
        """Show a message on the page, and end the request."""
        raise self.gradio.Error(html.escape(message), print_exception=False)

    def find(self, request) -> Comparison:
        """Find the comparison of the page that asks; if it has been closed, the request ends."""
        with reporting_to(self.fail):
            return self.server.find(request.session_hash)

    def draw(self, comparison: Comparison, layer: str) -> tuple:
        """Return what is shown of a comparison: picture, count and talk."""
        image = overlay(comparison.view, **LAYERS.get(layer, LAYERS["Tokens"])) if comparison.view else None
        return image, markup.count(comparison), markup.talk(comparison.turns)

    def after(self, change: Callable[[Comparison], None]) -> Callable:
        """Make a handler that changes what the visitor has, or reports why not, and draws the result."""
        import gradio as gr

        def handle(layer, request: gr.Request):
            comparison = self.find(request)
            with reporting_to(self.warn):
                change(comparison)
            return self.draw(comparison, layer)

        return handle


def handlers(server: ComparisonServer, samples: Sequence[Sample]) -> SimpleNamespace:
    """Make the handlers of a page. Those that change what is shown return picture, count and talk."""
    visits = Visits(server)
    return SimpleNamespace(
        **visit_handlers(visits, samples),
        **picture_handlers(visits),
        **talk_handlers(visits),
    )


def visit_handlers(visits: Visits, samples: Sequence[Sample]) -> dict[str, Callable]:
    """Make the handlers of a visitor who comes, goes, or takes another picture."""
    import gradio as gr

    def enter(layer, request: gr.Request):
        with reporting_to(visits.fail):
            comparison = visits.server.enter(request.session_hash)
        return *show(samples[0], layer, request), comparison.dominant, comparison.contextual

    def leave(request: gr.Request):
        visits.server.leave(request.session_hash)

    def show(sample: Sample, layer: str, request: gr.Request):
        comparison = visits.find(request)
        before = comparison.encoded
        state = visits.after(lambda comparison: comparison.show(open_picture(sample.path)))(layer, request)
        ideas = gr.Dataset(samples=[[text] for text in sample.questions], visible=bool(sample.questions))
        return *state, gr.skip() if comparison.encoded is before else ideas

    def show_sample(layer, event: gr.SelectData, request: gr.Request):
        return show(samples[event.index], layer, request)

    def show_upload(path, layer, request: gr.Request):
        return show(Sample(Path(path), []), layer, request)

    return {"enter": enter, "leave": leave, "show_sample": show_sample, "show_upload": show_upload}


def picture_handlers(visits: Visits) -> dict[str, Callable]:
    """Make the handlers of what changes the few tokens, and how they are painted."""
    import gradio as gr

    def pick(layer, event: gr.SelectData, request: gr.Request):
        return visits.after(lambda comparison: comparison.pick(*point_of(event.index)))(layer, request)

    def set_budget(dominant, contextual, layer, request: gr.Request):
        comparison, refusals = visits.find(request), []
        with reporting_to(refusals.append):
            comparison.set_budget(dominant, contextual)
        if refusals:  # the sliders go back to what holds
            count = markup.count(comparison) + markup.refusal(refusals[0])
            return gr.skip(), count, gr.skip(), comparison.dominant, comparison.contextual
        return *visits.draw(comparison, layer), gr.skip(), gr.skip()

    return {
        "pick": pick,
        "set_budget": set_budget,
        "redraw": visits.after(lambda comparison: None),
        "clear": visits.after(Comparison.clear),
        "let_visionzip_choose": visits.after(Comparison.let_visionzip_choose),
    }


def talk_handlers(visits: Visits) -> dict[str, Callable]:
    """Make the handlers of the conversation."""
    import gradio as gr

    def ask(question, request: gr.Request):
        """Yield the talk, the text of the question's box, and whether there is something to stop."""
        comparison = visits.find(request)
        with reporting_to(visits.warn):
            for step, _ in enumerate(comparison.ask(question or "")):
                is_first = step == 0  # after it the box is the visitor's again; before it nothing is taken from there
                talk, button = markup.talk(comparison.turns), gr.Button(interactive=True)
                yield (talk, "", button) if is_first else (talk, gr.skip(), gr.skip())
        yield markup.talk(comparison.turns), gr.skip(), gr.Button(interactive=False)

    def stop(request: gr.Request):
        visits.find(request).stop()

    return {
        "ask": ask,
        "stop": stop,
        "undo": visits.after(Comparison.undo),
        "begin_anew": visits.after(Comparison.begin_anew),
    }


@contextlib.contextmanager
def reporting_to(report: Callable[[str], None]) -> Iterator[None]:
    """Call `report` with what cannot be done or has failed inside the block, and go on after it."""
    try:
        yield
    except ValueError as error:
        report(str(error))
    except torch.OutOfMemoryError:
        report("Out of memory: begin a new conversation, or keep fewer tokens.")
    except Exception:
        logger.exception("A visitor's request failed:")
        report("This failed, and whoever serves this page can read why. Try again, or reload the page.")


def point_of(index) -> tuple[float, float]:
    """Read where a picture was clicked. Raises ValueError for what no page sends."""
    if not isinstance(index, list | tuple) or len(index) != 2 or not all(map(is_finite, index)):
        raise ValueError("This is no place in the picture.")
    x, y = index
    return x, y


def is_finite(value) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
