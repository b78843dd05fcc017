"""Local structure: edges read from tokens, input gradients, spectra and shifts, for one or more models."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from ..errors import UnknownNameError
from ..results import Result
from .base import (
    PALETTE,
    ROLES,
    SEQUENTIAL,
    Figure,
    estimated,
    finish,
    new_axes,
    role,
    title_block,
    use_style,
)
from .similarity import interval, number

__all__ = [
    "blindness_profile",
    "edge_curve",
    "edge_differences",
    "receptive_field_map",
    "receptive_field_radius",
    "shift_curve",
    "spectrum_curves",
]

#: quantity -> title of its panel
EDGES = {
    "edge_r2_own": "Edges inside the token's own cell",
    "edge_r2_boundary": "Edges across its border",
    "edge_r2_neighbour": "Edges of neighbouring cells",
    "edge_r2_before": "Edges of the left and upper cell",
    "edge_r2_after": "Edges of the right and lower cell",
}
_WHERE = {
    "own": "own cell",
    "boundary": "across the border",
    "neighbour": "neighbouring cells",
    "before": "left and upper cell",
    "after": "right and lower cell",
}
EDGES |= {
    f"edge_r2_{where}_{aspect}": f"{aspect.capitalize()}, {words}"
    for where, words in _WHERE.items()
    for aspect in ("strength", "orientation")
}
#: reference -> label, line
REFERENCES = {
    "pixels.cell": ("pixels of the cell", (0, (1, 1))),
    "pixels.field": ("pixels of a wide field", (0, (4, 2))),
    "edges.cell": ("edges of the cell", "-."),
}
#: name of a result -> how edges were read
READOUTS = {
    "edge_decodability": "linearly",
    "rectified_edge_decodability": "with the help of absolute values",
}
_BEFORE = {"tokens.0.out": (-0.24, "stage 1"), "tokens.1.out": (-0.12, "stage 2"), "embed": (0.0, "embed")}


# ------------------------------------------------------------------------------------ picking rows


def _models(result: Result, models: Sequence[str] | None) -> list[str]:
    known = [str(name) for name in result.frame["model"].dropna().unique()]
    for name in models or ():
        if name not in known:
            raise UnknownNameError("model", name, known, hint=f"in the result of {result.measure}")
    return list(models or known)


def _rows(result: Result, quantity: str, model: str, place: str | None = None) -> pd.DataFrame:
    """Rows of one quantity, model and, if given, place; UnknownNameError for what the result does not have."""
    frame = result.frame
    for column, wanted in (("quantity", quantity), ("model", model), ("place", place)):
        if wanted is None:
            continue
        found = frame[frame[column] == wanted]
        if found.empty:
            known = [str(x) for x in frame[column].dropna().unique()]
            raise UnknownNameError(column, wanted, known, hint=f"in the result of {result.measure}")
        frame = found
    return frame


def _floats(frame: pd.DataFrame, *columns: str) -> list[np.ndarray]:
    return [frame[name].to_numpy(float, na_value=np.nan) for name in columns]


def _depth_rows(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of places inside the model, with ``x``: token stages below 0, embedding 0, blocks up to 1."""
    rows = rows[rows["place"].isin(_BEFORE) | rows["layer"].notna()].copy()
    depth = rows["layer"].max() + 1
    rows["x"] = [
        _BEFORE[place][0] if place in _BEFORE else float(layer + 1) / float(depth)
        for place, layer in zip(rows["place"], rows["layer"], strict=True)
    ]
    return rows.sort_values("x")


def _depth_axis(ax: Axes, places: Sequence[str]) -> None:
    marks = [_BEFORE[place] for place in _BEFORE if place in places]
    ax.set_xticks(
        [*(x for x, _ in marks), 1 / 3, 2 / 3, 1.0], [*(label for _, label in marks), "1/3", "2/3", "1"]
    )
    for tick in ax.get_xticklabels()[: len(marks)]:
        tick.set(rotation=45, ha="right", rotation_mode="anchor")
    ax.set_xlabel("depth of the backbone")


def _bars(ax: Axes, x: Any, rows: pd.DataFrame, position: int, label: str) -> None:
    """A line with 95 % intervals in the look of model number ``position``."""
    value, low, high = _floats(rows, "value", "low", "high")
    ax.errorbar(x, value, [value - low, high - value], label=label, **role(position).style())


