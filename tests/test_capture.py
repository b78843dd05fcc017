"""Capture: what is rebuilt equals what the model computed, and watching changes nothing."""

from __future__ import annotations

import copy
import gc
import re
import weakref

import pytest
import timm
import torch
from torch import nn

import t2t_analysis.models  # noqa: F401 - registers our models with timm
from t2t_analysis.capture import ModelView, TokenLayout, capture, names, observe, view
from t2t_analysis.errors import CaptureError, T2TError, UnknownNameError
from t2t_analysis.models.wrappers import unwrapped

SIZE = (32, 48)
TINY = {"img_size": SIZE, "depth": 2, "embed_dim": 48, "num_heads": 3, "num_classes": 7}

# One row a family: timm name, what to build, prefix tokens, grid.
FAMILIES = {
    "vit": ("vit_tiny_patch16_224", {}, 1, (2, 3)),
    "qk norm, layer scale, scale norm": (
        "vit_tiny_patch16_224",
        {"qk_norm": True, "init_values": 0.1, "scale_attn_norm": True, "scale_mlp_norm": True},
        1,
        (2, 3),
    ),
    "mean pooled, no class token": (
        "vit_tiny_patch16_224",
        {"class_token": False, "global_pool": "avg", "fc_norm": False},
        0,
        (2, 3),
    ),
    "dynamic size": ("vit_tiny_patch16_224", {"dynamic_img_size": True, "img_size": 64}, 1, (2, 3)),
    "deit distilled": ("deit_tiny_distilled_patch16_224", {}, 2, (2, 3)),
    "deit 3": ("deit3_small_patch16_224", {}, 1, (2, 3)),
    "registers": ("vit_small_patch14_reg4_dinov2", {"img_size": (28, 42)}, 5, (2, 3)),
    "eva": ("eva_giant_patch14_224", {"img_size": (28, 42), "mlp_ratio": 2}, 1, (2, 3)),
    "eva02": ("eva02_tiny_patch14_224", {"img_size": (28, 42)}, 1, (2, 3)),
    "eva02, separate projections": ("eva02_base_patch14_224", {"img_size": (28, 42)}, 1, (2, 3)),
    "eva02, scaled inside": (
        "eva02_tiny_patch14_224",
        {"img_size": (28, 42), "scale_attn_inner": True},
        1,
        (2, 3),
    ),
    "rotary, mixed": ("vit_small_patch16_rope_mixed_224", {}, 1, (2, 3)),
    "dinov3": ("vit_small_patch16_dinov3", {}, 5, (2, 3)),
    "beit": ("beit_base_patch16_224", {}, 1, (2, 3)),
    "beit, shared positions": (
        "beit_base_patch16_224",
        {"use_rel_pos_bias": False, "use_shared_rel_pos_bias": True},
        1,
        (2, 3),
    ),
}


def build(family: str) -> tuple[nn.Module, torch.Tensor]:
    name, kwargs, _, _ = FAMILIES[family]
    torch.manual_seed(0)
    model = timm.create_model(name, **{**TINY, **kwargs}).eval()
    for parameter in model.parameters():  # zero biases and unit norms would hide mistakes
        nn.init.normal_(parameter, 1.0 if parameter.ndim == 1 else 0.0, 0.2)
    size = kwargs.get("img_size", SIZE)
    return model, torch.randn(2, 3, *(size if isinstance(size, tuple) else SIZE))


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    model, images = build(request.param)
    with torch.no_grad():
        plain = model(images)
        with capture(model, "*") as seen:
            watched = model(images)
    return model, FAMILIES[request.param], plain, watched, seen


def hooks_of(model: nn.Module) -> int:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return sum(len(getattr(module, kind)) for module in model.modules() for kind in kinds)


def vit(**kwargs) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("vit_tiny_patch16_224", **{**TINY, **kwargs}).eval()


IMAGES = torch.linspace(-1, 1, 2 * 3 * SIZE[0] * SIZE[1]).view(2, 3, *SIZE).sin()


# ----------------------------------------------------------------------------- every family


def test_output_is_bitwise_unchanged(family):
    model, _, plain, watched, _ = family
    assert torch.equal(plain, watched)
    assert hooks_of(model) == 0


