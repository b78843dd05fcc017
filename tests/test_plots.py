"""Plots of similarity: what is drawn is what was measured, and the words say it."""

import io
import re

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from PIL import Image

from t2t_analysis.errors import UnknownNameError
from t2t_analysis.measures import (
    CrossLayerCKA,
    HeadDivergence,
    HeadOutputCKA,
    HeadSimilarity,
    LayerCKA,
    cka_difference,
    contrast_difference,
    measure,
)
from t2t_analysis.plots.differences import difference_plot
from t2t_analysis.plots.heads import (
    contrast_plot,
    depth_curve,
    divergence_against_entropy,
    maps_against_outputs,
)
from t2t_analysis.plots.similarity import QUANTITIES, cka_map, head_map, layer_map, number
from t2t_analysis.results import Result


def vit(depth, seed, heads=3):
    torch.manual_seed(seed)
    model = timm.create_model("vit_tiny_patch16_224", img_size=48, depth=depth, num_heads=heads).eval()
    with torch.no_grad():
        for block in model.blocks:
            block.attn.qkv.weight[: 2 * block.attn.qkv.in_features] *= 5
    return model


@pytest.fixture(scope="module")
def results():
    images = torch.randn(16, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    measures = [
        HeadSimilarity(),
        HeadDivergence(),
        HeadOutputCKA(permutations=20),
        LayerCKA(permutations=20),
        CrossLayerCKA(permutations=20),
    ]
    models = {"deep": vit(depth=13, seed=1), "shallow": vit(depth=3, seed=2, heads=6)}
    return measure(models, [images[:8], images[8:]], measures, progress=False)


def untrained(result):
    return Result(
        result.measure, result.frame.assign(weights="UNTRAINED (random weights, seed 0)"), result.meta
    )


DRAW = {
    "head_map": lambda r: head_map(r["head_similarity"]),
    "head_map raw": lambda r: head_map(r["head_similarity"], "cosine_raw", "shallow"),
    "head_map within layers": lambda r: head_map(r["head_divergence"], "js_divergence"),
    "head_map of outputs": lambda r: head_map(r["head_output_cka"], "head_output_cka", tokens="class"),
    "layer_map": lambda r: layer_map(r["head_similarity"]),
    "layer_map with numbers": lambda r: layer_map(r["head_similarity"], model="shallow"),
    "cka_map": lambda r: cka_map(r["layer_cka"], "deep"),
    "cka_map of all models": lambda r: cka_map(r["layer_cka"]),
    "cka_map with numbers": lambda r: cka_map(r["layer_cka"], "shallow"),
    "cka_map of two models": lambda r: cka_map(r["cross_layer_cka"]),
    "depth_curve": lambda r: depth_curve(r["head_similarity"]),
    "depth_curve of one": lambda r: depth_curve(r["head_divergence"], ["js_divergence"], ["shallow"]),
    "contrast_plot": lambda r: contrast_plot(
        [contrast_difference(r[n], "deep", "shallow") for n in ("head_similarity", "head_output_cka")], 0.05
    ),
    "difference_plot": lambda r: difference_plot(
        [cka_difference(r["layer_cka"], "deep", "shallow")], ["cka_mean"], 0.05, "Layers"
    ),
    "divergence_against_entropy": lambda r: divergence_against_entropy(r["head_divergence"]),
    "maps_against_outputs": lambda r: maps_against_outputs(r["head_similarity"], r["head_output_cka"]),
}


@pytest.fixture(scope="module", params=DRAW)
def drawn(request, results):
    return DRAW[request.param](results)


def test_every_figure_has_words_that_hold_numbers(drawn):
    assert 20 < len(drawn.alt) <= 230, drawn.alt  # with "Untrained weights. " in front still under 250
    for text in (drawn.caption, drawn.alt):
        assert not re.search(r"\bnan\b|None|<NA>|\{|\}", text), text
        assert re.search(r"\d\.\d", text)
    assert "UNTRAINED" not in drawn.caption
    assert re.search(r"n = \d+ image", drawn.caption)
    assert "null" in drawn.caption.lower()


def test_every_axis_that_carries_data_is_labelled(drawn):
    labelled = [ax for ax in drawn.fig.axes if ax.get_visible() and (ax.get_xlabel() or ax.get_ylabel())]
    assert labelled
    for ax in labelled:
        colour_bar = ax.get_label() == "<colorbar>"
        assert colour_bar or ax.get_xlabel(), ax.get_ylabel()


def test_figures_render_with_readable_text_inside_the_picture(drawn):
    picture = Image.open(io.BytesIO(drawn.png()))
    assert picture.width == pytest.approx(drawn.width * 150 / 96, abs=2)
    pixels = np.asarray(picture.convert("L"))
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    assert (border == 255).mean() > 0.98  # nothing is cut off at the edge
    sizes = [
        t.get_fontsize()
        for ax in drawn.fig.axes
        for t in (*ax.get_xticklabels(), ax.xaxis.label, ax.yaxis.label)
    ]
    assert min(sizes) >= 9


def test_drawing_leaves_no_open_figure_and_no_changed_setting(results):
    import matplotlib
    import matplotlib.pyplot as plt

    before = dict(matplotlib.rcParams)
    head_map(results["head_similarity"])
    assert plt.get_fignums() == []
    assert dict(matplotlib.rcParams) == before


def test_the_same_result_gives_the_same_bytes(results):
    one, same = (layer_map(results["head_similarity"], model="shallow").png() for _ in range(2))
    assert one == same


@pytest.mark.parametrize("name", DRAW)
def test_untrained_weights_are_said_first_in_every_caption(name, results):
    marked = {key: untrained(results[key]) for key in results}
    if name == "contrast_plot":
        marked = {key: Result(r.measure, r.frame, r.meta) for key, r in marked.items()}
    figure = DRAW[name](marked)
    assert figure.caption.startswith("**UNTRAINED: ")
    assert len(figure.alt) < 250


def image_of(figure):
    return figure.fig.axes[0].images[0]


def test_head_map_draws_the_measured_cells_symmetric_with_a_grey_diagonal(results):
    image = image_of(head_map(results["head_similarity"], "cosine_centred", "shallow"))
    cells = image.get_array().filled(np.nan)
    assert cells.shape == (18, 18)
    assert np.isnan(cells.diagonal()).all()
    np.testing.assert_array_equal(cells, cells.T)
    frame = results["head_similarity"].frame
    where = dict(quantity="cosine_centred", model="shallow", layer=1, head=2, layer_b=2, head_b=4)
    row = frame[np.logical_and.reduce([(frame[k] == v).fillna(False) for k, v in where.items()])]
    assert cells[8, 16] == row["value"].iloc[0]
    assert image.get_clim() == (-1, 1)


def test_layers_carry_numbers_only_where_there_is_room(results):
    few, many = (
        layer_map(results["head_similarity"], model=name).fig.axes[0] for name in ("shallow", "deep")
    )
    assert len(few.texts) >= 9
    assert len(many.texts) <= 1  # the line below the title
    assert len(many.get_xticks()) == 13


def test_models_share_one_colour_scale(results):
    for quantity in ("cosine_raw", "cosine_centred"):
        limits = {
            image_of(head_map(results["head_similarity"], quantity, m)).get_clim()
            for m in ("deep", "shallow")
        }
        assert limits == {(QUANTITIES[quantity].low, QUANTITIES[quantity].high)}


def test_cells_within_the_null_are_marked_and_no_others(results):
    frame = results["cross_layer_cka"].frame
    main = frame[frame["quantity"] == "cka_unbiased"].copy()
    main["p"] = [0.5 if i % 3 == 0 else 0.01 for i in range(len(main))]
    figure = cka_map(Result("cross_layer_cka", main))
    crosses = figure.fig.axes[0].collections[0].get_offsets()
    layers = {(int(y), int(x)) for x, y in crosses}
    expected = main[main["p"] == 0.5]
    assert layers == set(zip(expected["layer"].astype(int), expected["layer_b"].astype(int), strict=True))
    assert f"{len(expected)} of 39 cells are not beyond it" in figure.caption


def test_maps_share_one_figure_and_one_scale(results):
    figure = cka_map([results["layer_cka"], results["cross_layer_cka"]])
    panels = [ax.images[0] for ax in figure.fig.axes if ax.images and ax.get_label() != "<colorbar>"]
    assert [image.get_array().shape for image in panels] == [(13, 13), (13, 3), (3, 3)]
    assert {image.get_clim() for image in panels} == {(0, 1)}
    mean = results["layer_cka"].frame
    mean = mean[(mean["quantity"] == "cka_mean") & (mean["model"] == "shallow")].iloc[0]
    assert f"mean {number(mean['value'])} [{number(mean['low'])}" in figure.caption
    with pytest.raises(UnknownNameError, match="did you mean 'deep'"):
        cka_map(results["layer_cka"], ["deap"])


def test_twins_are_named_untrained_without_calling_the_models_so(results):
    frame = results["layer_cka"].frame
    twin = frame[frame["model"] == "shallow"].assign(model="deep, random", weights="UNTRAINED (seed 1)")
    both = Result("layer_cka", pd.concat([frame[frame["model"] == "deep"], twin]))
    caption = cka_map(both).caption
    assert not caption.startswith("**UNTRAINED")
    assert "the same networks UNTRAINED" in caption


def test_differences_are_drawn_in_the_order_asked_for_with_their_band(results):
    found = cka_difference(results["layer_cka"], "deep", "shallow")
    other = found.frame.assign(quantity="effective_rank_over_null_difference", tokens="patch")
    other = other.assign(value=-0.3, low=-0.4, high=-0.2)
    result = Result("both", pd.concat([other, found.frame]))
    ax = difference_plot([result], ["cka_mean", "effective_rank_over_null"], 0.05, "Layers").fig.axes[0]
    drawn = ax.containers[0].lines[0]
    labels = dict(zip(ax.get_yticks(), [t.get_text() for t in ax.get_yticklabels()], strict=True))
    values = dict(zip(drawn.get_ydata(), drawn.get_xdata(), strict=True))
    assert labels[1].startswith("CKA of two different layers")
    assert values[1] == found.frame["value"].iloc[0]
    assert (labels[0].splitlines()[-1], values[0]) == ("(patch tokens)", -0.3)
    with pytest.raises(UnknownNameError, match="cka_mean"):
        difference_plot([found], ["cka_maen"])


def test_a_layer_is_never_marked_against_itself(results):
    texts = [t.get_text() for t in cka_map(results["layer_cka"], "shallow").fig.axes[0].texts]
    assert texts.count("1.00") >= 3
    assert "(1.00)" not in texts


def test_depth_curve_draws_values_intervals_null_and_floor(results):
    figure = depth_curve(results["head_similarity"])
    raw, centred = figure.fig.axes[:2]
    labels = [text.get_text() for text in figure.fig.legends[0].get_texts()]
    assert labels == [
        f"{name}{what}" for name in ("deep", "shallow") for what in ("", ", null", ", floor exp(−s²)")
    ]
    assert raw.get_xlabel() == "depth (0 first layer, 1 last)"  # 13 layers against 3
    assert [len(c.lines[0].get_xdata()) for c in centred.containers] == [13, 3]
    frame = results["head_similarity"].frame
    rows = frame[
        (frame["quantity"] == "cosine_centred") & (frame["model"] == "shallow") & frame["head"].isna()
    ]
    rows = rows[(rows["layer"] == rows["layer_b"])]
    np.testing.assert_allclose(centred.containers[1].lines[0].get_ydata(), rows["value"].astype(float))
    markers = {c.lines[0].get_marker() for c in centred.containers}
    colours = {c.lines[0].get_color() for c in centred.containers}
    assert len(markers) == len(colours) == 2


def test_a_twin_is_thin_in_its_models_colour_and_has_no_null(results):
    frame = results["head_similarity"].frame
    twin = frame[frame["model"] == "deep"].assign(model="deep, random", weights="UNTRAINED (seed 1)")
    both = Result("head_similarity", pd.concat([frame, twin]))
    names = ["deep", "shallow", "deep, random"]
    figure = depth_curve(both, ["cosine_centred"], names, twins=names[2:])
    lines = {c.get_label(): c.lines[0] for c in figure.fig.axes[0].containers}
    assert lines["deep, random"].get_color() == lines["deep"].get_color() != lines["shallow"].get_color()
    assert lines["deep, random"].get_linewidth() < lines["deep"].get_linewidth()
    labels = [text.get_text() for text in figure.fig.legends[0].get_texts()]
    assert labels == ["deep", "deep, null", "shallow", "shallow, null", "deep, random"]
    assert not figure.caption.startswith("**UNTRAINED")
    assert "UNTRAINED" in figure.caption


def test_unknown_names_say_the_nearest():
    result = Result("m", [{"measure": "m", "quantity": "cosine_raw", "model": "deit", "tokens": "patch"}])
    with pytest.raises(UnknownNameError, match="did you mean 'cosine_raw'"):
        head_map(result, "cosine_row")
    with pytest.raises(UnknownNameError, match="unknown model 'diet'; did you mean 'deit'"):
        layer_map(result, "cosine_raw", "diet")


@pytest.mark.parametrize(
    ("value", "text"), [(0.5, "0.50"), (-0.5, "−0.50"), (-1e-9, "0.0000"), (0.0123, "0.012")]
)
def test_numbers_in_words(value, text):
    assert number(value) == text
