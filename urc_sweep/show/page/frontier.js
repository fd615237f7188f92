"use strict";
// The frontier: points, fronts or bands over seeds, overlays, pins, and a cursor for the keyboard.

let cursor = null, visible = [];

const LETTERS = "ABCDEF";
const stageOf = (i) => DATA.stages[OF.stage[i]];
const rateOf = (i) => DATA.rates[OF.rate[i]];

// The weights of a trial's objective: what is under its lambda, and how much; that of distortion where it is not 1.
const weights = (i) => Object.entries(WEIGHTS).filter(([key]) => T[key][i] != null && !(key === "lambda_d" && T[key][i] === 1)).map(([key, name]) => [name, short(T[key][i])]);
const objective = (i) => [...weights(i).flat(), T.terms[i]].filter(Boolean).join(" ");

function describe(i) {
  const own = [...weights(i).map(([name, weight]) => `λ<sub>${name}</sub> ${weight}`), escapeText(T.terms[i])];
  const told = [`${escapeText(stageOf(i).label)}, ${escapeText(rateOf(i).label)}`, own.filter(Boolean).join(", "), OF.encoder[i] && `encoder ${escapeText(OF.encoder[i])}`, `seed ${T.seed[i]}`];
  return [severalSweeps() ? escapeText(DATA.sweeps[OF.sweep[i]]) : "", ...told].filter(Boolean).join("<br>");
}

const value = (axis, i) => `${escapeText(axis)} ${short(T[axis][i], 5)}${axis === "mse" && T.mse_se[i] != null ? ` ± ${short(T.mse_se[i], 2)} s.e.` : ""}`;

// Every front among `rows` over two axes: who is on it (decided on val_*) and its corners (test values, minimised).
function frontsOf(rows, x, y) {
  const over = DATA.rate_axes.includes(x) || DATA.rate_axes.includes(y);
  const key = OF[over ? "rate_front" : "front"], band = OF[over ? "rate_band" : "band"];
  const sign = (axis) => (LARGER.has(axis) ? -1 : 1);
  const at = (prefix, i) => [x, y].map((axis) => (T[prefix + axis][i] == null ? null : sign(axis) * T[prefix + axis][i]));
  const fronts = groupBy(rows, (i) => key[i]).map((group) => {
    // A seed whose runs are all worse than zero rate counts, and attains nothing.
    const members = nondominated(group.filter((i) => !T.worse_than_rate0[i]).map((i) => [...at("val_", i), i])).map((p) => p[2]);
    return { first: group[0], band: band[group[0]], members, corners: nondominated(members.map((i) => at("", i))) };
  });
  const back = (corners) => corners.map((p) => [sign(x) * p[0], sign(y) * p[1]]);
  return { fronts, back, over };
}

// The attainment surfaces of the fronts that differ by their seed alone; none under three seeds.
function bandsOf(fronts) {
  return groupBy(fronts, (front) => front.band).flatMap((group) => {
    const sets = groupBy(group, (front) => T.seed[front.first]).map((alike) => alike.flatMap((front) => front.corners));
    if (sets.length < 3) return [];
    const surface = (share) => attained(sets, Math.ceil(share * sets.length));
    return { first: group[0].first, band: group[0].band, seeds: sets.length, low: surface(0.25), median: surface(0.5), high: surface(0.75) };
  });
}

const xs = (corners) => corners.map((p) => p[0]);
const ys = (corners) => corners.map((p) => p[1]);
const hover = (i) => `${describe(i)}<br>${value(chosen("x"), i)}<br>${value(chosen("y"), i)}`;

// Two corners that hold all points: what the axes range over where a canvas draws them.
function extent(rows, x, y) {
  const ends = (axis) => [Math.min, Math.max].map((end) => rows.reduce((found, i) => end(found, T[axis][i]), T[axis][rows[0]]));
  return { x: ends(x), y: ends(y) };
}