def test_everything_offered_is_seen(family):
    model, _, _, _, seen = family
    assert set(seen) == set(names(model))
    assert not any(value.requires_grad for value in seen.values())


def test_layout(family):
    _, (_, _, prefix, grid), _, _, seen = family
    patches = grid[0] * grid[1]
    for name, value in seen.items():
        if name == "logits":
            assert seen.layout(name) is None
            continue
        expected = TokenLayout(0 if name == "embed" else prefix, grid)
        assert seen.layout(name) == expected
        assert value.shape[-2] == expected.prefix + patches


@pytest.mark.parametrize("layer", [0, 1])
def test_pattern_times_values_is_z(family, layer):
    seen = family[-1]
    at = f"blocks.{layer}.attn"
    pattern, q, v, z = (seen[f"{at}.{part}"] for part in ("pattern", "q", "v", "z"))
    assert q.shape == v.shape == z.shape
    assert torch.allclose(pattern.sum(-1), torch.ones(()), atol=1e-5)
    assert torch.allclose(pattern @ v, z, atol=2e-5, rtol=1e-4)
    assert pattern.var(dim=-1).max() > 1e-4  # a uniform pattern would pass with a wrong q or k


@pytest.mark.parametrize("layer", [0, 1])
def test_z_through_projection_is_out(family, layer):
    model, _, _, _, seen = family
    attn = model.blocks[layer].attn
    joined = seen[f"blocks.{layer}.attn.z"].transpose(1, 2).flatten(2)
    out = attn.proj(attn.norm(joined) if hasattr(attn, "norm") else joined)
    assert torch.allclose(out, seen[f"blocks.{layer}.attn.out"], atol=1e-5)


def test_residual_stream_adds_up(family):
    model, _, _, watched, seen = family
    block = model.blocks[1]
    pre, mid, post = (seen[f"blocks.1.resid_{where}"] for where in ("pre", "mid", "post"))
    assert torch.equal(pre, seen["blocks.0.resid_post"])
    attn = seen["blocks.1.attn.out"]
    if hasattr(block, "ls1"):
        attn = block.ls1(attn)
    elif block.gamma_1 is not None:
        attn = block.gamma_1 * attn
    assert torch.allclose(pre + attn, mid, atol=1e-5)
    hidden = seen["blocks.1.mlp.hidden"]
    mlp = block.mlp.fc2(block.mlp.norm(hidden) if hasattr(block.mlp, "norm") else hidden)
    if hasattr(block, "ls2"):
        mlp = block.ls2(mlp)
    elif block.gamma_2 is not None:
        mlp = block.gamma_2 * mlp
    assert torch.allclose(mid + mlp, post, atol=1e-5)
    assert torch.equal(seen["logits"], watched)
    assert torch.equal(seen["blocks.1.norm2"], block.norm2(mid))


# ----------------------------------------------------------------------------- names


def test_names_are_in_the_order_of_the_model():
    assert names(vit(depth=1)) == [
        "embed",
        "blocks.0.resid_pre",
        "blocks.0.norm1",
        "blocks.0.attn.q",
        "blocks.0.attn.k",
        "blocks.0.attn.v",
        "blocks.0.attn.pattern",
        "blocks.0.attn.z",
        "blocks.0.attn.out",
        "blocks.0.resid_mid",
        "blocks.0.norm2",
        "blocks.0.mlp.hidden",
        "blocks.0.resid_post",
        "norm",
        "logits",
    ]


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ("blocks.1.attn.z", ["blocks.1.attn.z"]),
        ("blocks.?.attn.[qk]", ["blocks.0.attn.q", "blocks.0.attn.k", "blocks.1.attn.q", "blocks.1.attn.k"]),
        (lambda name: name.startswith("n"), ["norm"]),
        (["logits", "embed", "emb*"], ["embed", "logits"]),
        (["norm", lambda name: name == "embed"], ["embed", "norm"]),
    ],
)
def test_selection(wanted, expected):
    assert view(vit()).select(wanted) == expected


