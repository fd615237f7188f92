"use strict";
// Draws the figures from the embedded data. Fronts follow urc_sweep/show/facts.py: membership on val_*, test values drawn.
const DATA = JSON.parse(document.getElementById("data").textContent);
const T = DATA.trials, ALL = T.trial_id.map((_, i) => i), LARGER = new Set(DATA.larger);
const STAGE = Object.fromEntries(DATA.stages.map((stage) => [stage.name, stage]));
const MAX_PINS = 6, MAX_ROWS = 500;
const $ = (id) => document.getElementById(id);
const escapeText = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
const short = (value, digits = 4) => (value == null ? "–" : String(Number(value.toPrecision(digits))));

function el(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children.filter((child) => child != null));
  return node;
}

const lambda = (name) => el("span", {}, "λ", el("sub", { textContent: name }));

// -- filters -----------------------------------------------------------------------------------------------------

const off = { stage: new Set(), rate: new Set(), seed: new Set(), parent: new Set() };

function symbol(shape, colour, outlined) {
  const path = { circle: "M2 8a6 6 0 1 0 12 0a6 6 0 1 0-12 0", diamond: "M8 1l7 7-7 7-7-7z" }[shape] || "M3 3h10v10h-10z";
  const span = el("span");
  span.innerHTML = `<svg viewBox="0 0 16 16" aria-hidden="true"><path d="${path}"/></svg>`;
  const drawn = span.querySelector("path");
  drawn.style.fill = colour;
  if (outlined) Object.assign(drawn.style, { stroke: "currentColor", strokeWidth: "2px" });
  return span.firstChild;
}

function chips(name, values, label, icon) {
  const set = document.querySelector(`[data-filter=${name}]`);
  set.hidden = values.length < 2;
  for (const value of values) {
    const box = el("input", { type: "checkbox", checked: true });
    box.addEventListener("change", () => {
      off[name][box.checked ? "delete" : "add"](value);
      draw();
    });
    const chip = el("label", { className: "chip", title: "double-click: only this one" }, box, icon ? icon(value) : null, label(value));
    chip.addEventListener("dblclick", () => {
      set.querySelectorAll("input").forEach((other) => { other.checked = other === box; });
      off[name] = new Set(values.filter((other) => other !== value));
      draw();
    });
    set.append(chip);
  }
}

function options(select, entries, preferred) {
  for (const [value, text] of entries) select.add(new Option(text, value, false, value === preferred));
  select.addEventListener("change", draw);
}

const passes = (stage, rate, seed, parent) =>
  !off.stage.has(stage) && !off.rate.has(rate) && !off.seed.has(seed) && (parent == null || !off.parent.has(parent));
const shown = () => ALL.filter((i) => passes(T.stage[i], T.rate[i], T.seed[i], T.parent_lambda_c[i]));

// -- fronts ------------------------------------------------------------------------------------------------------

// Rows of `points` [x, y, ...] (both minimised) that no other dominates, from left to right; equal points are all kept.
function nondominated(points) {
  const sorted = points.filter((p) => p[0] != null && p[1] != null).sort((a, b) => a[0] - b[0] || a[1] - b[1]);
  const front = [];
  for (const p of sorted) {
    const last = front.at(-1);
    if (!last || p[1] < last[1] || (p[0] === last[0] && p[1] === last[1])) front.push(p);
  }
  return front;
}

const groupBy = (rows, key) => [...Map.groupBy(rows, key).values()];

// Members of every front among `rows`, and the corners of the staircases of their test values, separated by nulls.
function fronts(rows, x, y) {
  const signX = LARGER.has(x) ? -1 : 1, signY = LARGER.has(y) ? -1 : 1;
  const signed = (column, sign, i) => (column[i] == null ? null : sign * column[i]);
  const members = new Set(), stairs = { x: [], y: [] };
  for (const group of groupBy(rows.filter((i) => !T.worse_than_rate0[i]), (i) => `${T.seed[i]}/${T.parent_id[i]}/${T.variant[i]}`)) {
    const own = nondominated(group.map((i) => [signed(T[`val_${x}`], signX, i), signed(T[`val_${y}`], signY, i), i]));
    own.forEach((p) => members.add(p[2]));
    const steps = nondominated(own.map((p) => [signed(T[x], signX, p[2]), signed(T[y], signY, p[2])]));
    steps.forEach((p, k) => {
      if (k) { stairs.x.push(signX * p[0]); stairs.y.push(signY * steps[k - 1][1]); }
      stairs.x.push(signX * p[0]); stairs.y.push(signY * p[1]);
    });
    stairs.x.push(null); stairs.y.push(null);
  }
  return { members, stairs };
}

