"use strict";
// What the page's figures share: the data, the state that a link carries, filters, colours, drawing what is looked at.

const MAX_PINS = 6, MAX_ROWS = 500, MAX_BOUNDS = 60;
let DATA, T, OF, ALL = [], ROWS = [], LARGER = new Set(); // of every trial: T, its facts by name; OF, where it belongs

const $ = (id) => document.getElementById(id);
const escapeText = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
const short = (value, digits = 4) => (value == null ? "–" : String(Number(value.toPrecision(digits))));
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const WEIGHTS = { lambda_d: "d", lambda_c: "c", lambda_p: "p" };

function el(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children.filter((child) => child != null));
  return node;
}

const lambda = (name) => el("span", {}, "λ", el("sub", { textContent: name }));

async function unpack(text) {
  const letters = atob(text.trim()), bytes = new Uint8Array(letters.length);
  for (let k = 0; k < letters.length; k++) bytes[k] = letters.charCodeAt(k);
  return JSON.parse(await new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text());
}

// -- state, and the link that carries it -------------------------------------------------------------------------

const FILTERS = ["sweep", "stage", "rate", "parent", "seed"];
const state = { off: Object.fromEntries(FILTERS.map((name) => [name, new Set()])), pins: [], zoom: null };
const CHOICES = ["x", "y", "at", "metric", "split"], SWITCHES = { logx: false, logy: false, bands: true, overlays: true };
const chosen = (name) => $(name).value;
const on = (name) => $(name).checked;
const severalSweeps = () => DATA.sweeps.length > 1;
const nameOf = (i) => T.trial_id[i].slice(0, 12) + (severalSweeps() ? `@${DATA.sweeps[OF.sweep[i]]}` : "");

// What the filters look at, of a trial and of a training curve alike.
const FIELDS = { sweep: (row) => DATA.sweeps[row.sweep], stage: (row) => DATA.stages[row.stage].name, rate: (row) => DATA.rates[row.rate].key, parent: (row) => row.encoder, seed: (row) => row.seed };

function passing(rows) {
  const active = FILTERS.filter((name) => state.off[name].size);
  return rows.filter((row) => active.every((name) => !state.off[name].has(String(FIELDS[name](row)))));
}

const shown = () => passing(ROWS).map((row) => row.i);

function remember() {
  const link = new URLSearchParams();
  for (const name of CHOICES) if (chosen(name) && chosen(name) !== $(name).dataset.first) link.set(name, chosen(name));
  for (const [name, usual] of Object.entries(SWITCHES)) if (on(name) !== usual) link.set(name, Number(on(name)));
  for (const name of FILTERS) for (const value of state.off[name]) link.append(`without-${name}`, value);
  for (const pin of state.pins) link.append("pin", pin);
  if (state.zoom) link.set("zoom", state.zoom.map((end) => short(end, 6)).join("~"));
  const hash = link.size ? `#${link}` : "";
  if (hash !== location.hash) history.replaceState(history.state, "", hash || location.pathname + location.search);
}

function recall() {
  const link = new URLSearchParams(location.hash.slice(1));
  for (const name of CHOICES) {
    const known = [...$(name).options].map((option) => option.value);
    $(name).value = [link.get(name), $(name).dataset.first].find((value) => known.includes(value)) ?? "";
  }
  for (const [name, usual] of Object.entries(SWITCHES)) $(name).checked = link.has(name) ? link.get(name) === "1" : usual;
  for (const name of FILTERS) state.off[name] = new Set(link.getAll(`without-${name}`));
  state.pins = link.getAll("pin").slice(0, MAX_PINS);
  const zoom = (link.get("zoom") ?? "").split("~").map(Number);
  state.zoom = zoom.length === 4 && zoom.every(Number.isFinite) ? zoom : null;
}

// -- filters -----------------------------------------------------------------------------------------------------

// Markers in a box of 16 for a radius of 6, about as Plotly draws them; the canvas draws these too.
const OUTLINES = {
  circle: "M2 8a6 6 0 1 0 12 0a6 6 0 1 0-12 0", square: "M2 2h12v12h-12z", diamond: "M8 .2l7.8 7.8-7.8 7.8L.2 8z", "triangle-up": "M8 2l7 11H1z",
  cross: "M6 1h4v5h5v4h-5v5H6v-5H1V6h5z", x: "M3 1l5 5 5-5 2 2-5 5 5 5-2 2-5-5-5 5-2-2 5-5-5-5z", "x-thin": "M2 2l12 12M14 2L2 14",
};

