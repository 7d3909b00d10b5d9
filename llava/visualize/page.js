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
