"use strict";
// Starts the page, and takes another state of the data when the page is live.

const drawCost = () => plotly("cost", ...themed(DATA.costs[chosen("at")].penalty));
const drawGap = () => plotly("gap", ...themed(DATA.costs[chosen("at")].gap));
const drawSurface = () => $("surface-opened").open && plotly("surface", ...themed(DATA.surface));

let drawn = 0;
const parts = new Map();

async function drawAll() {
  for (const figure of figures.values()) figure.stale = true;
  figures.get("plot").stale = false;
  await drawFrontier();
  document.documentElement.dataset.drawn = ++drawn;
  refresh();
  noteCurves();
  const wanted = DATA.costs[chosen("at")]?.gap.layout.height; // of bars that lie one below the other
  $("gap").style.height = wanted ? `${(wanted + 80) * size()}px` : "";
  drawListing();
  drawEnds();
}

function changed() {
  showStep();
  remember();
  drawAll();
}

function take(data) {
  const at = cursor == null ? null : nameOf(cursor); // rows are sorted anew
  DATA = data;
  T = DATA.trials;
  OF = DATA.of;
  ALL = T.trial_id.map((_, i) => i);
  ROWS = ALL.map((i) => ({ i, sweep: OF.sweep[i], stage: OF.stage[i], rate: OF.rate[i], encoder: OF.encoder[i], seed: T.seed[i] }));
  cursor = at == null ? null : rowOf(at) ?? null;
  LARGER = new Set(DATA.larger);
  for (const [slot, text] of Object.entries(DATA.parts ?? {})) {
    const fresh = el("div", { innerHTML: text }).innerHTML; // escaped by Python
    if (fresh === parts.get(slot)) continue; // what a reader has opened or scrolled stays so
    parts.set(slot, fresh);
    document.querySelector(`[data-part=${slot}]`).innerHTML = fresh;
  }
  const stages = DATA.stages.map((stage) => stage.name), rates = DATA.rates.map((rate) => rate.key), lines = DATA.curves.lines;
  const stage = (name) => DATA.stages[stages.indexOf(name)], rate = (key) => DATA.rates[rates.indexOf(key)];
  chips("sweep", DATA.sweeps, String, (name) => symbol("circle", "currentColor", false, DATA.suffixes[DATA.sweeps.indexOf(name) % DATA.suffixes.length]));
  chips("stage", stages, (name) => stage(name).label, (name) => symbol(stage(name).symbol, "var(--soft)", name === "end_to_end"));
  chips("rate", rates, (key) => rate(key).label, (key) => symbol("square", rate(key).colour));
  chips("parent", distinct([...OF.encoder, ...lines.map((line) => line.encoder)]).filter(Boolean));
  chips("seed", distinct([...T.seed, ...lines.map((line) => line.seed)]));
  const keys = distinct(lines.flatMap((line) => Object.keys(line.values))).map((key) => key.split("/")), known = (k) => distinct(keys.map((key) => key[k]));
  const axes = Object.keys(DATA.axes);
  options("x", Object.entries(DATA.axes), axes.includes("mse") ? "mse" : axes[0]);
  options("y", Object.entries(DATA.axes), axes.includes(DATA.y) ? DATA.y : axes[1] ?? axes[0]);
  options("at", Object.keys(DATA.costs).map((at) => [at, at.replaceAll("_", "-")]), DATA.y);
  options("metric", known(1).map((name) => [name, name]), known(1).includes("distortion") ? "distortion" : known(1)[0]);
  options("split", known(0).map((name) => [name, name]), known(0).includes("validation") ? "validation" : known(0)[0]);
  $("view").hidden = !axes.length;
  $("metric").form.hidden = !keys.length;
  $("at").form.hidden = $("at").length < 2;
}

async function show() {
  showStep();
  FILTERS.forEach(check);
  drawPins();
  drawGrid();
  await drawAll();
  const decoded = ALL.filter((i) => T.val_mse?.[i] != null);
  if (decoded.length && !$("preview").children.length) preview(pinnedRows()[0] ?? decoded.reduce((best, i) => (T.val_mse[i] < T.val_mse[best] ? i : best)));
}

// Takes another state of the same sweeps; filters, pins and zoom stay as the reader left them.
async function update(text) {
  take(await unpack(text));
  await show();
}

async function start() {
  for (const part of document.querySelectorAll("[data-part]")) parts.set(part.dataset.part, part.innerHTML);
  take(await unpack($("data").textContent));
  recall();
  onPage("plot", drawFrontier);
  for (const [id, draw] of [["cost", drawCost], ["gap", drawGap], ["surface", drawSurface], ["curves", drawCurves]]) onPage(id, draw);
  await show();
  $("plot").on("plotly_hover", (event) => event.points[0].customdata != null && preview((cursor = event.points[0].customdata)));
  $("plot").on("plotly_click", (event) => event.points[0].customdata != null && togglePin(event.points[0].customdata));
  $("plot").on("plotly_relayout", zoomed);
  for (const name of ["plotly_afterplot", "plotly_relayouting"]) $("plot").on(name, drawDots);
  drawDots();
  $("plot").addEventListener("mousemove", pointed);
  $("plot").addEventListener("mouseleave", () => { $("tip").hidden = true; });
  $("plot").addEventListener("click", (event) => { if (dots.length && nearest(event) != null) togglePin(nearest(event)); });
  $("plot").addEventListener("keydown", steer);
  $("plot").addEventListener("blur", () => { cursor = null; drawRings(); });
  for (const name of [...CHOICES, ...Object.keys(SWITCHES)]) {
    $(name).addEventListener("change", () => {
      if (/^(log)?[xy]$/.test(name)) state.zoom = null; // another axis
      changed();
    });
  }
  $("step").addEventListener("input", () => only("rate", DATA.rates[$("step").value - 1]?.key));
  $("points-csv").addEventListener("click", pointsCsv);
  $("curves-csv").addEventListener("click", curvesCsv);
  $("unpin").addEventListener("click", () => pinnedRows().forEach(togglePin));
  $("link").addEventListener("click", async () => {
    await navigator.clipboard.writeText(location.href).then(() => { $("link").textContent = "Copied"; }, () => prompt("The link to this view", location.href));
    setTimeout(() => { $("link").textContent = "Copy a link to this view"; }, 1500);
  });
  document.addEventListener("click", (event) => event.target.dataset?.csv && download(event.target.dataset.csv, DATA.csv[event.target.dataset.csv]));
  for (const form of document.forms) form.addEventListener("submit", (event) => event.preventDefault());
  $("listing").addEventListener("toggle", drawListing);
  $("ends").addEventListener("toggle", drawEnds);
  $("surface-opened").addEventListener("toggle", drawSurface);
  addEventListener("hashchange", () => { recall(); show(); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
  // Print styles are in force between these two, so colours and widths are those of the paper.
  for (const name of ["beforeprint", "afterprint"]) addEventListener(name, () => { drawAll(); refresh(true); for (const id of figures.keys()) if ($(id).data) Plotly.Plots.resize(id); });
  document.documentElement.dataset.ready = "true";
}

window.urcSweep = { update };
window.urcSweep.ready = start();