function symbol(shape, colour, outlined, suffix = "") {
  const span = el("span"), hollow = suffix.includes("-open"), dot = suffix.endsWith("-dot") ? `<circle cx="8" cy="8" r="2" fill="${hollow ? "currentColor" : "var(--paper)"}"/>` : "";
  span.innerHTML = `<svg viewBox="0 0 16 16" aria-hidden="true"><path d="${OUTLINES[shape] ?? OUTLINES.square}"/>${dot}</svg>`;
  const drawn = span.querySelector("path");
  drawn.style.fill = hollow ? "none" : colour;
  if (outlined || hollow) Object.assign(drawn.style, { stroke: hollow ? colour : "currentColor", strokeWidth: "2px" });
  return span.firstChild;
}

// Makes the chips of a filter, anew only where its values are new: whoever is using them keeps the focus.
function chips(name, values, label = String, icon = () => null) {
  const set = document.querySelector(`[data-filter=${name}]`), known = values.map(String);
  set.hidden = values.length < 2;
  if (set.dataset.values !== JSON.stringify(known)) {
    set.dataset.values = JSON.stringify(known);
    set.querySelectorAll("label").forEach((old) => old.remove());
    for (const [k, value] of known.entries()) {
      const box = el("input", { type: "checkbox", value });
      box.addEventListener("change", () => {
        state.off[name][box.checked ? "delete" : "add"](value);
        changed();
      });
      const chip = el("label", { className: "chip", title: "double-click: only this one" }, box, icon(values[k]), label(values[k]));
      chip.addEventListener("dblclick", (event) => {
        event.preventDefault();
        only(name, value);
      });
      set.append(chip);
    }
  }
  check(name);
}

const check = (name) => document.querySelectorAll(`[data-filter=${name}] input`).forEach((box) => { box.checked = !state.off[name].has(box.value); });

function only(name, value) {
  const values = JSON.parse(document.querySelector(`[data-filter=${name}]`).dataset.values);
  state.off[name] = new Set(value == null ? [] : values.filter((other) => other !== value));
  check(name);
  changed();
}

// The slider goes through the rates one by one; at its left end are all.
function showStep() {
  const left = DATA.rates.filter((rate) => !state.off.rate.has(rate.key)), all = left.length === DATA.rates.length;
  $("walk").hidden = DATA.rates.length < 2;
  $("step").max = DATA.rates.length;
  $("step").value = left.length === 1 ? DATA.rates.indexOf(left[0]) + 1 : 0;
  const words = all ? "all rates" : left.length === 1 ? left[0].label : `${left.length} of ${DATA.rates.length} rates`;
  $("step").setAttribute("aria-valuetext", words);
  document.querySelector("output[for=step]").textContent = words;
}

function options(name, entries, first) {
  const select = $(name), before = select.value;
  select.dataset.first = first;
  select.replaceChildren(...entries.map(([value, text]) => new Option(text, value)));
  select.value = [before, first, entries[0]?.[0]].find((value) => entries.some((entry) => entry[0] === value)) ?? "";
}

// -- drawing -----------------------------------------------------------------------------------------------------

const figures = new Map();
const watcher = new IntersectionObserver((entries) => {
  for (const entry of entries) figures.get(entry.target.id).near = entry.isIntersecting;
  refresh();
}, { rootMargin: "400px" });

// A figure is drawn when it comes near the window, and again when what it shows has changed.
function onPage(id, draw) {
  figures.set(id, { draw, stale: true, near: false });
  watcher.observe($(id));
}

function refresh(all = false) {
  for (const figure of figures.values()) {
    if (!figure.stale || !(all || figure.near)) continue;
    figure.stale = false;
    figure.draw();
  }
}

function size() {
  return parseFloat(getComputedStyle(document.documentElement).fontSize) / 16;
}

function axis(title, visible = true) {
  const soft = css("--soft"), line = { gridcolor: css("--rule"), linecolor: soft, tickcolor: soft, zeroline: false };
  return { ...line, visible, showline: true, ticks: "outside", title: { text: escapeText(title), standoff: 12 } };
}