// -- drawing -----------------------------------------------------------------------------------------------------

const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function layout(xTitle, yTitle, empty) {
  const font = { family: css("--sans"), size: 12, color: css("--ink") };
  const axis = { gridcolor: css("--rule"), linecolor: css("--soft"), showline: true, zeroline: false, ticks: "outside", tickcolor: css("--soft"), automargin: true };
  return {
    font, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", showlegend: false, hovermode: "closest",
    margin: { l: 56, r: 12, t: 16, b: 48 },
    hoverlabel: { bgcolor: css("--paper"), bordercolor: css("--soft"), font, align: "left" },
    xaxis: { visible: !empty, ...axis, title: { text: escapeText(xTitle), standoff: 12 } },
    yaxis: { visible: !empty, ...axis, title: { text: escapeText(yTitle), standoff: 12 } },
    annotations: empty ? [{ text: escapeText(empty), showarrow: false, xref: "paper", yref: "paper", x: 0.5, y: 0.5 }] : [],
    shapes: [],
    modebar: { bgcolor: "rgba(0,0,0,0)", color: css("--soft"), activecolor: css("--accent") },
  };
}

const weightNames = { lambda_d: "d", lambda_c: "c", lambda_p: "p" };

function describe(i) {
  const weights = Object.entries(weightNames).filter(([key]) => T[key][i] != null).map(([key, name]) => `λ<sub>${name}</sub> ${short(T[key][i])}`);
  const trained = ["c", "p"].filter((name) => T[`parent_lambda_${name}`][i] != null);
  const parent = trained.map((name) => `<br>encoder λ<sub>${name}</sub> ${short(T[`parent_lambda_${name}`][i])}`).join("");
  return `${escapeText(STAGE[T.stage[i]].label)}, ${escapeText(DATA.rates[T.rate[i]].label)}<br>${weights.join(", ")}${parent}<br>${T.variant[i] ? `${escapeText(T.variant[i])}, ` : ""}seed ${T.seed[i]}`;
}

