"""Invalid channels and outliers by layer and place, and what the released notebook's path makes of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from .._names import TWIN
from ..errors import UnknownNameError
from ..results import Result
from .base import PALETTE, Figure, estimated, finish, new_axes, role, title_block, use_style
from .similarity import interval, number

__all__ = ["areas_by_place", "outliers_by_layer", "shortcut_by_layer", "shortcut_steps"]

#: kind of invalid channel -> title of its column
KINDS = {
    "zero_area": "Zero",
    "flat_area": "Flat",
    "dead_area": "Dead",
    "too_large_area": "Too large",
    "invalid_area": "Zero or too large",
}
#: last part of a place -> how it is written
PLACES = {
    "resid_post": "residual stream", "norm1": "after norm 1", "norm2": "after norm 2", "mlp.hidden": "MLP hidden",
}  # fmt: skip
OUTLIERS = {
    "kurtosis": ("Kurtosis over channels", "kurtosis"),
    "peak_to_median": ("Largest channel", "RMS over the median's"),
    "outlier_tokens": ("Outlier tokens", "share over 3 × median norm"),
    "massive_activations": ("Massive activations", "count per image"),
}
STEPS = {
    "made_by_shortcut": "the path as it is",
    "made_with_normalise": "with mean and std",
    "made_with_class_token": "with the class token",
    "made_with_position": "with the position table",
    "made_with_own_size": "at the model's own size",
}


def _of(result: Result, quantity: str, kind: str) -> pd.DataFrame:
    """Rows of one quantity in all blocks, or UnknownNameError."""
    frame = result.frame[result.frame["at"].isna()]
    if quantity not in set(frame["quantity"]):
        raise UnknownNameError("quantity", quantity, frame["quantity"].unique(), f"in {result.measure}")
    frame = frame[frame["quantity"] == quantity]
    rows = frame[frame["place"].str.fullmatch(rf"blocks\.\d+\.{kind}").fillna(False)]
    if rows.empty:
        known = frame["place"][frame["layer"].notna()].str.split(".", n=2).str[2]
        raise UnknownNameError("kind of place", kind, list(dict.fromkeys(known)))
    return rows


def _names(frame: pd.DataFrame) -> tuple[list[str], list[str]]:
    """All labels, and those that are no random twins."""
    models = [str(name) for name in frame["model"].unique()]
    return models, [name for name in models if not name.endswith(TWIN)]


def _line(ax: Axes, rows: pd.DataFrame, model: str, names: list[str], scale: float = 1.0) -> None:
    """Value by layer with its interval; a random twin as a thin line in its model's colour."""
    rows = rows[rows["model"] == model].sort_values("layer")
    columns = ("layer", "value", "low", "high", "null")
    x, value, low, high, null = (rows[c].to_numpy(float, na_value=np.nan) for c in columns)
    if model.endswith(TWIN):
        owner = model.removesuffix(TWIN)
        color = role(names.index(owner) if owner in names else len(names)).color
        ax.plot(x, scale * value, color=color, linestyle="-.", linewidth=0.9, label=model)
        return
    look = role(names.index(model))
    bars = np.nan_to_num([value - low, high - value])
    ax.errorbar(x, scale * value, scale * bars, label=model, **look.style())
    ax.plot(x, scale * null, color=look.color, linestyle=":", linewidth=1.1)


def _finish_panels(fig: Any, axes: Any, order: Iterable[str]) -> None:
    """Whole layers on the abscissa, one legend below all panels."""
    known: dict[str, Any] = {}
    for ax in np.ravel(axes):
        ax.xaxis.get_major_locator().set_params(integer=True)
        known |= dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))
    labels = [label for label in dict.fromkeys(order) if label in known]
    fig.legend([known[label] for label in labels], labels, loc="outside lower center", ncols=2)


def _count_words(row: pd.Series) -> str:
    return f"95 % interval ({estimated(row)}; n = {int(row['n'])} {row['unit']}s)"


# ------------------------------------------------------------------------------------------ by place and layer


