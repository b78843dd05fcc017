"""The one pass over the images: what it feeds to measures, what it leaves alone, and that shares add up."""

import copy
import multiprocessing
import sys
from collections import namedtuple

import numpy as np
import pandas as pd
import pytest
import timm
import torch
import torch.distributed as dist
from torch import nn

from t2t_analysis.capture import Observation, capture
from t2t_analysis.errors import DataError, T2TError, UnknownNameError
from t2t_analysis.measures import (
    AttentionGeometry,
    HeadOutputCKA,
    HeadSimilarity,
    InvalidChannels,
    LayerCKA,
    Measure,
    accumulate,
    collect,
    engine,
    measure,
)
from t2t_analysis.measures.base import MeasureBatch, View, add_by_group, grouped_estimate
from t2t_analysis.results import Result


class TokenNorm(Measure):
    """Mean norm of the tokens of each place."""

    name = "token_norm"
    invariances = frozenset({"orthogonal", "permute_images"})

    def __init__(self, places="blocks.*.resid_post", **kwargs):
        super().__init__(**kwargs)
        self.places = places

    def wants(self, view):
        return view.select(self.places)

    def bind(self, views):
        self.names = self.wants(views[0])
        self.add_sum("total", self.groups, len(self.names))
        self.add_sum("count", self.groups, len(self.names))

    def reduce(self, obs):
        assert not torch.is_autocast_enabled("cpu")
        assert not obs.value.requires_grad
        return obs.value.double().norm(dim=-1).mean(1)

    def update(self, batch):
        for i, name in enumerate(self.names):
            if name in batch.seen[0]:
                add_by_group(self.total[:, i], self.group(batch), batch.seen[0][name])
                add_by_group(self.count[:, i], self.group(batch), torch.ones(len(batch.index)))

    def compute(self):
        found = grouped_estimate(lambda s, n: s / n, (self.total, self.count), self.count)
        self.note(found.note)
        return Result(
            self.name, [self.row(p, quantity="norm", **found.at(i)) for i, p in enumerate(self.names)]
        )


class Difference(TokenNorm):
    """Difference of two models' token norms."""

    name = "difference"
    arity = 2

    def update(self, batch):
        for i, name in enumerate(self.names):
            gap = batch.seen[1][name] - batch.seen[0][name]
            add_by_group(self.total[:, i], self.group(batch), gap)
            add_by_group(self.count[:, i], self.group(batch), torch.ones(len(gap)))


def tiny(seed=0, depth=2, **kwargs):
    torch.manual_seed(seed)
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=32, depth=depth, embed_dim=48, num_heads=3, num_classes=5, **kwargs
    )


