"""Attention sinks: planted ones are found and taken out, uniform attention has none."""

from dataclasses import replace

import pytest
import timm
import torch

from t2t_analysis.claims.ledger import claim_named, ledger
from t2t_analysis.claims.premise import endpoint_rows
from t2t_analysis.measures import HeadSimilarity, Sinks, measure
from t2t_analysis.measures import sinks as sk
from t2t_analysis.measures.head_maps import head_cosine, off_diagonal_mean
from t2t_analysis.models import load_model
from t2t_analysis.results import Result
from t2t_analysis.sentences.claims import side_by_side
from t2t_analysis.sentences.head_redundancy import sink_findings
from t2t_analysis.sentences.template import Facts

from .helpers import one


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def maps(heads=4, queries=25, keys=25, sink=(), height=5.0, s=1.0, seed=0):
    """Independent softmax maps; ``height`` is added to the logits of the columns in ``sink``, in every head."""
    logits = s * torch.randn(heads, queries, keys, generator=rng(seed))
    logits[..., list(sink)] += height
    return logits.softmax(-1)


def cosines(a, b, keep):
    """`masked_cosines` of maps: (2, V)."""
    x, y = ((m * m.shape[-1] - 1).transpose(0, 1) for m in (a, b))
    return sk.masked_cosines(x, y, keep).unflatten(0, (2, -1))


# ------------------------------------------------------------------------------------------------ identities


def test_masked_cosines_are_those_of_the_maps_without_the_columns():
    a, b = maps(seed=1), maps(seed=2)
    keep = torch.stack([torch.ones(25).bool(), torch.arange(25) >= 1, torch.arange(25) % 3 > 0])
    for first, two in ((a, a), (a, b)):
        found = cosines(first, two, keep)
        for c, centred in enumerate((True, False)):
            for v, k in enumerate(keep):
                left = [m[..., k] / m[..., k].sum(-1, keepdim=True) for m in (first, two)]
                expected = off_diagonal_mean(head_cosine(*left, centred=centred))
                assert found[c, v].item() == pytest.approx(expected.item(), abs=1e-5)


def test_uniform_attention_has_no_direction_and_no_sink():
    uniform = torch.full((3, 25, 25), 1 / 25)
    assert cosines(uniform, uniform, torch.ones(1, 25).bool())[0].isnan().all()
    assert not sk.upper_part(uniform.mean((0, 1)).log()).any()
    weights = sk._dominant(uniform.mean(1))
    torch.testing.assert_close(
        weights, torch.full((3, 25), 1 / 25)
    )  # ties are shared, not given to the first


@pytest.mark.parametrize("columns", [(3,), (0, 4, 20, 24), (7, 8, 9)])
def test_planted_columns_are_found_and_only_they(columns):
    found = sk.upper_part(maps(sink=columns).mean((0, 1)).log())
    assert found.nonzero().flatten().tolist() == sorted(columns)
    order = torch.randperm(25, generator=rng(3))
    assert torch.equal(sk.upper_part(maps(sink=columns)[..., order].mean((0, 1)).log()), found[order])


@pytest.mark.parametrize("seed", range(5))
def test_columns_of_independent_heads_do_not_stand_apart(seed):
    assert not sk.upper_part(maps(seed=seed, queries=100, keys=100).mean((0, 1)).log()).any()
    assert not sk.upper_part(torch.randn(200, generator=rng(seed))).any()


def test_a_shared_column_makes_heads_alike_and_taking_it_out_restores_them():
    plain, sunk = maps(), maps(sink=(5,))
    keep = torch.ones(2, 25, dtype=torch.bool)
    keep[1, 5] = False
    before, after = cosines(plain, plain, keep), cosines(sunk, sunk, keep)
    assert abs(before[0, 0]) < 0.05
    assert after[0, 0] > 0.8
    torch.testing.assert_close(after[:, 1], before[:, 1], rtol=0, atol=1e-5)