@pytest.mark.parametrize(
    "wanted", ["blocks.1.attn.patern", "blocks.7.*", ["embed", "nothing"], lambda name: False]
)
def test_unmatched_names_raise(wanted):
    model = vit()
    with pytest.raises(UnknownNameError, match="unknown place"), capture(model, wanted):
        raise AssertionError("must not be entered")
    assert hooks_of(model) == 0


def test_unmatched_name_tells_the_nearest_and_what_there_is():
    with pytest.raises(UnknownNameError, match=r"did you mean 'blocks.1.attn.pattern'\?.*known: embed, "):
        view(vit()).select("blocks.1.attn.patern")


# ----------------------------------------------------------------------------- hooks that go


class Stop(Exception):  # noqa: N818
    pass


def stop(*_):
    raise Stop


def test_hooks_are_gone_after_an_exception_in_the_block():
    model = vit()
    with pytest.raises(Stop), capture(model, "*"):
        stop(hooks_of(model))
    assert hooks_of(model) == 0


def test_hooks_are_gone_after_an_exception_in_a_handler():
    model = vit()
    with pytest.raises(Stop), observe(model, {"blocks.1.attn.pattern": stop, "norm": stop}):
        model(IMAGES)
    assert hooks_of(model) == 0


def test_hooks_are_gone_after_an_exception_in_the_model():
    model = vit()
    own = model.blocks[1].register_forward_pre_hook(stop)
    with pytest.raises(Stop), capture(model, "*"):  # not hidden behind "never reached"
        model(IMAGES)
    own.remove()
    assert hooks_of(model) == 0
    with torch.no_grad(), capture(model, "*") as seen:
        model(IMAGES)
    assert len(seen) == len(names(model))


def test_never_reached_is_an_error_that_names_the_place():
    model = vit()
    with pytest.raises(CaptureError, match="never reached: logits"), capture(model, ["norm", "logits"]):
        model.forward_features(IMAGES)
    with pytest.raises(CaptureError, match="never reached: embed, blocks"), capture(model, "*"):
        pass
    assert hooks_of(model) == 0


def test_a_module_that_never_runs_is_an_error_and_fused_attention_stays():
    """timm's ``attn_drop`` does not run under fused attention: hooks on it see nothing."""
    model = vit()
    ran = []
    for block in model.blocks:
        block.attn.attn_drop.register_forward_hook(lambda *_: ran.append(1))
    with torch.no_grad(), capture(model, "*.pattern") as seen:
        model(IMAGES)
    assert len(seen) == 2
    assert not ran
    assert all(block.attn.fused_attn for block in model.blocks)
    with pytest.raises(UnknownNameError, match="attn_drop"), capture(model, "blocks.0.attn.attn_drop"):
        model(IMAGES)


def test_reading_before_the_forward_pass_says_so():
    model = vit()
    with capture(model, ["embed", "norm"]) as seen:
        with pytest.raises(KeyError, match="run the model inside"):
            seen["embed"]
        assert "embed" not in seen
        model(IMAGES)
        assert list(seen) == ["embed", "norm"]
        with pytest.raises(UnknownNameError, match="unknown captured place 'logits'"):
            seen.layout("logits")


# ----------------------------------------------------------------------------- labels and tensors


def test_labels_are_bound_to_tensors():
    """Whatever the order of completion, a name holds what that module, called alone, computes."""
    model = vit(depth=3)
    order = []
    with torch.no_grad(), capture(model, "*") as seen:
        with observe(model, {"blocks.*": lambda one: order.append(one.name)}):
            model(IMAGES)
        for layer, block in enumerate(model.blocks):
            pre = seen[f"blocks.{layer}.resid_pre"]
            assert torch.equal(block.norm1(pre), seen[f"blocks.{layer}.norm1"])
            assert torch.allclose(block(pre), seen[f"blocks.{layer}.resid_post"], atol=1e-6)
        assert len({float(value.double().sum()) for value in seen.values()}) > len(seen) * 0.7
        model(IMAGES)
    assert set(order) == {name for name in names(model) if name.startswith("blocks.")}
    assert [name for name in order if name.endswith("post")] == [f"blocks.{i}.resid_post" for i in range(3)]