def _band(ax: Axes, x: Any, rows: pd.DataFrame, position: int, label: str) -> None:
    """The null, dotted, with its interval as a band."""
    null, low, high = _floats(rows, "null", "null_low", "null_high")
    ax.plot(x, null, color=role(position).color, linestyle=":", linewidth=1.1, label=label)
    ax.fill_between(x, low, high, color=role(position).color, alpha=0.15, linewidth=0)


def _legend(fig: Any, axes: Any, columns: int, first: Sequence[str] = ()) -> None:
    """One legend below all panels, each label once, the models ``first``."""
    known: dict[str, Any] = dict.fromkeys(first)
    for ax in np.ravel(axes):
        known |= dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))
    fig.legend(known.values(), known.keys(), loc="outside lower center", ncols=columns)


def _n_words(row: pd.Series) -> str:
    return f"95 % interval ({estimated(row)}; n = {int(row['n'])} {row['unit']}s)"


# ------------------------------------------------------------------------------------ edge decodability


def edge_curve(
    result: Result,
    quantities: Sequence[str] = ("edge_r2_own", "edge_r2_boundary", "edge_r2_neighbour"),
    models: Sequence[str] | None = None,
) -> Figure:
    """Edge decodability by depth: a panel per target, a line per model.

    With 95 % intervals, the null (edges of another image at the same position) as a dotted line with a band, and the
    references as horizontal lines: pixels of the cell, pixels of a wider field and, but for the own cell, its edges.
    The first third of the blocks, over which models are compared, is shaded.

    Parameters
    ----------
    result : of `EdgeDecodability` or `RectifiedEdgeDecodability`.
    quantities : one panel each. models : in the order of the comparison; all when left out.
    """
    names = _models(result, models)
    drawn = {q: {name: _depth_rows(_rows(result, q, name)) for name in names} for q in quantities}
    with use_style():
        fig, axes = new_axes(
            1, len(quantities), width=2.2 + 2.9 * len(quantities), height=4.3, sharey=True, squeeze=False
        )
        for ax, (quantity, by_model) in zip(axes[0], drawn.items(), strict=True):
            _edge_panel(ax, result, quantity, by_model)
        axes[0][0].set_ylabel(f"R² on held-out images,\nread {READOUTS[result.measure]}")
        _legend(fig, axes, 3, names)
    frame = pd.concat([rows for by_model in drawn.values() for rows in by_model.values()])
    return finish(fig, frame, _edge_caption(result, drawn), _edge_alt(result.measure, drawn))


def _edge_panel(ax: Axes, result: Result, quantity: str, by_model: dict[str, pd.DataFrame]) -> None:
    _shade_first_third(ax, by_model.values())
    ax.axhline(0, color=PALETTE["black"], linewidth=0.6)
    places: list[str] = []
    for position, (name, rows) in enumerate(by_model.items()):
        _band(ax, rows["x"], rows, position, f"{name}, null")
        _bars(ax, rows["x"], rows, position, name)
        places += rows["place"].tolist()
    first = next(iter(by_model))
    for place, (label, line) in REFERENCES.items():
        if place == "edges.cell" and quantity.startswith("edge_r2_own"):
            continue  # the target itself
        (value,) = _floats(_rows(result, quantity, first, place), "value")
        ax.axhline(value[0], color=PALETTE["black"], linestyle=line, linewidth=0.9, label=label)
    _depth_axis(ax, places)
    title_block(ax, EDGES.get(quantity, quantity))


def _shade_first_third(ax: Axes, drawn: Iterable[pd.DataFrame]) -> None:
    """From half a block before to half a block after the blocks that are averaged, in the deepest model."""
    from ..measures.head_maps import thirds

    depth = int(max(rows["layer"].max() for rows in drawn)) + 1
    first = len(thirds(depth)[0]) if depth > 1 else 1
    ax.axvspan(0.5 / depth, (first + 0.5) / depth, color=PALETTE["grey"], alpha=0.08, linewidth=0)