def test_random_columns_are_as_many_as_near_to_the_border_and_none_of_the_sinks():
    rows = torch.arange(7).minimum(torch.arange(7).flip(0))
    ring = torch.minimum(rows[:, None], rows).flatten()
    out = torch.zeros(49, dtype=torch.bool)
    out[[0, 6, 42, 24]] = True  # three corners and the middle, which has no other of its ring
    counts = torch.zeros(49)
    for seed in range(200):
        drawn = sk.columns_like(out, ring, torch.rand(49, generator=rng(seed)))
        assert drawn.sum() == 4
        assert not (drawn & out).any()
        counts += drawn
    assert counts[ring == 0].sum() / counts.sum() > 0.7


def test_value_ratio_follows_the_value_of_the_sink():
    norms, chosen = torch.rand(2, 9, generator=rng()) + 1, torch.zeros(2, 9, dtype=torch.bool)
    chosen[:, 4] = True
    once = sk.value_ratio(norms, chosen)
    norms[:, 4] *= 0.1
    torch.testing.assert_close(sk.value_ratio(norms, chosen), 0.1 * once)


def test_stable_rank_is_that_of_the_singular_values():
    z, w = torch.randn(2, 3, 11, 4, generator=rng()), torch.randn(3, 4, 12, generator=rng(1))
    s = torch.linalg.svdvals(torch.einsum("bhtd,hdm->bhtm", z, w))
    expected = s.square().sum(-1) / s[..., 0].square()
    torch.testing.assert_close(sk.stable_rank_of_updates(z, w @ w.mT), expected, rtol=1e-4, atol=0)


# ------------------------------------------------------------------------------------------------ the measure

COLUMNS = [5, 10]  # of 16 patches


def with_sinks(columns=COLUMNS, size=0.05, same=False):
    """A small network whose second layer looks at some patches, whatever the image; their values are scaled.

    ``same`` gives all heads of that layer the queries and keys of the first.
    """
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=2, class_token=True).eval()
    attn = model.blocks[1].attn
    with torch.no_grad():
        model.pos_embed.zero_()
        for block in model.blocks:
            torch.nn.init.normal_(block.attn.qkv.weight, std=0.05)

    def plant(_, args, out):
        out = out.clone()
        heads = out.unflatten(-1, (3, attn.num_heads, -1))  # (B, N, 3, H, d)
        tokens = [1 + c for c in columns]
        heads[:, :, 0, :, 0] = 6.0  # every query asks for what these keys have
        heads[:, :, 1, :, 0] = 0.0
        heads[:, tokens, 1, :, 0] = 8.0
        heads[:, tokens, 2] *= size
        if same:
            heads[:, :, :2] = 20 * heads[:, :, :2, :1]
        return out

    attn.qkv.register_forward_hook(plant)
    return model


def run(model, *measures, n=8):
    images = torch.randn(n, 3, 64, 64, generator=rng())
    return measure({"m": model}, list(images.split(4)), list(measures), progress=False)


@pytest.fixture(scope="module")
def found():
    return run(with_sinks(), Sinks(), HeadSimilarity())


def test_patch_keys_are_what_head_similarity_says(found):
    similarity, sinks = found["head_similarity"].frame, found["sinks"].frame
    for quantity in ("cosine_centred", "cosine_raw"):
        for layer in (0, 1):
            theirs = similarity[(similarity.quantity == quantity) & similarity["head"].isna()]
            theirs = one(theirs, layer=layer, layer_b=layer)
            ours = one(sinks, quantity=quantity, layer=layer, variant="patch keys")
            for column in ("value", "low", "high", "null"):
                assert ours[column] == pytest.approx(theirs[column], abs=1e-5)


