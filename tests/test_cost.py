"""Costs: recorded counts, memory against tensors that are known, the printed table, timings."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from benchmarks._textbook import plain_splits
from t2t_analysis.errors import ParameterError, T2TError, UnknownNameError
from t2t_analysis.measures import cost as K
from t2t_analysis.measures import latency as L
from t2t_analysis.measures import paper_costs as P
from t2t_analysis.models.tokens import WINDOWS, T2TModule
from t2t_analysis.plots import cost_bars

# name, arguments, image size, parameters, trainable, 10^9 MACs of all products, of linear layers only, recorded
# from the authors' code.
RECORDED = [
    ("t2t_vit_7", {}, 224, 4_310_222, 4_255_694, 1.147, 0.976),
    ("t2t_vit_t_14", {}, 224, 21_541_070, 21_465_422, 6.089, 4.334),
    ("t2t_vit_14", {}, 384, 21_691_470, 21_465_806, 16.370, 12.696),
    ("t2t_vit_16_ghost", {}, 224, 16_253_262, 16_173_518, 3.802, 3.288),
    ("t2t_vit_14", {"tokens_type": "convolution"}, 224, 21_421_992, 21_346_344, 4.586, None),
    ("vit_small_paper_patch16_224", {}, 224, 48_754_408, 48_754_408, 9.889, None),
]


@pytest.mark.parametrize(
    ("name", "arguments", "size", "parameters", "trainable", "products", "linear"),
    RECORDED,
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_recorded_counts(name, arguments, size, parameters, trainable, products, linear):
    counts = K.count(name, size, **arguments)
    assert (counts.parameters, counts.trainable) == (parameters, trainable)
    assert counts.macs_all / 1e9 == pytest.approx(products, rel=1e-3)
    if linear is not None:
        assert counts.macs_linear / 1e9 == pytest.approx(linear, rel=1e-3)


def test_counting_by_hand():
    """Two tokens sizes of a plain ViT: patch embedding, 12 D^2 per token and layer, 2 N^2 D per layer, head."""
    counts = K.count("vit_tiny_patch16_224", (64, 32), depth=2, num_classes=7)
    n, d = 4 * 2 + 1, 192
    linear = 8 * 768 * d + 2 * 12 * d * d * n + d * 7
    assert counts.macs_linear == linear
    assert counts.macs_all == linear + 2 * 2 * n * n * d


def test_soft_splits_count_the_same_in_either_form():
    shapes = K.Shapes.of("small_performer_deep", depth=1)
    fused = K.count(shapes)
    plain_splits(shapes.model.tokens_to_token)
    assert K.count(shapes) == fused


def test_unknown_names_are_refused():
    with pytest.raises(UnknownNameError, match="did you mean 't2t_vit_14'"):
        K.count("t2t_vit_114")
    with pytest.raises(ParameterError, match="at least one"):
        K.costs([])


# ------------------------------------------------------------------------------------------ memory


def test_live_bytes_follow_tensors():
    x = torch.zeros(1000)
    with K.LiveBytes([x]) as live:
        a = x + 1
        b = a.view(10, 100)  # the same memory
        assert live.now == 4000
        c = b * 2
        assert live.now == 8000
        del a, b
        assert live.now == 4000
        x.add_(1)
        del c
    assert (live.now, live.peak) == (0, 8000)


def test_peak_of_a_chain_is_two_activations_and_of_its_training_all_of_them():
    model = nn.Sequential(*(nn.Linear(50, 50) for _ in range(6)))
    shapes = K.Shapes("chain", model, (1, 50), in_chans=1)
    activation = 4 * 50 * 8  # a batch of 8
    assert K.peak_bytes(shapes, batch=8) == 2 * activation
    gradients, activation = 4 * 50 * 51 * 6, 4 * 50 * 800
    training = K.peak_bytes(shapes, batch=800, training=True)
    assert 5 * activation < training < 9 * activation + gradients  # five are kept until they have been used
    assert K.peak_bytes(shapes, batch=1600) == 4 * activation


def test_a_training_step_keeps_the_masks_of_dropout_and_a_forward_pass_has_none():
    layers = [nn.Linear(50, 50), nn.Dropout(0.5), nn.Linear(50, 50)]
    shapes = K.Shapes("dropout", nn.Sequential(*layers).eval(), (1, 50), in_chans=1)
    plain = K.Shapes("plain", nn.Sequential(layers[0], layers[2]).eval(), (1, 50), in_chans=1)
    assert K.peak_bytes(shapes, batch=8) == K.peak_bytes(plain, batch=8)
    assert K.peak_bytes(shapes, batch=800, training=True) > K.peak_bytes(plain, batch=800, training=True)
    assert not shapes.model.training  # put back


def test_saved_bytes_are_what_the_backward_pass_needs():
    module, x = nn.Sequential(nn.Linear(10, 20), nn.GELU(), nn.Linear(20, 5)), torch.zeros(3, 10)
    saved = K.saved_bytes(module, x, dict(module.named_parameters()))
    assert saved == 2 * 3 * 20 * 4  # input and output of the GELU; weights and images do not count


def test_a_transformer_tokeniser_never_holds_its_attention_map():
    """At 3136 tokens one map is 39 MB; the module needs a fraction of that beside it."""
    shapes = K.Shapes.of("t2t_vit_t_14", depth=1)
    map_bytes = 4 * 3136**2
    assert K.peak_bytes(shapes) < map_bytes / 3
    assert K.tokeniser_saved_bytes(shapes) < map_bytes / 2


def test_one_product_keeps_less_than_unfolding_and_a_hard_split_nothing():
    soft = K.Shapes.of("small_performer_deep", depth=1)
    fused = K.tokeniser_saved_bytes(soft, batch=4)
    plain = K.Shapes.of("small_performer_deep", depth=1)
    plain_splits(plain.model.tokens_to_token)
    assert 0 < fused < K.tokeniser_saved_bytes(plain, batch=4)
    assert K.tokeniser_saved_bytes(K.Shapes.of("small_hard_deep", depth=1), batch=4) == 0
    assert K.tokeniser_saved_bytes(soft, batch=8) == pytest.approx(2 * fused, rel=0.05)


def test_a_loaded_model_is_counted_with_its_own_head():
    import timm

    model = timm.create_model("small_hard_wide", num_classes=5)
    found = K.costs(
        {"mine": model, "soft": timm.create_model("small_performer_wide")}, baseline="soft", memory=False
    )
    frame = found.frame.set_index(["model", "quantity"])
    assert frame.loc[("mine", "parameters"), "value"] == sum(p.numel() for p in model.parameters())
    assert frame.loc[("mine", "macs_all"), "null"] == frame.loc[("soft", "macs_all"), "value"]
    assert not next(model.parameters()).is_meta  # counted on a copy
    with pytest.raises(UnknownNameError, match="did you mean 'mine'"):
        K.costs({"mine": model}, baseline="mime")


def test_cost_compares_with_the_first_model():
    found = K.costs(["small_hard_wide", "small_performer_wide"], batch=2)
    frame = found.frame.set_index(["model", "quantity"])
    own = frame.loc[("small_performer_wide", "macs_all")]
    assert own["null"] == frame.loc[("small_hard_wide", "macs_all"), "value"] < own["value"]
    assert found.frame["interval"].notna().all()
    assert frame.loc[("small_performer_wide", "peak_training"), "at"] == 2
    figure = cost_bars(found)
    assert len(figure.fig.axes) == 4
    assert "batch of 2" in figure.caption
    alone = cost_bars(K.costs(["small_hard_wide"], batch=2))
    assert len(alone.fig.axes) == 3  # a hard split keeps nothing for training
    assert "Not drawn" in alone.caption
    assert "Dotted" not in alone.caption  # the model would be beside itself


# ------------------------------------------------------------------------------------------ token geometry


@pytest.mark.parametrize("size", [(224, 224), (384, 384), (32, 96), (225, 200), (64, 226)])
def test_geometry_by_the_papers_formula_is_that_of_the_module(size):
    table = K.token_geometry(*size)
    module = T2TModule(size, embed_dim=8, token_dim=8)
    assert list(zip(table["rows"], table["columns"], strict=True)) == module.grids(*size)
    assert list(table["overlap"]) == [3, 1, 1]  # what the paper calls S
    assert list(table["tokens"]) == [a * b for a, b in module.grids(*size)]


def test_stages_of_several_models_stand_below_each_other():
    import timm

    models = {
        "soft": timm.create_model("t2t_vit_7"),
        "hard": timm.create_model("vit_tiny_patch16_224", depth=1),
    }
    table = K.token_stages(models | {"none": nn.Flatten()}, 224)
    assert table[["model", "tokens", "numbers"]].values.tolist() == [
        ["soft", 3136, 147], ["soft", 784, 576], ["soft", 196, 576], ["hard", 196, 768],
    ]  # fmt: skip
    assert K.token_stages({"none": nn.Flatten()}, 224).empty


def test_geometry_refuses_images_without_tokens():
    with pytest.raises(T2TError, match="positive sides"):
        K.token_geometry(0, 224)
    with pytest.raises(T2TError, match="leaves no token"):
        K.token_geometry(2, 224, WINDOWS)


# ------------------------------------------------------------------------------------------ printed numbers


def test_every_line_has_a_registered_model_or_a_reason():
    import timm

    for line in P.PAPER:
        assert (line.name is None) == bool(line.why), line
        assert line.name is None or timm.is_model(line.name), line
    assert {"Table 1", "Table 2", "Table 3", "Table 4", "Table 6", "Table 7"} <= {p.table for p in P.PAPER}


def test_printed_against_counted():
    wanted = {"T2T-ViT-7", "MobileNetV2 1.4x", "ViT-DN"}
    lines = [p for p in P.PAPER if p.label in wanted and p.table in ("Table 4", "Table 6")]
    found = P.printed_costs(lines)
    counted = found.where(quantity="parameters").frame.set_index("place")["value"]
    assert counted["Table 4: T2T-ViT-7"] == pytest.approx(4.310, abs=1e-3)
    assert counted["Table 4: MobileNetV2 1.4x"] < 0.9 * 6.9  # the table prints 6.9 M
    row = found.frame[(found.frame["model"] == "t2t_vit_7") & (found.frame["quantity"] == "macs_all")].iloc[0]
    assert (row["null"], row["null_kind"]) == (1.1, "printed in Table 4")
    assert any("ViT-DN" in note and "no code" in note for note in found.notes)
    off = P.disagreeing(found)
    off = off[off["what"].str.startswith("parameters")]
    assert off[["line", "counted", "printed"]].round(2).values.tolist() == [
        ["Table 4: MobileNetV2 1.4x", 6.11, 6.9]
    ]


# ------------------------------------------------------------------------------------------ time


def test_the_medians_interval_covers_it():
    rng = np.random.default_rng(0)
    for n in (6, 11, 30):
        samples = rng.exponential(size=(600, n))
        ends = np.array([L.median_interval(s)[1:] for s in samples])
        cover = ((ends[:, 0] <= np.log(2)) & (np.log(2) <= ends[:, 1])).mean()
        assert 0.93 < cover < 0.995
    assert np.isnan(L.median_interval([1.0, 2.0, 3.0])[1])


def test_work_takes_turns():
    seen = []
    found = L.interleaved(
        {"a": lambda: seen.append("a"), "b": lambda: seen.append("b")}, repeats=20, warmup=1
    )
    assert {name: len(values) for name, values in found.items()} == {"a": 20, "b": 20}
    pairs = [frozenset(seen[i : i + 2]) for i in range(2, len(seen), 2)]
    assert set(pairs) == {frozenset("ab")}
    assert len(set(seen[2::2])) == 2  # and not always in the same order


class Clock:
    """A clock that only moves when a model works, so that a busy machine cannot spoil a test."""

    now = 0.0

    def perf_counter(self):
        return self.now


class Busy(nn.Module):
    def __init__(self, clock, milliseconds):
        super().__init__()
        self.clock, self.seconds, self.weight = clock, milliseconds / 1e3, nn.Parameter(torch.ones(()))

    def forward(self, x):
        self.clock.now += self.seconds * (1 + 0.01 * self.clock.now)  # slower and slower
        return x * self.weight


@pytest.mark.parametrize("training", [False, True])
def test_latency_is_the_models_own_and_ratios_are_within_repeats(training, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(L, "time", clock)
    models = {"one": Busy(clock, 100), "ten": Busy(clock, 1000)}
    found = L.latencies(models, img_size=8, batch_sizes=[2], repeats=9, training=training)
    frame = found.frame.set_index(["model", "quantity"])
    ratio = frame.loc[("ten", "latency_ratio")]
    assert 9.7 < ratio["low"] < 10 < ratio["high"] < 10.3
    assert 100 < frame.loc[("one", "latency"), "value"] < 115
    assert ("one", "latency_ratio") not in frame.index
    assert frame.loc[("ten", "latency"), "null"] == pytest.approx(frame.loc[("one", "latency"), "value"])
    one = frame.loc["one"]
    assert one.loc["throughput", "value"] == pytest.approx(2e3 / one.loc["latency", "value"])
    assert found.meta["threads"] == torch.get_num_threads()
    assert found.measure == ("latency_training" if training else "latency")
    against = L.latencies(models, baseline="ten", img_size=8, batch_sizes=[2], repeats=7, training=training)
    turned = against.frame.set_index(["model", "quantity"]).loc[("one", "latency_ratio"), "value"]
    assert turned == pytest.approx(0.1, rel=0.05)
    assert not pd.isna(one.loc["latency", "low"])


def test_latency_refuses_nothing_to_do():
    with pytest.raises(ParameterError):
        L.latencies({})
    with pytest.raises(UnknownNameError, match="baseline"):
        L.latencies({"one": nn.Flatten()}, baseline="two")
