"use strict";
// Trials beside the frontier: cards with reconstructions, the image grid, tables, training curves, files.

function strip(sha, alt) {
  const source = sha && (DATA.linked ? `${DATA.linked}${sha}.png` : DATA.images[sha] && `data:image/png;base64,${DATA.images[sha]}`);
  const missing = () => el("p", { className: "missing", textContent: `${alt}: no image here` });
  if (!source) return missing();
  const [width, height] = DATA.strip; // so that nothing moves once it is loaded
  const picture = el("img", { className: "strip", alt, title: alt, width, height, src: source });
  picture.addEventListener("error", () => picture.replaceWith(missing()));
  return picture;
}

// Mean and standard deviation over the trials that differ from this one by their seed alone.
function spread(i, axis) {
  const alike = ALL.filter((j) => OF.alike[j] === OF.alike[i] && T[axis][j] != null), values = alike.map((j) => T[axis][j]), n = values.length;
  if (n < 2 || distinct(alike.map((j) => T.seed[j])).length < n) return []; // more than the seed sets these apart
  const mean = values.reduce((sum, v) => sum + v, 0) / n;
  return [`mean ± s.d., ${n} seeds`, `${short(mean)} ± ${short(Math.sqrt(values.reduce((sum, v) => sum + (v - mean) ** 2, 0) / (n - 1)), 2)}`];
}

function card(i, button, letter) {
  const facts = el("dl"), more = el("dl"), x = chosen("x"), y = chosen("y");
  const fact = (list, name, text) => text != null && list.append(el("dt", {}, name), el("dd", { textContent: text }));
  if (severalSweeps()) fact(facts, "sweep", DATA.sweeps[OF.sweep[i]]);
  for (const [name, weight] of weights(i)) fact(facts, lambda(name), weight);
  fact(facts, "further terms", T.terms[i] || null);
  fact(facts, "encoder", OF.encoder[i] || null);
  fact(facts, "seed", T.seed[i]);
  for (const axis of Object.keys(DATA.axes)) {
    if (T[axis][i] == null) continue;
    const main = axis === x || axis === y;
    fact(main ? facts : more, axis, short(T[axis][i], 5) + (axis === "mse" && T.mse_se[i] != null ? ` ± ${short(T.mse_se[i], 2)} s.e.` : ""));
    if (main) fact(facts, ...spread(i, axis));
  }
  if (T.worse_than_rate0[i]) fact(facts, "worse than zero rate", "on no front");
  fact(more, "trial", T.trial_id[i].slice(0, 12));
  const title = el("span", {}, letter ? el("b", { className: "letter", textContent: letter }) : null, `${stageOf(i).label}, ${rateOf(i).label}`);
  const base = OF.parent[i], strips = el("div", { className: "strips" }, strip(OF.originals[i], "original"));
  if (base != null && OF.samples[base]) strips.append(strip(OF.samples[base], `${stageOf(base).label}: the trial whose encoder is frozen`));
  strips.append(strip(OF.samples[i], `${stageOf(i).label} reconstruction`));
  const legend = el("p", { className: "missing", textContent: ["original", ...(strips.children.length > 2 ? ["encoder's own decoder"] : []), "this decoder"].join(" / ") });
  return el("article", { className: "card" }, el("h3", {}, title, button), strips, legend, facts, el("details", {}, el("summary", { textContent: "all metrics" }), more));
}

const rowOf = (name) => ALL.find((i) => nameOf(i) === name);
const pinnedRows = () => state.pins.map(rowOf).filter((i) => i != null);
const preview = (i) => $("preview").replaceChildren(card(i));

function togglePin(i) {
  const at = state.pins.indexOf(nameOf(i));
  if (at >= 0) state.pins.splice(at, 1);
  else state.pins = [...state.pins, nameOf(i)].slice(-MAX_PINS);
  drawPins();
  drawRings();
  remember();
}