function drawFrontier() {
  const x = $("x").value, y = $("y").value, rows = shown().filter((i) => T[x]?.[i] != null && T[y]?.[i] != null);
  const kind = rows.length > DATA.svg_points ? "scattergl" : "scatter", ink = css("--ink"), lines = [], marks = [];
  let onFront = 0;
  for (const group of groupBy(rows, (i) => `${T.rate[i]}/${T.stage[i]}`)) {
    const rate = DATA.rates[T.rate[group[0]]], stage = STAGE[T.stage[group[0]]], outlined = stage.name === "end_to_end";
    const { members, stairs } = fronts(group, x, y);
    onFront += members.size;
    lines.push({ type: kind, mode: "lines", ...stairs, hoverinfo: "skip", line: { color: rate.colour, width: 1.2, dash: stage.dash } });
    marks.push({
      type: kind, mode: "markers", x: group.map((i) => T[x][i]), y: group.map((i) => T[y][i]), customdata: group,
      text: group.map((i) => `${describe(i)}<br>${escapeText(x)} ${short(T[x][i], 5)}${x === "mse" && T.mse_se[i] != null ? ` ± ${short(T.mse_se[i], 2)} s.e.` : ""}<br>${escapeText(y)} ${short(T[y][i], 5)}`),
      hoverinfo: "text",
      marker: {
        size: outlined ? 10 : 9, color: rate.colour, line: { color: ink, width: outlined ? 1.4 : 0 },
        symbol: group.map((i) => (T.worse_than_rate0[i] ? "x" : stage.symbol)),
        opacity: group.map((i) => (members.has(i) ? 1 : 0.32)),
      },
    });
  }
  const empty = ALL.length ? "No trial passes these filters" : "No compressor trial is done yet";
  const picture = layout(DATA.axes[x] || "", DATA.axes[y] || "", rows.length ? "" : empty);
  const visible = new Set(rows.map((i) => T.rate[i])), room = 0.03 * (Math.max(...rows.map((i) => T.mse[i])) - Math.min(...DATA.floors.map((f) => f.mse)));
  for (const floor of DATA.floors.filter((f) => visible.has(f.rate))) {
    for (const [axis, metric] of [["x", x], ["y", y]]) {
      if (metric !== "mse") continue;
      const across = axis === "x" ? { x0: floor.mse, x1: floor.mse, yref: "paper", y0: 0, y1: 1 } : { y0: floor.mse, y1: floor.mse, xref: "paper", x0: 0, x1: 1 };
      const label = { text: `k-means near-floor (not a bound), ${short(DATA.rates[floor.rate].bits)} bits`, font: { size: 10, color: css("--soft") } };
      const at = axis === "x"
        ? { x: floor.mse, yref: "paper", y: 1, textangle: -90, xanchor: "left", yanchor: "top" }
        : { y: floor.mse, xref: "paper", x: 1, xanchor: "right", yanchor: "bottom" };
      picture.shapes.push({ type: "line", layer: "below", ...across, line: { color: DATA.rates[floor.rate].colour, width: 1.2, dash: "dash" } });
      picture.annotations.push({ ...label, ...at, showarrow: false });
      (picture[`${axis}axis`].autorangeoptions ??= { include: [] }).include.push(floor.mse - room);
    }
  }
  Plotly.react("plot", [...lines, ...marks], picture, CONFIG);
  $("count").textContent = `${rows.length} of ${ALL.length} finished trials shown, ${onFront} on a front.`;
}

const lineShown = (line) => passes(line.stage, line.rate, line.seed, line.parent_lambda_c);

function drawCurves() {
  const key = `${$("split").value}/${$("metric").value}`;
  const lines = DATA.curves.lines.filter((line) => line.values[key] && lineShown(line));
  const traces = groupBy(lines, (line) => `${line.rate}/${line.stage}`).map((group) => {
    const trace = { type: "scatter", mode: "lines", x: [], y: [], text: [], hoverinfo: "text", opacity: 0.8,
      line: { color: DATA.rates[group[0].rate].colour, width: 1.2, dash: STAGE[group[0].stage].dash } };
    for (const line of group) {
      const [epochs, values] = line.values[key];
      const name = `${escapeText(STAGE[line.stage].label)}, ${escapeText(DATA.rates[line.rate].label)}<br>λ<sub>c</sub> ${short(line.lambda_c)}, seed ${line.seed}, ${escapeText(line.status)}`;
      trace.x.push(...epochs, null);
      trace.y.push(...values, null);
      trace.text.push(...epochs.map((epoch, k) => `${name}<br>epoch ${epoch}: ${short(values[k], 5)}`), "");
    }
    return trace;
  });
  Plotly.react("curves", traces, layout("epoch", $("metric").value, traces.length ? "" : "No curve to show"), CONFIG);
  const left = DATA.curves.left_out;
  $("curves-note").textContent = `${lines.length} trials; solid: end-to-end, dotted: universal.${left ? ` Curves of ${left} further trials are in the store only.` : ""}`;
}

// -- reconstructions ---------------------------------------------------------------------------------------------

function strip(sha, alt) {
  if (!sha || !DATA.images[sha]) return el("p", { className: "missing", textContent: `${alt}: no image in this file` });
  return el("img", { className: "strip", alt, src: `data:image/png;base64,${DATA.images[sha]}` });
}

function card(i, button) {
  const facts = el("dl");
  const fact = (name, value) => value != null && facts.append(el("dt", {}, name), el("dd", { textContent: value }));
  for (const [key, name] of Object.entries(weightNames)) if (T[key][i] != null) fact(lambda(name), short(T[key][i]));
  if (T.parent_lambda_c[i] != null) fact(el("span", {}, "encoder's ", lambda("c")), short(T.parent_lambda_c[i]));
  fact("seed", T.seed[i]);
  for (const axis of Object.keys(DATA.axes)) {
    if (T[axis][i] != null) fact(axis, short(T[axis][i], 5) + (axis === "mse" && T.mse_se[i] != null ? ` ± ${short(T.mse_se[i], 2)}` : ""));
  }
  if (T.worse_than_rate0[i]) fact("worse than rate 0", "on no front");
  const title = `${STAGE[T.stage[i]].label}, ${DATA.rates[T.rate[i]].label}`;
  return el("article", { className: "card" }, el("h3", {}, title, button), strip(T.originals[i], "original"), strip(T.samples[i], "reconstruction"), facts);
}