def _edge_caption(result: Result, drawn: dict[str, dict[str, pd.DataFrame]]) -> str:
    from ..measures.locality import FIRST_THIRD

    parts = [
        f"{EDGES.get(q, q).lower()}: "
        + ", ".join(f"`{name}` {interval(_rows(result, q, name, FIRST_THIRD).iloc[0])}" for name in by_model)
        for q, by_model in drawn.items()
    ]
    row = next(iter(next(iter(drawn.values())).values())).iloc[0]
    return (
        f"How well edge energy is read {READOUTS[result.measure]} from a token, by depth. Mean over the first third of "
        f"the blocks (shaded): {'; '.join(parts)}. Bars: {_n_words(row)}. Dotted, band: null, {row['null_kind']}. "
        "Horizontal: the same regression on raw pixels and on the cell's own edges."
    )


def _edge_alt(measure: str, drawn: dict[str, dict[str, pd.DataFrame]]) -> str:
    quantity, by_model = next(iter(drawn.items()))
    ends = [f"{n} {number(r['value'].iloc[0])} to {number(r['value'].iloc[-1])}" for n, r in by_model.items()]
    return (
        f"Line plots with error bars, {len(drawn)} panels: R squared of edge energy against depth, read "
        f"{READOUTS[measure]}. "
        f"{EDGES.get(quantity, quantity)}, first to last place: {'; '.join(ends)}."
    )


#: what is asked about edges, by the name of the aspect
_ASPECTS = {"": "", "_strength": ", how strong", "_orientation": ", which way"}
#: differences that are drawn -> their words
DIFFERENCES = {
    f"edge_r2_{where}{aspect}_difference": _WHERE[where] + words
    for where in ("own", "boundary", "neighbour")
    for aspect, words in _ASPECTS.items()
}


def edge_differences(differences: Sequence[Result], smallest: float | None = None) -> Figure:
    """Edge decodability of one model minus that of another: a line per target and aspect, a mark per readout.

    Parameters
    ----------
    differences : of `first_third_difference`, one per readout.
    smallest : smallest effect that counts, drawn as a grey band about 0.
    """
    drawn = [
        pd.concat([_rows(result, quantity, _models(result, None)[0]) for quantity in DIFFERENCES])
        for result in differences
    ]
    y = np.arange(len(DIFFERENCES))[::-1]
    with use_style():
        fig, ax = new_axes(width=6.8, height=4.6)
        if smallest is not None:
            ax.axvspan(-smallest, smallest, color=PALETTE["grey"], alpha=0.18, linewidth=0)
        ax.axvline(0, color=PALETTE["black"], linewidth=0.8)
        for position, (result, rows) in enumerate(zip(differences, drawn, strict=True)):
            value, low, high = _floats(rows, "value", "low", "high")
            look = role(position + 2)._replace(linestyle="")
            ax.errorbar(value, y + 0.13 - 0.26 * position, xerr=[value - low, high - value],
                        label=f"read {READOUTS[result.measure]}", **look.style())  # fmt: skip
        ax.set_yticks(y, list(DIFFERENCES.values()))
        first = drawn[0].iloc[0]
        ax.set_xlabel(f"R² in {first['model']} minus R² in {first['model_b']}")
        band = "" if smallest is None else f"grey: within ±{smallest:g}, the smallest effect that counts"
        title_block(ax, "From which tokens are edges read better?", band)
        fig.legend(loc="outside lower center", ncols=2)
    frame = pd.concat(drawn)
    return finish(fig, frame, _differences_caption(differences, drawn, smallest), _differences_alt(drawn))


def _differences_caption(
    differences: Sequence[Result], drawn: Sequence[pd.DataFrame], smallest: float | None
) -> str:
    first = drawn[0].iloc[0]
    parts = [
        f"read {READOUTS[result.measure]}: own cell {interval(rows.iloc[0])}, neighbouring cells "
        f"{interval(rows.iloc[6])}"
        for result, rows in zip(differences, drawn, strict=True)
    ]
    band = "" if smallest is None else f" Smallest effect that counts: ±{smallest:g} (grey)."
    return (
        f"Edge decodability in the first third of the blocks, `{first['model']}` minus `{first['model_b']}`; "
        f"{'; '.join(parts)}. Null: 0, {first['null_kind']}.{band} Bars: {_n_words(first)}; not corrected for "
        f"{sum(map(len, drawn))} differences."
    )


