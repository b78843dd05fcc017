"""The models equal the authors' recorded numbers and behave as timm's users expect."""

import copy
import math
import re

import pytest
import timm
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from benchmarks._textbook import plain_split, plain_splits
from t2t_analysis import load_model
from t2t_analysis.errors import CheckpointError, T2TError
from t2t_analysis.measures import random_twin
from t2t_analysis.models import MODELS, SMALL_MODELS
from t2t_analysis.models.t2t import VARIANTS
from t2t_analysis.models.tokens import Dropout, T2TModule, TokenPerformer, Window, normalised_split
from t2t_analysis.training import design

from . import records


def layout(model):
    trains = {name: p.requires_grad for name, p in model.named_parameters()}
    return [[k, list(v.shape), "trainable" if trains[k] else "frozen"] for k, v in model.state_dict().items()]


def build(name, record):
    kwargs = {} if name in records.OURS else record["kwargs"]
    return timm.create_model(records.our_name(name, record), **kwargs).eval()


# --- equal to the recorded numbers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", records.NAMES)
def test_structure_is_the_authors(name):
    record = records.load(name)
    model = build(name, record)
    assert layout(model) == record["state_dict"]
    total = sum(p.numel() for p in model.parameters())
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert (total, trainable) == (record["params"]["total"], record["params"]["trainable"])
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 3, record["img_size"], record["img_size"]))
    assert counter.get_total_flops() / 2 == pytest.approx(record["macs"]["total"], rel=1e-3)


def observe(model, images):
    """Every quantity that the records hold, by the path it has there."""
    seen = {}
    hooks = [
        module.register_forward_hook(lambda _m, _i, out, name=name: seen.__setitem__(name, out))
        for name, module in model.named_modules()
        if name in ("tokens_to_token", "patch_embed", "norm")
        or (name.startswith("tokens_to_token.attention") and name.count(".") == 1)
        or (name.startswith("blocks.") and name.count(".") == 1)
    ]
    with torch.no_grad():
        seen["logits"] = model(images)
    for hook in hooks:
        hook.remove()
    return seen


def recorded_lists(golden, seen):
    """(what, recorded, ours) for every list of a record."""
    for name, stage in golden.get("stages", {}).items():
        yield name, stage["token0_first8"], seen[name][:, 0, :8]
        yield (
            name,
            [stage["mean"], stage["std"]],
            torch.stack((seen[name].mean(), seen[name].std(correction=0))),
        )
    tokens = golden["tokens"]
    ours = seen[tokens["module"]]
    for key, index in (("first_token", 0), ("middle_token", tokens["middle_index"]), ("last_token", -1)):
        yield key, tokens[key], ours[:, index, :16]
    yield "tokens", [tokens["mean"], tokens["std"]], torch.stack((ours.mean(), ours.std(correction=0)))
    for block in golden["blocks"]:
        x = seen[f"blocks.{block['index']}"]
        assert list(x.shape) == block["shape"]
        yield f"block {block['index']}", block["cls_first8"], x[:, 0, :8]
        yield (
            f"block {block['index']}",
            [block["mean"], block["std"]],
            torch.stack((x.mean(), x.std(correction=0))),
        )
    yield "normalised_cls", golden["normalised_cls"]["first16"], seen["norm"][:, 0, :16]
    logits = seen["logits"]
    yield "logits", golden["logits"]["first32"], logits[:, :32]
    yield "logits", golden["logits"]["sum"], logits.sum(1)
    yield "logits", golden["logits"]["abs_sum"], logits.abs().sum(1)


@pytest.mark.parametrize("name", [n for n in records.NAMES if "golden" in records.load(n)])
def test_outputs_are_the_authors(name):
    record = records.load(name)
    model = records.fill(build(name, record).double(), record["family"])
    images = records.images(record["img_size"])
    assert images.abs().sum().item() == pytest.approx(record["golden"]["input"]["abs_sum"], rel=1e-11)
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-4)):
        seen = observe(model.to(dtype), images.to(dtype))
        for what, expected, ours in recorded_lists(record["golden"], seen):
            expected = torch.tensor(expected, dtype=torch.float64)
            error = (ours.double() - expected).abs().max() / expected.abs().max()
            assert error < tolerance, f"{what} in {dtype}: {error:.1e}"
        assert seen["logits"].argmax(1).tolist() == record["golden"]["logits"]["argmax"]


