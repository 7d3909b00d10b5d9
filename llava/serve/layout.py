"""Lay out the page of the web demo; `handlers` says what its parts do."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

LAYERS = {  # what is painted over the picture
    "Picture": {"heat": False, "kept": False, "clusters": False},
    "Scores": {"heat": True, "kept": True, "clusters": False},
    "Tokens": {"heat": False, "kept": True, "clusters": True},
}


def lay_out(heading: str, samples: Sequence[Path], most_tokens: int) -> SimpleNamespace:
    """Make the page's parts within a `gradio.Blocks`: the picture to the left, the talk to the right."""
    import gradio as gr

    with gr.Row(equal_height=False, elem_id="vz-top"):
        gr.HTML(heading)
        theme = gr.Button("◐", size="sm", elem_id="vz-theme")
    with gr.Row(equal_height=False):
        with gr.Column(scale=11, min_width=300):
            left = picture_parts(most_tokens)
        with gr.Column(scale=21, min_width=300):
            right = talk_parts(samples)
    return SimpleNamespace(theme=theme, **left, **right)


def picture_parts(most_tokens: int) -> dict:
    """Make the picture with its tokens, and the parts that change them."""
    import gradio as gr

    plain = {"show_label": False, "container": False}
    slider = {"step": 1, "min_width": 140, "buttons": []}
    parts = {
        "picture": gr.Image(format="png", buttons=[], interactive=False, elem_id="vz-picture", **plain),
        "count": gr.HTML(elem_id="vz-count"),
        "layer": gr.Radio(list(LAYERS), value="Tokens", elem_id="vz-layer", **plain),
    }
    with gr.Row():
        parts["dominant"] = gr.Slider(1, most_tokens, label="Dominant", elem_id="vz-dominant", **slider)
        parts["contextual"] = gr.Slider(0, most_tokens - 1, label="Contextual", elem_id="vz-contextual", **slider)
    with gr.Row():
        parts["clear"] = gr.Button("Clear", size="sm")
        parts["choose"] = gr.Button("VisionZip chooses", size="sm")
    return parts


def talk_parts(samples: Sequence[Path]) -> dict:
    """Make the pictures to choose from, the talk, and the box for the next question."""
    import gradio as gr

    plain, parts = {"show_label": False, "container": False}, {}
    with gr.Row(elem_id="vz-pictures"):
        parts["gallery"] = gr.Gallery(
            list(samples),
            columns=len(samples),
            allow_preview=False,
            interactive=False,
            buttons=[],
            scale=8,
            elem_id="vz-samples",
            **plain,
        )
        parts["upload"] = gr.UploadButton(
            "Upload", file_types=["image"], size="sm", scale=1, min_width=76, elem_id="vz-upload"
        )
    parts["talk"] = gr.HTML(autoscroll=True, min_height=388, max_height=388, elem_id="vz-talk")
    parts["question"] = gr.Textbox(
        placeholder="Ask about the picture", submit_btn="Ask", max_lines=4, elem_id="vz-question", **plain
    )
    parts["ideas"] = gr.Dataset(components=["textbox"], samples=[], show_label=False, elem_id="vz-ideas")
    with gr.Row():
        parts["stop"] = gr.Button("Stop", size="sm", interactive=False)
        parts["undo"] = gr.Button("Take back", size="sm")
        parts["anew"] = gr.Button("New conversation", size="sm")
    return parts
