"""Attribution maps beside their images, and what the checks say about them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from torch import Tensor

from ..errors import UnknownNameError
from ..measures.attribution import Explained
from ..measures.attribution_methods import METHODS
from ..measures.footprint import Footprint
from ..results import Result, tidy
from .base import (
    DIVERGING,
    PALETTE,
    ROLES,
    SEQUENTIAL,
    Figure,
    finish,
    new_axes,
    role,
    title_block,
    use_style,
)
from .similarity import interval, number

__all__ = [
    "agreement_bars",
    "attribution_panels",
    "cascade_curves",
    "faithfulness_curves",
    "footprint_panels",
    "picture",
]

_TITLES = {
    "integrated_gradients": "integrated\ngradients\nof pixels",
    "token_integrated_gradients": "integrated\ngradients\nof tokens",
    "occlusion": "occlusion\nof pixels",
    "token_occlusion": "occlusion\nof tokens",
    "grad_cam": "Grad-CAM",
    "attention_gradient": "gradient-\nweighted\nattention",
    "rollout": "attention\nrollout",
}


_STATES = {
    "mean": "the mean colour of the image",
    "blurred": "a blur of the image",
    "zero": "the mean colour of the data",
}


def picture(image: Tensor) -> np.ndarray:
    """Show a normalised image (C, H, W) as (H, W, 3) between 0 and 1, stretched to its own range.

    >>> import torch
    >>> picture(torch.tensor([[[-1.0, 3.0]]])).tolist()
    [[[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]]
    """
    low, high = float(image.min()), float(image.max())
    scaled = ((image - low) / max(high - low, 1e-12)).permute(1, 2, 0).numpy()
    return np.repeat(scaled, 3, axis=2) if scaled.shape[2] == 1 else scaled


def attribution_panels(
    explained: Explained | Sequence[Explained],
    images: Sequence[int] = (0, 1),
    methods: Sequence[str] | None = None,
) -> Figure:
    """Draw images with the maps of every model and method: a row for each image and model.

    Signed maps are blue where the class loses and red where it gains, white at 0; others run from dark (0) to
    bright. Every map has its own scale, up to the 99 % point of its absolute values.
    """
    several = [explained] if isinstance(explained, Explained) else list(explained)
    shown = list(methods or several[0].maps)
    for method in shown:
        if method not in several[0].maps:
            raise UnknownNameError("attribution method", method, several[0].maps)
    rows = [(number, one) for number in images for one in several]
    with use_style():
        width = 8.0
        fig, axes = new_axes(
            len(rows), len(shown) + 1, width=width, squeeze=False,
            height=width / (len(shown) + 1) * 1.05 * len(rows) + 0.5,
        )  # fmt: skip
        for line, (index, one) in zip(axes, rows, strict=True):
            _bare(line[0]).imshow(picture(one.images[index]), interpolation="nearest")
            row_label(line[0], one.label)
            for ax, method in zip(line[1:], shown, strict=True):
                _draw_map(_bare(ax), one.maps[method][index].numpy(), METHODS[method].signed)
        axes[0, 0].set_title("image", fontsize=9)
        for ax, method in zip(axes[0, 1:], shown, strict=True):
            ax.set_title(_TITLES[method], fontsize=9)
    frame = tidy([{"model": one.label, "weights": one.weights} for one in several])
    kind = {"predicted": "the class that each model answers", "label": "the labelled class"}
    words = ", ".join(METHODS[m].words for m in shown)
    caption = (
        f"Attribution of {kind[several[0].target_kind]} by {words}. Signed maps: red speaks for the class, blue "
        "against it, white is 0; the others run from dark (0) to bright. Every map has its own scale (99 % point "
        "of its size); maps of tokens are laid on pixels by the splits that made the tokens. Class of each image, "
        f"from the top: {'; '.join(_classes(several, index) for index in images)}. Single images show no "
        "rule: the checks of all maps stand beside this figure."
    )
    alt = f"{len(images)} images, each with {len(shown)} attribution maps for {' and '.join(o.label for o in several)}."
    return finish(fig, frame, caption, alt)


def _classes(several: Sequence[Explained], index: int) -> str:
    """The class that was attributed for an image, by model where they differ."""
    named = [_class_name(one, int(one.target[index])) for one in several]
    if len(set(named)) == 1:
        return named[0]
    return ", ".join(f"{name} by {one.label}" for name, one in zip(named, several, strict=True))


def _class_name(one: Explained, index: int) -> str:
    """Name of a class where the data's classes are the model's, else its number."""
    known = (one.meta.get("data") or {}).get("classes") or ()
    return str(known[index]) if len(known) == getattr(one.model, "num_classes", 0) else f"class {index}"


def _bare(ax: Axes) -> Axes:
    ax.set_xticks([])
    ax.set_yticks([])
    ax.spines[:].set_visible(False)
    return ax


def row_label(ax: Axes, text: str) -> None:
    """Name a row of pictures on its left, upright, broken at underscores and spaces."""
    lines = [""]
    for word in re.findall(r"[^_ .]+[_ .]?", text):
        if len(lines[-1] + word) > 12 and lines[-1]:
            lines.append("")
        lines[-1] += word
    ax.set_ylabel("\n".join(lines), fontsize=9, rotation=0, ha="right", va="center")


def _draw_map(ax: Axes, values: np.ndarray, signed: bool) -> None:
    if not np.isfinite(values).all():
        ax.text(0.5, 0.5, "not\nfinite", ha="center", va="center", transform=ax.transAxes)
        return
    top = float(np.quantile(np.abs(values), 0.99)) or float(np.abs(values).max()) or 1.0
    limits = (
        {"cmap": DIVERGING, "vmin": -top, "vmax": top}
        if signed
        else {"cmap": SEQUENTIAL, "vmin": 0, "vmax": top}
    )
    ax.imshow(values, interpolation="nearest", **limits)  # type: ignore[arg-type]


def footprint_panels(feet: Sequence[Footprint]) -> Figure:
    """Draw the pixels of the central token of each model, its own cell framed, on one scale; of `footprints`."""
    top = max(float(foot.shares.max()) for foot in feet)
    with use_style():
        fig, axes = new_axes(1, len(feet), width=3.0 * len(feet) + 1.0, height=3.3, squeeze=False)
        for ax, foot in zip(axes[0], feet, strict=True):
            drawn = ax.imshow(foot.shares.numpy(), cmap=SEQUENTIAL, vmin=0, vmax=top)
            y, x, height, width = foot.cell
            ax.add_patch(
                Rectangle((x - 0.5, y - 0.5), width, height, fill=False, color=PALETTE["vermillion"])
            )
            ax.set_xlim(max(-0.5, x - 2.5 * width), min(foot.shares.shape[1] - 0.5, x + 3.5 * width))
            ax.set_ylim(min(foot.shares.shape[0] - 0.5, y + 3.5 * height), max(-0.5, y - 2.5 * height))
            ax.set_xlabel("column (pixels)")
            title_block(ax, foot.label)
        axes[0, 0].set_ylabel("row (pixels)")
        fig.colorbar(drawn, ax=axes[0].tolist(), label="share of the token", shrink=0.8)
    words = "; ".join(
        f"{foot.label} on {foot.pixels} pixels, {100 * foot.outside:.0f} % of it outside its own cell, {_centred(foot)}"
        for foot in feet
    )
    return finish(
        fig, tidy([]),
        f"The central token laid back on the pixels by the splits that made it: {words}. The frame is the cell that "
        "would be its own if the image were dealt out evenly. Geometry, the same for every image and all weights: "
        "no interval, no null.",
        f"Pixel maps of one token's shares: {words}.",
    )  # fmt: skip


def _centred(foot: Footprint) -> str:
    """Where the middle of the token is, in words."""
    down, right = foot.offset
    if max(abs(down), abs(right)) < 0.05:
        return "its middle in the middle of the cell"
    return (
        f"its middle {number(abs(down), 1)} pixels {'below' if down > 0 else 'above'} and "
        f"{number(abs(right), 1)} to the {'right' if right > 0 else 'left'} of the cell's"
    )


# ------------------------------------------------------------------------------------------ curves


def units(row: Any) -> str:
    """How many units a row rests on, in words.

    >>> units({"n": 3, "unit": "cluster of images"}), units({"n": 1, "unit": "image"})
    ('3 clusters of images', '1 image')
    """
    n, (first, *rest) = int(row["n"]), str(row["unit"]).split(" ", 1)
    return " ".join([str(n), first if n == 1 else f"{first}s", *rest])


def pick(frame: pd.DataFrame, **columns: str) -> pd.DataFrame:
    """Rows whose columns have the given values."""
    for name, value in columns.items():
        frame = frame[frame[name] == value]
    return frame


def _models(frame: pd.DataFrame) -> list[str]:
    return [str(m) for m in frame["model"].unique()]


def _band(ax: Axes, rows: pd.DataFrame, position: int, label: str) -> None:
    """One model's curve with its interval, in the look of its place in the comparison."""
    look, x = role(position), rows["at"].to_numpy(float)
    ax.plot(x, rows["value"].to_numpy(float), label=label, **look.style())
    known = rows["low"].notna().to_numpy()
    low, high = (rows[c].to_numpy(float) for c in ("low", "high"))
    ax.fill_between(x[known], low[known], high[known], color=look.color, alpha=0.18, linewidth=0)


def _null_band(ax: Axes, rows: pd.DataFrame, label: str | None, position: int = 0) -> None:
    """The null as a dotted line in its band; hatched for the second model on, to tell the bands apart."""
    known = rows[rows["null"].notna()]
    x = known["at"].to_numpy(float)
    low, high = (known[c].to_numpy(float) for c in ("null_low", "null_high"))
    grey, hatch = ROLES["null"].color, ("", "////")[min(position, 1)]
    ax.fill_between(x, low, high, facecolor=grey, edgecolor=grey, alpha=0.25, hatch=hatch, linewidth=0)
    ax.plot(
        x,
        known["null"].to_numpy(float),
        color=role(position).color,
        linestyle=":",
        linewidth=1.2,
        label=label,
    )


def faithfulness_curves(result: Result, methods: Sequence[str] | None = None) -> Figure:
    """Draw deletion (top) and insertion (bottom) curves, a column for each method, beside random orders."""
    frame = result.frame
    known = [str(m) for m in frame["estimator"].unique()]
    shown = list(methods or known[:4])
    for method in shown:
        if method not in known:
            raise UnknownNameError("attribution method", method, known)
    models = _models(frame)
    with use_style():
        fig, axes = new_axes(
            2,
            len(shown),
            width=max(4.2, 2.1 * len(shown)),
            height=5.0,
            sharex=True,
            sharey="row",
            squeeze=False,
        )
        for j, method in enumerate(shown):
            for i, kind in enumerate(("deletion", "insertion")):
                for position, model in enumerate(models):
                    rows = pick(frame, quantity=kind, estimator=method, model=model)
                    _null_band(axes[i, j], rows, f"{model}, random order", position)
                    _band(axes[i, j], rows, position, model)
            axes[0, j].set_title(_TITLES[method], fontsize=9)
        axes[0, 0].set_ylabel("deletion\nprobability of the class")
        axes[1, 0].set_ylabel("insertion\nprobability of the class")
        fig.supxlabel("fraction of cells changed, most relevant first", fontsize=10)
        handles, labels = axes[0, 0].get_legend_handles_labels()
        fig.legend(handles, labels, loc="outside upper center", ncols=2)
    return finish(
        fig, frame, _faithfulness_caption(result, shown, models), _faithfulness_alt(frame, shown, models)
    )


def _faithfulness_caption(result: Result, shown: Sequence[str], models: Sequence[str]) -> str:
    frame, meta = result.frame, result.meta
    first = frame[frame["quantity"] == "deletion"].iloc[0]
    areas = []
    for model in models:
        rows = pick(frame, quantity="deletion_area", model=model)
        rows = rows[rows["estimator"].isin(shown)]
        best = rows.iloc[int((rows["value"] - rows["null"]).argmin())]
        areas.append(
            f"{model}: {METHODS[str(best['estimator'])].words}, {interval(best, 3)}, random {number(best['null'], 3)}"
        )
    return (
        f"Probability of the attributed class while cells are replaced by {_STATES[meta['deleted']]} "
        f"(deletion, should fall fast) or put back into {_STATES[meta['blank']]} (insertion, should rise fast). "
        f"Bands: 95 % interval of the mean over {units(first)}; dotted, in a grey band: "
        f"{first['null_kind']}, mean and 95 % range. Deletion area furthest below random: {'; '.join(areas)}."
    )


def _faithfulness_alt(frame: pd.DataFrame, shown: Sequence[str], models: Sequence[str]) -> str:
    rows = frame[frame["quantity"].isin(["deletion_area", "insertion_area"]) & frame["estimator"].isin(shown)]
    better = np.where(
        rows["quantity"] == "deletion_area",
        rows["value"] < rows["null_low"],
        rows["value"] > rows["null_high"],
    )
    return (
        f"Deletion and insertion curves of {len(shown)} methods for {' and '.join(models)}; {int(better.sum())} of "
        f"{len(rows)} areas are better than 95 % of random orders."
    )


def cascade_curves(
    result: Result, quantity: str = "spearman_abs", methods: Sequence[str] | None = None
) -> Figure:
    """Draw how similar maps stay to the originals while parts are randomised: a panel for each model."""
    frame = result.frame[result.frame["quantity"] == quantity]
    if frame.empty:
        raise UnknownNameError("quantity", quantity, [str(q) for q in result.frame["quantity"].unique()])
    known = [str(m) for m in frame["estimator"].unique()]
    shown, models = list(methods or known[:6]), _models(frame)
    words = {
        "spearman_abs": "rank correlation of |map|\nwith the original",
        "ssim": "SSIM with the original map",
    }
    with use_style():
        fig, axes = new_axes(
            1, len(models), width=3.6 * len(models) + 0.6, height=4.0, sharey=True, squeeze=False
        )
        for ax, model in zip(axes[0], models, strict=True):
            for position, method in enumerate(shown):
                rows = pick(frame, estimator=method, model=model).sort_values("at")
                _band(ax, rows, position, METHODS[method].words)
                rest = rows[rows["null"].notna()]
                ax.plot(
                    rest["at"].to_numpy(float),
                    rest["null"].to_numpy(float),
                    color=role(position).color,
                    linestyle=":",
                )
            places = pick(frame, model=model).drop_duplicates("at").sort_values("at")
            names = ["none", *places["place"].dropna()]
            ax.set_xticks(places["at"].to_numpy(float), names, rotation=45, ha="right")
            title_block(ax, model)
        low, high = axes[0, 0].get_ylim()
        axes[0, 0].set_ylim(max(low, -1.05), min(high, 1.05))  # intervals of two or three images reach beyond
        axes[0, 0].set_ylabel(words.get(quantity, quantity))
        fig.supxlabel("randomised from the head down to", fontsize=10)
        handles, labels = axes[0, 0].get_legend_handles_labels()
        fig.legend(handles, labels, loc="outside upper center", ncols=min(3, len(shown)))
    deepest = frame.groupby("model")["at"].transform("max")
    last = frame[(frame["at"] == deepest) & frame["estimator"].isin(shown)]
    ends = "; ".join(
        f"{r['model']}, {METHODS[str(r['estimator'])].words}: {interval(r)} (other images {number(r['null'])})"
        for _, r in last.iterrows()
    )
    caption = (
        "Sanity check by cascading randomisation (Adebayo et al. 2018): parts of the model take random "
        f"weights, the head first. Bands: 95 % interval over {units(last.iloc[0])}; dotted, in the colour of its "
        "method: maps of other images, which is what a map keeps that is not about this image. A map about the model "
        f"falls. With all parts randomised: {ends}."
    )
    ends = "; ".join(f"{r['model']} {r['estimator']} {number(r['value'])}" for _, r in last.iterrows())
    alt = f"Curves of {words.get(quantity, quantity)} over randomised parts, {len(shown)} methods; at the end {ends}."
    return finish(fig, frame, caption, alt.replace("\n", " "))


def agreement_bars(*results: Result) -> Figure:
    """Draw rank correlations with their nulls, method by method: of two models, or of two classes.

    Takes results of `map_agreement` or `other_class`; a mark with its interval, the null's range in grey.
    """
    frame = pd.concat([r.frame for r in results], ignore_index=True)
    signed = frame[~frame["quantity"].str.endswith("_abs").fillna(False)]
    if signed.empty:
        return _nothing_to_compare(results)
    methods = [str(m) for m in signed["estimator"].unique()]
    series = list(dict.fromkeys(zip(signed["model"], signed["model_b"], strict=True)))
    with use_style():
        fig, ax = new_axes(width=7.0, height=0.45 * len(methods) + 1.4)
        for position, (model, other) in enumerate(series):
            rows = _of_series(signed, model, other)
            _marks(
                ax, rows, methods, position, len(series), model if pd.isna(other) else f"{model} and {other}"
            )
        ax.set_yticks(range(len(methods)), [METHODS[m].words for m in methods])
        ax.invert_yaxis()
        ends = signed[["value", "low", "high", "null_low", "null_high"]].abs().to_numpy(float)
        widest = min(max(0.3, 1.04 * float(np.nanmax(ends))), 1.04)
        ax.set_xlim(-widest, widest)
        ax.set_xlabel("rank correlation of maps of the same image")
        ax.axvline(0, color=ROLES["null"].color, linewidth=0.8)
        fig.legend(loc="outside upper center", ncols=2)
    what = "for another class" if signed["model_b"].isna().all() else "of two models"
    first = signed.iloc[0]
    found = ". ".join(
        f"{model}{'' if pd.isna(other) else f' and {other}'}: {_numbers(_of_series(signed, model, other))}"
        for model, other in series
    )
    caption = (
        f"Rank correlation of attribution maps {what}, mean over {units(first)} with 95 % "
        f"interval. Grey: {first['null_kind']}, 95 % range. {found}."
    )
    alt = (
        f"Marks with intervals: rank correlation of maps {what}, {len(methods)} methods, null ranges in grey."
    )
    return finish(fig, signed, caption, alt)


def _nothing_to_compare(results: Sequence[Result]) -> Figure:
    """Stands where no pair of maps was left, and says why."""
    with use_style():
        fig, ax = new_axes(width=7.0, height=1.2)
        ax.axis("off")
        ax.text(0.5, 0.5, "no maps to compare", ha="center", va="center", transform=ax.transAxes)
    notes = dict.fromkeys(note for result in results for note in result.notes)
    text = f"No maps to compare: {'; '.join(notes) or 'fewer than two images'}."
    return finish(fig, tidy([]), text, text)


def _of_series(frame: pd.DataFrame, model: str, other: Any) -> pd.DataFrame:
    """Rows of one model, or of one pair."""
    same = frame["model_b"].isna() if pd.isna(other) else frame["model_b"] == other
    return frame[(frame["model"] == model) & same]


def _numbers(rows: pd.DataFrame) -> str:
    return "; ".join(
        f"{METHODS[str(r['estimator'])].words} {interval(r)} (null {number(r['null'])})"
        for _, r in rows.iterrows()
    )


def _marks(
    ax: Axes, rows: pd.DataFrame, methods: Sequence[str], position: int, count: int, label: Any
) -> None:
    look = role(position)
    y = np.array([methods.index(str(m)) for m in rows["estimator"]]) + (position - (count - 1) / 2) * 0.25
    value, low, high = (rows[c].to_numpy(float) for c in ("value", "low", "high"))
    start, end = (rows[c].to_numpy(float) for c in ("null_low", "null_high"))
    ax.barh(y, end - start, left=start, height=0.2, color=ROLES["null"].color, alpha=0.35)
    ax.errorbar(
        value,
        y,
        xerr=[value - low, high - value],
        fmt=look.marker,
        color=look.color,
        label=str(label),
        linestyle="none",
    )