@pytest.mark.parametrize("name", ["t2t_vit_7", "t2t_vit_t_14__img96_c10", "t2t_vit_dense"])
def test_position_table_is_the_authors(name):
    record = records.load(name)
    table, expected = build(name, record).pos_embed[0].double(), record["golden"]["pos_embed"]
    assert table.sum().item() == pytest.approx(expected["sum"], rel=1e-6)
    assert table.abs().sum().item() == pytest.approx(expected["abs_sum"], rel=1e-6)
    assert table[1, :8].tolist() == pytest.approx(expected["row1_first8"], abs=1e-6)
    assert table[-1, :8].tolist() == pytest.approx(expected["last_row_first8"], abs=1e-6)


COUNTS = {
    "t2t_vit_7": (4_310_222, 4_255_694),
    "t2t_vit_10": (5_889_230, 5_834_702),
    "t2t_vit_12": (6_941_902, 6_887_374),
    "t2t_vit_14": (21_545_550, 21_465_806),
    "t2t_vit_19": (39_177_422, 39_085_070),
    "t2t_vit_24": (64_105_934, 64_000_974),
    "t2t_vit_t_14": (21_541_070, 21_465_422),
    "t2t_vit_t_19": (39_172_942, 39_084_686),
    "t2t_vit_t_24": (64_101_454, 64_000_590),
    "t2t_vit_14_resnext": (21_545_550, 21_465_806),
    "t2t_vit_14_wide": (25_156_302, 25_000_910),
    "t2t_vit_14_se": (21_803_598, 21_723_854),
    "t2t_vit_dense": (23_647_062, 23_617_750),
    "t2t_vit_16_ghost": (16_253_262, 16_173_518),
}


#: heads of every block, of which the number of parameters tells nothing
HEADS = {7: 4, 10: 4, 12: 4, 14: 6, 16: 6, 19: 7, 24: 8}


@pytest.mark.parametrize("name", VARIANTS)
def test_numbers_of_heads_and_the_images_they_were_made_for(name):
    with torch.device("meta"):
        model = timm.create_model(name)
    special = {"t2t_vit_14_resnext": 32, "t2t_vit_14_wide": 12, "t2t_vit_dense": 8}
    heads = special[name] if name in special else HEADS[int(re.findall(r"_(\d+)", name)[0])]
    assert {m.num_heads for m in model.blocks.modules() if hasattr(m, "num_heads")} == {heads}
    assert model.tokens_to_token.img_size == (224, 224)
    assert (model.pretrained_cfg["input_size"], model.pretrained_cfg["crop_pct"]) == ((3, 224, 224), 0.9)


@pytest.mark.parametrize("name", [name for name in VARIANTS if name != "t2t_vit_c_14"])
def test_parameter_counts(name):
    with torch.device("meta"):
        model = timm.create_model(name)
    total = sum(p.numel() for p in model.parameters())
    assert (total, sum(p.numel() for p in model.parameters() if p.requires_grad)) == COUNTS[name]


def test_ghost_macs():
    model = timm.create_model("t2t_vit_16_ghost")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 3, 224, 224))
    assert counter.get_total_flops() / 2 == pytest.approx(3.802e9, rel=1e-3)


# --- soft split in one product -----------------------------------------------------------------------------------


