"""What the web demo shows of a comparison, as HTML and CSS. No script, and no request to anywhere."""

import html
from collections.abc import Sequence

from llava.serve.comparison import Answer, Comparison, Turn

HINT = "Ask about the picture. Two conversations answer: one has all its tokens, the other the few that are left."
WAYS = {"full": "All tokens", "few": "VisionZip"}


def heading(model: str, device: str, suffix: str) -> str:
    """The head of the page, in inline elements."""
    under = f" Under every question: <q>{html.escape(suffix)}</q>" if suffix else ""
    return (
        f'<header class="vz-head"><h1>All tokens and few, side by side</h1>'
        f"<p>{html.escape(model)} ({html.escape(device)}) answers twice: with all tokens of the picture, and with "
        f"those that VisionZip keeps, or you do.{under}</p></header>"
    )


def count(comparison: Comparison) -> str:
    """How many tokens the picture has now, and what they are."""
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
    note = "Click a patch to keep it, or to let it go."
    if crops > 1:
        note += " All crops keep equally many: where one is let go, another may come in its place."
    return (
        f'<p class="vz-count"><b>{view.tokens}</b> {of}<span>{" + ".join(parts)}</span></p>'
        f'<p class="vz-note">{note}</p>'
    )


def refusal(message: str) -> str:
    """Why the count stays as it is; goes below it."""
    return f'<p class="vz-note vz-refused" role="alert">{html.escape(message)}</p>'


def talk(turns: Sequence[Turn]) -> str:
    """Questions, with both answers side by side."""
    shown = "".join(map(turn_card, turns)) or f'<p class="vz-hint">{HINT}</p>'
    return f'<div class="vz-talk" role="log">{shown}</div>'


def turn_card(turn: Turn) -> str:
    sides = "".join(answer_card(turn, side) for side in WAYS)
    return (
        f'<article><p class="vz-question">{html.escape(turn.question)}</p><div class="vz-pair">{sides}</div></article>'
    )


def answer_card(turn: Turn, side: str) -> str:
    answer, other = turn.full, turn.few
    if side == "few":
        answer, other = other, answer
    name = "Picked by hand" if side == "few" and turn.by_hand else WAYS[side]
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
    """(label, value, how it is written) of each thing that is measured."""
    return [
        ("first words after", answer.cost.first_ms, milliseconds),
        ("then, per token", answer.cost.ms_per_token, milliseconds),
        ("tokens computed", answer.cost.computed, str),
        ("keys and values", answer.cache_bytes, size),
        ("GPU memory, peak", answer.peak_bytes, size),
    ]


def share(value: float | None, other: float | None) -> float:
    """Of the larger of both."""
    return (value or 0) / max(value or 0, other or 0, 1e-9)


def milliseconds(value: float) -> str:
    return f"{value:.3g} ms" if value < 1000 else f"{value:,.0f} ms"


def size(count: int) -> str:
    """1536 -> "1.5 KiB"."""
    power = min(3, max(0, count.bit_length() - 1) // 10)
    return f"{count / 1024**power:.4g} {('B', 'KiB', 'MiB', 'GiB')[power]}"


def number(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 'es' if what.endswith('ch') else 's'}"


STYLE = """
.gradio-container { max-width: 1300px !important; margin: 0 auto !important; padding: 8px !important }
body { background: var(--body-background-fill) !important }
.gradio-container .main { padding: 12px !important }
.gradio-container .gap { gap: 12px }
#vz-top .html-container, #vz-count .html-container, #vz-talk .html-container { padding: 0 }
.vz-head h1 { margin: 0; font-size: 22px; font-weight: 650; line-height: 1.25; letter-spacing: -.01em }
.vz-head p { margin: 2px 0 0; color: var(--body-text-color-subdued); font-size: 14px }
.vz-head q { color: var(--body-text-color) }
.vz-count { margin: 0; font-size: 14px; color: var(--body-text-color-subdued) }
.vz-count b { margin-right: 2px; color: var(--body-text-color); font-size: 24px; font-weight: 650;
  font-variant-numeric: tabular-nums; line-height: 1 }
.vz-count span { margin-left: 10px; padding-left: 10px; border-left: 1px solid var(--border-color-primary) }
.vz-note { margin: 3px 0 0; color: var(--body-text-color-subdued); font-size: 13px }
.vz-refused { color: var(--error-text-color) }
.vz-talk { display: flex; flex-direction: column; gap: 22px; padding: 2px }
.vz-talk article { display: flex; flex-direction: column; gap: 10px }
.vz-hint { margin: 0; color: var(--body-text-color-subdued) }
.vz-question { align-self: flex-end; max-width: 85%; margin: 0; padding: 7px 13px; border-radius: 14px 14px 4px 14px;
  background: var(--vz-question); white-space: pre-wrap; overflow-wrap: anywhere }
.vz-pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 250px), 1fr)); gap: 12px }
.vz-pair section { display: flex; flex-direction: column; min-width: 0; padding: 12px 14px; border-radius: 10px;
  border: 1px solid var(--border-color-primary); border-top: 3px solid var(--vz-side);
  background: var(--block-background-fill) }
.vz-pair h2 { display: flex; justify-content: space-between; gap: 8px; margin: 0; font-size: 13px; font-weight: 650;
  color: var(--body-text-color) }
.vz-pair h2 b { font-weight: 400; color: var(--body-text-color-subdued) }
.vz-text { flex: 1; margin: 8px 0 12px; font-size: 17px; line-height: 1.45; white-space: pre-wrap;
  overflow-wrap: anywhere }
.vz-waiting { opacity: .5 }
.vz-pair dl { display: grid; grid-template-columns: auto 1fr; gap: 3px 12px; margin: 0; font-size: 12.5px;
  align-items: center }
.vz-pair dt { color: var(--body-text-color-subdued) }
.vz-pair dd { position: relative; margin: 0; padding: 1px 6px; text-align: right; font-variant-numeric: tabular-nums;
  z-index: 0 }
.vz-pair dd::before { content: ""; position: absolute; inset: 0 0 0 auto; z-index: -1; border-radius: 3px;
  width: calc(100% * var(--share)); background: var(--vz-side); opacity: .17 }
.vz-full { --vz-side: #7c8596 }
.vz-few { --vz-side: #e0751a }
:root { --vz-question: #e6e8ee; --vz-log: #f8f9fb }
.dark { --vz-question: #34363d; --vz-log: #131316 }
#vz-top { flex-wrap: nowrap; align-items: flex-start }
#vz-theme { flex: none; width: 36px; min-width: 36px; height: 36px; padding: 0; font-size: 18px }
#vz-picture img { cursor: crosshair }
#vz-pictures { flex-wrap: nowrap; align-items: stretch }
#vz-samples .grid-wrap { height: auto; min-height: 0; max-height: none; padding: 2px; overflow-x: auto }
#vz-samples .grid-container { grid-template-columns: repeat(auto-fill, minmax(56px, 1fr)); gap: 6px; padding: 0;
  grid-template-rows: none; grid-auto-rows: auto }
#vz-samples .thumbnail-lg, #vz-samples .gallery-item { height: auto; aspect-ratio: 1 }
#vz-question .submit-button { border-radius: 8px; background: var(--button-primary-background-fill);
  color: var(--button-primary-text-color) }
#vz-dominant, #vz-contextual { padding: 8px 12px }
#vz-dominant input[type=number], #vz-contextual input[type=number] { width: 44px; padding: 4px }
#vz-talk { padding: 14px; border: 1px solid var(--border-color-primary); border-radius: 12px;
  background: var(--vz-log) }
"""
