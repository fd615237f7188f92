"""What goes into a paper: figures as files, tables in LaTeX or CSV, citations.

Invariant: a file holds all that it needs (fonts are embedded) and is drawn without network: plotly.js comes from this
installation, and the browser that draws has a proxy that nobody is behind.
"""

from __future__ import annotations

import base64
import io
import logging
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from importlib import metadata, resources
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import plotly.io as pio
from PIL import Image, ImageFont
from plotly.colors import sample_colorscale

from urc_sweep.errors import ResourceError, SpecError, printable
from urc_sweep.maths.penalty import FEWEST_PAIRS, paired_interval
from urc_sweep.maths.streams import FIXED_SEED
from urc_sweep.plan.spec import stage_label
from urc_sweep.show import facts, figures, gaps
from urc_sweep.show.exchange import lacking

PIXELS: Mapping[str, float] = {
    "in": 96,
    "cm": 96 / 2.54,
    "mm": 96 / 25.4,
    "pt": 96 / 72,
    "px": 1,
}  # CSS: 96 to the inch
DPI = 300
NOWHERE = "127.0.0.1:9"  # the discard port
# The first has Arial's widths, so text stays in place where an embedded font is ignored.
FONTS = ("LiberationSans-Regular.ttf", "Arial.ttf", "DejaVuSans.ttf")
# Of each table: what it is, and the columns that it shows, last the one whose 95 % interval stands beside it.
_TABLES: Mapping[str, tuple[str, str]] = {
    "encoders": ("What encoders kept, MSE per pixel", "mse latent_label_entropy latent_accuracy mse_centroid"),
    "gap": ("Gap of universality at matched {}, MSE per pixel", "constraint encoder decoder gap"),
    "hypervolume": ("Hypervolume of the fronts in (MSE per pixel, cross-entropy in nats)", "hypervolume"),
    "penalty": ("Distortion penalty at matched {}, MSE", "constraint mse_end_to_end mse_universal penalty"),
    "points": ("Points on a front in (MSE, {}), MSE per pixel, cross-entropy in nats", "cross_entropy accuracy mse"),
}
_NAMES = {"\\": "backslash", "~": "asciitilde", "^": "asciicircum", "|": "bar", "<": "less", ">": "greater"}
_ESCAPED = str.maketrans({c: f"\\{c}" for c in "&%$#_{}"} | {c: f"\\text{name}{{}}" for c, name in _NAMES.items()})
_CHOSEN = (
    "Fronts, and points at a constraint, are chosen on the validation split; numbers are of the test split, means over"
    f" n seeds with 95 % intervals (none under {FEWEST_PAIRS} seeds). Constraints are validation values."
)


def pixels(option: str, size: str) -> float:
    """Return a size such as ``3.25in`` in CSS pixels; half an inch to 100 inches, else ``SpecError``."""
    found = re.fullmatch(r"(\d{1,5}(?:\.\d{1,4})?) *(in|cm|mm|pt|px)", size)
    width = float(found[1]) * PIXELS[found[2]] if found else 0.0
    if not 48 <= width <= 9600:
        raise SpecError(f"{option} {size}: expected a number and a unit, 0.5in to 100in; units: {', '.join(PIXELS)}")
    return width


def figure(trials: pd.DataFrame, kind: str, image: Callable[[str], bytes], at: str = "", **options: Any) -> go.Figure:
    """Return the figure of a kind, a name in ``figures``; ``options`` are those of the frontier."""
    own: Mapping[str, Sequence[Any]] = {"images": [image], "gap": [at], "penalty": [at]}
    draw: Callable[..., go.Figure] = getattr(figures, kind)
    return draw(trials, *own.get(kind, ()), **(options if kind == "frontier" else {}))


def render(drawn: go.Figure, form: str, style: str, width: float, height: float | None = None) -> bytes:
    """Return a figure as ``pdf``, ``svg`` or ``png``, in the style ``print`` or ``screen``; sizes in CSS pixels.

    PDF and SVG are vector (3-D scenes are pictures in them), with the fonts that they use and their physical size;
    PNG has 300 dots to the inch. ``ResourceError``: kaleido or a browser is missing, or fails.
    """
    drawn = printed(drawn, width) if style == "print" else go.Figure(drawn)
    height = height or drawn.layout.height or 0.7 * width
    family = ", ".join([*(str(font.getname()[0]) for font in _fonts()), "sans-serif"])
    drawn.update_layout(font_family=family, width=width, height=height)
    data = _kaleido(
        drawn, {"format": form, "width": width, "height": height, "scale": DPI / 96 if form == "png" else 1}
    )
    if form == "svg":
        size = f'width="{width / 96:.4g}in" height="{height / 96:.4g}in"'
        return _embedded(re.sub(r'width="[\d.]+" height="[\d.]+"', size, data.decode(), count=1)).encode()
    if form == "png":
        buffer = io.BytesIO()
        Image.open(io.BytesIO(data)).save(buffer, "PNG", dpi=(DPI, DPI))
        return buffer.getvalue()
    return data


