"""Drawn boundaries: read from folders and tars, followed into what a model sees, told by planted tokens."""

import tarfile

import numpy as np
import pandas as pd
import pytest
import scipy.io
import timm
import torch
from PIL import Image
from sklearn.metrics import average_precision_score

from t2t_analysis import load_images, load_model
from t2t_analysis.claims.ledger import claim_named, ledger
from t2t_analysis.claims.premise import groups_for, measure_endpoints
from t2t_analysis.data.boundaries import find_boundaries
from t2t_analysis.data.loading import preprocessing
from t2t_analysis.errors import DataError
from t2t_analysis.estimates import Estimate
from t2t_analysis.measures import boundaries
from t2t_analysis.measures.boundaries import average_precision
from t2t_analysis.plots import by_depth
from t2t_analysis.results import Result
from t2t_analysis.sentences.local_structure import boundary_findings

SIZE = (40, 48)


def lines(seed, people=1):
    """Photographs of two regions, and their boundary, which every annotator but the last draws."""
    rng = np.random.default_rng(seed)
    at = int(rng.integers(8, 40))
    grey = rng.integers(0, 60, SIZE).astype(np.uint8)
    grey[:, at:] += 150
    drawn = np.zeros((people, *SIZE), dtype=np.uint8)
    drawn[:, :, at] = 1
    if people > 2:
        drawn[-1] = 0
        drawn[-1, :, (at + 16) % 48] = 1
    return Image.fromarray(grey), drawn


def bsds(root, n=12, people=3):
    """The standard layout of BSDS500."""
    for part in ("images", "groundTruth"):
        (root / "BSDS500" / "data" / part / "val").mkdir(parents=True)
    for i in range(n):
        picture, drawn = lines(i, people)
        picture.save(root / "BSDS500" / "data" / "images" / "val" / f"{i}.png")
        truth = np.empty((1, people), dtype=object)
        for a, each in enumerate(drawn):
            truth[0, a] = {"Boundaries": each, "Segmentation": each}
        scipy.io.savemat(
            root / "BSDS500" / "data" / "groundTruth" / "val" / f"{i}.mat", {"groundTruth": truth}
        )
    return root


def pictures(root, n=8):
    """Boundary maps of the same names in another folder."""
    for part in ("images", "boundaries"):
        (root / part).mkdir()
    for i in range(n):
        picture, drawn = lines(i)
        picture.convert("RGB").save(root / "images" / f"{i}.png")
        Image.fromarray(drawn[0] * 255).save(root / "boundaries" / f"{i}.png")
    return root


def test_both_layouts_and_tars_are_read(tmp_path):
    folder, other = tmp_path / "a", tmp_path / "b"
    folder.mkdir()
    other.mkdir()
    bsds(folder, 9)
    pictures(other)
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(folder / "BSDS500", "BSDS500")
    for path, count, people in ((folder, 9, 3), (tmp_path / "a.tar", 9, 3), (other, 8, 1)):
        found = find_boundaries(path)
        assert len(found) == count
        for i, name in enumerate(found.names):
            assert (found.boundaries(i) == lines(int(name), people)[1]).all()
    assert find_boundaries(folder, 4, seed=1).names == find_boundaries(folder, 4, seed=1).names
    assert find_boundaries(folder / "BSDS500" / "data" / "images") is None
    assert find_boundaries("photos") is None
    assert len(find_boundaries(folder, 10)) == 9


def test_boundaries_of_another_size_or_kind_are_named(tmp_path):
    pictures(tmp_path)
    Image.new("L", (4, 4)).save(tmp_path / "boundaries" / "3.png")
    (tmp_path / "boundaries" / "4.png").unlink()
    scipy.io.savemat(tmp_path / "boundaries" / "4.mat", {"wrong": np.ones(3)})
    found = find_boundaries(tmp_path)
    with pytest.raises(DataError, match=r"3: boundaries of \(4, 4\)"):
        found.boundaries(found.names.index("3"))
    with pytest.raises(DataError, match="4: expected groundTruth"):
        found.boundaries(found.names.index("4"))