function drawFrontier() {
  const x = chosen("x"), y = chosen("y"), log = { [x]: on("logx"), [y]: on("logy") };
  const rows = shown().filter((i) => T[x]?.[i] != null && T[y]?.[i] != null);
  const many = rows.length > DATA.svg_points, ink = css("--ink");
  const { fronts, back, over } = frontsOf(rows, x, y), members = new Set(fronts.flatMap((front) => front.members));
  const bands = on("bands") ? bandsOf(fronts) : [], banded = new Set(bands.map((band) => band.band));
  const colour = (i) => (over ? css("--soft") : rateOf(i).colour), under = [], marks = [], keys = [], levels = { xaxis: [], yaxis: [] };
  const alike = (i) => `${over ? "" : OF.rate[i]}/${OF.stage[i]}/${OF.sweep[i]}`, silent = { type: "scatter", mode: "lines", hoverinfo: "skip" };
  const drawn = (parts, first, style) => {
    const joined = parts.flatMap((part) => [...back(part), [null, null]]);
    under.push({ ...silent, x: xs(joined), y: ys(joined), ...style, line: { color: colour(first), dash: stageOf(first).dash, ...style.line } });
  };
  for (const group of groupBy(bands, (band) => alike(band.first))) {
    drawn(group.map((band) => between(band.low, band.high)), group[0].first, { fill: "toself", fillcolor: colour(group[0].first), opacity: 0.16, line: { width: 0 } });
    drawn(group.map((band) => steps(band.median)), group[0].first, { line: { width: 2 } });
  }
  for (const group of groupBy(fronts.filter((front) => !banded.has(front.band)), (front) => alike(front.first))) {
    drawn(group.map((front) => steps(front.corners)), group[0].first, { line: { width: 1.2 } });
  }
  dots = [];
  for (const group of groupBy(rows, (i) => `${OF.rate[i]}/${OF.stage[i]}/${OF.sweep[i]}`)) {
    const outlined = stageOf(group[0]).name === "end_to_end", shape = stageOf(group[0]).symbol + DATA.suffixes[OF.sweep[group[0]] % DATA.suffixes.length];
    const opacity = (i) => (!members.has(i) ? 0.25 : banded.size ? 0.7 : 1), fill = rateOf(group[0]).colour;
    if (many) {
      dots.push({ rows: group.filter((i) => !T.worse_than_rate0[i]), shape, colour: fill, edge: outlined ? ink : null, opacity });
      dots.push({ rows: group.filter((i) => T.worse_than_rate0[i]), shape: "x-thin-open", colour: fill, edge: null, opacity });
      continue;
    }
    marks.push({
      type: "scatter", mode: "markers", x: group.map((i) => T[x][i]), y: group.map((i) => T[y][i]), customdata: group,
      text: group.map(hover), hovertemplate: "%{text}<extra></extra>",
      marker: {
        size: (outlined ? 10 : 9) * size(), color: fill, line: { color: outlined ? ink : fill, width: outlined ? 1.4 : 0.6 },
        symbol: group.map((i) => (T.worse_than_rate0[i] ? "x-thin-open" : shape)), opacity: group.map(opacity),
      },
    });
  }
  if (many) marks.push({ type: "scatter", mode: "markers", hoverinfo: "skip", opacity: 0, ...extent(rows, x, y) });
  const nothing = !ALL.length ? "No compressor trial is done yet" : !shown().length ? "No trial passes these filters" : "No trial has both of these metrics";
  const picture = layout(DATA.axes[x] || "", DATA.axes[y] || "", rows.length ? "" : nothing);
  for (const [name, metric] of [["xaxis", x], ["yaxis", y]]) picture[name].type = log[metric] ? "log" : "linear";
  if (fronts.some((front) => front.corners.length > 1)) keys.push(bands.length ? `line and band: what half, and a quarter to three quarters, of the ${distinct(bands.map((band) => band.seeds)).join(" or ")} seeds attain` : "steps: fronts, one per seed");
  if (rows.some((i) => T.worse_than_rate0[i])) keys.push("thin cross: worse than zero rate");
  if (on("overlays") && rows.length) under.unshift(...overlaid(rows, x, y, log, picture, keys, levels), ...referred(x, y, keys));
  frame(rows.filter((i) => !T.worse_than_rate0[i]), rows.length, { xaxis: [x, on("logx")], yaxis: [y, on("logy")] }, levels, picture);
  visible = rows.sort((a, b) => T[x][a] - T[x][b] || T[y][a] - T[y][b]);
  const ring = { type: "scatter", mode: "markers+text", hoverinfo: "skip", textposition: "top center", textfont: { color: ink, weight: 700, size: 13 * size() } };
  const { places, letters } = many ? ringed(x, y, []) : ringed(x, y);
  const rings = [0, 1].map((k) => ({ ...ring, ...places[k], text: letters[k], marker: { size: (k ? 22 : 17) * size(), symbol: "circle-open", color: k ? css("--accent") : ink, line: { width: k ? 2.5 : 1.5 } } }));
  const lost = rows.filter((i) => (on("logx") && T[x][i] <= 0) || (on("logy") && T[y][i] <= 0)).length;
  $("count").textContent = `${rows.length} of ${ALL.length} finished trials shown, ${members.size} on a front${lost ? `; ${lost} have no place on a log axis` : ""}.${spans(rows, x, y)}`;
  $("key").textContent = keys.length ? `${keys.join(" · ")}.` : "";
  return plotly("plot", [...under, ...marks, ...rings], picture);
}

