"""Likeness of heads with and without attention sinks, and what the sinks get and give, by depth."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes

from ..measures.sinks import LAST_THIRD
from ..quantities import quantity
from ..results import Result
from .base import ROLES, Figure, finish, new_axes, title_block, use_style

__all__ = ["sink_curves"]

_LINES = {"patch keys": "model", "without sinks": "baseline", "without random columns": "null"}
_SIZES = {"sink_attention": "third", "sink_value_ratio": "fourth"}


def sink_curves(sinks: Result, models: Sequence[str]) -> Figure:
    """Two panels a model: centred cosine of heads over patch keys and without columns; what sinks get and write.

    Parameters
    ----------
    sinks : of `Sinks`.
    models : labels in it, a row each.
    """
    with use_style():
        fig, axes = new_axes(len(models), 2, width=8.4, height=3.0 * len(models) + 0.3, squeeze=False)
        for row, model in zip(axes, models, strict=True):
            _draw(row[0], sinks.where(model=model, quantity="cosine_centred"), "variant", _LINES)
            _draw(row[1], sinks.where(model=model), "quantity", _SIZES)
            title_block(row[0], model, "centred cosine of heads within a layer")
            title_block(row[1], "", "sinks, where at least half of the images have any")
            row[1].axhline(1, color=ROLES["null"].color, linewidth=0.8, linestyle=":")
        for column, words in enumerate(([*_LINES], [quantity(name).words for name in _SIZES])):
            axes[-1][column].legend(axes[-1][column].get_lines()[: len(words)], words, loc="best")
    late = pd.concat([sinks.where(model=model, place=LAST_THIRD).frame for model in models])
    return finish(fig, late, _caption(late, models), _alt(late, models))


def _draw(ax: Axes, rows: Result, column: str, looks: dict[str, str]) -> None:
    for name, look in looks.items():
        frame = rows.where(**{column: name}).frame
        frame = frame[frame["layer"].notna() & frame["head"].isna() & frame["value"].notna()].sort_values(
            "layer"
        )
        layer, value, low, high = (frame[c].to_numpy(float) for c in ("layer", "value", "low", "high"))
        ax.plot(layer, value, **ROLES[look].style())
        ax.fill_between(layer, low, high, color=ROLES[look].color, alpha=0.2, linewidth=0)
    ax.set_xlabel("layer")
    ax.set_ylim(min(0.0, ax.get_ylim()[0]), max(1.05, ax.get_ylim()[1]))


def _late(frame: pd.DataFrame, model: str) -> str:
    cosine = quantity("cosine_centred")
    of = frame[(frame["model"] == model) & (frame["quantity"] == "cosine_centred")].set_index("variant")
    return (
        f"`{model}` {cosine.number(of.loc['patch keys', 'value'])}, "
        f"without sinks {cosine.number(of.loc['without sinks', 'value'])}"
    )


def _caption(late: pd.DataFrame, models: Sequence[str]) -> str:
    row = late.iloc[0]
    return (
        f"Mean of the last third of the layers: {'; '.join(_late(late, model) for model in models)}. Grey: as many "
        f"random columns taken out. Bands: 95 % intervals over {row['n']} {row['unit']}s."
    )


def _alt(late: pd.DataFrame, models: Sequence[str]) -> str:
    text = "; ".join(_late(late, model) for model in models).replace("`", "")
    return f"Lines by layer: likeness of heads with and without attention sinks. Last third: {text}."