def printed(drawn: go.Figure, width: float) -> go.Figure:
    """Return a figure as a column of a paper wants it: black, 8 pt, thin, the legend below; with its height.

    Rates take the colours of cividis, dark to light, so that they differ in grey too; the legend names each rate and
    each stage once. What only waits in the legend is left out.
    """
    text = drawn.to_json()
    used = [colour for colour in figures.PALETTE if colour in text]
    shades = sample_colorscale("Cividis", np.linspace(0, 0.7, len(used)).tolist())
    for old, new in zip((figures.INK, *used), ("black", *shades), strict=True):
        text = text.replace(old, new)
    page = pio.from_json(text)
    page.data = [trace for trace in page.data if trace.visible != "legendonly"]
    page.update_traces(legendgroup=None)
    keys: dict[str, dict[str, Any]] = {}
    for trace in page.data:
        with suppress(AttributeError, TypeError, ValueError):  # no marker, no size of its own
            trace.marker.size *= 0.55
            trace.marker.line.width *= 0.7
        if trace.meta:
            (rate, stage, symbol), trace.showlegend = trace.meta, False
            keys[rate] = {"mode": "lines", "line": {"color": trace.marker.color, "width": 4}}
            outline = {"color": "black", "width": trace.marker.line.width}
            keys[stage] = {"mode": "markers", "marker": {"color": figures.GREY, "symbol": symbol, "line": outline}}
    for name, key in sorted(keys.items(), key=lambda entry: str(entry[1]["mode"])):
        page.add_scatter(x=[None], y=[None], name=name, **key)
    shown = [trace for trace in page.data if trace.name and trace.showlegend is not False]
    room = [5 * len(_plain(trace.name)) + 40 for trace in shown]
    narrow = [need for need in room if need <= width / 2]
    wide = len(shown) - len(narrow)
    below = 19 * (math.ceil(len(narrow) * max(narrow, default=0) / width) + wide) if len(shown) > 1 else 0
    for trace, need in zip(shown, room, strict=True):  # a column is as wide as its widest entry
        trace.legend = "legend" if need <= width / 2 else "legend2"
    small = {"size": 8 * PIXELS["pt"], "color": "black"}
    axis = {"linecolor": "black", "linewidth": 0.7, "tickcolor": "black", "tickwidth": 0.7, "ticklen": 3}
    axis |= {"title_font": small, "title_standoff": 4, "showgrid": False}
    page.update_xaxes(axis, tickangle=-90 if page.layout.barmode and not page.layout.height else None).update_yaxes(
        axis
    )
    page.update_scenes({f"{letter}axis": {"title_font": small, "tickfont": small} for letter in "xyz"})
    page.update_layout(font=small, showlegend=len(shown) > 1, height=(page.layout.height or 0.72 * width) + below)
    page.update_layout(margin={"l": 8, "r": 8, "t": 18, "b": 34 + below})
    for note in page.layout.annotations:
        if note.y == 1 and 5.2 * len(note.text) > 0.8 * width:  # a column is narrow
            note.text, page.layout.margin.t = note.text.replace("; ", ";<br>"), 30
    if page.layout.scene.camera.eye.x:  # room for the titles of its axes
        page.update_layout(scene_camera_eye={"x": 2.2, "y": 2.2, "z": 1.1}, height=0.9 * width + below)
    if page.layout.images:  # a grid: its labels stand beside it, and its height follows
        notes = [(note.xshift, 5.2 * len(_plain(note.text)) + 8) for note in page.layout.annotations]
        left, right = (max(room for shift, room in notes if shift == side) for side in (-6, 6))
        tall = page.layout.yaxis.range[0] / page.layout.xaxis.range[1] * (width - left - right)
        page.update_layout(margin={"l": left, "r": right, "t": 0, "b": 0}, height=tall)
    legend = {"orientation": "h", "yref": "container", "yanchor": "bottom", "x": 0, "maxheight": 1}
    page.update_layout(legend=legend | {"y": 19 * wide / page.layout.height}, legend2=legend | {"y": 0})
    return page


def _plain(text: str) -> str:
    return re.sub("<.*?>", "", text)