function drawPins() {
  $("unpin").hidden = !state.pins.length;
  $("pins").replaceChildren(...pinnedRows().map((i) => {
    const button = el("button", { type: "button", textContent: "unpin" });
    button.addEventListener("click", () => togglePin(i));
    return card(i, button, LETTERS[state.pins.indexOf(nameOf(i))]);
  }));
}

// Families one after the other: the same encoder, settings and further terms, and in each the weights as they grow.
const standing = (i) => [OF.stage[i], OF.parent[i] ?? -1, T.variant[i], T.terms[i], ...Object.keys(WEIGHTS).map((key) => T[key][i] ?? -1), i];

function inOrder(one, other) {
  const k = one.findIndex((value, at) => value !== other[at]);
  return one[k] < other[k] ? -1 : 1;
}

function drawGrid() {
  const blocks = DATA.pictures_left_out ? [el("p", { className: "caption", textContent: `Pictures of ${DATA.pictures_left_out} further trials are in the store only.` })] : [];
  for (const [sweep, name] of DATA.sweeps.entries()) {
    const first = distinct(T.seed.filter((_, i) => OF.sweep[i] === sweep))[0];
    DATA.rates.forEach((rate, number) => {
      const rows = ALL.filter((i) => OF.sweep[i] === sweep && T.seed[i] === first && OF.rate[i] === number && OF.samples[i]).map(standing).sort(inOrder).map((row) => row.at(-1));
      if (!rows.length) return;
      const block = el("div", { className: "rate" }, el("h3", { textContent: `${severalSweeps() ? `${name}, ` : ""}${rate.label}, seed ${first}` }));
      const line = (label, picture, text) => block.append(el("div", { className: "line" }, label, picture, el("span", { className: "value", textContent: text })));
      line(el("span", { textContent: "originals" }), strip(OF.originals[rows[0]], "originals"), "");
      let group = "";
      for (const i of rows) {
        const family = standing(i).slice(0, 3).join("/");
        if (family !== group) block.append(el("div", { className: "group", textContent: `${stageOf(i).label}${OF.encoder[i] ? `, encoder ${OF.encoder[i]}` : ""}` }));
        group = family;
        line(el("span", {}, ...weights(i).flatMap(([name, weight]) => [lambda(name), ` ${weight} `]), T.terms[i]), strip(OF.samples[i], `${stageOf(i).label} reconstructions, ${objective(i)}`),
          [["MSE", "mse", 4], ["accuracy", "accuracy", 3]].filter(([, key]) => T[key]?.[i] != null).map(([label, key, digits]) => `${label} ${T[key][i].toFixed(digits)}`).join(", "));
      }
      blocks.push(block);
    });
  }
  $("grid").replaceChildren(...(blocks.length ? blocks : [el("p", { className: "empty", textContent: "No reconstruction to show yet." })]));
}

// -- training curves ---------------------------------------------------------------------------------------------

const curveKey = () => `${chosen("split")}/${chosen("metric")}`;
const curvesShown = () => passing(DATA.curves.lines).filter((line) => line.values[curveKey()]);
const lineName = (line) => `${severalSweeps() ? `${DATA.sweeps[line.sweep]}, ` : ""}${DATA.stages[line.stage].label}, ${DATA.rates[line.rate].label}`;

// Told before the figure comes near and is drawn: what stands below it must not move then.
function noteCurves() {
  const { left_out: left, thinned } = DATA.curves;
  $("curves-note").textContent = `${curvesShown().length} trials; solid: end-to-end, dotted: universal.${thinned ? ` Long curves are thinned to at most ${DATA.curves.most} epochs.` : ""}${left ? ` Curves of ${left} further trials are in the store only.` : ""}`;
}