def test_two_handlers_for_one_place_see_the_same_tensor():
    seen = []
    model = vit()
    with torch.no_grad(), observe(model, {"norm": seen.append, "n*": seen.append}):
        model(IMAGES)
    assert [one.name for one in seen] == ["norm", "norm"]
    assert seen[0].value is seen[1].value


def test_a_second_forward_pass_replaces_the_first():
    model = vit(dynamic_img_size=True)
    with torch.no_grad(), capture(model, "norm") as seen:
        for size, grid in (((32, 64), (2, 4)), ((64, 16), (4, 1))):
            model(torch.randn(1, 3, *size))
            assert seen.layout("norm") == (1, grid)


# ----------------------------------------------------------------------------- graph and memory


def test_no_graph_unless_asked():
    model = vit()
    with capture(model, "*") as seen:
        logits = model(IMAGES)  # autograd is on for the model itself
    assert logits.requires_grad
    assert not any(value.requires_grad or value.grad_fn is not None for value in seen.values())


def test_graph_on_request_gives_the_right_gradient():
    """<dL/dq, q> + ... : moving q along its gradient must change the loss as the derivative says."""
    model = vit().double()
    images = IMAGES.double()
    with capture(model, ["blocks.1.attn.pattern", "blocks.1.attn.v", "blocks.1.attn.z"], graph=True) as seen:
        loss = model(images).square().sum()
    (grad_z,) = torch.autograd.grad(loss, seen["blocks.1.attn.z"], retain_graph=True)
    assert grad_z.abs().max() > 0
    # The rebuilt pattern hangs on the same q and k as the model: z = pattern @ v holds for derivatives too.
    weight = model.blocks[1].attn.qkv.weight
    rebuilt = (seen["blocks.1.attn.pattern"] @ seen["blocks.1.attn.v"] * grad_z).sum()
    true = (seen["blocks.1.attn.z"] * grad_z).sum()
    a, b = (torch.autograd.grad(one, weight, retain_graph=True)[0] for one in (rebuilt, true))
    assert torch.allclose(a, b, atol=1e-10)


def test_graph_is_not_forced_on():
    model, images = build("eva02")  # its q and k are projected again, from parameters that require gradients
    with torch.no_grad(), capture(model, "*.pattern", graph=True) as seen:
        model(images)
    assert not any(value.requires_grad for value in seen.values())
    with torch.inference_mode(), capture(model, "*") as seen:
        model(images)
    assert len(seen) == len(names(model))


@pytest.mark.parametrize("graph", [False, True])
def test_handlers_run_without_autograd_unless_asked(graph):
    modes = []
    model = vit()
    with observe(model, {"*.pattern": lambda one: modes.append(torch.is_grad_enabled())}, graph=graph):
        model(IMAGES)
    assert modes == [graph, graph]


def test_tensors_are_let_go():
    """A reducing handler leaves nothing behind: every big tensor is gone when the next layer is reached."""
    model = vit(depth=3)
    alive: list[weakref.ref] = []
    most = []

    def reduce(one):
        most.append(sum(ref() is not None for ref in alive))
        alive.append(weakref.ref(one.value))

    gc.disable()
    try:
        with torch.no_grad(), observe(model, {"*.pattern": reduce}):
            model(IMAGES)
    finally:
        gc.enable()
    assert most == [0, 0, 0]
    assert not any(ref() is not None for ref in alive)


# ----------------------------------------------------------------------------- precision


@pytest.mark.parametrize("family", ["vit", "eva02", "beit", "qk norm, layer scale, scale norm"])
def test_bfloat16_autocast(family):
    model, images = build(family)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        plain = model(images)
        with capture(model, "*") as seen:
            assert torch.equal(plain, model(images))
    pattern = seen["blocks.1.attn.pattern"]
    assert pattern.dtype == torch.float32
    assert torch.allclose(pattern.sum(-1), torch.ones(()), atol=1e-5)
    rebuilt = pattern @ seen["blocks.1.attn.v"].float()
    assert torch.allclose(rebuilt, seen["blocks.1.attn.z"].float(), atol=0.05, rtol=0.02)