def difficult_images(side=33):
    """Noise, a constant, a white border around noise, a step between two flat halves, and a faint ramp."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(3, side, side, generator=generator, dtype=torch.float64)
    border = torch.full_like(noise, 2.6)
    border[:, 8:-8, 8:-8] = noise[:, 8:-8, 8:-8]
    step = torch.full_like(noise, -2.1)
    step[..., side // 2 :] = 2.4
    ramp = 2.0 + 1e-3 * torch.linspace(0, 1, side, dtype=torch.float64).expand_as(noise)
    return torch.stack((noise, torch.full_like(noise, 2.64), border, step, ramp, torch.zeros_like(noise)))


SEVEN = Window(7, 4, 2)


def stage(bias, in_chans=3, dim=16, window=SEVEN, dtype=torch.float64):
    torch.manual_seed(1)
    norm, linear = (
        nn.LayerNorm(in_chans * window.kernel**2),
        nn.Linear(in_chans * window.kernel**2, dim, bias=bias),
    )
    for p in norm.parameters():
        nn.init.normal_(p, mean=0.5)
    return norm.to(dtype), linear.to(dtype), window


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("window", [Window(7, 4, 2), Window(3, 2, 1), Window(3, 1, 1), Window(4, 4, 0)])
def test_normalised_split_equals_unfold_norm_linear(bias, window):
    parts = stage(bias, window=window)
    x = difficult_images()
    assert normalised_split(x, *parts).sub(plain_split(x, *parts)).abs().max() < 1e-10


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("autocast", [None, torch.bfloat16, torch.float16])
def test_first_split_is_safe_on_flat_windows(device, autocast):
    """Rounding before the division by a deviation that vanishes would be magnified by up to 316."""
    x = difficult_images()
    truth = plain_split(x, *stage(True))
    norm, linear, window = stage(True, dtype=torch.float32)
    with torch.autocast(device, dtype=autocast or torch.bfloat16, enabled=autocast is not None):
        ours = normalised_split(x.float().to(device), norm.to(device), linear.to(device), window)
    allowed = 1e-3 if autocast is None else 0.02
    assert (ours.double().cpu() - truth).abs().max() < allowed * truth.abs().max()


@pytest.mark.parametrize("tokens_type", ["performer", "transformer"])
def test_whole_module_on_flat_images_in_low_precision(tokens_type):
    torch.manual_seed(0)
    module = T2TModule((48, 48), tokens_type, embed_dim=32, token_dim=16).eval()
    x = difficult_images(48).float()
    with torch.no_grad():
        truth = module.double()(x.double())
        plain = plain_splits(copy.deepcopy(module.float()))
        assert (plain(x).double() - truth).abs().max() < 1e-3 * truth.abs().max()
        assert (module(x).double() - truth).abs().max() < 1e-3 * truth.abs().max()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert (module(x).double() - truth).abs().max() < 0.05 * truth.abs().max()


def test_gradients_of_the_normalised_split():
    window = Window(3, 2, 1)
    norm, linear, _ = stage(True, in_chans=2, dim=3, window=window)
    x = torch.randn(2, 2, 7, 6, dtype=torch.float64, requires_grad=True)
    inputs = (x, norm.weight, norm.bias, linear.weight, linear.bias)

    def form(x, g, b, w, c):
        n = nn.LayerNorm(18).double()
        n._parameters["weight"], n._parameters["bias"] = g, b
        fc = nn.Linear(18, 3).double()
        fc._parameters["weight"], fc._parameters["bias"] = w, c
        return normalised_split(x, n, fc, window)

    assert torch.autograd.gradcheck(form, inputs)
    assert torch.autograd.gradgradcheck(form, inputs)


def test_windows_that_leave_pixels_over():
    """Rows and columns that no window reaches, at the far sides, have no gradient."""
    x = torch.randn(1, 3, 8, 10, dtype=torch.float64, requires_grad=True)
    norm, linear, _ = stage(True, window=Window(3, 3, 0))
    (ours,) = torch.autograd.grad(normalised_split(x, norm, linear, Window(3, 3, 0)).sin().sum(), x)
    (plain,) = torch.autograd.grad(plain_split(x, norm, linear, Window(3, 3, 0)).sin().sum(), x)
    assert torch.allclose(ours, plain)
    assert ours[..., 6:, :].abs().sum() == ours[..., 9:].abs().sum() == 0 < ours.abs().sum()


def test_dropout_draws_at_its_rate_and_nothing_when_it_is_off():
    drop, x = Dropout(0.1), torch.ones(50, 40, 63)
    torch.manual_seed(0)
    dropped = drop(x)
    assert dropped.unique().tolist() == pytest.approx([0.0, 1 / 0.9])
    assert (dropped == 0).double().mean().item() == pytest.approx(0.1, abs=0.003)  # 3.5 standard errors
    torch.manual_seed(0)
    assert torch.equal(drop(x), dropped)
    drops = dropped.flatten(1) == 0
    assert (drops[:, 1:] & drops[:, :-1]).double().mean().item() == pytest.approx(0.01, abs=0.001)
    before = torch.get_rng_state()
    assert torch.equal(Dropout(0.0)(x), x)
    assert torch.equal(drop.eval()(x), x)
    assert torch.equal(torch.get_rng_state(), before)


# --- facts that reimplementations get wrong ------------------------------------------------------------------------


def test_performer_never_redraws_its_features():
    torch.manual_seed(0)
    performer = TokenPerformer(3, 64, Window(7, 4, 2))
    assert performer.w.shape == (32, 64)
    assert not performer.w.requires_grad
    gram = performer.w @ performer.w.T
    assert (gram - 32 * torch.eye(32)).abs().max() < 1e-4
    before = performer.w.clone()
    performer.train()(torch.randn(2, 3, 32, 32)).sum().backward()
    assert torch.equal(performer.w, before)


def test_performer_computes_in_float32_under_half_precision():
    performer = TokenPerformer(3, 64, Window(7, 4, 2)).eval()
    q = k = v = torch.full((1, 4, 64), 3.0, dtype=torch.float16)
    out = performer.attend(k, q, v)
    assert out.dtype == torch.float32
    assert out.isfinite().all()
    assert performer.double().attend(k.double(), q.double(), v.double()).dtype == torch.float64


def test_drop_path_of_dense_follows_the_stage():
    model = timm.create_model("t2t_vit_dense", img_size=64, drop_path_rate=0.1)
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in model.blocks if hasattr(block, "attn")]
    expected = [0.1 * stage / 11 for stage, n in enumerate((3, 6, 6, 4)) for _ in range(n)]
    assert rates == pytest.approx(expected)


def test_drop_path_rises_linearly():
    model = timm.create_model("t2t_vit_7", img_size=32, drop_path_rate=0.1)
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in model.blocks]
    assert rates == pytest.approx([0.1 * i / 6 for i in range(7)])


def test_performer_drops_and_transformer_does_not():
    for name, drops in (("t2t_vit_7", True), ("t2t_vit_t_14", False)):
        tokens = timm.create_model(name, img_size=32, depth=1).tokens_to_token.train()
        x = torch.randn(1, 3, 32, 32)
        assert torch.equal(tokens(x), tokens(x)) is not drops


def test_resnext_differs_from_14_in_its_heads_only():
    plain, resnext = (
        timm.create_model("t2t_vit_14", depth=1),
        timm.create_model("t2t_vit_14_resnext", depth=1),
    )
    assert layout(plain) == layout(resnext)
    assert (plain.blocks[0].attn.head_dim, resnext.blocks[0].attn.head_dim) == (64, 12)


def test_qk_scale_reaches_the_backbone():
    torch.manual_seed(0)
    usual = timm.create_model("t2t_vit_7", img_size=32, depth=1).eval()
    other = timm.create_model("t2t_vit_7", img_size=32, depth=1, qk_scale=4.0).eval()
    other.load_state_dict(usual.state_dict())
    same = timm.create_model("t2t_vit_7", img_size=32, depth=1, qk_scale=64**-0.5).eval()
    same.load_state_dict(usual.state_dict())
    x = torch.randn(2, 3, 32, 32)
    assert torch.allclose(usual(x), same(x), atol=1e-5)
    assert (usual(x) - other(x)).abs().max() > 1e-4


# --- timm's interface, over all models -----------------------------------------------------------------------------


def shallow(name, **kwargs):
    """The model with two blocks, which is as much as its interface needs."""
    depth = {} if name.endswith("_dense") else {"depth": 2}
    size = 32 if name.startswith("small") else 64
    return timm.create_model(name, **{"img_size": size, "num_classes": 5, **depth, **kwargs})


@pytest.mark.parametrize("name", MODELS)
def test_every_model(name):
    torch.manual_seed(0)
    model = shallow(name, drop_path_rate=0.1)
    side = model.default_cfg["input_size"][-1] if name.startswith("small") else 64
    x = torch.randn(2, 3, side, side)
    # backward: every trainable parameter gets a finite gradient that is not identically missing
    model.train()(x).square().sum().backward()
    for key, p in model.named_parameters():
        assert (p.grad is not None and p.grad.isfinite().all()) if p.requires_grad else p.grad is None, key
    # evaluation is deterministic; gradient checkpointing changes nothing
    model.eval()
    logits = model(x)
    assert logits.shape == (2, 5)
    assert torch.equal(logits, model(x))
    model.set_grad_checkpointing()
    assert torch.allclose(model(x), logits)
    model.set_grad_checkpointing(False)
    # half precision
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype=dtype), torch.no_grad():
            assert model(x).isfinite().all()
    # intermediates
    features, stages = model.forward_intermediates(x)
    assert torch.allclose(model.forward_head(features), logits, atol=1e-5)
    assert [s.shape[1] for s in stages] == [info["num_chs"] for info in model.feature_info]
    assert model.get_intermediate_layers(x, 1, reshape=True)[0].shape == stages[-1].shape
    grouped = timm.models.group_parameters(model, model.group_matcher())
    assert sum(len(v) for v in grouped.values()) == len(list(model.parameters()))
    assert "cls_token" in model.no_weight_decay()
    # export
    exported = torch.export.export(model, (x,))
    assert torch.allclose(exported.module()(x), logits, atol=1e-5)
    # a new head
    model.reset_classifier(3)
    assert model(x).shape == (2, 3)
    model.reset_classifier(0)
    assert model(x).shape == (2, model.num_features)
    config = timm.data.resolve_model_data_config(model)
    assert config["interpolation"] == "bicubic"
    if name in VARIANTS and name != "t2t_vit_c_14":
        assert config["crop_pct"] == 0.9
        assert config["mean"] == (0.485, 0.456, 0.406)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # shapes are constants of a trace
@pytest.mark.parametrize(
    "name", ["t2t_vit_7", "t2t_vit_14_se", "t2t_vit_dense", "t2t_vit_t_14", "t2t_vit_16_ghost"]
)
def test_fx_and_jit_trace_as_timms_tests_do(name):
    """The tokeniser is a leaf of the graph, as timm's own layers with control flow are."""
    torch.manual_seed(0)
    model = shallow(name).eval()
    x = torch.randn(2, 3, 64, 64)
    expected = model(x)
    assert torch.allclose(torch.jit.trace(model, x)(x), expected, atol=1e-5)
    tracing = dict(
        leaf_modules=timm.models.get_notrace_modules(),
        autowrap_functions=timm.models.get_notrace_functions(),
        param_shapes_constant=True,
    )
    training, evaluation = get_graph_node_names(model, tracer_kwargs=tracing)
    ends = dict(train_return_nodes=[training[-1]], eval_return_nodes=[evaluation[-1]])
    traced = create_feature_extractor(model, tracer_kwargs=tracing, **ends).eval()
    assert torch.allclose(next(iter(traced(x).values())), expected, atol=1e-5)
    next(iter(traced.train()(x).values())).mean().backward()
    assert {n for n, p in traced.named_parameters() if p.grad is None} == frozen(model)


