"""Write what the web demo shows of a comparison as HTML: no script, and no request to anywhere. demo.css styles it."""

import html
from collections.abc import Sequence
from importlib.resources import files

from llava.serve.comparison import Answer, Comparison, Turn

HINT = "Ask about the picture. Two conversations answer: one has all its tokens, the other the few that are left."
SIDES = {"full": "All tokens", "few": "VisionZip"}


def style() -> str:
    """Read the style sheet of the page."""
    return files("llava.serve").joinpath("demo.css").read_text(encoding="utf-8")


def heading(model: str, device: str, suffix: str) -> str:
    """Write the head of the page."""
    under = f" Under every question: <q>{html.escape(suffix)}</q>" if suffix else ""
    return (
        f'<header class="vz-head"><h1>All tokens and few, side by side</h1>'
        f"<p>{html.escape(model)} ({html.escape(device)}) answers twice: with all tokens of the picture, and with "
        f"those that VisionZip keeps, or you do.{under}</p></header>"
    )


def count(comparison: Comparison) -> str:
    """Write how many tokens the picture has now, and what they are."""
    view = comparison.view
    if view is None:
        return '<p class="vz-count">No picture yet.</p>'
    crops = len(view.crops)
    parts = [f"{number(view.dominant, 'patch')}{'' if comparison.manual is None else ' by hand'}"]
    if view.has_cls:
        parts.insert(0, "CLS" if crops == 1 else f"{crops} CLS")
    if view.contextual:
        parts.append(f"{view.contextual} merged")
    of = f"of {number(view.patches, 'token')}" if crops == 1 else f"tokens for {number(view.patches, 'patch')}"
    note = "Click a patch to keep it, or to release it."
    if crops > 1:
        note += " All crops keep equally many: where one is released, another may take its place."
    return (
        f'<p class="vz-count"><b>{view.tokens}</b> {of}<span>{" + ".join(parts)}</span></p>'
        f'<p class="vz-note">{note}</p>'
    )


def refusal(message: str) -> str:
    """Write why the count stays as it is, to be shown below it."""
    return f'<p class="vz-note vz-refused" role="alert">{html.escape(message)}</p>'


def talk(turns: Sequence[Turn]) -> str:
    """Write the questions, each with both answers side by side."""
    shown = "".join(map(turn_card, turns)) or f'<p class="vz-hint">{HINT}</p>'
    return f'<div class="vz-talk" role="log">{shown}</div>'


def turn_card(turn: Turn) -> str:
    """Write a question and both answers."""
    sides = "".join(answer_card(turn, side) for side in SIDES)
    return (
        f'<article><p class="vz-question">{html.escape(turn.question)}</p><div class="vz-pair">{sides}</div></article>'
    )


def answer_card(turn: Turn, side: str) -> str:
    """Write one side's answer and what it took, with bars relative to the other side."""
    answer, other = turn.full, turn.few
    if side == "few":
        answer, other = other, answer
    name = "Picked by hand" if side == "few" and turn.by_hand else SIDES[side]
    if answer is None:
        return f'<section class="vz-{side}"><h2>{name}</h2><p class="vz-text vz-waiting">…</p></section>'
    text = html.escape(answer.text) or "<i>nothing</i>"
    rows = "".join(
        f'<dt>{label}</dt><dd style="--share:{share(value, theirs):.3f}">{write(value)}</dd>'
        for (label, value, write), (_, theirs, _) in zip(measures(answer), measures(other or answer), strict=True)
        if value is not None
    )
    return (
        f'<section class="vz-{side}"><h2>{name}<b>{number(answer.cost.visual_tokens, "visual token")}</b></h2>'
        f'<p class="vz-text">{text}</p><dl>{rows}</dl></section>'
    )


def measures(answer: Answer) -> list[tuple]:
    """List what is measured of an answer: (label, value, function that writes the value)."""
    return [
        ("first words after", answer.cost.first_ms, milliseconds),
        ("then, per token", answer.cost.ms_per_token, milliseconds),
        ("tokens computed", answer.cost.computed, str),
        ("keys and values", answer.cache_bytes, size),
        ("GPU memory, peak", answer.peak_bytes, size),
    ]


def share(value: float | None, other: float | None) -> float:
    """Return `value` as a share of the larger of both values; None counts as 0."""
    return (value or 0) / max(value or 0, other or 0, 1e-9)


def milliseconds(value: float) -> str:
    """Write a time in milliseconds."""
    return f"{value:.3g} ms" if value < 1000 else f"{value:,.0f} ms"


def size(count: int) -> str:
    """Write a number of bytes with its unit: 1536 as "1.5 KiB"."""
    power = min(3, max(0, count.bit_length() - 1) // 10)
    return f"{count / 1024**power:.4g} {('B', 'KiB', 'MiB', 'GiB')[power]}"


def number(count: int, what: str) -> str:
    """Write a number with a noun in singular or plural: "1 patch", "2 patches"."""
    return f"{count:,} {what}{'' if count == 1 else 'es' if what.endswith('ch') else 's'}"
