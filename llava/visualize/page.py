"""An HTML page to point at: one file, no request to anywhere, light and dark, with mouse, touch or keys."""

import base64
import html
import io
import json
import re
from collections.abc import Sequence

import numpy as np
from PIL import Image

from llava.visualize import colours
from llava.visualize.draw import heights
from llava.visualize.view import Crop, View

SHADES = 64  # steps of the colour ramp
GENERATOR = '<meta name="generator" content="visionzip_patch">'  # by which a page is known


def page(views: Sequence[View], title: str, subtitle: str) -> str:
    """A page with a picture per view: point at a patch for its score and fate, at a token for its patches."""
    data = {
        "ramp": colours.to_hex(colours.heat(np.linspace(0, 1, SHADES))),
        "colours": colours.to_hex(colours.cluster(np.arange(max(view.contextual for view in views)))),
        "views": [describe_view(view) for view in views],
    }
    parts = {
        "GENERATOR": GENERATOR,
        "TITLE": html.escape(title),
        "SUBTITLE": html.escape(subtitle),
        "STYLE": STYLE,
        "SCRIPT": SCRIPT,
        "DATA": json.dumps(data, separators=(",", ":"), ensure_ascii=False).replace("<", "\\u003c"),
    }
    return re.sub("%([A-Z]+)%", lambda place: parts[place[1]], BODY)


def describe_view(view: View) -> dict:
    width, height = view.picture.size
    return {
        "title": view.title,
        "size": [width, height],
        "meaning": view.meaning,
        "scale": view.scale,
        "cls": view.has_cls,
        "crops": [describe_crop(view, crop) for crop in view.crops],
    }


def describe_crop(view: View, crop: Crop) -> dict:
    box = crop.left, crop.top, crop.left + crop.side, crop.top + crop.side
    return {
        "corner": box[:2],
        "grid": crop.grid,
        "cell": crop.cell,
        "image": data_uri(view.picture.crop(box)) if view.is_zipped else None,
        "score": [float(f"{score:.3g}") for score in crop.score],
        "shade": ((SHADES - 1) * heights(crop.score, view.scale)).round().astype(int).tolist(),
        "token": None if crop.token is None else crop.token.tolist(),
        "targets": crop.targets.tolist(),
    }