def test_planted_sinks_explain_the_likeness(found):
    frame = found["sinks"].frame
    at = {"place": "blocks.1.attn"}
    assert one(frame, quantity="sink_columns", **at).value == 2
    assert one(frame, quantity="sink_attention", **at).value > 0.9
    alike = {v: one(frame, quantity="cosine_centred", variant=v, **at).value for v in sk.KEYS}
    assert alike["patch keys"] > 0.8
    assert alike["without sinks"] < 0.2
    assert alike["without random columns"] > 0.8
    fall = one(frame, quantity="sink_likeness", **at)
    assert fall.low > fall.null_high
    assert fall.p < 1e-6
    assert one(frame, quantity="sink_columns", place="blocks.0.attn").value == 0
    assert one(frame, quantity="sink_value_ratio", **at).value < 0.1
    where = frame[(frame.quantity == "sink_position") & (frame.layer == 1)]
    assert sorted(where["at"]) == COLUMNS
    assert (where.value == 1).all()


@pytest.mark.parametrize(("size", "kind"), [(0.05, "sinks_that_do_nothing"), (3.0, "sinks_that_broadcast")])
def test_dominant_columns_that_do_nothing_are_told_from_those_that_broadcast(size, kind):
    frame = run(with_sinks([5], size), Sinks())["sinks"].frame
    heads = frame[(frame.layer == 1) & frame["head"].notna()].pivot(
        index="head", columns="quantity", values="value"
    )
    assert (heads["dominant_same"] == 1).all()
    assert (heads["dominant_prefix"] == 0).all()
    assert (heads["dominant_mass"] > 0.8).all()
    assert (heads["column_peak"] > 10).all()
    assert (heads["sink_events"] == 1).all()
    assert (heads[kind] == 1).all()
    assert (heads[["sinks_that_do_nothing", "sinks_that_broadcast"]].sum(1) == 1).all()


def test_without_a_class_token_and_with_registers():
    for kwargs, prefix in (({"class_token": False, "global_pool": "avg"}, 0), ({"reg_tokens": 3}, 4)):
        torch.manual_seed(0)
        model = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=1, **kwargs).eval()
        frame = run(model, Sinks())["sinks"].frame
        row = one(frame, quantity="prefix_mass", layer=0)
        assert row.null == pytest.approx(prefix / (prefix + 16))
        assert (row.value > 0) == (prefix > 0)
        alike = [one(frame, quantity="cosine_centred", layer=0, variant=v).value for v in sk.KEYS[:2]]
        assert (alike[0] == pytest.approx(alike[1], abs=1e-6)) == (prefix == 0)


def test_heads_that_are_mixed_before_the_projection_have_no_values():
    torch.manual_seed(1)  # of weights without any sink
    model = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=1, scale_attn_norm=True).eval()
    found = run(model, Sinks())["sinks"]
    assert not (found.frame.quantity == "dominant_value_ratio").any()
    assert "mixed" in " ".join(found.notes)
    assert one(
        found.frame, quantity="cosine_centred", layer=0, variant="without sinks"
    ).value == pytest.approx(one(found.frame, quantity="cosine_centred", layer=0, variant="patch keys").value)


@pytest.mark.parametrize(
    ("model", "verdict", "words"),
    [
        (with_sinks(), "alike by sinks", "next to nothing together"),
        (with_sinks(columns=[], same=True), "alike in content", "stay alike"),
        (with_sinks(columns=[]), "not alike", "No patch"),
        (load_model("vit_tiny_patch16_224", "random", img_size=64, depth=2), "not tested", "random weights"),
    ],
)
def test_why_heads_are_alike(model, verdict, words):
    if verdict != "not tested":
        model.provenance = replace(load_model("vit_tiny_patch16_224", "random").provenance, kind="file")
    results = run(model, Sinks(), HeadSimilarity())
    evidence = Result("evidence", endpoint_rows("m", model, results), {"kind": "premise"})
    frame = ledger(evidence, claims=[claim_named("head-similarity")])
    assert set(frame["because"]) == {verdict}
    why = side_by_side({"m": frame})[0]["why"].split("; ")[0]
    assert why == (words if verdict == "not tested" else verdict)
    said = Facts(results.values(), {"m": model}).claim("head-similarity")[0]
    assert said.endswith(f"; {verdict}." if verdict != "not tested" else "random weights: `m`.")
    sentences = " ".join(sink_findings(results, {"m": model}))
    assert words in sentences
    assert "nan" not in sentences