const pins = [];

function togglePin(i) {
  const at = pins.indexOf(i);
  if (at >= 0) pins.splice(at, 1);
  else pins.push(i);
  if (pins.length > MAX_PINS) pins.shift();
  $("pins").replaceChildren(...pins.map((pin) => {
    const button = el("button", { type: "button", textContent: "unpin" });
    button.addEventListener("click", () => togglePin(pin));
    return card(pin, button);
  }));
}

const preview = (i) => $("preview").replaceChildren(card(i));

function drawGrid() {
  const first = Math.min(...T.seed);
  DATA.rates.forEach((rate, number) => {
    const rows = ALL.filter((i) => T.seed[i] === first && T.rate[i] === number && T.samples[i])
      .sort((a, b) => T.stage[a].localeCompare(T.stage[b]) || T.parent_lambda_c[a] - T.parent_lambda_c[b] || T.lambda_c[a] - T.lambda_c[b] || T.lambda_p[a] - T.lambda_p[b]);
    if (!rows.length) return;
    const block = el("div", { className: "rate" }, el("h3", { textContent: `${rate.label}, seed ${first}` }));
    const line = (label, picture, value) => block.append(el("div", { className: "line" }, label, picture, el("span", { className: "value", textContent: value })));
    line(el("span", { textContent: "originals" }), strip(T.originals[rows[0]], "originals"), "");
    let group = "";
    for (const i of rows) {
      const name = `${STAGE[T.stage[i]].label}/${T.parent_id[i]}/${T.variant[i]}`, parent = T.parent_lambda_c[i];
      if (name !== group) block.append(el("div", { className: "group" }, STAGE[T.stage[i]].label, T.variant[i] ? ` (${T.variant[i]})` : "", ...(parent == null ? [] : [", encoder trained at ", lambda("c"), ` ${short(parent)}`])));
      group = name;
      const value = `MSE ${T.mse[i].toFixed(4)}` + (T.accuracy?.[i] == null ? "" : `, accuracy ${T.accuracy[i].toFixed(3)}`);
      const weights = Object.entries(weightNames).filter(([key]) => T[key][i] != null && (key !== "lambda_d" || T[key][i] !== 1));
      const told = weights.map(([key]) => `${key} ${short(T[key][i])}`).join(", ");
      line(el("span", {}, ...weights.flatMap(([key, sub]) => [lambda(sub), ` ${short(T[key][i])} `])), strip(T.samples[i], `${STAGE[T.stage[i]].label} reconstructions, ${told}`), value);
    }
    $("grid").append(block);
  });
  if (!$("grid").children.length) $("grid").append(el("p", { className: "empty", textContent: "No reconstruction to show yet." }));
}

// -- tables and files --------------------------------------------------------------------------------------------

const LISTED = ["stage", "rate", "lambda_c", "parent_lambda_c", "seed"];

function drawListing() {
  if (!$("listing").open) return;
  const axes = Object.keys(DATA.axes), rows = shown();
  const cell = (i, name) => (name === "rate" ? DATA.rates[T.rate[i]].label : name === "stage" ? STAGE[T.stage[i]].label : short(T[name][i], 5));
  const body = el("tbody", {}, ...rows.slice(0, MAX_ROWS).map((i) => {
    const pin = el("button", { type: "button", textContent: "pin", ariaLabel: `pin ${cell(i, "stage")} ${cell(i, "rate")} ${i}` });
    pin.addEventListener("click", () => togglePin(i));
    return el("tr", {}, el("td", {}, pin), ...[...LISTED, ...axes].map((name) => el("td", { textContent: cell(i, name) })));
  }));
  const head = el("tr", {}, el("th", { textContent: "" }), ...[...LISTED, ...axes].map((name) => el("th", { scope: "col", textContent: name })));
  const more = rows.length > MAX_ROWS ? `First ${MAX_ROWS} of ${rows.length}; the CSV has all.` : "";
  $("listing").querySelector(".scroll").replaceChildren(el("table", {}, el("caption", { textContent: more }), el("thead", {}, head), body));
}