def _fonts() -> list[ImageFont.FreeTypeFont]:
    """Return those of our fonts that the machine has; the first is what is drawn with."""
    found = []
    for name in FONTS:
        with suppress(OSError):
            found.append(ImageFont.truetype(name))
    return found


def _embedded(svg: str) -> str:
    """Return an SVG with the glyphs that it shows, so that it looks the same where the fonts are missing."""
    from fontTools import subset, ttLib

    logging.getLogger("fontTools").setLevel(logging.ERROR)  # which tables of a font it drops is nobody's news
    left, faces = set(map(ord, svg)), ""
    for font in _fonts():
        file, part, buffer = ttLib.TTFont(font.path), subset.Subsetter(), io.BytesIO()
        known, left = left & set(file.getBestCmap()), left - set(file.getBestCmap())
        part.populate(unicodes=known)
        part.subset(file)
        file.flavor = "woff"
        file.save(buffer)
        data = base64.b64encode(buffer.getvalue()).decode()
        faces += f"@font-face{{font-family:'{font.getname()[0]}';src:url(data:font/woff;base64,{data})}}"
    return svg.replace(">", f"><style>{faces}</style>", 1)


def _kaleido(drawn: go.Figure, options: Mapping[str, Any]) -> bytes:
    try:
        import fontTools  # noqa: F401
        import kaleido
        from kaleido import errors
    except ImportError as error:
        raise lacking(error, "export") from None
    try:  # MathJax would come from a server
        return bytes(kaleido.calc_fig_sync(drawn, options, kopts={"mathjax": False, "proxy_server": NOWHERE}))
    except errors.ChromeNotFoundError:
        place = (
            f"BROWSER_PATH={os.environ['BROWSER_PATH']} is none" if "BROWSER_PATH" in os.environ else "none is found"
        )
        install = "install one (Debian: apt-get install chromium) or set BROWSER_PATH to it"
        raise ResourceError(f"export: figures need Chromium or Chrome, {place}: {install}") from None
    except (errors.BrowserFailedError, errors.BrowserClosedError, errors.KaleidoError, TimeoutError) as error:
        raise ResourceError(f"export: the browser failed: {type(error).__name__} {error}".split("\n")[0]) from None


# -- tables and citations ----------------------------------------------------------------------------------------------


def table(trials: pd.DataFrame, kind: str, at: str) -> pd.DataFrame:
    """Return the table of a kind as ``facts`` and ``gaps`` have it; ``SpecError`` says why there is none."""
    at = at or gaps.matched_at(trials)
    reason = gaps.obstacle(trials, at) if kind in ("gap", "penalty") else None
    made: dict[str, Callable[..., pd.DataFrame]] = {"encoders": facts.encoders, "hypervolume": facts.hypervolumes}
    made |= {"gap": partial(gaps.splits, at=at), "penalty": partial(gaps.penalties, at=at)}
    rows = (made | {"points": partial(facts.fronts, y=at)})[kind](trials)
    if reason or rows.empty:
        raise SpecError(f"export --table {kind}: {reason or 'nothing to show yet'}")
    return rows


def csv(rows: pd.DataFrame) -> str:
    """Return CSV, numbers in full, in which no name and no text is a formula to a spreadsheet; no nested columns."""
    flat = rows.drop(columns=["weights", "metrics"], errors="ignore")
    safe = flat.apply(lambda column: column if pd.api.types.is_numeric_dtype(column) else column.map(_no_formula))
    return str(safe.rename(columns=_no_formula).to_csv(index=False))


def _no_formula(value: Any) -> Any:
    return "'" + value if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