def frozen(model):
    """Tables that the authors keep as parameters without a gradient."""
    names = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert {name.rsplit(".", 1)[-1] for name in names} <= {"pos_embed", "w"}
    return names


@pytest.mark.parametrize("name", ["t2t_vit_7", "t2t_vit_14_se", "t2t_vit_dense", "t2t_vit_t_14"])
def test_default_cfgs_as_timms_test_of_transformers_does(name):
    model = shallow(name, drop_rate=0.0).eval()
    features = model.forward_features(torch.randn(2, 3, 64, 64))
    assert features.shape[-1] == model.num_features
    assert model.forward_head(features, pre_logits=True).shape == (2, model.head_hidden_size)
    model.reset_classifier(0)
    assert (model.num_classes, model.forward_head(features).shape) == (0, (2, model.num_features))
    model.reset_classifier(0, "")
    assert model.forward_head(features).shape == features.shape
    keys = timm.create_model(name).state_dict()
    assert f"{model.default_cfg['classifier']}.weight" in keys
    assert all(f"{layer}.weight" in keys for layer in model.default_cfg["first_conv"])


@pytest.mark.parametrize("name", ["t2t_vit_7", "t2t_vit_dense", "t2t_vit_16_ghost"])
def test_attention_masks_are_heeded(name):
    """What is masked for all queries cannot matter."""
    model = records.fill(shallow(name).eval())
    block, tokens = next(iter(model.blocks)), model._pos_embed(model.patch_embed(torch.randn(1, 3, 64, 64)))
    mask = torch.ones(tokens.shape[1], tokens.shape[1], dtype=torch.bool)
    mask[:, -1] = False
    moved = tokens.clone()
    moved[:, -1] *= -1
    change = [
        (block(moved, attn_mask=m) - block(tokens, attn_mask=m))[:, :-1].abs().max() for m in (mask, None)
    ]
    assert change[0] < 1e-5 < 1e-2 < change[1]