def areas_by_place(
    result: Result, smallest: float, quantities: Sequence[str] = tuple(KINDS)[:4],
    kinds: Sequence[str] = ("resid_post", "norm1", "mlp.hidden"),
) -> Figure:  # fmt: skip
    """Share of invalid channels by layer: a column a kind of channel, a row a kind of place, a line a network.

    Parameters
    ----------
    result : of `InvalidChannels`; random twins are drawn thin.
    smallest : share that counts, the upper end of a grey band.
    kinds : last parts of places, as in "blocks.3.resid_post"; those that no model has are left out.

    Raises UnknownNameError for a quantity that the result does not have.
    """
    having = [kind for kind in kinds if result.frame["place"].str.fullmatch(rf"blocks\.\d+\.{kind}").any()]
    drawn = {(q, kind): _of(result, q, kind) for kind in having for q in quantities}
    models, names = _names(result.frame)
    with use_style():
        fig, axes = new_axes(
            len(having), len(quantities), width=8.0, height=1.0 + 1.6 * len(having), sharex=True, sharey=True,
            squeeze=False,
        )  # fmt: skip
        for line, kind in zip(axes, having, strict=True):
            for ax, quantity in zip(line, quantities, strict=True):
                ax.axhspan(0, 100 * smallest, color=PALETTE["grey"], alpha=0.15, linewidth=0)
                for model in models:
                    _line(ax, drawn[quantity, kind], model, names, 100)
            line[0].set_ylabel(f"{PLACES.get(kind, kind)}\n% of channels")
        for ax, quantity in zip(axes[0], quantities, strict=True):
            title_block(ax, KINDS.get(quantity, quantity))
        for ax in axes[-1]:
            ax.set_xlabel("layer")
        _finish_panels(fig, axes, [*names, *models])
    own = pd.concat(drawn.values())
    own = own[own["model"].isin(names)]
    return finish(fig, own, _areas_caption(drawn, names, smallest), _areas_alt(drawn, names))


def _most(rows: pd.DataFrame, model: str) -> pd.Series:
    rows = rows[rows["model"] == model]
    return rows.iloc[int(rows["value"].astype(float).argmax())]


def _areas_caption(
    drawn: Mapping[tuple[str, str], pd.DataFrame], names: Sequence[str], smallest: float
) -> str:
    parts = []
    for quantity in dict.fromkeys(q for q, _ in drawn):
        rows = pd.concat([frame for (q, _), frame in drawn.items() if q == quantity])
        tops = [_most(rows, name) for name in names]
        each = ", ".join(
            f"`{row['model']}` {_percent(row)}" + (f" at {row['place']}" if row["value"] > 0 else "")
            for row in tops
        )
        parts.append(f"{KINDS.get(quantity, quantity).lower()}: {each}")
    row = next(iter(drawn.values())).iloc[0]
    twins = any(rows["model"].str.endswith(TWIN).any() for rows in drawn.values())
    thin = " Thin: the same networks with random weights." if twins else ""
    return (
        "Share of invalid channels by layer, mean over thresholds (normalised area under the curve in log threshold). "
        f"Largest, {'; '.join(parts)}. Grey: less than {100 * smallest:g} % of the channels, the smallest share that "
        f"counts. Bars: {_count_words(row)}. Dotted: {row['null_kind']}.{thin}"
    )


def _percent(row: pd.Series) -> str:
    """A share with its interval in percent; as fine as small shares need, and nothing is "none".

    >>> _percent(pd.Series({"value": 0.0012, "low": 0.001, "high": 0.0014}))
    '0.12 % [0.10, 0.14]'
    """
    if row["value"] == 0:
        return "none"
    return interval(
        {"value": 100 * row["value"], "low": 100 * row["low"], "high": 100 * row["high"]}
    ).replace(" [", " % [", 1)


def _plain(quantity: str) -> str:
    """The name of an area as words.

    >>> _plain("too_large_area")
    'too large'
    """
    return quantity.removesuffix("_area").replace("_", " ")


def _areas_alt(drawn: Mapping[tuple[str, str], pd.DataFrame], names: Sequence[str]) -> str:
    rows = pd.concat(drawn.values())
    tops = [_most(rows, name) for name in names]
    each = "; ".join(
        f"{row['model']} {number(100 * row['value'])} % ({_plain(row['quantity'])}, {row['place']})"
        for row in tops
    )
    return f"Lines: share of invalid channels by layer, panels by kind and place. Largest of all: {each}."