def _differences_alt(drawn: Sequence[pd.DataFrame]) -> str:
    first = drawn[0].iloc[0]
    own = " and ".join(interval(rows.iloc[0]) for rows in drawn)
    return (
        f"Intervals of the difference in R squared, {first['model']} minus {first['model_b']}, {len(drawn[0])} targets "
        f"by {len(drawn)} readouts; edges of the own cell {own}."
    )


# ------------------------------------------------------------------------------------ input gradients


def blindness_profile(result: Result, models: Sequence[str] | None = None) -> Figure:
    """Share of a token's squared input gradient farther from its cell than a distance, per model.

    ``result`` is of `BoundaryBlindness`. At distance 0 it is everything outside the cell: exactly 0 for a hard split.
    """
    names = _models(result, models)
    drawn = {name: _rows(result, "gradient_outside", name).sort_values("at") for name in names}
    with use_style():
        fig, ax = new_axes(width=6.2, height=4.0)
        for position, (name, rows) in enumerate(drawn.items()):
            _bars(ax, rows["at"].astype(float), rows, position, name)
        rows = next(iter(drawn.values()))
        ax.plot(
            rows["at"].astype(float),
            rows["null"].astype(float),
            label="spread evenly",
            **ROLES["null"].style(),
        )
        ax.set_ylim(-0.03, 1.03)
        ax.set_xlabel("distance from the token's own cell (cells)")
        ax.set_ylabel("share of the gradient that is farther")
        title_block(ax, "What the tokeniser sees outside a token's cell")
        ax.legend(loc="upper right")
    row = rows.iloc[0]
    at_zero = ", ".join(f"`{name}` {interval(r.iloc[0])}" for name, r in drawn.items())
    caption = (
        f"Share of the squared input gradient of a patch embedding that lies farther from its own cell than the "
        f"distance. Outside the cell at all: {at_zero}. Bars: {_n_words(row)}. Dotted: null, {row['null_kind']}."
    )
    alt = f"Falling curves: share of input gradient beyond a distance in cells. At distance 0: {at_zero}.".replace(
        "`", ""
    )
    return finish(fig, pd.concat(drawn.values()), caption, alt)


def receptive_field_radius(result: Result, models: Sequence[str] | None = None) -> Figure:
    """Radii that hold 50 % and 95 % of the central token's squared input gradient, by depth.

    ``result`` is of `EffectiveReceptiveField`. Dotted: the radius of a gradient spread evenly over the image.
    """
    names = _models(result, models)
    quantities = {
        "erf_radius_50_fraction": "50 % of the energy",
        "erf_radius_95_fraction": "95 % of the energy",
    }
    drawn = {q: {name: _depth_rows(_rows(result, q, name)) for name in names} for q in quantities}
    with use_style():
        fig, axes = new_axes(1, 2, width=7.6, height=4.0, sharey=True, squeeze=False)
        for ax, (quantity, title) in zip(axes[0], quantities.items(), strict=True):
            for position, (name, rows) in enumerate(drawn[quantity].items()):
                _bars(ax, rows["x"], rows, position, name)
            ax.axhline(
                float(rows["null"].iloc[0]), label="spread evenly", color=PALETTE["grey"], linestyle=":"
            )
            _depth_axis(ax, [place for r in drawn[quantity].values() for place in r["place"]])
            title_block(ax, title)
        axes[0][0].set_ylim(bottom=0)
        axes[0][0].set_ylabel("radius (fraction of image side)")
        _legend(fig, axes, 3, names)
    frame = pd.concat([rows for by_model in drawn.values() for rows in by_model.values()])
    half = drawn["erf_radius_50_fraction"]
    ends = ", ".join(
        f"`{n}` {number(r['value'].iloc[0])} to {number(r['value'].iloc[-1])}" for n, r in half.items()
    )
    row = frame.iloc[0]
    caption = (
        f"Effective receptive field: radius around the central token's cell that holds half, and 95 %, of its squared "
        f"input gradient. Half, from the embedding to the last block: {ends} of the image side. Bars: {_n_words(row)}. "
        f"Dotted: null, {row['null_kind']}."
    )
    return finish(
        fig,
        frame,
        caption,
        f"Two line plots of receptive-field radius against depth. Half: {ends}.".replace("`", ""),
    )