@pytest.mark.parametrize("name", ["t2t_vit_7", "t2t_vit_t_14", "t2t_vit_c_14", "t2t_vit_16_ghost"])
def test_every_model_compiles_into_one_graph(name):
    model = shallow(name).eval()
    x = torch.randn(2, 3, 64, 48)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    assert torch.allclose(compiled(x), model(x), atol=1e-5)


@pytest.mark.parametrize(
    "name", ["t2t_vit_7", "t2t_vit_t_14", "t2t_vit_c_14", "t2t_vit_dense", "small_performer_deep"]
)
@pytest.mark.parametrize("size", [(32, 32), (33, 50), (64, 40), (40, 64), (97, 61)])
def test_any_size_keeps_the_layout(name, size):
    model = shallow(name, img_size=size).eval()
    height, width = model.tokens_to_token.grid_size
    x = torch.randn(1, 3, *size)
    stage = model.forward_intermediates(x, [0], intermediates_only=True)[0]
    assert stage.shape[-2:] == (height, width)
    assert model.pos_embed.shape[1] == height * width + 1
    # A mark in the lower left corner shows up in the lower left tokens first of all (windows overlap).
    tokens = model.tokens_to_token(x).detach()
    x[..., -2:, :2] += 5.0
    change = (model.tokens_to_token(x).detach() - tokens).square().sum(-1).reshape(height, width)
    row, column = divmod(change.argmax().item(), width)
    assert height - row <= 2 and column <= 1  # noqa: PT018