// A run that is worse than zero rate must not squeeze the others together: the view is theirs, zooming out shows all.
function frame(sound, all, axes, levels, picture) {
  if (state.zoom) [picture.xaxis.range, picture.yaxis.range] = [state.zoom.slice(0, 2), state.zoom.slice(2)];
  if (state.zoom || !sound.length || sound.length === all) return;
  for (const [name, [metric, log]] of Object.entries(axes)) {
    const values = [...sound.map((i) => T[metric][i]), ...levels[name]].filter((v) => !log || v > 0).map((v) => (log ? Math.log10(v) : v));
    const low = Math.min(...values), high = Math.max(...values), room = 0.06 * (high - low) || 0.1 * Math.abs(high) || 1;
    picture[name].range = [low - room, high + room];
  }
}

// The figure in words, for who cannot see it.
function spans(rows, x, y) {
  const groups = groupBy(rows, (i) => `${OF.rate[i]}/${OF.stage[i]}`);
  if (groups.length > 8 || !rows.length) return "";
  const span = (axis, group) => `${axis.replaceAll("_", " ")} ${distinct([Math.min, Math.max].map((end) => end(...group.map((i) => T[axis][i])))).map((end) => short(end, 3)).join(" to ")}`;
  return ` ${groups.map((group) => `${stageOf(group[0]).label} at ${rateOf(group[0]).label}: ${span(x, group)}, ${span(y, group)}`).join("; ")}.`;
}

function overlaid(rows, x, y, log, picture, keys, levels) {
  const traces = [], rates = new Set(rows.map((i) => OF.rate[i])), parents = new Set(rows.map((i) => OF.parent[i])), kinds = new Set(), away = [];
  const sound = rows.filter((i) => !T.worse_than_rate0[i]);
  const ends = Object.fromEntries(Object.entries(extent(sound.length ? sound : rows, x, y)).map(([name, found]) => [name === "x" ? x : y, found]));
  const near = (axis, at) => at > ends[axis][0] - 0.5 * (ends[axis][1] - ends[axis][0]) && at < ends[axis][1] + 0.5 * (ends[axis][1] - ends[axis][0]);
  const sweeps = new Set(rows.map((i) => OF.sweep[i])), label = (each) => (severalSweeps() ? `${DATA.sweeps[each.sweep]}: ${each.label}` : each.label);
  const wanted = DATA.overlays.filter((each) => sweeps.has(each.sweep) && (each.of == null ? each.rate == null || rates.has(each.rate) : parents.has(each.of)));
  const bounds = wanted.filter((each) => each.of != null).length, crowded = bounds > MAX_BOUNDS;
  if (crowded) kinds.add(`bounds of ${bounds} encoders are left out: filter to ${MAX_BOUNDS} or fewer`);
  for (const each of wanted) {
    if (crowded && each.of != null) continue;
    const has = [x, y].filter((axis) => each.at[axis] != null), colour = each.rate == null ? css("--soft") : DATA.rates[each.rate].colour;
    if (!has.length || (has.length === 1 && each.of != null)) continue;
    if (has.length === 2 && has.every((axis) => near(axis, each.at[axis]))) {
      const shape = each.kind === "bound" ? "asterisk-open" : "star-open", whose = each.of == null ? "" : `<br>${describe(each.of)}`;
      const text = `${escapeText(each.kind)}: ${escapeText(label(each))}${whose}<br>${[x, y].map((axis) => `${escapeText(axis)} ${short(each.at[axis])}`).join("<br>")}`;
      const trace = traces.find((other) => other.marker.symbol === shape && other.marker.color === colour) ?? traces[traces.push({ type: "scatter", mode: "markers", x: [], y: [], text: [], hovertemplate: "%{text}<extra></extra>", opacity: 0.75, marker: { symbol: shape, size: 8 * size(), color: colour, line: { width: 1.2, color: colour } } }) - 1];
      trace.x.push(each.at[x]);
      trace.y.push(each.at[y]);
      trace.text.push(text);
      kinds.add(each.kind === "bound" ? `asterisk: ${each.kind}, ${each.label}` : `star: ${each.kind}, ${each.label}`);
    } else if (has.length === 2 || (each.kind !== "near-floor" && !near(has[0], each.at[has[0]]))) {
      away.push([`${each.kind}, ${label(each)}`, has.map((axis) => short(each.at[axis], 3)).join(", ")]);
    } else {
      const level = each.at[has[0]], place = log[has[0]] ? Math.log10(level) : level;
      const across = has[0] === x ? { x0: level, x1: level, yref: "paper", y0: 0, y1: 1 } : { y0: level, y1: level, xref: "paper", x0: 0, x1: 1 };
      const words = { text: `${escapeText(label(each))}${each.rate == null ? "" : `, ${short(DATA.rates[each.rate].bits)} bits`}`, font: { size: 10 * size(), color: css("--soft") }, showarrow: false };
      const where = has[0] === x ? { x: place, yref: "paper", y: 1, textangle: -90, xanchor: "left", yanchor: "top" } : { y: place, xref: "paper", x: 1, xanchor: "right", yanchor: "bottom" };
      picture.shapes.push({ type: "line", layer: "below", ...across, line: { color: colour, width: 1.2, dash: "dash" } });
      picture.annotations.push({ ...words, ...where });
      levels[has[0] === x ? "xaxis" : "yaxis"].push(level);
      kinds.add(`dashed: ${each.kind}`);
    }
  }
  // So that no line lies on the edge: a point that nobody sees. Plotly's autorangeoptions miss on log axes.
  const unseen = [...levels.xaxis.map((level) => [level, ends[y][1]]), ...levels.yaxis.map((level) => [ends[x][1], level])];
  traces.push({ type: "scatter", mode: "markers", hoverinfo: "skip", opacity: 0, x: xs(unseen), y: ys(unseen) });
  for (const group of groupBy(away, (each) => each[0])) kinds.add(`out of view: ${group[0][0]} (${group.length > 1 ? `${group.length} of them` : group[0][1]})`);
  keys.push(...kinds);
  return traces;
}

