"use strict";
// Thousands of points: SVG would take seconds to draw them, WebGL nearly as long without a GPU; a canvas takes milliseconds.
// It lies over Plotly's axes, lines and bands, which stay what they are, and follows their zoom.

let dots = []; // {rows, shape, colour, edge, opacity of a row}, in the order of drawing

// A marker's outline around the origin, as large as Plotly draws it with that radius.
function outline(shape, radius) {
  const path = new Path2D(), k = radius / 6;
  path.addPath(new Path2D(OUTLINES[shape.replace("-open", "").replace("-dot", "")] ?? OUTLINES.square), new DOMMatrix([k, 0, 0, k, -8 * k, -8 * k]));
  return path;
}

// Where a row's point is in the plot, in CSS pixels; on a log axis what is not positive has no place.
function place() {
  const { _size: at, xaxis, yaxis } = $("plot")._fullLayout, x = T[chosen("x")], y = T[chosen("y")];
  return { at, width: xaxis._length, height: yaxis._length, of: (i) => [xaxis.c2p(xaxis.d2c(x[i])), yaxis.c2p(yaxis.d2c(y[i]))] };
}

function drawDots() {
  const canvas = $("dots"), pen = canvas.getContext("2d");
  canvas.hidden = !dots.length;
  if (!dots.length) return;
  const { at, width, height, of } = place(), scale = devicePixelRatio, radius = 3 * size();
  Object.assign(canvas, { width: width * scale, height: height * scale });
  Object.assign(canvas.style, { left: `${at.l}px`, top: `${at.t}px`, width: `${width}px`, height: `${height}px` });
  for (const { rows, shape, colour, edge, opacity } of dots) {
    const hollow = shape.includes("-open"), dot = shape.endsWith("-dot") ? outline("circle", radius / 3) : null, path = outline(shape, radius);
    Object.assign(pen, { fillStyle: colour, strokeStyle: edge && !hollow ? edge : colour, lineWidth: edge || hollow ? 1.3 : 0.6 });
    for (const i of rows) {
      const [x, y] = of(i);
      if (!(x > -9 && x < width + 9 && y > -9 && y < height + 9)) continue;
      pen.globalAlpha = opacity(i);
      pen.setTransform(scale, 0, 0, scale, x * scale, y * scale);
      if (!hollow) pen.fill(path);
      pen.stroke(path);
      if (dot) pen.stroke(dot);
    }
  }
  const ring = (i, colour, radius, letter = "") => {
    Object.assign(pen, { globalAlpha: 1, strokeStyle: colour, fillStyle: colour, lineWidth: 2, textAlign: "center", font: `700 ${13 * size()}px ${css("--sans")}` });
    const [x, y] = of(i);
    pen.setTransform(scale, 0, 0, scale, x * scale, y * scale);
    pen.stroke(outline("circle", radius * size()));
    pen.fillText(letter, 0, -12 * size());
  };
  for (const i of pinnedRows()) if (visible.includes(i)) ring(i, css("--ink"), 8, LETTERS[state.pins.indexOf(nameOf(i))]);
  if (cursor != null && visible.includes(cursor)) ring(cursor, css("--accent"), 11);
}

// The row whose point is nearest to the pointer, none beyond a finger's width.
function nearest(event) {
  const box = $("plot").getBoundingClientRect(), { at, of } = place();
  let best = null, least = 12 ** 2;
  for (const { rows } of dots) {
    for (const i of rows) {
      const [x, y] = of(i), far = (x + at.l + box.x - event.clientX) ** 2 + (y + at.t + box.y - event.clientY) ** 2;
      if (far < least) [best, least] = [i, far];
    }
  }
  return best;
}

function pointed(event) {
  const row = dots.length && !event.buttons ? nearest(event) : null, tip = $("tip"), box = $("plot").getBoundingClientRect();
  tip.hidden = row == null;
  if (row == null) return;
  tip.innerHTML = hover(row); // escaped where it is made
  Object.assign(tip.style, { left: `${Math.min(event.clientX - box.x + 14, box.width - tip.offsetWidth)}px`, top: `${event.clientY - box.y + 14}px` });
  if (row === cursor) return;
  preview((cursor = row));
  drawRings();
}