@pytest.mark.parametrize("crop_pct", [1.0, 0.8])
def test_boundaries_land_in_the_cells_that_show_them(tmp_path, crop_pct):
    """Against the transform itself: a bright line on black, seen through the same preprocessing."""
    found = find_boundaries(pictures(tmp_path))
    config = preprocessing(None, 64) | {"crop_pct": crop_pct, "interpolation": "bilinear"}
    from t2t_analysis.data.loading import transform_of

    for i in range(len(found)):
        bright = Image.fromarray(found.boundaries(i)[0].astype(np.uint8) * 255).convert("RGB")
        seen = transform_of(config | {"mean": (0.0,) * 3, "std": (1.0,) * 3})(bright)[0]
        column = seen.mean(0)
        cells = found.cells(i, config, (8, 8))[0]
        if column.max() < 0.1:  # cut off
            assert not cells.any()
            continue
        centre = float((column * torch.arange(64)).sum() / column.sum()) + 0.5
        expected = {int((centre + e) // 8) for e in (-0.6, 0.6)}  # within rounding of a border
        assert set(np.flatnonzero(cells.any(0))) <= expected
        assert cells.any(0).sum() == 1
        assert cells[:, cells.any(0)].all()
        assert (found.cells(i, config, (8, 8), (0.0, 8.0))[0][:, :-1] == cells[:, 1:]).all()


def test_average_precision_is_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    for _ in range(20):
        score, positive = rng.integers(0, 6, 30) / 5, rng.random(30) < 0.3
        assert average_precision(score, positive) == pytest.approx(average_precision_score(positive, score))
    assert np.isnan(average_precision(score, np.zeros(30, dtype=bool)))


def test_means_of_units_are_means_with_a_jackknife():
    x = np.random.default_rng(1).normal(size=(50, 2))
    x[3, 1] = np.nan
    found = Estimate.of_units(x, groups=50)
    assert found.value == pytest.approx(np.nanmean(x, 0))
    assert found.se == pytest.approx(np.nanstd(x, 0, ddof=1) / np.sqrt([50, 49]), rel=1e-6)
    assert found.n.tolist() == [50, 49]


class Told(torch.nn.Module):
    """A patch embedding whose tokens are the cells' mean luminance and that of the next cell."""

    def __init__(self, inner, blind):
        super().__init__()
        self.proj, self.blind, self.grid_size = inner.proj, blind, inner.grid_size
        self.num_patches, self.patch_size, self.img_size = inner.num_patches, inner.patch_size, inner.img_size

    def forward(self, x):
        spread = torch.nn.functional.unfold(x[:, :1], 4, stride=4).std(1, keepdim=True)  # (B, 1, 64)
        tokens = torch.rand_like(spread) if self.blind else spread
        return torch.nn.functional.pad(tokens.mT, (0, 47))


def told(blind=False):
    torch.manual_seed(0)
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=4, depth=1, embed_dim=48, num_heads=3
    ).eval()
    model.patch_embed = Told(model.patch_embed, blind)
    return model


def row(result, place, **where):
    frame = result.frame[(result.frame.place == place)]
    for column, value in where.items():
        frame = frame[frame[column] == value]
    assert len(frame) == 1
    return frame.iloc[0]


def test_tokens_that_tell_boundaries_and_tokens_that_do_not(tmp_path):
    drawn = find_boundaries(bsds(tmp_path, 16, people=1))
    found = boundaries(
        {"told": told(), "blind": told(blind=True)}, drawn, places=("embed",), dim=8, progress=False
    )
    good, bad = (row(found, "embed", model=name) for name in ("told", "blind"))
    assert good.value > 0.85
    assert good.p < 1e-4
    assert good.null < 0.6
    assert abs(bad.value - bad.null) < 0.15
    assert bad.p > 0.01
    assert pd.isna(good.ceiling)  # nobody to be compared with
    assert good.n == 16
    frame = found.frame[found.frame.model == "told"]
    assert set(frame.place) == {"embed", "pixels.cell", "pixels.field", "edges.cell"}


def test_the_ceiling_is_what_the_other_annotators_tell(tmp_path):
    drawn = find_boundaries(bsds(tmp_path, 8, people=3))
    found = boundaries(told(), drawn, dim=8, progress=False)
    ceiling = row(found, "embed").ceiling
    assert 0.4 < ceiling < 0.98  # two agree, the third drew something else
    over = row(found, "first third of blocks", place_b="pixels.cell")
    first = row(found, "first third of blocks", quantity="boundary_precision")
    assert over.value == pytest.approx(first.value - row(found, "pixels.cell").value)
    words = boundary_findings(found, *found.frame.model.unique())
    assert "other annotators" in words[0]
    assert "nan" not in words[0]
    figure = by_depth(found, ["boundary_precision"], references={"pixels.cell": "raw pixels"})
    assert "average precision" in figure.caption.lower()
    with pytest.raises(DataError, match="5 photographs"):
        boundaries(told(), find_boundaries(tmp_path, 5), progress=False)


def test_drawn_boundaries_are_evidence_where_there_are_some(tmp_path):
    model = load_model("small_hard_deep")
    assert "boundaries" not in groups_for(load_images("photo_crops", model=model, n_images=4))
    images = load_images(bsds(tmp_path), model=model)
    assert "boundaries" in groups_for(images)
    (row,) = measure_endpoints("m", model, images, "boundaries", progress=False)
    people = boundaries({"m": model}, find_boundaries(tmp_path), progress=False)
    where = {"quantity": "boundary_precision_over_reference", "place_b": "pixels.cell"}
    assert row["value"] == people.where(**where).frame["value"].item()
    assert (row["quantity"], row["n"]) == ("boundaries_over_pixels", 12)
    evidence = Result.of_rows("evidence", [row], {"kind": "premise"})
    judged = ledger(evidence, claims=[claim_named("local-structure")]).set_index("quantity")
    assert judged.loc["boundaries_over_pixels", "verdict"] != "not tested"
    assert not judged.loc["boundaries_over_pixels", "deciding"]
    with pytest.raises(DataError, match="no boundaries that people drew"):
        measure_endpoints("m", model, load_images("photo_crops", model=model, n_images=4), "boundaries")
