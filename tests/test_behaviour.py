"""Behaviour under distortion: identities of each kind, planted classifiers, categories, nulls."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import gaussian_blur

from t2t_analysis import load_images, load_model
from t2t_analysis.capture import capture
from t2t_analysis.errors import DataError, T2TError, UnknownNameError
from t2t_analysis.estimates import Estimate
from t2t_analysis.measures import behaviour, distorted, read_categories
from t2t_analysis.measures.behaviour import DISTORTIONS
from t2t_analysis.quantities import quantity
from t2t_analysis.sentences.local_structure import behaviour_table


def pictures(n=3, size=32, seed=0):
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(seed))


# ------------------------------------------------------------------------------------------------ distortions


@pytest.mark.parametrize("kind", DISTORTIONS)
def test_no_strength_changes_no_bit_and_more_changes_more(kind):
    images = torch.nn.functional.avg_pool2d(pictures(size=64), 3, 1, 1)
    strengths = DISTORTIONS[kind][1]
    assert strengths[0] == 0
    assert distorted(images, kind, 0, 16) is images
    moved = [float((distorted(images, kind, s, 16) - images).square().mean()) for s in strengths[1:]]
    assert min(moved) > 0
    if kind not in ("shift", "shuffle"):  # how far pixels go is not how much they differ
        assert moved == sorted(moved)


@pytest.mark.parametrize("sigma", [0.5, 4, 30])
def test_the_blur_is_torchvisions(sigma):
    images, side = pictures(size=40), 2 * min(int(3 * sigma) + 1, 39) + 1
    expected = gaussian_blur(images, [side, side], [sigma, sigma])
    torch.testing.assert_close(distorted(images, "low-pass", sigma / 8, 8), expected, atol=1e-5, rtol=0)


def test_low_and_high_pass_add_up_to_the_image():
    images = pictures()
    low, high = distorted(images, "low-pass", 0.5, 8), distorted(images, "high-pass", 2, 8)  # both 4 px wide
    torch.testing.assert_close(low + high - images.mean((2, 3), keepdim=True), images)
    torch.testing.assert_close(high.mean((2, 3)), images.mean((2, 3)), atol=1e-2, rtol=0)


def test_shuffling_keeps_the_pixels_of_every_cell_and_all_colours_of_a_pixel():
    images = pictures()
    found = distorted(images, "shuffle", 0.5, 8)
    for part in (images, found):
        part.cells = (
            part.unflatten(3, (8, 4)).unflatten(2, (8, 4)).transpose(3, 4).flatten(4)
        )  # (B, C, 8, 8, 16)
    assert not torch.equal(found, images)
    torch.testing.assert_close(found.cells.sort(-1).values, images.cells.sort(-1).values)
    order = [part.cells[:, 0].argsort(-1) for part in (images, found)]
    green = [part.cells[:, 1].gather(-1, o) for part, o in zip((images, found), order, strict=True)]
    torch.testing.assert_close(*green)


def test_a_shift_by_a_patch_only_moves_tokens():
    model = load_model("small_hard_deep", "random")
    images = pictures()
    found = []
    for x in (images, distorted(images, "shift", 1, 4)):
        with torch.no_grad(), capture(model, ["embed"]) as seen:
            model(x)
        found.append(seen["embed"].unflatten(1, (8, 8)))
    tokens, moved = found
    torch.testing.assert_close(moved[:, 1:, 1:], tokens[:, :-1, :-1])


def test_edges_are_dark_lines_in_the_contrast_of_the_image():
    images = torch.zeros(1, 3, 16, 16)
    images[..., 8:] = 1
    drawing = distorted(images, "edges", 1, 4)
    assert drawing[0, 0, :, 7].max() < drawing[0, 0, :, :7].min()
    torch.testing.assert_close(drawing.mean(), images.mean())
    torch.testing.assert_close(drawing.std(), images.std(), rtol=0.01, atol=0)
    with pytest.raises(UnknownNameError, match="low-pass"):
        distorted(images, "lowpass", 1, 4)


# ------------------------------------------------------------------------------------------------ classifiers


class Bag(torch.nn.Module):
    """Looks at the mean of each quarter of the image, or at how rough it is, and at nothing else."""

    num_classes = 2

    def __init__(self, rough=False):
        super().__init__()
        inner = load_model("small_hard_deep", "random")
        self.tokens_to_token, self.blocks, self.norm = inner.tokens_to_token, inner.blocks, inner.norm
        self.rough, self.num_prefix_tokens, self.pretrained_cfg = rough, 1, inner.pretrained_cfg

    def forward(self, x):
        self.tokens_to_token(x)
        detail = x - torch.nn.functional.avg_pool2d(x, 3, 1, 1)
        score = detail[..., 2:-2, 2:-2].std((1, 2, 3)) if self.rough else x.mean((1, 2, 3))
        middle = score.new_tensor(0.15 if self.rough else 0.0)
        return 50 * torch.stack([middle - score, score - middle], 1)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """Two classes of grey squares that differ in brightness and in roughness, 12 each."""
    root = tmp_path_factory.mktemp("classes")
    rng = np.random.default_rng(0)
    for label, (mean, spread) in {"a": (90, 2), "b": (170, 60)}.items():
        (root / label).mkdir()
        for i in range(12):
            pixels = np.clip(rng.normal(mean, spread, (32, 32, 1)).repeat(3, 2), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / label / f"{i}.png")
    return load_images(root, img_size=32, batch_size=8)


def at(result, quantity, kind, strength, model="bag"):
    frame = result.where(model=model, quantity=quantity, variant=kind).frame
    found = frame[np.isclose(frame["at"].astype(float), strength)]
    assert len(found) == 1
    return found.iloc[0]


def test_what_a_classifier_looks_at_is_what_it_misses(labelled):
    found = behaviour({"bag": Bag(), "rough": Bag(rough=True)}, labelled, progress=False)
    for kind in ("shuffle", "low-pass"):
        assert at(found, "behaviour_accuracy", kind, 1).value == 1
        assert at(found, "behaviour_accuracy_change", kind, 1).value == 0
    blurred = at(found, "behaviour_accuracy_change", "low-pass", 1, "rough")
    assert blurred.value == pytest.approx(-0.5)
    assert blurred.p < 0.05
    intact = at(found, "behaviour_accuracy", "low-pass", 0, "rough")
    assert (intact.value, intact.n) == (1, 24)
    assert intact.null < 0.1  # classes take turns, so the label before is the other one
    table, caption = behaviour_table(found, ["bag", "rough"])
    table = table.set_index("images")
    assert "n = 24 images" in caption
    assert (table["bag"] == "100.0 % [86.2, 100.0]").sum() == len(table) == 6
    assert table["rough"]["as they are"] == "100.0 % [86.2, 100.0]"
    assert table["rough"]["blurred over a patch"].startswith("50.0 % [")
    kl = at(found, "behaviour_kl", "low-pass", 0)
    assert (kl.value, kl.low, kl.high) == (0, 0, 0)
    assert at(found, "behaviour_kl", "low-pass", 1, "rough").value > 1


def test_labels_that_are_not_the_models_classes_leave_the_divergence(labelled):
    found = behaviour(
        {"m": load_model("small_hard_deep", "random")}, labelled, distortions=["shift"], progress=False
    )
    assert set(found.frame["quantity"]) == {"behaviour_kl"}
    table, caption = behaviour_table(found, ["m"])
    moved = at(found, "behaviour_kl", "shift", 0.5, "m")
    assert caption.startswith("KL divergence from the intact prediction")
    assert table.set_index("images")["m"]["moved by half a patch"] == quantity("behaviour_kl").interval(moved)
    assert not table["images"].str.contains("blurred").any()
    assert "UNTRAINED" in found.notes[0]
    with pytest.raises(UnknownNameError, match="shift"):
        behaviour(Bag(), labelled, distortions=["shif"])


def test_categories_average_the_probabilities_of_their_classes(labelled, tmp_path):
    table = tmp_path / "categories.csv"
    table.write_text("wnid,imagenet_index,category\nn1,1,a\nn2,0,b\n")
    swapped = read_categories(table)
    assert swapped == {"a": [1], "b": [0]}
    found = behaviour({"bag": Bag()}, labelled, distortions=["shift"], categories=swapped, progress=False)
    assert at(found, "behaviour_accuracy", "none", 0).value == 0
    with pytest.raises(UnknownNameError, match="'b'"):
        behaviour(Bag(), labelled, categories={"a": [0]}, progress=False)
    with pytest.raises(DataError, match=r"'b' of outputs \[2\]: the model has 0 to 1"):
        behaviour(Bag(), labelled, categories={"a": [0], "b": [2]}, progress=False)
    table.write_text("imagenet_index,category\none,a\n")
    with pytest.raises(DataError, match="'one': expected a whole number"):
        read_categories(table)
    table.write_text("wnid\nn1\n")
    with pytest.raises(DataError, match="imagenet_index and category"):
        read_categories(table)
    with pytest.raises(T2TError, match="no classifier"):
        behaviour(load_model("small_hard_deep", "random", num_classes=0), labelled, progress=False)


def test_a_part_of_the_images_is_drawn_from_all_of_them(labelled):
    few = behaviour(Bag(), labelled, distortions=[], max_images=9, progress=False).frame
    assert set(few["n"].dropna()) == {9}
    one = behaviour(Bag(), labelled, distortions=["shift"], max_images=5, seed=1, progress=False)
    other = behaviour(Bag(), labelled, distortions=["shift"], max_images=5, seed=2, progress=False)
    assert one.frame["value"].tolist() != other.frame["value"].tolist()


def test_images_of_one_photograph_are_left_out_together():
    values = np.repeat(np.random.default_rng(0).normal(size=8), 6)
    alone, together = Estimate.of_units(values), Estimate.of_units(values, group=np.repeat(np.arange(8), 6))
    assert together.se > 2 * alone.se
    assert together.se == pytest.approx(values[::6].std(ddof=1) / np.sqrt(8))