# ------------------------------------------------------------------------------------------ outliers


def outliers_by_layer(
    result: Result, kind: str = "resid_post", quantities: Sequence[str] = tuple(OUTLIERS)
) -> Figure:
    """Outliers by layer, a panel a quantity, a line a network, nulls dotted. ``result`` is of `ChannelOutliers`."""
    drawn = {quantity: _of(result, quantity, kind) for quantity in quantities}
    models, names = _names(result.frame)
    with use_style():
        rows = (len(quantities) + 1) // 2
        fig, axes = new_axes(rows, 2, width=8.0, height=0.8 + 2.2 * rows, sharex=True, squeeze=False)
        for ax, (quantity, frame) in zip(np.ravel(axes), drawn.items(), strict=False):
            for model in models:
                _line(ax, frame, model, names)
            title, axis = OUTLIERS.get(quantity, (quantity, quantity))
            title_block(ax, title)
            ax.set_ylabel(axis)
            if float(frame["high"].max()) == 0:
                ax.set_ylim(-0.05, 1)  # nothing at all: a scale of millionths would look like something
        for ax in axes[-1]:
            ax.set_xlabel("layer")
        for ax in np.ravel(axes)[len(quantities) :]:
            ax.set_visible(False)
        _finish_panels(fig, axes, [*names, *models])
    parts = []
    for quantity, frame in drawn.items():
        tops = [_most(frame, name) for name in names]
        each = ", ".join(
            f"`{r['model']}` {interval(r)} in layer {r['layer']} (null {number(r['null'])})" for r in tops
        )
        parts.append(f"{OUTLIERS.get(quantity, (quantity, ''))[0].lower()}: {each}")
    row = next(iter(drawn.values())).iloc[0]
    caption = (
        f"Outliers of the {PLACES.get(kind, kind)} by layer. Largest, {'; '.join(parts)}. Bars: {_count_words(row)}. "
        "Dotted: null (normal values; for the largest channel, values shuffled over tokens and channels; for tokens, "
        "every channel shuffled over tokens)."
    )
    first = next(iter(drawn))
    ends = "; ".join(f"{name} {number(_most(drawn[first], name)['value'])}" for name in names)
    what = OUTLIERS.get(first, (first,))[0].lower()
    alt = f"Lines by layer, {len(drawn)} panels of outliers; largest {what}: {ends}."
    frame = pd.concat(drawn.values())
    return finish(fig, frame[frame["model"].isin(names)], caption, alt)


# ------------------------------------------------------------------------------------------ the notebook's path


def shortcut_by_layer(
    result: Result, smallest: float, quantities: Sequence[str] = ("zero_area", "flat_area", "too_large_area")
) -> Figure:
    """Invalid channels by the real forward pass (filled) and by the released notebook's path (hollow), by layer.

    ``result`` is of `ShortcutShare`; ``smallest`` the share that counts, the upper end of a grey band.
    """
    ways = ("real", "shortcut")
    drawn = {(q, way): _of(result, f"{q}_{way}", "resid_post") for q in quantities for way in ways}
    names = [str(name) for name in result.frame["model"].unique()]
    with use_style():
        fig, axes = new_axes(1, len(quantities), width=8.0, height=3.9, sharey=True, squeeze=False)
        for ax, quantity in zip(axes[0], quantities, strict=True):
            ax.axhspan(0, 100 * smallest, color=PALETTE["grey"], alpha=0.15, linewidth=0)
            for way in ways:
                for position, name in enumerate(names):
                    _way(ax, drawn[quantity, way], name, position, way == "real")
            title_block(ax, KINDS.get(quantity, quantity))
            ax.set_xlabel("layer")
        axes[0, 0].set_ylabel("% of channels, mean over thresholds")
        _finish_panels(fig, axes, [f"{name}, {words}" for words in _WAYS.values() for name in names])
    row = drawn[quantities[0], "real"].iloc[0]
    parts = [
        f"{KINDS.get(q, q).lower()}: "
        + ", ".join(
            f"`{name}` {_percent(_most(drawn[q, 'shortcut'], name))} by the path and "
            f"{_percent(_most(drawn[q, 'real'], name))} by the real pass"
            for name in names
        )
        for q in quantities
    ]
    caption = (
        "Invalid channels of the residual stream by the network's own forward pass and by the path of the released "
        f"notebook. Largest over layers, {'; '.join(parts)}. Grey: less than {100 * smallest:g} % of the channels. "
        f"Bars: {_count_words(row)}. Null of the path: the real forward pass."
    )
    alt = (
        "Lines by layer: share of invalid channels by two paths; largest by the notebook's path: "
        + "; ".join(
            f"{name} {KINDS.get(q, q).lower()} {number(100 * _most(drawn[q, 'shortcut'], name)['value'])} %"
            for q in quantities[:2]
            for name in names
        )
    )
    return finish(fig, pd.concat(drawn.values()), caption, f"{alt}.")