def test_other_sizes_than_the_native_one_resize_the_table():
    model = shallow("t2t_vit_7").eval()
    x = torch.randn(1, 3, 96, 64)
    before = model(x)
    model.set_input_size((96, 64))
    assert model.pos_embed.shape[1] == 6 * 4 + 1
    assert not model.pos_embed.requires_grad
    assert torch.allclose(model(x), before, atol=1e-5)


def test_features_only():
    model = timm.create_model("t2t_vit_7", img_size=64, features_only=True, out_indices=(1, 4))
    maps = model(torch.randn(1, 3, 64, 96))
    assert [m.shape for m in maps] == [(1, 256, 4, 6)] * 2
    assert model.feature_info.channels() == [256, 256]
    assert model.feature_info.reduction() == [16, 16]


def test_create_model_arguments():
    model = timm.create_model(
        "t2t_vit_7", img_size=(32, 64), in_chans=1, num_classes=4, drop_path_rate=0.1, drop_rate=0.1
    )
    assert model.eval()(torch.randn(1, 1, 32, 64)).shape == (1, 4)
    with pytest.raises(T2TError, match="1 channels"):
        model(torch.randn(1, 3, 32, 64))
    with pytest.raises(T2TError, match="32 px"):
        model(torch.randn(1, 1, 2, 64))
    with pytest.raises(ValueError, match="did you mean 'performer'"):
        timm.create_model("t2t_vit_7", tokens_type="perfomer")


@pytest.mark.parametrize("name", ["t2t_vit_7", "t2t_vit_dense", "t2t_vit_t_14", "small_performer_deep"])
def test_create_model_on_a_device_and_in_a_precision(name):
    model = timm.create_model(name, device="meta", dtype=torch.bfloat16)
    tensors = [*model.parameters(), *model.buffers()]
    assert {t.device.type for t in tensors} == {"meta"}
    assert {t.dtype for t in tensors if t.is_floating_point()} == {torch.bfloat16}


def test_hard_split_refuses_what_it_would_cut_off():
    with pytest.raises(T2TError, match="multiples of 4"):
        timm.create_model("small_hard_deep")(torch.randn(1, 3, 32, 35))


# --- small matched models ------------------------------------------------------------------------------------------


def test_small_models_are_matched():
    models = {n: timm.create_model(n) for n in SMALL_MODELS}
    counts = {n: sum(p.numel() for p in m.parameters() if p.requires_grad) for n, m in models.items()}
    assert set(SMALL_MODELS) == set(design.GROUPS["all"])
    assert max(counts.values()) / min(counts.values()) < 1.01, counts
    assert {m.tokens_to_token.grid_size for m in models.values()} == {(8, 8)}
    soft = {m.tokens_to_token.windows for n, m in models.items() if "hard" not in n}
    assert soft == {((3, 2, 1), (3, 2, 1), (3, 1, 1))}


