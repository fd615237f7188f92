"use strict";
// Fronts in the browser, as urc_sweep/maths/frontier.py and show/facts.py make them: a test compares the two.

const groupBy = (rows, key) => [...Map.groupBy(rows, key).values()];
const distinct = (values) => [...new Set(values.filter((value) => value != null))].sort((a, b) => a - b || (a < b ? -1 : a > b ? 1 : 0));

// Rows [x, y, ...], both minimised, that no other dominates, from left to right; equal points are all kept.
function nondominated(points) {
  const sorted = points.filter((p) => p[0] != null && p[1] != null).sort((a, b) => a[0] - b[0] || a[1] - b[1]);
  const front = [];
  for (const p of sorted) {
    const last = front.at(-1);
    if (!last || p[1] < last[1] || (p[0] === last[0] && p[1] === last[1])) front.push(p);
  }
  return front;
}

// What at least k of the sets attain: the corners of the attainment surface (Fonseca et al. 1996), from left to right.
function attained(sets, k) {
  const fronts = sets.map(nondominated), passed = fronts.map(() => 0), corners = [];
  for (const x of distinct(fronts.flat().map((p) => p[0]))) {
    const best = fronts.map((front, s) => {
      while (front[passed[s]]?.[0] <= x) passed[s]++;
      return front[passed[s] - 1]?.[1] ?? Infinity;
    }).sort((a, b) => a - b);
    if (best[k - 1] < (corners.at(-1)?.[1] ?? Infinity)) corners.push([x, best[k - 1]]);
  }
  return corners;
}

// The step-shaped line through corners: the attained y stays that of the left one, nothing is interpolated.
const steps = (front) => front.flatMap((p, k) => (k ? [[p[0], front[k - 1][1]], p] : [p]));

// The outline of what lies between two surfaces, cut where their last corners are.
function between(inner, outer) {
  if (!inner.length || !outer.length) return [];
  const top = Math.max(inner[0][1], outer[0][1]), right = Math.max(inner.at(-1)[0], outer.at(-1)[0]);
  const whole = (corners) => [[corners[0][0], top], ...steps(corners), [right, corners.at(-1)[1]]];
  return [...whole(inner), ...whole(outer).reverse()];
}