_WAYS = {"real": "real pass", "shortcut": "notebook path"}


def _way(ax: Axes, rows: pd.DataFrame, name: str, position: int, real: bool) -> None:
    rows = rows[rows["model"] == name].sort_values("layer")
    x, value, low, high = (
        rows[c].to_numpy(float, na_value=np.nan) for c in ("layer", "value", "low", "high")
    )
    look = role(position).style() | ({} if real else {"markerfacecolor": "white", "linestyle": ":"})
    bars = 100 * np.nan_to_num([value - low, high - value])
    ax.errorbar(x, 100 * value, bars, label=f"{name}, {_WAYS['real' if real else 'shortcut']}", **look)


def shortcut_steps(result: Result, quantity: str = "flat_area") -> Figure:
    """What the path makes beyond the real pass, as it is and with one step put right, in the block where it makes most.

    ``result`` is of `ShortcutShare` with ``steps``.
    """
    whole = _of(result, f"{quantity}_made_by_shortcut", "resid_post")
    names = [str(name) for name in result.frame["model"].unique()]
    where = {name: str(_most(whole, name)["place"]) for name in names}
    drawn = []
    for step in STEPS:
        rows = _of(result, f"{quantity}_{step}", "resid_post")
        drawn += [rows[(rows["model"] == name) & (rows["place"] == where[name])].iloc[0] for name in names]
    frame = pd.DataFrame(drawn)
    y = np.arange(len(STEPS))[::-1]
    with use_style():
        fig, ax = new_axes(width=7.0, height=3.4)
        ax.axvline(0, color=PALETTE["black"], linewidth=0.8)
        for position, name in enumerate(names):
            rows = frame[frame["model"] == name]
            value, low, high = (
                100 * rows[c].to_numpy(float, na_value=np.nan) for c in ("value", "low", "high")
            )
            look = role(position)._replace(linestyle="").style()
            bars = np.nan_to_num([value - low, high - value])
            ax.errorbar(value, y + 0.12 - 0.24 * position, xerr=bars, label=f"{name}, {where[name]}", **look)
        ax.set_yticks(y, list(STEPS.values()))
        ax.set_xlabel(
            f"{KINDS.get(quantity, quantity).lower()} channels beyond the real pass (% of channels)"
        )
        title_block(ax, "Which step of the path makes them?")
        fig.legend(loc="outside lower center")
    each = "; ".join(
        f"`{name}` at {where[name]} "
        + ", ".join(
            f"{words} {_percent(row)}"
            for words, (_, row) in zip(STEPS.values(), frame[frame["model"] == name].iterrows(), strict=True)
        )
        for name in names
    )
    row = frame.iloc[0]
    caption = (
        f"{KINDS.get(quantity, quantity)} channels that the notebook's path makes beyond the real pass (null: 0), "
        f"as it is and with one step put right, each in the block where the path makes most: {each}. Bars: "
        f"{_count_words(row)}, paired over images."
    )
    first = frame[frame["quantity"] == f"{quantity}_made_by_shortcut"]
    ends = "; ".join(f"{r['model']} {number(100 * r['value'])} %" for _, r in first.iterrows())
    what = quantity.replace("_", " ")
    alt = f"Points: {what} made by the path, as it is and with each step put right; as it is: {ends}."
    return finish(fig, frame, caption, alt)