function referred(x, y, keys) {
  const [fit, others] = [true, false].map((fits) => DATA.references.filter((each) => !!(each.values[x] && each.values[y]) === fits));
  if (fit.length) keys.push(`grey: results of others, ${fit.map((each) => each.name).join(", ")}`);
  for (const alike of groupBy(others, (each) => Object.keys(each.values).join(", "))) {
    const more = alike.length > 1 ? ` and ${alike.length - 1} more` : "";
    keys.push(`results of others that are not over these axes: ${alike[0].name}${more}, over ${Object.keys(alike[0].values).join(", ")}`);
  }
  return fit.map((each, k) => ({
    type: "scatter", mode: "lines+markers", x: each.values[x], y: each.values[y], hovertemplate: `${escapeText(each.name)}<br>%{x:.4g}, %{y:.4g}<extra></extra>`,
    line: { color: css("--soft"), width: 1, dash: ["solid", "dash", "dot", "dashdot"][k % 4] }, marker: { size: 5, color: css("--soft") },
  }));
}

// Remembers what the reader zoomed to, and forgets it on a double click.
function zoomed(event) {
  const graph = $("plot")._fullLayout, automatic = graph.xaxis.autorange && graph.yaxis.autorange;
  if (automatic || (event["xaxis.autorange"] && event["yaxis.autorange"])) {
    state.zoom = null;
  } else if (Object.keys(event).some((key) => /^[xy]axis\.(auto)?range/.test(key))) {
    state.zoom = [...graph.xaxis.range, ...graph.yaxis.range];
  }
  remember();
}

// -- pins and the keyboard's cursor, rings around points ---------------------------------------------------------

// Where the pinned points and the cursor are, and the letters of the pins.
function ringed(x, y, among = visible) {
  const pinned = pinnedRows().filter((i) => among.includes(i)), at = cursor != null && among.includes(cursor) ? [cursor] : [];
  const places = [pinned, at].map((rows) => ({ x: rows.map((i) => T[x][i]), y: rows.map((i) => T[y][i]) }));
  return { places, letters: [pinned.map((i) => LETTERS[state.pins.indexOf(nameOf(i))]), []] };
}

function drawRings() {
  const graph = $("plot");
  if (!graph.data) return;
  if (dots.length) return drawDots();
  const { places, letters } = ringed(chosen("x"), chosen("y"));
  Plotly.restyle(graph, { x: places.map((place) => place.x), y: places.map((place) => place.y), text: letters }, [graph.data.length - 2, graph.data.length - 1]);
}

function steer(event) {
  const ahead = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1 }[event.key], place = visible.indexOf(cursor);
  if (ahead && visible.length) cursor = visible[place < 0 ? 0 : (place + ahead + visible.length) % visible.length];
  else if (event.key === "Home") cursor = visible[0] ?? null;
  else if (event.key === "End") cursor = visible.at(-1) ?? null;
  else if (event.key === "Escape") cursor = null;
  else if ((event.key === "Enter" || event.key === " ") && cursor != null) togglePin(cursor);
  else return;
  event.preventDefault();
  if (cursor != null) preview(cursor);
  drawRings();
}
