"use strict";
// Thousands of points: SVG would take seconds to draw them, WebGL nearly as long without a GPU; a canvas takes milliseconds.
// It lies over Plotly's axes, lines and bands, which stay what they are, and follows their zoom.

let dots = []; // {rows, shape, colour, outline, opacity of a row}, in the order of drawing

const PATHS = {
  circle: (pen, x, y, r) => pen.arc(x, y, r, 0, 2 * Math.PI),
  square: (pen, x, y, r) => pen.rect(x - r, y - r, 2 * r, 2 * r),
  diamond: (pen, x, y, r) => polygon(pen, x, y, [0, -1.3 * r, 1.3 * r, 0, 0, 1.3 * r, -1.3 * r, 0]),
  "triangle-up": (pen, x, y, r) => polygon(pen, x, y, [0, -1.2 * r, 1.1 * r, 0.8 * r, -1.1 * r, 0.8 * r]),
  cross: (pen, x, y, r) => (pen.rect(x - r, y - r / 3, 2 * r, r / 1.5), pen.rect(x - r / 3, y - r, r / 1.5, 2 * r)),
  x: (pen, x, y, r) => polygon(pen, x, y, [0, -r / 2, r / 2, -r, r, -r / 2, r / 2, 0, r, r / 2, r / 2, r, 0, r / 2, -r / 2, r, -r, r / 2, -r / 2, 0, -r, -r / 2, -r / 2, -r]),
  "x-thin": (pen, x, y, r) => (pen.moveTo(x - r, y - r), pen.lineTo(x + r, y + r), pen.moveTo(x + r, y - r), pen.lineTo(x - r, y + r)),
};

function polygon(pen, x, y, corners) {
  for (let k = 0; k < corners.length; k += 2) pen[k ? "lineTo" : "moveTo"](x + corners[k], y + corners[k + 1]);
  pen.closePath();
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
  pen.scale(scale, scale);
  for (const { rows, shape, colour, outline, opacity } of dots) {
    const hollow = shape.includes("-open"), dotted = shape.endsWith("-dot");
    Object.assign(pen, { fillStyle: colour, strokeStyle: outline && !hollow ? outline : colour, lineWidth: outline || hollow ? 1.3 : 0.6 });
    for (const i of rows) {
      const [x, y] = of(i);
      if (!(x > -9 && x < width + 9 && y > -9 && y < height + 9)) continue;
      pen.globalAlpha = opacity(i);
      pen.beginPath();
      (PATHS[shape.replace("-open", "").replace("-dot", "")] ?? PATHS.square)(pen, x, y, radius);
      if (!hollow) pen.fill();
      pen.stroke();
      if (!dotted) continue;
      pen.beginPath();
      PATHS.circle(pen, x, y, radius / 3);
      pen.stroke();
    }
  }
  const ring = (i, colour, radius) => {
    Object.assign(pen, { globalAlpha: 1, strokeStyle: colour, fillStyle: colour, lineWidth: 2, textAlign: "center", font: `700 ${13 * size()}px ${css("--sans")}` });
    const [x, y] = of(i);
    pen.beginPath();
    PATHS.circle(pen, x, y, radius * size());
    pen.stroke();
    if (colour === css("--ink")) pen.fillText(LETTERS[state.pins.indexOf(nameOf(i))], x, y - 12 * size());
  };
  for (const i of pinnedRows()) if (visible.includes(i)) ring(i, css("--ink"), 8);
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