function quoted(value) {
  const text = value == null ? "" : String(value);
  const safe = typeof value === "string" && /^[=+\-@\t\r]/.test(text) ? `'${text}` : text;
  return /[",\n\r]/.test(safe) ? `"${safe.replace(/"/g, '""')}"` : safe;
}

function download(name, text) {
  const link = el("a", { href: URL.createObjectURL(new Blob([text], { type: "text/csv" })), download: `${DATA.sweep}-${name}.csv` });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

function pointsCsv() {
  const hidden = ["rate", "samples", "originals"], names = Object.keys(T).filter((name) => !hidden.includes(name));
  const rows = shown().map((i) => [DATA.rates[T.rate[i]].bits, ...names.map((name) => T[name][i])].map(quoted).join(","));
  download("points", [["rate_bits", ...names].join(","), ...rows, ""].join("\n"));
}

function curvesCsv() {
  const split = $("split").value, metric = $("metric").value, rows = ["trial_id,epoch,split,metric,value"];
  for (const line of DATA.curves.lines.filter((line) => line.values[`${split}/${metric}`] && lineShown(line))) {
    const [epochs, values] = line.values[`${split}/${metric}`];
    epochs.forEach((epoch, k) => rows.push([line.trial_id, epoch, split, metric, values[k]].map(quoted).join(",")));
  }
  download("curves", rows.concat("").join("\n"));
}

// -- start -------------------------------------------------------------------------------------------------------

const CONFIG = { ...DATA.config, modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"] };
const distinct = (values) => [...new Set(values.filter((value) => value != null))].sort((a, b) => a - b);

function draw() {
  drawFrontier();
  drawCurves();
  drawListing();
}

chips("stage", DATA.stages.map((stage) => stage.name), (name) => STAGE[name].label, (name) => symbol(STAGE[name].symbol, "var(--soft)", name === "end_to_end"));
chips("rate", DATA.rates.map((_, k) => k), (k) => DATA.rates[k].label, (k) => symbol("square", DATA.rates[k].colour));
chips("seed", distinct([...T.seed, ...DATA.curves.lines.map((line) => line.seed)]), String);
chips("parent", distinct(T.parent_lambda_c), (value) => short(value));
options($("x"), Object.entries(DATA.axes), "mse");
options($("y"), Object.entries(DATA.axes), DATA.y);
document.querySelector(".pair").hidden = !Object.keys(DATA.axes).length;
const keys = [...new Set(DATA.curves.lines.flatMap((line) => Object.keys(line.values)))].map((key) => key.split("/"));
options($("metric"), [...new Set(keys.map((key) => key[1]))].map((name) => [name, name]), "distortion");
$("metric").form.hidden = !keys.length;
options($("split"), [...new Set(keys.map((key) => key[0]))].map((name) => [name, name]), "validation");

$("points-csv").addEventListener("click", pointsCsv);
$("curves-csv").addEventListener("click", curvesCsv);
for (const button of document.querySelectorAll("[data-csv]")) {
  button.addEventListener("click", () => download(button.dataset.csv, DATA.csv[button.dataset.csv]));
}
$("filters").addEventListener("submit", (event) => event.preventDefault());
$("listing").addEventListener("toggle", drawListing);
drawGrid();
draw();
if (ALL.length) preview(ALL.reduce((best, i) => (T.mse[i] < T.mse[best] ? i : best)));
$("plot").on("plotly_hover", (event) => preview(event.points[0].customdata));
$("plot").on("plotly_click", (event) => togglePin(event.points[0].customdata));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
// Print styles are in force between these two, so colours and widths are those of the paper.
for (const name of ["beforeprint", "afterprint"]) addEventListener(name, () => { draw(); for (const id of ["plot", "curves"]) Plotly.Plots.resize(id); });