IMAGES = torch.randn(22, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def run(models, measures, batches=None, **kwargs):
    return measure(
        models, IMAGES.split(8) if batches is None else batches, measures, progress=False, **kwargs
    )


def norms(model, images=IMAGES, place="blocks.0.resid_post"):
    with torch.no_grad(), capture(model.eval(), place) as seen:
        model(images)
    return seen[place].double().norm(dim=-1).mean(1)


# ------------------------------------------------------------------------------------------ what comes out


def test_values_intervals_and_provenance():
    model = tiny()
    result = run(model, TokenNorm())["token_norm"]
    expected = norms(model)
    row = result.frame.iloc[0]
    assert row.value == pytest.approx(float(expected.mean()), rel=1e-6)
    half = (
        2.0796138 * float(expected.std()) / 22**0.5
    )  # every image is its own group, t with 21 degrees of freedom
    assert (row.low, row.high) == pytest.approx((row.value - half, row.value + half), rel=1e-5)
    assert (row.n, row.unit, row.layer, row.model) == (22, "image", 0, "vit_tiny_patch16_224")
    assert row.weights == "unknown weights"
    assert result.meta["n_images"] == 22
    assert set(result.meta["versions"]) >= {"torch", "timm"}


def test_untrained_weights_are_spelled_out_in_rows_and_notes():
    class Provenance:
        untrained, label = True, "random numbers, seed 0"

    model = tiny()
    model.provenance = Provenance()
    result = run(model, TokenNorm())
    assert set(result.frame.weights) == {"UNTRAINED, random numbers, seed 0"}
    assert any("UNTRAINED" in note for note in result.notes)


def test_data_information_travels():
    class Loader(list):
        dataset = type("D", (), {"info": {"name": "noise", "n": 22, "chance": 0.1}})()

    result = run(tiny(), TokenNorm(), Loader(IMAGES.split(8)))
    assert result["token_norm"].meta["data"] == {"name": "noise", "n": 22, "chance": 0.1}


def test_several_models_and_measures_in_one_pass():
    passes = []

    class Counted(list):
        def __iter__(self):
            passes.append(1)
            return super().__iter__()

    models = {"a": tiny(), "b": tiny(1), "c": tiny(2)}
    results = run(models, [TokenNorm(), Difference()], Counted(IMAGES.split(8)))
    assert passes == [1]
    assert set(results) == {"token_norm", "difference"}
    assert results["token_norm"].frame.model.unique().tolist() == ["a", "b", "c"]
    pairs = results["difference"].frame[["model", "model_b"]].drop_duplicates().to_numpy().tolist()
    assert pairs == [["a", "b"], ["a", "c"]]
    value = {(r.model, r.place): r.value for r in results["token_norm"].frame.itertuples()}
    for r in results["difference"].frame.itertuples():
        assert r.value == pytest.approx(value[r.model_b, r.place] - value[r.model, r.place])
    assert [m["model"] for m in results["difference"].meta["models"]] == ["a", "b", "c"]


def test_results_do_not_depend_on_the_batch_size():
    model = tiny()
    a, b = (run(model, TokenNorm(), IMAGES.split(size)).frame for size in (22, 3))
    assert np.allclose(a[["value", "low", "high"]].astype(float), b[["value", "low", "high"]].astype(float))


def test_the_same_model_twice_gets_two_labels():
    model = tiny()
    frame = run([model, model], TokenNorm()).frame
    assert frame.model.unique().tolist() == ["vit_tiny_patch16_224", "vit_tiny_patch16_224 (2)"]
    assert frame.value[:2].tolist() == frame.value[2:].tolist()


def test_a_measure_given_twice_is_not_shared_between_runs():
    proto = TokenNorm()
    first, second = run(tiny(), proto).frame, run(tiny(), proto).frame
    assert first.n.tolist() == second.n.tolist() == [22, 22]
    assert not proto.views


# ----------------------------------------------------------------------------------- what stays as it was


def test_models_get_back_training_mode_and_have_no_hooks_even_after_an_exception():
    class Broken(TokenNorm):
        def reduce(self, obs):
            raise RuntimeError("no")

    model = tiny().train()
    model.blocks[0].eval()
    modes = [m.training for m in model.modules()]
    run(model, TokenNorm())
    with pytest.raises(RuntimeError, match="no"):
        run(model, Broken())
    assert [m.training for m in model.modules()] == modes
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_models_run_in_eval_mode_without_graph():
    seen = []
    model = tiny(drop_rate=0.5)
    model.head.register_forward_hook(lambda m, args, out: seen.append((m.training, out.requires_grad)))
    run(model.train(), TokenNorm())
    assert set(seen) == {(False, False)}


def test_autocast_reaches_the_model_but_not_the_measures():
    dtypes = []
    model = tiny()
    model.head.register_forward_hook(lambda m, args, out: dtypes.append(out.dtype))
    plain, half = run(model, TokenNorm()).frame, run(model, TokenNorm(), autocast=True).frame
    assert dtypes[-1] == torch.bfloat16
    assert half.value.to_numpy() == pytest.approx(plain.value.to_numpy(), rel=0.02)
    assert (half.value != plain.value).any()


def test_progress_counts_passes_and_intervals_and_can_be_silenced(monkeypatch):
    told = []

    def record(items, desc, total=None, unit="batch", *, shown=True):
        items = list(items)
        if shown:
            told.append((desc, total, unit, len(items)))
        return items

    monkeypatch.setattr("t2t_analysis.measures.engine.counted", record)
    measure(tiny(), IMAGES.split(8), TokenNorm(), progress=False)
    assert told == []
    measure({"a": tiny(), "b": tiny()}, IMAGES.split(8), TokenNorm())
    assert told == [("measuring", 6, "forward pass", 6), ("intervals", None, "measure", 2)]


# ------------------------------------------------------------------------------------------ bad input


def test_non_finite_places_are_named_and_the_others_come_out():
    model = tiny(depth=3)
    marked = IMAGES.clone()
    marked[9] = 40.0
    model.patch_embed.register_forward_hook(
        lambda m, args, out: setattr(model, "bad", args[0].amax((1, 2, 3)) > 39)
    )
    model.blocks[1].register_forward_hook(
        lambda m, args, out: torch.where(model.bad[:, None, None], torch.inf, out)
    )
    model.blocks[2].register_forward_pre_hook(lambda m, args: (args[0].nan_to_num(0, 0, 0), *args[1:]))
    result = run(model, TokenNorm(), marked.split(8))["token_norm"]
    assert result.frame.n.tolist() == [22, 14, 22]
    assert result.frame.value.notna().all()
    (note,) = result.notes
    assert note.startswith("vit_tiny_patch16_224: blocks.1.resid_post is not finite for 1 of 22 images")


def test_hooks_never_wait_for_the_device():
    """Tensors without data cannot be asked for a number, which on an accelerator would mean to wait for it."""
    model = tiny()
    kinds = (LayerCKA, HeadOutputCKA, AttentionGeometry, HeadSimilarity, InvalidChannels)
    accumulators = accumulate(model, IMAGES.split(8), [kind() for kind in kinds], progress=False)
    for accumulator in accumulators:
        view = accumulator.views[0]
        for name in accumulator.wanted[0]:
            value = torch.empty(8, *view.shape_of(name), device="meta")
            accumulator.reduce(Observation(name, value, view.layout_of(name)))
            assert engine._count_nonfinite(value).device.type == "meta"


def test_an_empty_loader_and_a_lacking_second_model_are_errors():
    with pytest.raises(DataError, match="no images"):
        run(tiny(), TokenNorm(), [])
    with pytest.raises(T2TError, match="difference compares two models, but only 'x' was given"):
        run({"x": tiny()}, Difference())
    with pytest.raises(T2TError, match="1 models, but 2 labels"):
        run(tiny(), TokenNorm(), labels=["a", "b"])


@pytest.mark.parametrize("batch", [{"images": IMAGES[:2]}, "images", ["a.jpg"], []], ids=str)
def test_a_batch_of_another_form_is_named(batch):
    with pytest.raises(
        DataError, match=f"a batch of type {type(batch).__name__}: expected a tensor of images"
    ):
        measure(tiny(), [batch], TokenNorm(), progress=False)


def test_one_image_has_a_value_and_no_interval():
    result = run(tiny(), TokenNorm(), [IMAGES[:1]])["token_norm"]
    assert result.frame.value.notna().all()
    assert result.frame[["low", "high", "interval"]].isna().all().all()
    assert result.notes == ("interval missing: fewer than 2 groups of images",)


# ------------------------------------------------------------------------------------------ loaders


def test_pairs_and_tensors_and_named_batches_are_numbered_alike():
    seen = []

    class Watch(TokenNorm):
        def update(self, batch: MeasureBatch):
            seen.append((batch.number, batch.index.tolist(), batch.labels.tolist()))

    named = [
        type("Batch", (), {"images": IMAGES[i], "labels": torch.zeros(2), "index": i})
        for i in torch.tensor([[4, 0], [7, 2]])
    ]
    run(tiny(), Watch(), [IMAGES[:2], IMAGES[2:3]])
    run(tiny(), Watch(), [(IMAGES[:2], torch.tensor([1, 2]))])
    run(tiny(), Watch(), named)
    assert seen[:2] == [(0, [0, 1], [-1, -1]), (1, [2], [-1])]
    assert seen[2] == (0, [0, 1], [1, 2])
    assert [index for _, index, _ in seen[3:]] == [[4, 0], [7, 2]]


def test_views_know_shapes_and_layouts_at_the_size_of_the_images():
    model, passes = tiny(dynamic_img_size=True), []
    model.register_forward_hook(lambda *_: passes.append(1))
    view = View(model, example=torch.zeros(1, 3, 64, 32))
    assert [view.shape_of(f"blocks.{i}.resid_post") for i in (0, 1)] == [(9, 48), (9, 48)]
    assert len(passes) == 1  # layers are asked together
    assert view.layout_of("blocks.0.resid_post").grid == (4, 2)
    with pytest.raises(T2TError, match="no image to learn the shape"):
        View(tiny()).shape_of("logits")


# ------------------------------------------------------------------------------------------ shares


def in_shares(model, world):
    batches = [
        type("Batch", (), {"images": IMAGES[i].double(), "labels": None, "index": i})
        for i in torch.arange(22).split(4)
    ]
    return [
        accumulate(model, batches[rank::world], TokenNorm(groups=5), progress=False)[0]
        for rank in range(world)
    ]


def test_disjoint_shares_merge_to_the_whole():
    model = tiny().double()
    (whole,) = in_shares(model, 1)
    one, two = in_shares(model, 2)
    one.compute()  # what was computed before the merge must not be remembered
    one.merge_state(two)
    a, b = (collect([m])["token_norm"] for m in (whole, one))
    numbers = ["value", "low", "high", "n"]
    assert np.allclose(a.frame[numbers].astype(float), b.frame[numbers].astype(float), rtol=1e-12, atol=0)
    assert b.meta["n_images"] == 22


def test_states_survive_a_state_dict_and_accumulators_a_copy():
    one, two = in_shares(tiny().double(), 2)
    blank = copy.deepcopy(one)
    blank.reset()
    blank.load_state_dict(one.state_dict())
    assert blank.views[0].model is one.views[0].model  # a copy does not copy the model
    blank.merge_state(two)
    one.merge_state(two)
    assert torch.equal(blank.total, one.total)


class Numbered(list):
    """Named batches of a data set of 22 images."""

    dataset = range(22)


def named_batches():
    Batch = namedtuple("Batch", "images labels index")
    return [Batch(IMAGES[i].double(), None, i) for i in torch.arange(22).split(4)]


def three_measures():
    return [TokenNorm(), LayerCKA(permutations=9, retain=8), LayerCKA("flattened", permutations=9)]


def measure_a_share(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    results = run(tiny().double(), three_measures(), Numbered(named_batches()[rank::2]))
    results.frame.to_csv(f"{folder}/{rank}.csv")
    dist.destroy_process_group()


@pytest.mark.skipif(sys.platform != "linux", reason="forks, to spare the imports")
def test_two_processes_equal_one(tmp_path):
    processes = [
        multiprocessing.get_context("fork").Process(target=measure_a_share, args=(rank, tmp_path))
        for rank in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    run(tiny().double(), three_measures(), Numbered(named_batches())).frame.to_csv(tmp_path / "alone.csv")
    tables = [pd.read_csv(tmp_path / f"{name}.csv") for name in ("alone", "0", "1")]
    for other in tables[1:]:
        pd.testing.assert_frame_equal(tables[0], other, rtol=1e-12, atol=1e-12)


# ------------------------------------------------------------------------------------------ grouped estimates


@pytest.mark.parametrize(("spread", "n"), [(0.5, 24), (1.0, 12), (1.0, 24), (1.5, 24)])
def test_intervals_of_skewed_effects_cover_more_on_the_scale_of_the_logarithm(spread, n):
    """2,000 sets of log-normal effects, whose mean is exp(spread^2 / 2)."""
    draws = torch.randn(n, 2000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    counts = torch.ones(n, 2000, dtype=torch.float64)
    symmetric = grouped_estimate(lambda s, c: s / c, ((spread * draws).exp(), counts), counts)
    found, truth = symmetric.positive(), np.exp(spread**2 / 2)
    covered = [np.mean((e.low <= truth) & (truth <= e.high)) for e in (symmetric, found)]
    too_low = [np.mean(e.high < truth) for e in (symmetric, found)]
    assert covered[0] + 0.004 < covered[1] <= 0.96
    assert too_low[1] < too_low[0]
    assert (found.low > 0).all()


def test_grouped_estimate_works_on_every_cell_at_once():
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.normal(size=(6, 40, 2, 3)))  # 6 groups of 40 images, a 2 x 3 table
    sums, counts = x.sum(1), torch.full((6,), 40.0)
    found = grouped_estimate(lambda s, n: s / n[:, None, None], (sums, counts), counts)
    means = x.mean(1)
    half = 2.5705818 * means.std(0) / 6**0.5
    assert found.value == pytest.approx(means.mean(0).numpy())
    assert found.high == pytest.approx((means.mean(0) + half).numpy())
    assert found.n.tolist() == [[240] * 3] * 2


def test_groups_that_are_empty_for_one_cell_only():
    sums = torch.tensor([[2.0, 0.0], [4.0, 3.0], [3.0, 0.0]])
    counts = torch.tensor([[1.0, 0.0], [1.0, 1.0], [1.0, 0.0]])
    found = grouped_estimate(lambda s, n: s / n, (sums, counts), counts)
    assert found.value.tolist() == [3.0, 3.0]
    assert found.groups.tolist() == [3, 1]
    assert np.isfinite(found.low[0])
    assert np.isnan([found.low[1], found.high[1]]).all()
    assert found[1].interval is None
    with pytest.raises(T2TError, match="2 groups of counts"):
        grouped_estimate(lambda s: s, torch.zeros(3, 1), torch.ones(2))


def test_memory_does_not_grow_with_the_images():
    def size(batches):
        (found,) = accumulate(tiny(), batches, TokenNorm(), progress=False)
        return sum(state.numel() for state in found.metric_state.values())

    assert size(IMAGES.split(8)) == size(IMAGES[:4].split(2))


def test_a_foreign_module_is_refused():
    with pytest.raises(T2TError):
        run(nn.Linear(3, 3), TokenNorm())


def test_accumulators_of_other_models_or_numbers_of_images_do_not_merge():
    asked = TokenNorm()
    (first,) = accumulate(tiny(), IMAGES.split(8), asked, progress=False, labels=["a"])
    (other,) = accumulate(tiny(), IMAGES.split(8), asked, progress=False, labels=["b"])
    with pytest.raises(T2TError, match=r"of a \(.* and of token_norm of b"):
        first.merge_state(other)
    other.views, other.n_expected = first.views, 7
    with pytest.raises(T2TError, match="7 images"):
        first.merge_state(other)


def test_autocast_takes_a_dtype_at_its_word():
    with pytest.raises(UnknownNameError, match="did you mean 'float16'"):
        measure(tiny(), IMAGES.split(8), TokenNorm(), progress=False, autocast="flaot16")
