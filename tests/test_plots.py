"""Figures: what is drawn is what the result holds, and the words say it."""

import io
import re

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from PIL import Image

from t2t_analysis.errors import T2TError, UnknownNameError
from t2t_analysis.measures import (
    CrossLayerCKA,
    HeadOutputCKA,
    HeadSimilarity,
    LayerCKA,
    difference,
    measure,
)
from t2t_analysis.measures.head_measure import THIRDS
from t2t_analysis.plots import (
    along,
    by_depth,
    cka_map,
    cost_bars,
    fonts,
    forest,
    head_effects,
    head_map,
    heads_by_depth,
    maps_against_outputs,
    similarity_against_effect,
)
from t2t_analysis.plots.base import finish, new_axes
from t2t_analysis.plots.series import MOST_WORDS, limits
from t2t_analysis.reports.export import own_figure
from t2t_analysis.results import Result, tidy

TWO = ("one", "two")


def row(quantity, model, layer, value, **more):
    return {
        "measure": "m", "quantity": quantity, "model": model, "weights": "bundled", "layer": layer,
        "place": f"blocks.{layer}.resid_post", "value": value, "low": value - 0.01, "high": value + 0.01, "null": 0.0,
        "null_kind": "shuffled; 200 times", "n": 8, "unit": "image", "interval": "t", **more,
    }  # fmt: skip


def heads(quantity, models=TWO, layers=2, count=3, **more):
    """Rows of single heads whose values tell them apart."""
    return [
        row(quantity, m, layer, 0.01 * (1 + layer * count + h), head=h, **more)
        for m in models for layer in range(layers) for h in range(count)
    ]  # fmt: skip


def vit(depth, seed, count=3):
    torch.manual_seed(seed)
    model = timm.create_model("vit_tiny_patch16_224", img_size=48, depth=depth, num_heads=count).eval()
    with torch.no_grad():
        for block in model.blocks:
            block.attn.qkv.weight[: 2 * block.attn.qkv.in_features] *= 5
    return model