def test_float64_stays_float64():
    model = vit().double()
    with torch.no_grad(), capture(model, "blocks.*.attn.*") as seen:
        model(IMAGES.double())
    assert {value.dtype for value in seen.values()} == {torch.float64}
    rebuilt = seen["blocks.0.attn.pattern"] @ seen["blocks.0.attn.v"]
    assert torch.allclose(rebuilt, seen["blocks.0.attn.z"], atol=1e-12)


def test_non_finite_values_pass():
    model = vit()
    with torch.no_grad():
        model.blocks[0].mlp.fc2.bias[0] = float("inf")
        with capture(model, "*") as seen:
            model(IMAGES)
    assert torch.isfinite(seen["blocks.0.attn.pattern"]).all()
    assert torch.isnan(seen["blocks.1.attn.pattern"]).any()


KEEP = torch.tensor([[(3 * i + 5 * j) % 7 < 4 or i == j for j in range(7)] for i in range(7)])
MASKS = {
    "boolean": {"attn_mask": KEEP},
    "additive": {"attn_mask": torch.zeros(7, 7).masked_fill(~KEEP, -3.0)},
    "causal": {"is_causal": True},
}


@pytest.mark.parametrize("mask", MASKS)
def test_masks_are_part_of_the_pattern(mask):
    model = vit()
    with torch.no_grad(), capture(model, "blocks.1.attn.*") as seen:
        model.forward_features(IMAGES, **MASKS[mask])
    rebuilt = seen["blocks.1.attn.pattern"] @ seen["blocks.1.attn.v"]
    assert torch.allclose(rebuilt, seen["blocks.1.attn.z"], atol=1e-6)


# ----------------------------------------------------------------------------- what cannot be observed


@pytest.mark.parametrize(
    ("name", "kwargs", "lacks"),
    [
        ("resnet18", {}, "patch embedding.* and a stack of `blocks` and a count of prefix tokens"),
        ("swin_tiny_patch4_window7_224", {"depths": (1, 1), "num_heads": (1, 1)}, "`num_prefix_tokens`"),
        ("mixer_s32_224", {}, "`patch_embed`"),
    ],
)
def test_models_without_tokens_in_blocks_are_refused(name, kwargs, lacks):
    model = timm.create_model(name, **kwargs)
    with pytest.raises(CaptureError, match=f"cannot observe {type(model).__name__}: it lacks .*{lacks}"):
        names(model)


def test_wrapped_and_compiled_models_are_refused_with_the_way_out():
    model = vit()
    for wrapped, way in (
        (nn.DataParallel(model), ".module"),
        (torch.optim.swa_utils.AveragedModel(model), ".module"),
        (torch.compile(model, backend="eager"), "._orig_mod"),
        (torch.compile(nn.DataParallel(model), backend="eager"), "._orig_mod.module"),
    ):
        with pytest.raises(CaptureError, match=rf"inside its wrapper \(`{re.escape(way)}`\)"):
            names(wrapped)
        assert unwrapped(wrapped) is (wrapped.module if way == ".module" else model)
    model.blocks[1].compile(backend="eager")
    with pytest.raises(CaptureError, match=r"compiled.* copy\.deepcopy\(model\)"):
        names(model)
    assert names(copy.deepcopy(model))


class OtherAttention(timm.layers.Attention):
    """Looks like timm's, computes something else."""

    def forward(self, x, **kwargs):
        return super().forward(x.flip(1), **kwargs)


def test_unknown_attention_offers_the_rest():
    model = vit(attn_layer=OtherAttention)
    offered = names(model)
    assert {"embed", "blocks.0.resid_mid", "blocks.0.mlp.hidden", "logits"} <= set(offered)
    assert not any(".attn." in name for name in offered)
    with pytest.raises(UnknownNameError, match=r"blocks\.0\.attn\.q: how OtherAttention combines"):
        view(model).select("*.attn.q")


def test_parallel_blocks_offer_only_their_ends():
    block = timm.models.vision_transformer.ParallelScalingBlock
    model = vit(block_fn=block)
    assert [name for name in names(model) if name.startswith("blocks.0")] == [
        "blocks.0.resid_pre",
        "blocks.0.resid_post",
    ]
    with (
        pytest.raises(UnknownNameError, match="branches inside ParallelScalingBlock"),
        capture(model, "*.resid_mid"),
    ):
        raise AssertionError("must not be entered")
    assert view(model).num_heads(0) == 3