function drawCurves() {
  const found = curvesShown(), traces = groupBy(found, (line) => `${line.rate}/${line.stage}`).map((group) => {
    const trace = { type: "scatter", mode: "lines", x: [], y: [], text: [], hovertemplate: "%{text}<extra></extra>", opacity: 0.8,
      line: { color: DATA.rates[group[0].rate].colour, width: 1.2, dash: DATA.stages[group[0].stage].dash } };
    for (const line of group) {
      const [epochs, values] = line.values[curveKey()];
      const told = [lineName(line), [line.weights, line.encoder && `encoder ${line.encoder}`].filter(Boolean).join(", "), `seed ${line.seed}, ${line.status}`];
      const name = told.filter(Boolean).map(escapeText).join("<br>");
      trace.x.push(...epochs, null);
      trace.y.push(...values, null);
      trace.text.push(...epochs.map((epoch, k) => `${name}<br>epoch ${epoch}: ${short(values[k], 5)}`), "");
    }
    return trace;
  });
  return plotly("curves", traces, layout("epoch", chosen("metric"), traces.length ? "" : "No curve to show"));
}

// -- tables and files --------------------------------------------------------------------------------------------

function fill(id, rows, head, make) {
  const body = el("tbody", {}, ...rows.slice(0, MAX_ROWS).map(make)), more = rows.length > MAX_ROWS ? `First ${MAX_ROWS} of ${rows.length}; the CSV has all.` : "";
  const heads = el("tr", {}, ...head.map((name) => el("th", { scope: "col", textContent: name })));
  $(id).querySelector(".scroll").replaceChildren(el("table", {}, el("caption", { textContent: more }), el("thead", {}, heads), body));
}

const cells = (texts) => texts.map((text) => el("td", { textContent: text }));

function drawListing() {
  if (!$("listing").open) return;
  const axes = Object.keys(DATA.axes), sweep = severalSweeps() ? ["sweep"] : [];
  fill("listing", shown(), ["", ...sweep, "stage", "rate", "weights", "encoder", "seed", ...axes], (i) => {
    const pin = el("button", { type: "button", textContent: "pin", ariaLabel: `pin ${stageOf(i).label} ${rateOf(i).label} ${nameOf(i)}` });
    pin.addEventListener("click", () => togglePin(i));
    const words = [...sweep.map(() => DATA.sweeps[OF.sweep[i]]), stageOf(i).label, rateOf(i).label, objective(i), OF.encoder[i], T.seed[i]];
    return el("tr", {}, el("td", {}, pin), ...cells([...words, ...axes.map((name) => short(T[name][i], 5))]));
  });
}

function drawEnds() {
  if (!$("ends").open) return;
  fill("ends", curvesShown(), ["trial", "", "weights", "encoder", "seed", "status", "epoch", chosen("metric")], (line) => {
    const [epochs, values] = line.values[curveKey()];
    return el("tr", {}, ...cells([line.trial_id.slice(0, 12), lineName(line), line.weights, line.encoder, line.seed, line.status, epochs.at(-1), short(values.at(-1), 5)]));
  });
}

function pointsCsv() {
  const names = Object.keys(T), x = chosen("x"), y = chosen("y");
  const members = new Set(frontsOf(shown().filter((i) => T[x]?.[i] != null && T[y]?.[i] != null), x, y).fronts.flatMap((front) => front.members));
  const own = (i) => [DATA.sweeps[OF.sweep[i]], stageOf(i).name, members.has(i), OF.parent[i] == null ? null : T.trial_id[OF.parent[i]]];
  download("points", lines([["sweep", "stage", `on_front_${x}_${y}`, "parent_id", ...names], ...shown().map((i) => [...own(i), ...names.map((name) => T[name][i])])]));
}

function curvesCsv() {
  const rows = curvesShown().flatMap((line) => line.values[curveKey()][0].map((epoch, k) => [line.trial_id, epoch, chosen("split"), chosen("metric"), line.values[curveKey()][1][k]]));
  download("curves", lines([["trial_id", "epoch", "split", "metric", "value"], ...rows]));
}