function layout(xTitle, yTitle, empty) {
  const font = { family: css("--sans"), size: 12 * size(), color: css("--ink") };
  return {
    font, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", showlegend: false, hovermode: "closest",
    margin: { l: 74 * size(), r: 14, t: 16, b: 54 * size() }, // automatic margins draw everything twice
    hoverlabel: { bgcolor: css("--paper"), bordercolor: css("--soft"), font, align: "left" },
    xaxis: axis(xTitle, !empty), yaxis: axis(yTitle, !empty),
    annotations: empty ? [{ text: escapeText(empty), showarrow: false, xref: "paper", yref: "paper", x: 0.5, y: 0.5 }] : [],
    shapes: [],
    modebar: { bgcolor: "rgba(0,0,0,0)", color: css("--soft"), activecolor: css("--accent") },
  };
}

// A figure that Python made, in the colours of the page; "black" is its word for ink.
function themed(figure) {
  const ink = css("--ink"), own = layout("", "");
  const { data, layout: made } = JSON.parse(JSON.stringify(figure), (_, value) => (value === "black" ? ink : value));
  const dressed = { ...made, template: undefined, font: { ...own.font }, paper_bgcolor: own.paper_bgcolor, plot_bgcolor: own.plot_bgcolor, hoverlabel: own.hoverlabel, modebar: own.modebar, width: undefined, height: undefined };
  dressed.minreducedheight = 170 * size(); // long names under bars may leave nothing of a narrow figure, which Plotly answers with an error
  if (innerWidth < 48 * 16 * size()) {
    const annotations = made.annotations?.map((note) => ({ ...note, text: note.text.replace("; ", ";<br>") }));
    const legend = { ...made.legend, orientation: "h", x: 0, xanchor: "left", yref: "container", y: 0, yanchor: "bottom" };
    Object.assign(dressed, { annotations, legend, font: { ...own.font, size: 10 * size() }, margin: { ...made.margin, t: 40 } });
  }
  const soft = { gridcolor: css("--rule"), linecolor: css("--soft"), tickcolor: css("--soft"), zerolinecolor: css("--soft") };
  for (const name of Object.keys(made).filter((name) => /^[xy]axis\d*$/.test(name))) dressed[name] = { ...made[name], ...soft };
  if (made.scene) {
    const flat = { ...soft, backgroundcolor: css("--wash"), color: css("--ink") };
    dressed.scene = { ...made.scene };
    for (const name of ["xaxis", "yaxis", "zaxis"]) dressed.scene[name] = { ...made.scene[name], ...flat };
  }
  return [data, dressed];
}

const plotly = (id, data, picture) => Plotly.react(id, data, picture, CONFIG());

// The mode bar saves both: PNG for slides, SVG for papers.
function CONFIG() {
  const save = (format) => (graph) => Plotly.downloadImage(withDots(graph), { format, filename: `${DATA.sweeps.join("-")}-${graph.id}`, ...(format === "png" ? { scale: 3 } : {}) });
  const button = (format) => ({ name: `${format}`, title: `Download as ${format.toUpperCase()}`, icon: Plotly.Icons[format === "png" ? "camera" : "disk"], click: save(format) });
  return { ...DATA.config, modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d", "toImage"], modeBarButtonsToAdd: [button("png"), button("svg")] };
}

// What a canvas draws of a figure is a picture in its file.
function withDots(graph) {
  if (graph.id !== "plot" || !dots.length) return graph;
  const picture = { source: $("dots").toDataURL(), xref: "paper", yref: "paper", x: 0, y: 1, sizex: 1, sizey: 1, sizing: "stretch", layer: "above" };
  return { data: graph.data, layout: { ...graph.layout, images: [picture], width: graph._fullLayout.width, height: graph._fullLayout.height } };
}

// -- files -------------------------------------------------------------------------------------------------------

function quoted(value) {
  const text = value == null ? "" : String(value);
  const safe = typeof value === "string" && /^[=+\-@\t\r]/.test(text) ? `'${text}` : text;
  return /[",\n\r]/.test(safe) ? `"${safe.replace(/"/g, '""')}"` : safe;
}

function download(name, text) {
  const link = el("a", { href: URL.createObjectURL(new Blob([text], { type: "text/csv" })), download: `${DATA.sweeps.join("-")}-${name}.csv` });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

const lines = (rows) => rows.map((row) => row.map(quoted).join(",")).concat("").join("\n");