def latex(trials: pd.DataFrame, kind: str, at: str, source: str) -> str:
    """Return a table in LaTeX, with booktabs and no other package; ``source`` says in its caption where it is from.

    Means over n seeds, with the 95 % interval of one column (none under three seeds). What came from data is escaped.
    """
    (told, columns), rows, at = _TABLES[kind], table(trials, kind, at), at or gaps.matched_at(trials)
    names = [*dict.fromkeys([*([at] if kind == "points" else []), *columns.split()])]
    prefix = "gap_" if kind == "gap" else ""
    if kind not in ("gap", "penalty"):
        rows = _means(rows, names)
    lines = [[*("rate", "stage", "encoder", "weights"), *map(_tex, names), rf"95\% of {_tex(names[-1])}", "$n$"]]
    for row in facts.records(rows):
        low, high, seeds = (row[prefix + name] for name in ("low", "high", "seeds"))
        missing = "--" if seeds or kind not in ("gap", "penalty") else "infeasible"
        interval = f"$[{low:.5f}, {high:.5f}]$" if pd.notna(low) else missing
        base = gaps.encoder({"parent_stage": "", **row})
        more = [f"from {row['reduced_from']:.4g} bits"] if pd.notna(row.get("reduced_from")) else []
        more += [row["sweep"]] if rows["sweep"].nunique() > 1 else []
        stage = ", ".join([stage_label(row["stage"]), *more])
        words = [figures.rate_label(*(row[key] for key in facts.RATE)), stage, base]
        values = [f"${row[name]:.5f}$" if pd.notna(row[name]) else "--" for name in names]
        count = f"{seeds} of {row['of_seeds']}" if row.get("of_seeds", seeds) != seeds else str(seeds)
        lines.append([*map(_tex, [*words, gaps.weights(row)]), *values, interval, count])
    head, *body = (" & ".join(cells) + r" \\" for cells in lines)
    caption = _tex(f"{told}. {_CHOSEN} Sweep {source}.".replace("{}", at.replace("_", "-")))
    start = rf"\begin{{table}}\centering\small\caption{{{caption}}}\begin{{tabular}}{{llll{'r' * (len(names) + 2)}}}"
    ending = r"\end{tabular}\end{table}"
    return "\n".join(
        [r"% \usepackage{booktabs}", start, r"\toprule", head, r"\midrule", *body, r"\bottomrule", ending, ""]
    )


def _means(rows: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    """Return one row per group of seeds: means over ``seeds`` of ``of_seeds``.

    Runs worse than zero rate are in no mean, but for controls, whose own decoder is untrained on purpose; of points,
    those that are on a front are, and groups without any are no row.
    """
    known = ["sweep", *facts.RATE, "stage", *facts.PARENT, "variant", *facts.OBJECTIVE]
    keys, listed = [rows[name] for name in known if name in rows], rows["stage"].notna()
    shown = ~rows["worse_than_rate0"] | (rows["stage"] == "control") if "worse_than_rate0" in rows else listed
    if "on_front" in rows:
        shown = listed = rows["on_front"]
    grouped = rows[columns].where(shown).groupby(keys, dropna=False)
    told = [paired_interval(values.to_numpy(float), FIXED_SEED) for _, values in grouped[columns[-1]]]
    ends = pd.DataFrame(told, columns=["low", "high", "n"]).rename(columns={"n": "seeds"})
    means = pd.concat([grouped.mean().assign(of_seeds=grouped.size()).reset_index(), ends], axis=1)
    return means.loc[listed.groupby(keys, dropna=False).any().to_numpy(dtype=bool)]


def _tex(text: str) -> str:
    """Return text as LaTeX shows it, whatever it holds; weights as the paper writes them."""
    plain = printable(text).encode("ascii", "backslashreplace").decode()
    return re.sub(r"\b([dcp]) (?=\d)", r"$\\lambda_\1$~", plain.translate(_ESCAPED))


def citations(trials: pd.DataFrame, sweep: str, source: str) -> str:
    """Return BibTeX of what a sweep rests on: papers, data sets, and this software with the hash of what it shows."""
    bib = resources.files("urc_sweep.show").joinpath("references.bib").read_text(encoding="utf-8")
    entries = {entry[entry.index("{") + 1 : entry.index(",")]: entry.strip() for entry in re.split(r"\n(?=@)", bib)}
    reused = trials["stage"].isin(["universal", "refined", "reduced"]).any() or trials["lambda_p"].notna().any()
    classified = trials["lambda_c"].notna().any()
    keys = ["nguyen2025universal", *["zhang2021universal"][: int(reused)], *["wang2024lossy"][: int(classified)]]
    sets = sorted(trials["dataset"].dropna().unique())
    told = [entries[key] for key in (*keys, *sets) if key in entries]
    # Of what is between entries BibTeX reads each @ as the next one's start, after a % too; \{ is a brace to it.
    plain = {ord("@"): "(at)", ord("{"): "(", ord("}"): ")"}
    unknown = [printable(name).translate(plain) for name in sets if name not in entries]
    told += [f"% data set {name}: cite its own source" for name in unknown]
    code = ", ".join(sorted({*trials["code_version"].dropna(), *trials["git_sha"].dropna().str[:12]} - {""}))
    note = _tex(re.sub("[{}]", "", f"sweep {sweep}, table {source}, trained by code {code}"))
    version = metadata.version("urc-sweep")
    return "\n\n".join([*told, f"@misc{{urc-sweep,\n  title = {{urc-sweep {version}}},\n  note  = {{{note}}}\n}}\n"])