def receptive_field_map(
    result: Result, models: Sequence[str] | None = None, places: Sequence[str] | None = None
) -> Figure:
    """Mean squared input gradient of the central token as pictures: a row per model, a column per place.

    ``result`` is of `EffectiveReceptiveField`. Places: by default the embedding and the first, middle and last block.
    Logarithmic, each picture relative to its largest value.
    """
    names = _models(result, models)
    parts = [result.meta, *result.meta.get("parts", [])]
    maps = {label: found for part in parts for label, found in part.get("maps", {}).items()}
    chosen = {name: list(places) if places is not None else _four(list(maps[name])) for name in names}
    columns = max(map(len, chosen.values()))
    norm = matplotlib.colors.LogNorm(1e-4, 1, clip=True)
    with use_style():
        fig, axes = new_axes(
            len(names), columns, width=1.2 + 1.75 * columns, height=0.9 + 1.75 * len(names), squeeze=False
        )
        for row, name in zip(axes, names, strict=True):
            for ax in row[len(chosen[name]) :]:
                ax.set_axis_off()
            for ax, place in zip(row, chosen[name], strict=False):
                if place not in maps[name]:
                    raise UnknownNameError("place", place, list(maps[name]), hint=f"of {name}")
                drawn = ax.imshow(np.maximum(np.array(maps[name][place]), 1e-12), norm=norm, cmap=SEQUENTIAL)
                ax.set(xticks=[], yticks=[])
                ax.set_title(place.removesuffix(".resid_post"), fontsize=9)
            row[0].set_ylabel(name)
        fig.colorbar(drawn, ax=axes, label="squared gradient (largest = 1)", shrink=0.8)
    frame = pd.concat([_rows(result, "erf_radius_50", name) for name in names])
    row = frame.iloc[0]
    caption = (
        f"Where the central token looks: its squared input gradient along random directions, mean of shares over "
        f"{int(row['n'])} images, each picture scaled to its largest value, logarithmic. Spots far away can come from "
        "few images: a layer norm magnifies the gradient of windows that are nearly flat. The radii, with intervals "
        "and nulls, are in the figure of receptive-field radii."
    )
    alt = f"Grid of heat maps: squared input gradient of the central token for {', '.join(names)} at {columns} depths."
    return finish(fig, frame, caption, alt)


