"use strict";
// What the live page does by itself; the server does the rest (show/dashboard.py).
window.dash_clientside = Object.assign(window.dash_clientside ?? {}, { live: {
  // Which sweeps the address names, and which state of their tables the page was made from.
  page: () => [location.search, document.querySelector("meta[name=urc-sweep-source]").content],
  update(text) {
    if (text) urcSweep.ready.then(() => urcSweep.update(text));
    return dash_clientside.no_update;
  },
  // Other sweeps are another page: every address is a permalink. The hash stays, and with it the reader's view.
  go(names, page) {
    const before = new URLSearchParams(page[0]).getAll("sweep");
    const same = names.length === before.length && names.every((name) => before.includes(name));
    if (names.length && !same) location.search = new URLSearchParams(names.map((name) => ["sweep", name]));
    return dash_clientside.no_update;
  },
  silence(tick, beat) {
    if (this.beat !== beat) Object.assign(this, { beat, since: tick });
    return tick - this.since > 5 ? "The dashboard does not answer any more. What is here is the last it said." : "";
  },
} });
