"""Figures of invalid and of edge channels: what is drawn is what the result holds."""

import numpy as np
import pytest

from t2t_analysis.errors import UnknownNameError
from t2t_analysis.plots.edge_channels import edge_channel_curves
from t2t_analysis.plots.invalid import areas_by_place, outliers_by_layer, shortcut_by_layer, shortcut_steps
from t2t_analysis.results import Result

TWO = ("one", "two")


def row(quantity, model, layer, value, kind="resid_post", null=0.0, weights="bundled", **more):
    return {
        "measure": "m", "quantity": quantity, "model": model, "weights": weights, "layer": layer,
        "place": f"blocks.{layer}.{kind}", "value": value, "low": value - 0.001, "high": value + 0.001, "null": null,
        "null_kind": "shuffled", "n": 8, "unit": "image", "interval": "t", **more,
    }  # fmt: skip


def areas(*models):
    kinds = ("zero_area", "flat_area", "dead_area", "too_large_area")
    rows = [
        row(q, m, layer, 0.01 * (layer + 1), place, weights="UNTRAINED" if "random" in m else "bundled")
        for m in models for q in kinds for layer in (0, 1) for place in ("resid_post", "mlp.hidden")
    ]  # fmt: skip
    return Result("invalid_channels", rows)


def drawn_lines(ax):
    """Ordinates of every line with a name or an interval."""
    found = {c.get_label(): c.lines[0].get_ydata() for c in ax.containers}
    return found | {x.get_label(): x.get_ydata() for x in ax.lines if not x.get_label().startswith("_")}


def test_areas_have_a_row_a_place_and_a_column_a_kind_in_percent():
    figure = areas_by_place(areas(*TWO, "one, random"), 0.01)
    axes = figure.fig.axes
    assert len(axes) == 2 * 4  # no model has a norm1
    lines = drawn_lines(axes[0])
    np.testing.assert_allclose(lines["one"], [1, 2])
    assert set(lines) == {"one", "two", "one, random"}
    assert "UNTRAINED" not in figure.caption  # the twin is no warning
    assert "`one` 2.00 % [1.90, 2.10] at blocks.1.resid_post" in figure.caption
    assert len(figure.alt) < 250
    assert figure.png()[:4] == b"\x89PNG"
    with pytest.raises(UnknownNameError, match="zero_area"):
        areas_by_place(areas(*TWO), 0.01, ["zero_aera"])


def test_outliers_that_are_not_there_do_not_look_like_some():
    rows = [
        row(q, m, layer, value, null=0.0)
        for m in TWO for layer in (0, 1)
        for q, value in (("kurtosis", 3.0 + layer), ("outlier_tokens", 0.0))
    ]  # fmt: skip
    for r in rows:
        if r["quantity"] == "outlier_tokens":
            r |= {"low": 0.0, "high": 0.0}
    figure = outliers_by_layer(Result("channel_outliers", rows), quantities=["kurtosis", "outlier_tokens"])
    first, second = figure.fig.axes[:2]
    np.testing.assert_allclose(drawn_lines(first)["two"], [3, 4])
    assert second.get_ylim()[1] == 1
    assert "4.00 [4.00, 4.00] in layer 1" in figure.caption
    assert figure.png()[:4] == b"\x89PNG"


def paths():
    rows = []
    for m, made in zip(TWO, (0.0, 0.02), strict=True):
        for layer in (0, 1):
            value = made * layer
            rows += [row(f"{k}_area_{way}", m, layer, value * (way == "shortcut"))
                     for k in ("zero", "flat", "too_large") for way in ("real", "shortcut")]  # fmt: skip
            rows += [row("flat_area_made_by_shortcut", m, layer, value)]
            rows += [
                row(f"flat_area_made_with_{step}", m, layer, value / 4)
                for step in ("normalise", "class_token", "position", "own_size")
            ]
    return Result("shortcut_share", rows)


def test_both_paths_are_drawn_and_the_steps_in_the_block_where_most_is_made():
    figure = shortcut_by_layer(paths(), 0.01)
    lines = drawn_lines(figure.fig.axes[1])
    np.testing.assert_allclose(lines["two, notebook path"], [0, 2])
    np.testing.assert_allclose(lines["two, real pass"], [0, 0])
    assert "`two` 2.00 % [1.90, 2.10] by the path and none by the real pass" in figure.caption
    steps = shortcut_steps(paths())
    points = {c.get_label(): c.lines[0].get_xdata() for c in steps.fig.axes[0].containers}
    np.testing.assert_allclose(points["two, blocks.1.resid_post"], [2, 0.5, 0.5, 0.5, 0.5])
    assert steps.png()[:4] == b"\x89PNG"
    with pytest.raises(UnknownNameError, match="flat_area"):
        shortcut_steps(paths(), "flat_aera")


def test_edge_channels_stand_at_their_depth_and_networks_without_blocks_at_even_distances():
    rows = [
        row(f"{kind}_channels", m, layer, 0.2 + 0.1 * layer, null=0.05)
        for m in ("one", "one, random") for kind in ("outline", "edge", "brightness") for layer in (0, 1)
    ]  # fmt: skip
    for kind in ("outline", "edge", "brightness"):
        rows += [row(f"{kind}_channels", "one", 0, 0.3, null=0.05) | {"place": p, "layer": None}
                 for p in ("embed", "first third of blocks")]  # fmt: skip
        rows += [row(f"{kind}_channels", "cnn", 0, v, null=0.05) | {"place": p, "layer": None}
                 for p, v in (("act1", 0.5), ("layer1", 0.6))]  # fmt: skip
    figure = edge_channel_curves(Result("edge_channels", rows))
    ax = figure.fig.axes[0]
    own, other = (c.lines[0] for c in ax.containers)
    np.testing.assert_allclose(own.get_xdata(), [0, 0.5, 1])
    np.testing.assert_allclose(own.get_ydata(), [0.3, 0.2, 0.3])
    np.testing.assert_allclose(other.get_xdata(), [0.5, 1])
    assert [text.get_text() for text in figure.fig.legends[0].get_texts()] == [
        "one",
        "cnn",
        "one, random",
        "chance",
    ]
    assert "`one` 0.30 [0.30, 0.30]" in figure.caption
    assert "UNTRAINED" not in figure.caption
    assert len(figure.alt) < 250
    with pytest.raises(UnknownNameError, match="outline_channels"):
        edge_channel_curves(Result("edge_channels", rows), ["outline_chanels"])