def test_post_norm_blocks():
    model = vit(block_fn=timm.models.vision_transformer.ResPostBlock)
    with torch.no_grad(), capture(model, "*") as seen:
        model(IMAGES)
        block, pre, mid = model.blocks[1], seen["blocks.1.resid_pre"], seen["blocks.1.resid_mid"]
        assert torch.allclose(pre + block.norm1(block.attn(pre)), mid, atol=1e-6)
        assert torch.allclose(mid + block.norm2(block.mlp(mid)), seen["blocks.1.resid_post"], atol=1e-6)
    with pytest.raises(
        UnknownNameError, match=r"blocks.0.norm1: ResPostBlock normalises what a branch puts out"
    ):
        view(model).select("*.norm1")


def test_places_that_are_not_there_say_why():
    with pytest.raises(UnknownNameError, match="cannot observe norm: its last norm"):
        view(vit(global_pool="avg")).select("norm")
    with pytest.raises(UnknownNameError, match="cannot observe logits: it has no classifier"):
        view(vit(num_classes=0)).select("logits")
    with pytest.raises(UnknownNameError, match=r"tokens\.0\.attn\.q: its tokeniser has no"):
        view(vit()).select("tokens.0.attn.q")


def test_dropped_patches_have_no_layout():
    model = vit(patch_drop_rate=0.5).train()
    wrong = pytest.raises(CaptureError, match="holds 4 tokens, but 1 prefix tokens and a 2x3 grid make 7")
    with wrong, capture(model, "*.resid_post"):
        model(IMAGES)
    assert hooks_of(model) == 0


def test_patches_in_a_tuple_are_refused():
    model = timm.create_model("xcit_nano_12_p16_224", img_size=32, depth=1)
    wrong = pytest.raises(CaptureError, match=r"embed should be a tensor with 3 axes, .* a tuple")
    with wrong, capture(model, "*"):
        model(torch.zeros(1, 3, 32, 32))


def test_two_outputs_are_no_logits():
    model = timm.create_model("deit_tiny_distilled_patch16_224", **TINY).train()
    model.set_distilled_training(True)
    wrong = pytest.raises(CaptureError, match=r"logits should be a tensor with 2 axes, .* a tuple")
    with wrong, capture(model, "logits"):
        model(IMAGES)


# ----------------------------------------------------------------------------- view


def test_view():
    model = timm.create_model("vit_small_patch14_reg4_dinov2", **{**TINY, "img_size": (28, 70)})
    seen = view(model, "dino")
    assert isinstance(seen, ModelView)
    assert (seen.label, seen.depth, seen.num_heads(1)) == ("dino", 2, 3)
    assert seen.layout == TokenLayout(5, (2, 5)) == seen.layout_of("blocks.0.attn.q")
    assert (seen.layout_of("embed"), seen.layout_of("logits")) == (TokenLayout(0, (2, 5)), None)
    assert seen.provenance is None
    assert list(seen.blocks) == [0, 1]
    assert view(seen) is seen
    with pytest.raises(UnknownNameError, match="unknown layer '2'"):
        seen.num_heads(2)
    with torch.no_grad(), capture(seen, "norm") as captured:
        model(torch.randn(1, 3, 28, 70))
    assert captured.layout("norm") == seen.layout


# ----------------------------------------------------------------------------- our own models

T2T_PLACES = ["attn.q", "attn.k", "attn.v", "attn.z", "mlp.hidden", "out"]


@pytest.fixture(scope="module", params=["t2t_vit_7", "t2t_vit_t_14", "t2t_vit_14_se", "t2t_vit_16_ghost"])
def t2t(request):
    torch.manual_seed(0)
    size = {"embed_dim": 48, "num_heads": 3, "depth": 2, "num_classes": 7, "mlp_ratio": 3}
    model = timm.create_model(request.param, img_size=64, **size).eval()
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.endswith(".w"):  # large keys would make the Performer's features vanish
                scale = parameter.ndim == 1 and name.endswith("weight")
                parameter.normal_(1.0 if scale else 0.0, 0.03 if "tokens_to_token" in name else 0.15)
        plain = model(images)
        with capture(model, "*") as seen:
            watched = model(images)
    return model, plain, watched, seen