@pytest.fixture(scope="module")
def results():
    images = torch.randn(16, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    measures = [
        HeadSimilarity(),
        HeadOutputCKA(permutations=20),
        LayerCKA(permutations=20),
        CrossLayerCKA(permutations=20),
    ]
    models = {"deep": vit(depth=13, seed=1), "shallow": vit(depth=3, seed=2, count=6)}
    return measure(models, [images[:8], images[8:]], measures, progress=False)


DRAW = {
    "by_depth": lambda r: by_depth(
        r["head_similarity"], ["cosine_centred", "cosine_raw"], beside={"cosine_raw": "cosine_floor"}
    ),
    "by_depth of one": lambda r: by_depth(r["head_output_cka"], ["head_output_cka"], ["shallow"]),
    "head_map": lambda r: head_map(r["head_similarity"]),
    "head_map of outputs": lambda r: head_map(
        r["head_output_cka"].where(model="deep"), "head_output_cka", tokens="class"
    ),
    "cka_map": lambda r: cka_map([r["layer_cka"], r["cross_layer_cka"]]),
    "cka_map with numbers": lambda r: cka_map(r["layer_cka"].where(model="shallow")),
    "forest": lambda r: forest(
        [difference(r[n], "deep", "shallow", THIRDS) for n in ("head_similarity", "head_output_cka")], title="Alike?"
    ),
    "maps_against_outputs": lambda r: maps_against_outputs(r["head_similarity"], r["head_output_cka"]),
}  # fmt: skip


@pytest.fixture(scope="module", params=DRAW)
def drawn(request, results):
    return DRAW[request.param](results)


def test_every_figure_has_words_that_hold_numbers(drawn):
    assert 20 < len(drawn.alt) <= 250, drawn.alt
    assert len(drawn.caption.split()) <= MOST_WORDS
    for text in (drawn.caption, drawn.alt):
        assert not re.search(r"\bnan\b|None|<NA>|\{|\}", text), text
        assert re.search(r"\d\.\d|\d+ pairs", text)
    assert "UNTRAINED" not in drawn.caption
    assert re.search(r"n = (\d+ to )?\d+ image", drawn.caption)
    assert "null" in drawn.caption.lower()


def test_figures_render_with_readable_text_inside_the_picture(drawn):
    picture = Image.open(io.BytesIO(drawn.png()))
    assert picture.width == pytest.approx(drawn.width * 150 / 96, abs=2)
    pixels = np.asarray(picture.convert("L"))
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    assert (border == 255).mean() > 0.98  # nothing is cut off at the edge
    for ax in (ax for ax in drawn.fig.axes if ax.get_visible()):
        assert ax.get_xlabel() or ax.get_ylabel()
        assert (
            min(
                t.get_fontsize()
                for t in (*ax.get_xticklabels(), *ax.get_yticklabels(), *ax.texts, ax.xaxis.label)
            )
            >= 9
        )


@pytest.mark.parametrize("name", DRAW)
def test_untrained_weights_are_said_first_in_every_caption(name, results):
    marked = {
        key: Result(key, r.frame.assign(weights="UNTRAINED"), r.meta, (), r.replicates)
        for key, r in results.items()
    }
    if name == "forest":
        frame = difference(
            results["head_similarity"], "deep", "shallow", "last third - first third of blocks"
        ).frame
        figure = forest(Result("m", frame.assign(weights="UNTRAINED (seed 0) | bundled")))
        assert figure.caption.startswith("**UNTRAINED: deep has")
    else:
        assert DRAW[name](marked).caption.startswith("**UNTRAINED: ")


def test_a_figure_shows_itself_with_its_numbers_and_goes_to_a_paper(tmp_path):
    figure = by_depth(
        Result("m", [row("cosine_centred", m, i, 0.1 * i) for m in TWO for i in range(3)]), ["cosine_centred"]
    )
    bundle = figure._repr_mimebundle_()
    assert f'alt="{figure.alt}"' in bundle["text/html"]
    assert "<code>one</code>" in bundle["text/html"]
    assert len(repr(figure)) < 260
    assert figure.picture[0] == "image/svg+xml"
    assert figure.svg() == figure.svg()
    back = pd.read_csv(io.StringIO(figure.csv()), comment="#")
    assert back["value"].tolist() == [0, 0.1, 0.2, 0, 0.1, 0.2]
    assert "weights: bundled" in figure.csv()
    for ending in ("pdf", "svg", "png"):
        assert figure.save(tmp_path / f"x.{ending}").stat().st_size > 1000
    with pytest.raises(T2TError, match=r"\.gif"):
        figure.save(tmp_path / "x.gif")


def test_a_figure_knows_how_low_its_letters_let_it_be_shown():
    fig, ax = new_axes(width=4, height=2)
    ax.set_xlabel("words", fontsize=6)
    ax.set_ylabel("", fontsize=1)  # no letters
    figure = finish(fig, tidy([row("cka_mean", "one", 0, 0.5)]), "n = 8", "n = 8")
    assert figure.least_height == 2 * 96 * 9 / 8  # 6 points are 8 pixels
    assert '<figure style="--least: 216px">' in own_figure(figure.html())


def test_other_names_reach_every_word_of_a_figure_and_none_of_its_numbers():
    rows = [row("parameters", m, None, 1e6) | {"null_kind": "as two"} for m in TWO]
    depth = by_depth(Result("m", [row("cosine_centred", m, 0, 0.1) for m in TWO]), ["cosine_centred"])
    for figure in (cost_bars(Result("m", pd.DataFrame(rows)), ["parameters"]), depth):
        again = figure.renamed(lambda text: text.replace("one", "ONE"))
        assert "one" not in again.caption + again.alt + re.sub("<(g|path|use)[^>]*>", "", again.svg())
        assert again.svg().count("ONE") >= 2  # the alternative text, and a tick or the legend
        assert set(again.frame["model"]) == set(TWO)


def test_drawing_leaves_no_open_figure_and_no_changed_setting(results):
    import matplotlib
    import matplotlib.pyplot as plt

    before = dict(matplotlib.rcParams)
    assert head_map(results["head_similarity"]).png() == head_map(results["head_similarity"]).png()
    assert plt.get_fignums() == []
    assert dict(matplotlib.rcParams) == before


# ------------------------------------------------------------------------------------------------ by depth


def line_values(ax):
    """Ordinates of every line with error bars."""
    return [c.lines[0].get_ydata() for c in ax.containers]


def titles(figure):
    return [ax.get_title(loc="left").replace("\n", " ") for ax in figure.fig.axes]


def test_lines_are_the_rows_and_shares_are_drawn_in_percent():
    rows = [row("zero_area", m, i, 0.02 * i) for m in TWO for i in (0, 1, 2)]
    ax = by_depth(Result("m", rows), ["zero_area"], smallest=0.01).fig.axes[0]
    np.testing.assert_allclose(line_values(ax), [[0, 2, 4]] * 2)
    assert "%" in ax.get_ylabel()


def test_networks_of_different_depth_share_an_axis(results):
    ax = by_depth(results["head_similarity"], ["cosine_centred"]).fig.axes[0]
    assert [len(c.lines[0].get_xdata()) for c in ax.containers] == [13, 3]
    assert {c.lines[0].get_xdata()[-1] for c in ax.containers} == {1.0}
    frame = results["head_similarity"].frame
    rows = frame[
        (frame["quantity"] == "cosine_centred") & (frame["model"] == "shallow") & frame["head"].isna()
    ]
    rows = rows[(rows["layer"] == rows["layer_b"])]
    np.testing.assert_allclose(line_values(ax)[1], rows["value"].astype(float))


def test_what_comes_before_the_layers_stands_before_them_and_stages_at_even_distances():
    rows = [row("edge_channels", "one", i, 0.2) for i in (0, 1)]
    rows += [
        row("edge_channels", "one", None, 0.3, place=p)
        for p in ("tokens.0.out", "embed", "first third of blocks")
    ]
    ax = by_depth(Result("m", rows), ["edge_channels"]).fig.axes[0]
    assert list(ax.containers[0].lines[0].get_xdata()) == [-3, -1, 0, 1]
    assert [t.get_text() for t in ax.get_xticklabels()] == ["T1", "E", "0", "1"]
    rows += [row("edge_channels", "cnn", None, 0.5, place=p) for p in ("act1", "layer1")]
    ax = by_depth(Result("m", rows), ["edge_channels"]).fig.axes[0]
    assert list(ax.containers[1].lines[0].get_xdata()) == [0.5, 1]


def test_a_layer_and_the_next_where_there_is_no_layer_with_itself():
    rows = [
        row("column_cosine_matched", "one", a, 0.1 * a + b, layer_b=b)
        for a in range(3)
        for b in range(a + 1, 4)
    ]
    np.testing.assert_allclose(
        line_values(by_depth(Result("m", rows), ["column_cosine_matched"]).fig.axes[0]), [[1, 2.1, 3.2]]
    )


def test_panels_without_data_are_named_and_not_drawn():
    rows = [row("kurtosis", "one", i, 3.0 + i) for i in (0, 1)]
    rows += [row("outlier_tokens", "one", i, 0.0, low=0.0, high=0.0) for i in (0, 1)]
    rows += [row("class_mass", "other", i, 0.5) for i in (0, 1)]
    figure = by_depth(Result("m", rows), ["kurtosis", "outlier_tokens", "class_mass"], ["one"])
    assert titles(figure) == ["Kurtosis over channels"]
    assert "Not drawn" in figure.caption
    with pytest.raises(UnknownNameError, match="did you mean 'kurtosis'"):
        by_depth(Result("m", rows), ["kurtosi"])


def test_untrained_controls_are_thin_in_their_models_colour_and_no_warning():
    rows = [row("cosine_centred", m, i, 0.1 * i) for m in (*TWO, "one, random") for i in (0, 1)]
    for r in rows:
        r["weights"] = "UNTRAINED (seed 1)" if "random" in r["model"] else "bundled"
    figure = by_depth(Result("m", rows), ["cosine_centred"])
    one, two, twin = (c.lines[0] for c in figure.fig.axes[0].containers)
    assert twin.get_color() == one.get_color() != two.get_color()
    assert twin.get_linewidth() < one.get_linewidth()
    assert [t.get_text() for t in figure.fig.legends[0].get_texts()] == [
        *TWO,
        "the same, UNTRAINED",
        "null",
    ]
    assert not figure.caption.startswith("**UNTRAINED")
    assert "UNTRAINED" in figure.caption


def test_names_of_any_kind_come_out_as_they_are():
    names = ["$a_b$", "_x<y>&z", "模型"]
    rows = [row("cosine_centred", m, i, 0.1) for m in names for i in (0, 1)]
    figure = by_depth(Result("m", rows), ["cosine_centred"])
    assert [t.get_text() for t in figure.fig.legends[0].get_texts()][:3] == names
    svg = figure.svg()
    assert "$a_b$" in svg
    assert "_x&lt;y&gt;&amp;z" in svg
    assert "模型" in svg
    assert "<y>" not in figure.html()


def test_an_alternative_text_is_never_cut_inside_a_number():
    rows = pd.DataFrame([row("cosine_centred", "one", 0, 0.1)])
    fig, _ = new_axes()
    figure = finish(fig, tidy(rows), "c", " ".join(["0.123456789"] * 40))
    assert set(figure.alt.split()) == {"0.123456789", "…"}


@pytest.mark.filterwarnings("error:Glyph")
def test_letters_that_the_usual_font_lacks_are_drawn_or_given_by_their_number(monkeypatch):
    rows = [row("cosine_centred", m, i, 0.1) for m in ("猫🙂 a", "b⃝") for i in (0, 1)]
    figure = by_depth(Result("m", rows), ["cosine_centred"])
    monkeypatch.setattr(fonts, "_USELESS", re.compile("Last Resort|Color|Noto|WenQuanYi|Hiragino|Gothic"))
    fonts.fonts_for.cache_clear()
    drawn = []
    save = figure.fig.savefig

    def saved(*args, **about):
        drawn.append([t.get_text() for t in figure.fig.legends[0].get_texts()][:2])
        families.append(figure.fig.legends[0].get_texts()[1].get_fontfamily())
        save(*args, **about)

    families = []
    monkeypatch.setattr(figure.fig, "savefig", saved)
    assert figure.picture[0] == "image/svg+xml"
    assert "猫🙂 a" in figure.svg()
    figure.png()
    assert drawn == [["猫🙂 a", "b⃝"]] * 2 + [["[U+732B U+1F642] a", "b⃝"]]
    assert len(families[0]) == 2  # STIXGeneral, which comes with matplotlib, has the circle around the b
    assert [t.get_text() for t in figure.fig.legends[0].get_texts()][:2] == drawn[0]


def test_an_axis_is_logarithmic_where_one_value_would_squash_the_rest():
    from matplotlib.figure import Figure as Drawing

    for values, log in (
        ([0.01, 0.011, 0.012, 0.5], True),
        ([0.1, 0.2, 0.3, 0.5], False),
        ([-0.1, 0.0, 0.1, 5], False),
    ):
        ax = Drawing().subplots()
        frame = Result("m", [row("kl", "one", 0, v) for v in values]).frame
        assert limits([ax], [frame]) is log
        assert (ax.get_yscale() == "log") is log
        assert ax.get_ylim()[0] <= min(values)
        assert ax.get_ylim()[1] >= max(values)


def test_every_head_is_a_dot_beside_the_mean_of_its_layer():
    rows = heads("attention_distance") + [
        row("attention_distance", m, i, 0.1 * i) for m in TWO for i in (0, 1)
    ]
    figure = heads_by_depth(Result("m", rows), "attention_distance")
    ax = figure.fig.axes[1]
    np.testing.assert_allclose(line_values(ax)[0], 0.01 * np.arange(1, 7))
    assert any(list(line.get_ydata()) == [0, 0.1] for line in ax.lines)
    assert figure.fig.axes[0].get_ylim() == ax.get_ylim()


# ------------------------------------------------------------------------------------------------ along, forest


def curve(quantity, model, values, **more):
    return [
        row(quantity, model, None, v, at=i / 4, at_unit="distance (cells)", **more)
        for i, v in enumerate(values)
    ]


def test_curves_are_by_model_variant_or_layer():
    rows = curve("pruned_kl", "one", [0, 1, 2], variant="similarity") + curve(
        "pruned_kl", "one", [0, 2, 4], variant="importance"
    )
    figure = along(Result("m", rows), ["pruned_kl"], by="variant", words={"similarity": "most similar first"})
    np.testing.assert_allclose(line_values(figure.fig.axes[0]), [[0, 1, 2], [0, 2, 4]])
    assert [t.get_text() for t in figure.fig.legends[0].get_texts()] == [
        "null",
        "most similar first",
        "importance",
    ]
    assert figure.fig.axes[0].get_xlabel() == "distance (cells)"
    rows = [r | {"layer": k} for k in (0, 1) for r in curve("log_amplitude", "one", [0, -k, -2 * k])]
    ax, bar = along(Result("m", rows), ["log_amplitude"], by="layer").fig.axes
    assert [list(line.get_ydata()) for line in ax.lines[:2]] != []
    assert bar.get_ylabel() == "layer"
    rows = curve("zero", "one", [0, 0, 0.1]) + curve("zero", "two", [0, 0, 0.2])
    np.testing.assert_allclose(
        line_values(along(Result("m", rows), ["zero"]).fig.axes[0]), [[0, 0, 10], [0, 0, 20]]
    )
    with pytest.raises(UnknownNameError, match="zero"):
        along(Result("m", rows), ["zeros"])


def test_differences_stand_in_the_order_asked_for_with_their_band():
    rows = [row(f"{q}_difference", "one", None, v, model_b="two", p=0.1, tokens="patch")
            for q, v in (("cosine_centred", 0.1), ("cosine_raw", -0.3))]  # fmt: skip
    figure = forest(Result("m", rows), ["cosine_raw", "cosine_centred"], title="Alike?")
    ax = figure.fig.axes[0]
    assert list(ax.containers[0].lines[0].get_xdata()) == [-0.3, 0.1]
    assert [t.get_text() for t in ax.get_yticklabels()] == [
        "centred cosine of attention maps",
        "raw cosine of attention maps",
    ]
    assert ax.get_xlabel() == "one minus two"
    assert any("±0.05" in text.get_text() for text in ax.texts)
    assert "−0.300 [−0.310, −0.290]" in figure.caption
    assert forest([None]) is None
    with pytest.raises(UnknownNameError, match="cosine_raw"):
        forest(Result("m", rows), ["cosine_row"])


def test_marks_of_one_line_and_single_points():
    rows = [row("accuracy", m, None, v, variant="x") for m, v in zip(TWO, (0.5, 0.6), strict=True)]
    figure = forest(Result("m", rows), words=lambda r: r["model"], points=("a run", {"one": [0.4, 0.55]}))
    np.testing.assert_allclose(figure.fig.axes[0].lines[-1].get_xdata(), [40, 55])
    by = forest(Result("m", rows), by="model", groups={"one": "first"})
    assert [t.get_text() for t in by.fig.legends[0].get_texts()] == ["first", "two"]


# ------------------------------------------------------------------------------------------------ maps


def test_head_map_draws_the_measured_cells_on_one_scale_from_the_data(results):
    few = head_map(results["head_similarity"].where(model="shallow"))
    cells = few.fig.axes[0].collections[0].get_array().filled(np.nan)
    assert cells.shape == (18, 18)
    assert np.isnan(cells.diagonal()).all()
    np.testing.assert_array_equal(cells, cells.T)
    frame = results["head_similarity"].frame
    where = dict(quantity="cosine_centred", model="shallow", layer=1, head=2, layer_b=2, head_b=4)
    found = frame[np.logical_and.reduce([(frame[k] == v).fillna(False) for k, v in where.items()])]
    assert cells[8, 16] == found["value"].iloc[0]
    both = head_map(results["head_similarity"])
    limits_of = {ax.collections[0].get_clim() for ax in both.fig.axes[:2]}
    ((low, high),) = limits_of
    assert low == -high
    assert high < 1


def test_many_heads_are_drawn_as_means_of_layers(results, monkeypatch):
    monkeypatch.setattr("t2t_analysis.plots.maps.HEADS", 30)
    figure = head_map(results["head_similarity"].where(model="deep"))
    assert figure.fig.axes[0].collections[0].get_array().shape == (13, 13)
    assert "mean over pairs" in figure.caption


def test_cells_within_the_null_are_marked_and_no_others(results):
    frame = results["cross_layer_cka"].frame
    main = frame[frame["quantity"] == "cka_unbiased"].copy()
    main["p"] = [0.5 if i % 3 == 0 else 0.01 for i in range(len(main))]
    figure = cka_map(Result("cross_layer_cka", main))
    crosses = figure.fig.axes[0].collections[1].get_offsets()
    expected = main[main["p"] == 0.5]
    assert {(int(y), int(x)) for x, y in crosses} == set(
        zip(expected["layer"].astype(int), expected["layer_b"].astype(int), strict=True)
    )
    assert f"{len(expected)} of 39 cells within chance" in figure.caption


def test_a_layer_with_itself_is_neither_marked_nor_numbered(results):
    axes = cka_map(results["layer_cka"].where(model="shallow")).fig.axes[0]
    texts = [text.get_text() for text in axes.texts if text.get_text()]
    assert len(texts) == 6
    assert not any("1.00" in text for text in texts)


def ablated():
    rows = heads("kl", variant="mean") + heads("kl", models=("one",), variant="zero")
    return Result("head_ablation", rows + [row("kl_p_holm", m, 1, 0.01, head=2, variant="mean") for m in TWO])


def test_head_effects_show_the_numbers_and_mark_corrected_p():
    figure = head_effects(ablated(), "kl", variant="mean")
    maps, ordered = figure.fig.axes[:4:2], figure.fig.axes[1:4:2]
    for ax, right in zip(maps, ordered, strict=True):
        np.testing.assert_allclose(ax.collections[0].get_array(), 0.01 * np.arange(1, 7).reshape(2, 3))
        np.testing.assert_allclose(right.containers[0].lines[0].get_ydata(), 0.01 * np.arange(6, 0, -1))
    assert {ax.collections[0].get_clim() for ax in maps} == {(0, 0.06)}
    assert "1 of 6 in `one`" in figure.caption
    with pytest.raises(UnknownNameError, match="did you mean 'kl'"):
        head_effects(ablated(), "k")


def test_every_head_stands_at_its_largest_similarity():
    pairs = [row("cosine_centred", m, i, v, layer_b=i, head=a, head_b=b)
             for m in TWO for i in (0, 1) for a, b, v in ((0, 1, 0.1), (0, 2, 0.5), (1, 2, 0.3))]  # fmt: skip
    found = Result(
        "association", [row("similarity_effect_spearman_within_layers", m, None, -0.5, p=0.02) for m in TWO]
    )
    figure = similarity_against_effect(Result("head_similarity", pairs), ablated(), found)
    points = figure.fig.axes[0].collections[-1].get_offsets().data
    np.testing.assert_allclose(points[:, 0], [0.5, 0.3, 0.5] * 2)
    np.testing.assert_allclose(points[:, 1], 0.01 * np.arange(1, 7))
    assert "−0.500 [−0.510, −0.490], p = 0.020" in figure.caption


def test_costs_are_bars():
    rows = [row("parameters", m, None, v, low=None, high=None) for m, v in zip(TWO, (8e5, 9e5), strict=True)]
    bars = cost_bars(Result("cost", rows), ["parameters"]).fig.axes[0].patches
    assert bars[1].get_width() / bars[0].get_width() == pytest.approx(9 / 8)


def test_maps_in_a_page_keep_their_cells_and_their_colours():
    figure = head_effects(ablated(), "kl", variant="mean")
    cells = figure.svg().count("data:image/png;base64,")
    assert cells >= 3
    assert figure.picture[0] == "image/svg+xml"
    assert own_figure(figure.html()).count("data:image/png;base64,") == cells


def test_effects_by_length_has_a_line_an_effect_and_none_for_a_single_length() -> None:
    from t2t_analysis.plots import effect_plot, effects_by_length

    row = {"measure": "study_effects", "value": 0.02, "low": -0.01, "high": 0.05, "n": 3, "unit": "seed",
           "interval": "t", "weights": "trained"}  # fmt: skip
    names = ("tokeniser_effect", "backbone_effect")
    lengths = [row | {"quantity": f"{q}_at_epochs", "at": at} for q in names for at in (3.0, 6.0)]
    result = Result("study_effects", [*lengths, *(row | {"quantity": q} for q in names)])
    figure = effects_by_length(result, 0.005)
    assert figure is not None
    assert "soft split minus hard split 2.0 points [−1.0, 5.0] after 6 epochs" in figure.caption
    assert len(figure.fig.axes[0].containers) == 2
    other = row | {"quantity": "tokeniser_effect_adamw", "at": 6.0, "low": np.nan, "high": np.nan, "n": 1}
    both = effects_by_length(Result("study_effects", [*lengths, other]), 0.005)
    assert both is not None
    assert len(both.fig.axes) == 2
    assert "Without a bar: one seed." in both.caption
    single = Result("study_effects", [r for r in lengths if r["at"] == 3.0])
    assert effects_by_length(single, 0.005) is None
    drawn = effect_plot(result)
    assert drawn is not None
    assert len(drawn.frame) == 2  # those at the last length alone