def _four(places: list[str]) -> list[str]:
    """The embedding and the first, middle and last block."""
    blocks = [place for place in places if place.startswith("blocks.")]
    picked = [blocks[i] for i in sorted({0, len(blocks) // 2, len(blocks) - 1})] if blocks else []
    return [place for place in places if place == "embed"] + picked


# ------------------------------------------------------------------------------------ spectra


def spectrum_curves(result: Result, models: Sequence[str] | None = None) -> Figure:
    """Log amplitude by frequency, a panel per model and a line per depth; and the share of high frequencies by depth.

    ``result`` is of `Spectrum`. Dotted: white noise.
    """
    names = _models(result, models)
    with use_style():
        fig, axes = new_axes(1, len(names) + 1, width=3.2 + 2.7 * len(names), height=4.0, squeeze=False)
        curves = [_amplitude_panel(ax, result, name) for ax, name in zip(axes[0], names, strict=False)]
        low, high = min(ax.get_ylim()[0] for ax in axes[0][:-1]), max(ax.get_ylim()[1] for ax in axes[0][:-1])
        for ax in axes[0][:-1]:
            ax.set_ylim(low, high)
        axes[0][0].set_ylabel("log amplitude, relative to the mean's")
        shares = {name: _depth_rows(_rows(result, "high_frequency_share", name)) for name in names}
        _share_panel(axes[0][-1], shares)
        scale = matplotlib.cm.ScalarMappable(matplotlib.colors.Normalize(0, 1), SEQUENTIAL)
        fig.colorbar(scale, ax=axes[0][len(names) - 1], label="depth (0 embedding, 1 last block)", aspect=30)
    row = curves[0].iloc[0]
    ends = ", ".join(
        f"`{n}` {number(r['value'].iloc[0])} to {number(r['value'].iloc[-1])}" for n, r in shares.items()
    )
    caption = (
        "Spectra of the token maps. Left: mean log amplitude along the diagonal relative to that of the map's mean, "
        "at the true frequencies. Right: share of mean-removed energy above half the Nyquist frequency, first to last "
        f"place: {ends}. Bars: {_n_words(row)}. Dotted: null, {row['null_kind']}; its share depends on the grid."
    )
    alt = f"Curves of log amplitude against frequency by depth; share of high frequencies by depth: {ends}."
    return finish(fig, pd.concat([*curves, *shares.values()]), caption, alt.replace("`", ""))


def _amplitude_panel(ax: Axes, result: Result, name: str) -> pd.DataFrame:
    rows = _depth_rows(_rows(result, "log_amplitude", name))
    rows = rows[rows["x"] >= 0]
    colours = matplotlib.colormaps[SEQUENTIAL]
    for x in sorted(set(rows["x"])):
        curve = rows[rows["x"] == x].sort_values("at")
        at, value = _floats(curve, "at", "value")
        ax.plot(at, value, color=colours(x * 0.92), linewidth=1.3, linestyle="--" if x == 0 else "-")
    at, null = _floats(curve[curve["at"] > 0], "at", "null")
    ax.plot(at, null, **ROLES["null"].style())
    ax.set_xlim(0, 1)
    ax.set_xlabel("frequency (π per token)")
    title_block(ax, name)
    return rows


def _share_panel(ax: Axes, shares: dict[str, pd.DataFrame]) -> None:
    for position, (name, rows) in enumerate(shares.items()):
        _bars(ax, rows["x"], rows, position, name)
        ax.plot(
            rows["x"], rows["null"].astype(float), color=role(position).color, linestyle=":", linewidth=1.1
        )
    ax.set_ylim(0, 1)
    ax.set_ylabel("share of energy")
    _depth_axis(ax, [place for rows in shares.values() for place in rows["place"]])
    title_block(ax, "High frequencies")
    ax.legend(loc="best", fontsize=8)


# ------------------------------------------------------------------------------------ shifts


def shift_curve(result: Result, place: str = "embed", models: Sequence[str] | None = None) -> Figure:
    """Correlation of the shifted and the interpolated token map by shift, with a mark at every whole cell.

    ``result`` is of `ShiftConsistency`. Dotted, with band: the same for the mean of the pixels in each cell.
    """
    names = _models(result, models)
    drawn = {name: _rows(result, "shift_correlation", name, place).sort_values("at") for name in names}
    dips = {name: _dip(result, name, place) for name in names}
    parts = [result.meta, *result.meta.get("parts", [])]
    cell = min(next(part["cell"] for part in parts if "cell" in part))
    with use_style():
        fig, ax = new_axes(width=6.2, height=4.0)
        longest = max(float(rows["at"].max()) for rows in drawn.values())
        for whole in np.arange(cell, longest + 1, cell):
            ax.axvline(whole, color=PALETTE["grey"], linewidth=0.8)
            ax.annotate("one cell" if whole == cell else "", (whole, 0.01), (3, 0), xycoords=("data", "axes fraction"),
                        textcoords="offset points", color=PALETTE["grey"], fontsize=8)  # fmt: skip
        for position, (name, rows) in enumerate(drawn.items()):
            _bars(ax, rows["at"].astype(float), rows, position, name)
        _band(ax, rows["at"].astype(float), rows, 0, "means of pixels")
        ax.lines[-1].set_color(PALETTE["grey"])
        ax.collections[-1].set_color(PALETTE["grey"])
        ax.set_ylim(top=1.03)
        ax.set_xlabel("shift of the image (pixels)")
        ax.set_ylabel("correlation with the interpolated map")
        title_block(ax, f"Does the map move with the image? ({place.removesuffix('.resid_post')})")
        _legend(fig, ax, 3, names)
    row = rows.iloc[0]
    words = ", ".join(f"`{n}` {interval(d.iloc[0])}" for n, d in dips.items() if len(d)) or "not measured"
    caption = (
        "Correlation of the token map of a shifted image with the original's map, interpolated to the same places; "
        f"vertical lines: shifts by whole cells of {cell} px. Dip, from one cell to half a cell: {words}. "
        f"Bars: {_n_words(row)}. Dotted, band: null, {row['null_kind']}."
    )
    alt = f"Curves of correlation against shift in pixels, one per model. Dip between whole cells: {words}.".replace(
        "`", ""
    )
    return finish(fig, pd.concat(drawn.values()), caption, alt)


def _dip(result: Result, model: str, place: str) -> pd.DataFrame:
    frame = result.frame
    return frame[(frame["quantity"] == "shift_dip") & (frame["model"] == model) & (frame["place"] == place)]