def data_uri(image: Image.Image) -> str:
    file = io.BytesIO()
    image.convert("RGB").save(file, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


BODY = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
%GENERATOR%
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>%TITLE%</title>
<style>%STYLE%</style>
</head>
<body data-mode="tokens">
<header>
<h1>%TITLE%</h1>
<p>%SUBTITLE%</p>
</header>
<fieldset id="modes">
<legend>Show</legend>
<label><input type="radio" name="mode" value="picture"> Picture</label>
<label><input type="radio" name="mode" value="scores"> Scores</label>
<label><input type="radio" name="mode" value="tokens" checked> Tokens</label>
</fieldset>
<main></main>
<footer role="status"><span id="swatch"></span><span id="readout"></span></footer>
<script type="application/json" id="data">%DATA%</script>
<script>%SCRIPT%</script>
</body>
</html>
"""

STYLE = """
:root { color-scheme: light dark; --page: #fff; --ink: #16181d; --pale: #6b7280; --line: #d9dce3; --panel: #f5f6f8 }
@media (prefers-color-scheme: dark) {
  :root { --page: #121419; --ink: #e8eaf0; --pale: #9aa1ad; --line: #333843; --panel: #1c1f27 }
}
* { box-sizing: border-box }
[hidden] { display: none !important }
body { margin: 0 auto; max-width: 1500px; padding: 28px 28px 84px; background: var(--page); color: var(--ink);
  font: 16px/1.45 system-ui, sans-serif }
h1 { margin: 0; font-size: 24px; font-weight: 600 }
header p { margin: 4px 0 18px; color: var(--pale) }
fieldset { display: inline-flex; margin: 0 0 20px; padding: 3px; border: 1px solid var(--line); border-radius: 10px;
  background: var(--panel) }
legend { position: absolute; clip-path: inset(50%) }
label { padding: 5px 16px; border-radius: 7px; cursor: pointer }
label:has(:checked) { background: var(--page); box-shadow: 0 1px 3px #0003 }
label:has(:focus-visible), svg:focus-visible, button:focus-visible { outline: 2px solid #3b82f6; outline-offset: 2px }
label input { position: absolute; opacity: 0 }
main { display: flex; flex-wrap: wrap; gap: 28px }
figure { flex: 0 1 auto; margin: 0; min-width: 0 }
figure > svg { display: block; width: 100%; height: auto; max-height: 76vh; cursor: crosshair;
  touch-action: manipulation }
figcaption { margin: 8px 0 6px; color: var(--pale) }
[data-mode=scores] .photo, [data-mode=tokens] .photo { filter: grayscale(1) contrast(.8) }
.heat, .tint, .marks, .kept, .outline { visibility: hidden }
[data-mode=scores] .heat, [data-mode=scores] .outline { visibility: visible }
.heat { opacity: .8 }
.bare .heat { opacity: 1; visibility: visible }
[data-mode=tokens] .tint, [data-mode=tokens] .marks, [data-mode=tokens] .kept, [data-mode=tokens] .outline
  { visibility: visible }
.tint { opacity: .68 }
.border { fill: none; stroke: #0009; stroke-width: 1.5 }
.halo { fill: none; stroke: #111; stroke-width: 5; stroke-linejoin: round }
.outline path + path { fill: none; stroke: #fff; stroke-width: 2.5; stroke-linejoin: round }
.marks circle { stroke: #fff; stroke-width: 2.5; paint-order: stroke }
.marks text { font-weight: 700; text-anchor: middle; dominant-baseline: central; fill: #111; pointer-events: none }
.veil { fill: var(--page); opacity: .78; pointer-events: none }
.cursor { fill: none; stroke: #fff; stroke-width: 3; paint-order: stroke; filter: drop-shadow(0 0 1.5px #000);
  pointer-events: none }
.tokens { display: flex; flex-wrap: wrap; gap: 6px; align-items: center; min-width: min-content }
button { display: inline-flex; gap: 7px; align-items: center; padding: 3px 10px 3px 4px; border: 1px solid var(--line);
  border-radius: 99px; background: var(--panel); color: inherit; font: inherit; font-size: 14px; cursor: pointer }
button b { min-width: 22px; padding: 0 5px; border-radius: 99px; color: #111; text-align: center }
button b.stays { background: #fff; box-shadow: inset 0 0 0 2px #111 }
.bar { display: flex; gap: 8px; align-items: center; margin-top: 8px; font-size: 14px; line-height: 1.3;
  color: var(--pale) }
.bar span:first-child { white-space: nowrap }
.bar i { flex: none; width: 112px; height: 10px; border-radius: 5px }
[data-mode=picture] .bar, [data-mode=tokens] figure:not(.bare) .bar { visibility: hidden }
[data-mode=picture] .bare .bar { visibility: visible }
footer { position: fixed; inset: auto 0 0; display: flex; gap: 12px; align-items: center; min-height: 52px;
  padding: 10px 28px; border-top: 1px solid var(--line); background: var(--panel) }
#swatch { flex: none; width: 20px; height: 20px; border-radius: 5px }
"""

SCRIPT = r"""
"use strict";
const KEPT = -1, data = JSON.parse(document.getElementById("data").textContent);
const main = document.querySelector("main"), readout = document.getElementById("readout");
const swatch = document.getElementById("swatch");
const HINT = "Point at a patch or a token; or press Tab, then the arrow keys.";
const percent = value => value.toLocaleString("en", { maximumSignificantDigits: 3 }) + " %";
const count = (n, what) => `${n} ${what}${n === 1 ? "" : what.endsWith("ch") ? "es" : "s"}`;

function corner(crop, patch) {
  return [crop.corner[0] + patch % crop.grid * crop.cell, crop.corner[1] + Math.floor(patch / crop.grid) * crop.cell];
}
function squares(crop, wanted) {
  return crop.score.map((_, i) => {
    const [x, y] = corner(crop, i), c = crop.cell;
    return wanted(i) ? `M${x} ${y}h${c}v${c}h${-c}z` : "";
  }).join("");
}
function borders(crop, label, atEnds) {  // between patches of different labels
  const { grid, cell } = crop, at = (row, col) =>
    row < 0 || col < 0 || row >= grid || col >= grid ? undefined : label(row * grid + col);
  let path = "";
  for (let row = 0; row <= grid; row++) for (let col = 0; col <= grid; col++) {
    const x = crop.corner[0] + col * cell, y = crop.corner[1] + row * cell, here = at(row, col);
    const differs = other => other !== here && (other !== undefined && here !== undefined || atEnds && (other || here));
    if (differs(at(row, col - 1))) path += `M${x} ${y}v${cell}`;
    if (differs(at(row - 1, col))) path += `M${x} ${y}h${cell}`;
  }
  return path;
}
function drawCrop(crop, id) {
  const [x, y] = crop.corner, side = crop.grid * crop.cell;
  const box = `x="${x}" y="${y}" width="${side}" height="${side}"`;
  const fill = (paint, wanted) => crop.score.map((_, i) => {
    const [left, top] = corner(crop, i);
    return wanted(i)
      ? `<rect x="${left}" y="${top}" width="${crop.cell}" height="${crop.cell}" fill="${paint(i)}"/>` : "";
  }).join("");
  const sharp = 'shape-rendering="crispEdges"';
  const heat = `<g class="heat" ${sharp}>${fill(i => data.ramp[crop.shade[i]], () => true)}</g>`;
  if (!crop.token) return heat;
  const stays = i => crop.token[i] === KEPT, outline = borders(crop, stays, true);
  const radius = Math.min(17, Math.max(9, crop.cell * 0.4));
  const marks = crop.targets.map(target => {
    const token = crop.token[target], [left, top] = corner(crop, target), h = crop.cell / 2;
    return `<g data-token="${token}"><circle cx="${left + h}" cy="${top + h}" r="${radius}"
      fill="${data.colours[token]}"/>
      <text x="${left + h}" y="${top + h}" font-size="${radius * 1.05}">${token + 1}</text></g>`;
  }).join("");
  return `<clipPath id="${id}"><path d="${squares(crop, stays)}"/></clipPath>
    <image class="photo" ${box} href="${crop.image}"/>${heat}
    <g class="tint"><g ${sharp}>${fill(i => crop.token[i] < 0 ? "#555" : data.colours[crop.token[i]], () => true)}</g>
    <path class="border" d="${borders(crop, i => crop.token[i], false)}"/></g>
    <image class="kept" ${box} href="${crop.image}" clip-path="url(#${id})"/>
    <g class="outline"><path class="halo" d="${outline}"/><path d="${outline}"/></g><g class="marks">${marks}</g>`;
}
function patchAt(view, x, y) {
  for (const crop of view.crops) {
    const col = Math.floor((x - crop.corner[0]) / crop.cell), row = Math.floor((y - crop.corner[1]) / crop.cell);
    if (col >= 0 && row >= 0 && col < crop.grid && row < crop.grid) return { crop, patch: row * crop.grid + col };
  }
  return null;
}
function members(view, token) {
  return view.crops.flatMap(crop => crop.token).filter(other => other === token).length;
}
function say(text, colour) {
  readout.textContent = text;
  swatch.style.background = colour || "none";
}
function describe(view, { crop, patch }) {
  const score = crop.score[patch], rank = 1 + crop.score.filter(other => other > score).length;
  const number = view.crops.indexOf(crop), token = crop.token && crop.token[patch];
  const where = (view.crops.length === 1 ? "" : number === 0 ? "Base crop, " : `Tile ${number}, `)
    + `row ${Math.floor(patch / crop.grid) + 1}, column ${patch % crop.grid + 1}`;
  const fate = token === null ? "" : token === KEPT ? " · kept" : token < 0 ? " · dropped"
    : crop.targets.includes(patch) ? ` · target of contextual token ${token + 1}`
    : ` · merged into contextual token ${token + 1}`;
  say(`${where} · ${percent(score)} ${view.meaning}, rank ${rank} of ${crop.score.length}${fate}`,
    token >= 0 && token !== null ? data.colours[token] : data.ramp[crop.shade[patch]]);
}
function addView(view, index) {
  const figure = document.createElement("figure"), zipped = view.crops[0].token !== null;
  const [width, height] = view.size;
  figure.classList.toggle("bare", !zipped);
  figure.style.width = `${Math.max(width, 300)}px`;
  figure.innerHTML = `<svg viewBox="0 0 ${width} ${height}" tabindex="0" role="application">
    ${view.crops.map((crop, i) => drawCrop(crop, `kept-${index}-${i}`)).join("")}
    <path class="veil"/><rect class="cursor" visibility="hidden"/></svg>
    <figcaption></figcaption><div class="tokens"></div><div class="bar"><span></span><i></i><span></span></div>`;
  figure.querySelector("figcaption").textContent = view.title;
  const svg = figure.querySelector("svg"), veil = svg.querySelector(".veil"), cursor = svg.querySelector(".cursor");
  svg.setAttribute("aria-label", `${view.title}: patches, arrow keys move from one to the next`);
  const [low, high] = figure.querySelectorAll(".bar span");
  low.textContent = percent(view.scale[0]);
  high.textContent = `${percent(view.scale[1])} ${view.meaning}`;
  figure.querySelector(".bar i").style.background = `linear-gradient(90deg, ${data.ramp.join(",")})`;

  let active = null;
  function point(place) {
    active = place || active;
    cursor.setAttribute("visibility", place ? "visible" : "hidden");
    if (!place) return say(HINT);
    const [x, y] = corner(place.crop, place.patch);
    for (const [name, value] of Object.entries({ x, y, width: place.crop.cell, height: place.crop.cell }))
      cursor.setAttribute(name, value);
    describe(view, place);
  }
  function highlight(token) {
    const others = crop => squares(crop, i => crop.token[i] !== token);
    veil.setAttribute("d", token === null ? "" : view.crops.map(others).join(""));
  }
  function tell(token) {
    highlight(token);
    say(token === KEPT
      ? `Kept as they are: ${count(members(view, KEPT), "patch")}`
        + (view.cls ? `, and ${view.crops.length === 1 ? "CLS" : `${view.crops.length} CLS tokens`}` : "")
      : `Contextual token ${token + 1}: its target and ${count(members(view, token) - 1, "other patch")}`,
      token === KEPT ? "#fff" : data.colours[token]);
  }
  svg.addEventListener("pointermove", event => {
    const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
    const mark = event.target.closest("[data-token]");
    point(patchAt(view, at.x, at.y));
    highlight(mark ? Number(mark.dataset.token) : null);
  });
  svg.addEventListener("pointerleave", () => { point(null); highlight(null); });
  svg.addEventListener("focus", () => point(active || { crop: view.crops[0], patch: 0 }));
  svg.addEventListener("blur", () => point(null));
  svg.addEventListener("keydown", event => {
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (!step || !active) return;
    event.preventDefault();
    const [x, y] = corner(active.crop, active.patch), cell = active.crop.cell;
    for (let far = 1; far <= 4; far++) {  // over the gap between crops
      const next = patchAt(view, x + cell * (0.5 + step[0] * far), y + cell * (0.5 + step[1] * far));
      if (next) return point(next);
    }
  });
  if (zipped) {
    const tokens = view.crops.flatMap(crop => crop.targets.map(target => crop.token[target]));
    for (const token of members(view, KEPT) ? [KEPT, ...tokens] : tokens) {
      const button = document.createElement("button"), number = document.createElement("b");
      button.type = "button";
      number.textContent = token === KEPT ? "" : token + 1;
      number.style.background = token === KEPT ? "" : data.colours[token];
      number.classList.toggle("stays", token === KEPT);
      if (token === KEPT) number.innerHTML = "&nbsp;";
      button.append(number, token === KEPT ? `kept: ${members(view, KEPT)}` : count(members(view, token), "patch"));
      for (const name of ["pointerenter", "focus", "click"]) button.addEventListener(name, () => tell(token));
      for (const name of ["pointerleave", "blur"]) button.addEventListener(name, () => { highlight(null); say(HINT); });
      figure.querySelector(".tokens").append(button);
    }
  }
  main.append(figure);
}
data.views.forEach(addView);
if (data.views.every(view => view.crops[0].token === null)) document.getElementById("modes").hidden = true;
document.getElementById("modes").addEventListener("change", event => document.body.dataset.mode = event.target.value);
say(HINT);
"""