def test_t2t_output_is_bitwise_unchanged(t2t):
    model, plain, watched, seen = t2t
    assert torch.equal(plain, watched)
    assert set(seen) == set(names(model))
    assert hooks_of(model) == 0


def test_t2t_layouts(t2t):
    model, _, _, seen = t2t
    assert view(model).layout == (1, (4, 4))
    grids = {"tokens.0": (16, 24), "tokens.1": (8, 12)}
    for name in names(model)[:-1]:
        prefix = 1 if name.startswith(("blocks", "norm")) else 0
        assert seen.layout(name) == (prefix, grids.get(name[:8], (4, 6)))
        assert seen[name].shape[-2] == seen.layout(name).num_tokens


def test_t2t_stages(t2t):
    model, _, _, seen = t2t
    for index, stage in enumerate((model.tokens_to_token.attention1, model.tokens_to_token.attention2)):
        at = {name: seen[f"tokens.{index}.{name}"] for name in T2T_PLACES}
        z, v = at["attn.z"].squeeze(1), at["attn.v"].squeeze(1)
        if type(stage).__name__ == "TokenPerformer":
            rebuilt = stage.attend(at["attn.k"].squeeze(1), at["attn.q"].squeeze(1), v)
            proj = stage.proj
        else:
            rebuilt = seen[f"tokens.{index}.attn.pattern"].squeeze(1) @ v
            proj = stage.attn.proj
        assert z.abs().max() > 1e-2  # features that vanish would hide a mistake
        assert (rebuilt - z).abs().max() < 1e-4 * z.abs().max()
        skip = v + proj(z)
        last = stage.mlp[2] if isinstance(stage.mlp, nn.Sequential) else stage.mlp.fc2
        assert torch.allclose(skip + last(at["mlp.hidden"]), at["out"], atol=1e-4)


def test_t2t_backbone(t2t):
    model, _, _, seen = t2t
    for layer, block in enumerate(model.blocks):
        at = f"blocks.{layer}"
        z = seen[f"{at}.attn.z"]
        assert torch.allclose(seen[f"{at}.attn.pattern"] @ seen[f"{at}.attn.v"], z, atol=1e-4)
        out = block.attn.proj(z.transpose(1, 2).flatten(2))
        assert torch.allclose(out, seen[f"{at}.attn.out"], atol=1e-5)
        gated = block.attn.se_layer(out) if hasattr(block.attn, "se_layer") else out
        mid = seen[f"{at}.resid_mid"]
        assert torch.allclose(seen[f"{at}.resid_pre"] + gated, mid, atol=1e-4)
        hidden = seen[f"{at}.mlp.hidden"]
        assert torch.allclose(mid + block.mlp.fc2(hidden), seen[f"{at}.resid_post"], atol=1e-4)


def test_performer_has_no_attention_matrix():
    seen = view(timm.create_model("t2t_vit_7", img_size=64, depth=1))
    with pytest.raises(T2TError, match=r"tokens\.0\.attn\.pattern: TokenPerformer has no attention matrix"):
        seen.select("tokens.*.attn.pattern")
    assert seen.select("*.attn.pattern") == ["blocks.0.attn.pattern"]


def test_dense_backbone_keeps_the_numbers_of_its_list():
    model = timm.create_model("t2t_vit_dense", img_size=32, num_classes=3).eval()
    seen = view(model)
    assert seen.depth == 19
    assert [i for i in range(22) if i not in seen.blocks] == [3, 10, 17]
    with torch.no_grad(), capture(model, ["blocks.2.*", "blocks.4.*"]) as captured:
        model(torch.randn(1, 3, 32, 32))
    before, after = captured["blocks.2.resid_pre"], captured["blocks.2.resid_post"]
    assert torch.equal(after[..., : before.shape[-1]], before)
    assert after.shape[-1] == before.shape[-1] + model.growth
    pattern, v, z = (captured[f"blocks.4.attn.{part}"] for part in ("pattern", "v", "z"))
    assert torch.allclose(pattern @ v, z, atol=1e-5)