def test_weights_of_other_windows_are_refused():
    """Shapes do not tell strides: the same weights would give other tokens without a word."""
    old = {"windows": [[3, 1, 1], [3, 2, 1], [3, 2, 1]]}
    theirs = load_model("small_performer_wide", "random", **old).state_dict()
    model = load_model("small_performer_wide", "random")
    shapes = [value.shape for value in theirs.values()]
    assert shapes == [value.shape for value in model.state_dict().values()]
    with pytest.raises(CheckpointError, match="train it again"):
        model.load_state_dict(theirs)
    del theirs["tokens_to_token.geometry"]
    for strict in (True, False):
        with pytest.raises(CheckpointError, match="unknown to the file"):
            model.load_state_dict(theirs, strict=strict)
    assert not model.load_state_dict({"head.bias": model.head.bias}, strict=False).unexpected_keys


def test_weights_files_bring_their_windows(tmp_path):
    old = load_model("small_mlp_wide", "random", windows=[[3, 1, 1], [3, 2, 1], [3, 2, 1]])
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.save(old.state_dict(), tmp_path / "old.pth")
    again = load_model("small_mlp_wide", str(tmp_path / "old.pth"))
    assert torch.equal(again(x), old(x))
    assert "[3, 1, 1], [3, 2, 1]" in again.provenance.notes[0]
    assert random_twin(again).tokens_to_token.windows == old.tokens_to_token.windows
    torch.save({k: v for k, v in old.state_dict().items() if "geometry" not in k}, tmp_path / "older.pth")
    with pytest.raises(CheckpointError, match="train the model again"):
        load_model("small_mlp_wide", str(tmp_path / "older.pth"))


def test_parts_of_the_module_are_what_their_names_say():
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    kinds = ("hardnorm", "mlp", "convgelu")
    tokens = {kind: timm.create_model(f"small_{kind}_wide").tokens_to_token.eval() for kind in kinds}
    # The norm is over each patch: a patch times a factor plus a constant is the same token, up to eps.
    norm = tokens["hardnorm"]
    assert torch.allclose(norm(x), norm(5 * x + 3), atol=1e-3)
    by_hand = norm.project(norm.norm(torch.nn.functional.unfold(x, 4, stride=4).transpose(1, 2)))
    assert torch.allclose(norm(x), by_hand, atol=1e-5)
    # Without attention a token sees its window, 15 pixels wide, and nothing else.
    other = x.clone()
    other[..., 20:, 20:] *= -1
    for kind in kinds:
        moved = (tokens[kind](x) - tokens[kind](other)).abs().amax((0, 2)).reshape(8, 8) > 1e-6
        assert moved[-1, -1], kind
        assert not moved[:2].any() and not moved[:, :2].any(), kind  # noqa: PT018
    linear = timm.create_model("small_conv_wide").tokens_to_token
    bend = lambda f: (f(x) + f(-x) - 2 * f(0 * x)).abs().max()  # noqa: E731 - zero where f is affine
    assert bend(linear) < 1e-5 < 1e-2 < bend(tokens["convgelu"])


def test_small_variants_are_what_their_names_say():
    models = {n.rsplit("_", 1)[1]: timm.create_model(n) for n in design.VARIANTS if "hard" in n}
    assert models["se"].blocks[0].attn.se_layer.fc[0].out_features == 6
    assert (models["resnext"].blocks[0].attn.num_heads, models["resnext"].blocks[0].attn.head_dim) == (12, 8)
    assert [info["num_chs"] for info in models["dense"].feature_info] == [
        80, 104, 128, 64, 88, 112, 136, 160, 80, 104, 128, 152,
    ]  # fmt: skip
    assert len(models["ghost"].blocks) == 13
    assert len(timm.create_model("small_performer_deep_ghost").blocks) == 12


def test_recorded_noise_is_the_documented_one():
    assert records.noise("input", 4).tolist() == pytest.approx(
        [0.35960923321545124, 0.10272138705477118, -0.2545787235721946, -0.2480592061765492], abs=1e-15
    )
    assert math.isclose(records.images(224).abs().sum().item(), 143267.90857637973, rel_tol=1e-12)
