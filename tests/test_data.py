"""Images: what is loaded, in which order, how it is split, and what is said of those that cannot be."""

from __future__ import annotations

import gc
import io
import itertools
import math
import os
import pickle
import random
import shutil
import struct
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import ImageDataset, IterableImageDataset
from torch.utils.data import DataLoader

from t2t_analysis._paths import data_dir
from t2t_analysis.data import (
    PHOTOS,
    EpochCrops,
    FixedCrops,
    crops,
    load_images,
    load_photo,
    photos,
    train_data,
)
from t2t_analysis.data.loading import balanced_order, preprocessing, seen_by
from t2t_analysis.data.reading import read_rgb
from t2t_analysis.errors import DataError, UnknownNameError
from tests.data_tables import BEGIN, END, tables

RNG = np.random.default_rng(0)


def _noise(height: int = 40, width: int = 48) -> Image.Image:
    return Image.fromarray(RNG.integers(0, 256, (height, width, 3), dtype=np.uint8))


def _all(loader: DataLoader) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    images, labels, index = zip(*loader, strict=True)
    return torch.cat(images), torch.cat(labels), torch.cat(index)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """train/ and val/ with 6 + 3 cats, 3 + 2 dogs, and a class that only val has."""
    counts = {"train/cat": 6, "train/dog": 3, "val/cat": 3, "val/dog": 2, "val/owl": 1}
    for folder, count in counts.items():
        (tmp_path / "tree" / folder).mkdir(parents=True)
        for number in range(count):
            _noise().save(tmp_path / "tree" / folder / f"{number}.png")
    return tmp_path / "tree"


@pytest.fixture
def trainable(tree: Path) -> Path:
    """The same without the class that only val has."""
    shutil.rmtree(tree / "val" / "owl")
    return tree


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    (tmp_path / "flat").mkdir()
    for number in range(7):
        _noise().save(tmp_path / "flat" / f"{number}.png")
    return tmp_path / "flat"


def _tar(folder: Path, path: Path, prefix: str = "") -> Path:
    with tarfile.open(path, "w") as tar:
        tar.add(folder, arcname=prefix or ".")
    return path


# ---- embedded photographs --------------------------------------------------------------------------------


def test_photos_are_rgb_and_not_copies_of_each_other():
    loaded = {photo.name: load_photo(photo.name) for photo in PHOTOS}
    assert len(loaded) == len(PHOTOS) == 20
    assert list(loaded) == sorted(loaded)
    assert all(image.mode == "RGB" and min(image.size) >= 128 for image in loaded.values())
    assert len({image.resize((32, 32)).tobytes() for image in loaded.values()}) == 20


def test_a_photograph_that_the_package_lacks_is_named(monkeypatch):
    gone = photos.Photo("astronaut", "scikit-image", "gone.png", "CC0")
    monkeypatch.setitem(photos._BY_NAME, "astronaut", gone)
    with pytest.raises(DataError, match=r"astronaut.*gone\.png.*scikit-image.* \d"):
        photos.photo_path.__wrapped__("astronaut")
    with pytest.raises(UnknownNameError, match="did you mean 'astronaut'"):
        load_photo("astronot")


def test_photos_loader():
    loader = load_images("photos", img_size=32, batch_size=8)
    images, labels, index = _all(loader)
    assert images.shape == (20, 3, 32, 32)
    assert (labels == -1).all()
    assert index.tolist() == list(range(20))
    info = loader.dataset.info
    assert info.names == tuple(photo.name for photo in PHOTOS)
    assert (info.n, info.classes) == (20, ())
    assert math.isnan(info.chance)


def test_readme_tables_are_those_of_the_code():
    text = (data_dir() / "README.md").read_text(encoding="utf-8")
    assert text.split(BEGIN)[1].split(END)[0].strip() == tables().strip()


# ---- photo_crops -----------------------------------------------------------------------------------------


def test_crop_classes_and_counts():
    assert len(crops.crop_classes()) == 19
    assert crops.left_out() == ("page",)
    for split in ("train", "test"):
        pixels, labels = crops.blocks(split)
        assert pixels.shape == (len(labels), 64, 64)
        assert 490 <= len(labels) <= 520
        assert torch.bincount(labels).min() >= crops.MIN_BLOCKS
        assert torch.bincount(labels).max() <= crops.MAX_BLOCKS / 2
    assert len(FixedCrops("test")) == 4 * len(crops.blocks("test").labels)


@pytest.mark.parametrize(("size", "square"), [((512, 320), 64), ((1280, 1280), 128), ((1410, 1300), 192)])
def test_no_pixel_is_shared_between_the_splits(monkeypatch, size, square):
    """A chessboard picture has one colour per split exactly if no source pixel reaches the other split."""
    columns, rows = (np.arange(length) // square for length in size)
    board = ((rows[:, None] + columns) % 2 * 255).astype(np.uint8)
    monkeypatch.setattr(crops, "load_photo", lambda name: Image.fromarray(board).convert("RGB"))
    cut = crops._cut.__wrapped__("board")
    assert (cut["train"] == 0).all()
    assert (cut["test"] == 1).all()
    assert sum(len(part) for part in cut.values()) == (size[0] // square) * (size[1] // square)


def test_training_crops_stay_inside_their_block_and_cover_it():
    data = EpochCrops(crops_per_block=40)
    data.pixels = torch.arange(len(data.pixels), dtype=torch.float32)[:, None, None].expand(-1, 64, 64)
    block, label = data._block_of(torch.arange(len(data)))
    top, left, flip = data._draws().unbind(1)
    cut = crops.cut_crops(data.pixels, block, top, left, flip.bool())
    assert torch.equal(cut, block[:, None, None].float().expand(-1, 32, 32))
    assert torch.equal(crops.blocks("train").labels[block], label)
    assert (top.min(), top.max(), left.min(), left.max()) == (0, 32, 0, 32)
    assert 0.45 < flip.double().mean() < 0.55


def test_cut_crops_equals_plain_slicing():
    pixels = torch.rand(3, 64, 64)
    block, top, left = torch.tensor([2, 0]), torch.tensor([5, 32]), torch.tensor([0, 17])
    cut = crops.cut_crops(pixels, block, top, left, torch.tensor([False, True]))
    assert torch.equal(cut[0], pixels[2, 5:37, 0:32])
    assert torch.equal(cut[1], pixels[0, 32:64, 17:49].flip(-1))


def test_crops_are_standardised_and_flat_ones_do_not_blow_up():
    images = torch.stack([image for image, _ in FixedCrops("test").__getitems__(range(0, 2020, 7))])
    assert torch.equal(images[:, 0], images[:, 2])
    grey = images[:, 0].flatten(1)
    assert grey.mean(1).abs().max() < 1e-4
    std = grey.std(1, correction=0)
    assert std.max() < 1 + 1e-4
    assert (std > 1 - 1e-4).double().mean() > 0.97
    faint = 0.5 + 0.1 / 255 * torch.randn(1, 32, 32)
    assert crops.standardise(faint).std() < 0.2
    assert crops.standardise(torch.ones(1, 32, 32)).abs().max() == 0


def test_an_epoch_is_balanced_over_classes_and_over_blocks():
    data = EpochCrops()
    assert 4000 <= len(data) <= 8000
    visits = torch.zeros(len(data.pixels))
    for epoch in range(3):
        data.set_epoch(epoch)
        block, label = data._block_of(torch.arange(len(data)))
        assert torch.bincount(label).unique().numel() == 1
        visits += torch.bincount(block, minlength=len(visits))
    labels = crops.blocks("train").labels
    spread = [visits[labels == c].max() - visits[labels == c].min() for c in range(19)]
    assert max(spread) <= 1


def test_crops_replay_from_seed_epoch_and_index():
    first, again = EpochCrops(seed=3), EpochCrops(seed=3)
    first.set_epoch(5)
    wanted = first.__getitems__([100, 7, 4000])
    for epoch in (0, 4, 5):  # other epochs in between must not matter
        again.set_epoch(epoch)
        again[4000]
    torch.manual_seed(99)
    for index, (image, label) in zip([100, 7, 4000], wanted, strict=True):
        assert torch.equal(again[index][0], image)
        assert again[index][1] == label
    first.set_epoch(6)
    assert not torch.equal(first[100][0], wanted[0][0])
    assert not torch.equal(EpochCrops(seed=4)[100][0], EpochCrops(seed=3)[100][0])


def test_workers_that_persist_see_the_epoch():
    data = train_data("photo_crops", fraction=0.1, crops_per_block=2)
    loader = DataLoader(data, batch_size=64, num_workers=1, persistent_workers=True)
    seen = []
    for epoch in (0, 1):
        data.set_epoch(epoch)
        seen.append(torch.cat([images for images, _ in loader]))
        direct = torch.stack([image for image, _ in data.__getitems__(range(len(data)))])
        assert torch.equal(seen[-1], direct)
    assert not torch.equal(*seen)


def test_fractions_are_nested_and_balanced():
    kept = [set(EpochCrops(fraction=f, seed=2).block_index.tolist()) for f in (0.1, 0.25, 0.5, 1.0)]
    assert all(small < large for small, large in itertools.pairwise(kept))
    assert len(kept[-1]) == 507
    labels = crops.blocks("train").labels
    half = torch.bincount(labels[sorted(kept[2])], minlength=19) / torch.bincount(labels)
    assert (half - 0.5).abs().max() < 0.08
    assert torch.bincount(labels[sorted(kept[0])], minlength=19).min() >= 1
    with pytest.raises(DataError, match="fraction=0 "):
        EpochCrops(fraction=0)


def test_crops_without_augmentation_are_the_middle():
    image, label = EpochCrops(augment=False)[0]
    middle = crops.blocks("train").pixels[0, 16:48, 16:48]
    assert label == 0
    assert torch.allclose(image[0], crops.standardise(middle))


def test_crops_loader_is_balanced_and_says_what_it_is():
    loader = load_images("photo_crops", n_images=57, batch_size=10)
    images, labels, _ = _all(loader)
    assert images.shape == (57, 3, 32, 32)
    assert torch.bincount(labels).tolist() == [3] * 19
    info = loader.dataset.info
    assert info.chance == pytest.approx(1 / 19)
    assert info.classes == crops.crop_classes()
    assert "page" in info.notes[0]
    larger, _, _ = _all(load_images("photo_crops", n_images=58))
    assert torch.equal(larger[:57], images)
    assert load_images("photo_crops").dataset.info.chance == pytest.approx(152 / 2020)


def test_crops_are_resized_to_a_larger_model_and_that_is_said():
    model = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=1)
    loader = load_images("photo_crops", model=model, n_images=2)
    assert next(iter(loader)).images.shape == (2, 3, 64, 64)
    assert any("enlarged to 64x64" in note for note in loader.dataset.info.notes)


# ---- preprocessing ---------------------------------------------------------------------------------------


def test_loaders_and_batches_show_themselves_in_a_line():
    images = load_images("photos", n_images=3, batch_size=2, img_size=32)
    assert repr(images).endswith("3 images, batches of 2>")
    assert repr(next(iter(images))) == "<Batch: images 2x3x32x32, with labels and index>"


def test_preprocessing_is_the_models_own():
    model = timm.create_model("vit_tiny_patch16_224", img_size=(64, 96), depth=1)
    config = preprocessing(model)
    assert config["input_size"] == (3, 64, 96)
    assert config["mean"] == model.pretrained_cfg["mean"] == (0.5, 0.5, 0.5)
    assert (config["crop_pct"], config["interpolation"]) == (0.9, "bicubic")
    images = next(iter(load_images("photos", model=model, n_images=2))).images
    assert images.shape == (2, 3, 64, 96)
    assert preprocessing(model, 32)["crop_pct"] == 1.0
    assert preprocessing()["input_size"] == (3, 224, 224)
    with pytest.raises(DataError, match="img_size=0"):
        load_images("photos", img_size=0)


def test_our_small_model_gets_its_own_size():
    import t2t_analysis.models  # noqa: F401

    name = next(n for n in timm.list_models() if n.startswith("t2t_vit_7"))
    model = timm.create_model(name, img_size=64)
    assert next(iter(load_images("photos", model=model, n_images=1))).images.shape == (1, 3, 64, 64)


def test_values_are_normalised_with_mean_and_std(tmp_path):
    Image.new("RGB", (50, 50), (255, 128, 0)).save(tmp_path / "a.png")
    images = next(iter(load_images(tmp_path, img_size=32))).images[0, :, 0, 0]
    wanted = (torch.tensor([1, 128 / 255, 0]) - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor(
        [0.229, 0.224, 0.225]
    )
    assert torch.allclose(images, wanted, atol=1e-6)


# ---- folders, trees, tars --------------------------------------------------------------------------------


def test_flat_folder_is_sorted_and_unlabelled(flat):
    (flat / ".hidden.png").write_bytes(b"no image")
    (flat / "notes.txt").write_text("no image")
    loader = load_images(flat, img_size=32, batch_size=4)
    images, labels, _ = _all(loader)
    assert images.shape[0] == 7
    assert (labels == -1).all()
    assert [Path(name).name for name in loader.dataset.info.names] == [f"{i}.png" for i in range(7)]
    chosen = load_images(flat, img_size=32, n_images=4, seed=1).dataset.info.names
    assert chosen == tuple(sorted(chosen)) == load_images(flat, n_images=4, seed=1).dataset.info.names


def test_tree_takes_the_split_and_balances(tree):
    loader = load_images(tree, img_size=32, n_images=4)
    info = loader.dataset.info
    assert info.classes == ("cat", "dog", "owl")
    assert _all(loader)[1].tolist() == [0, 1, 2, 0]
    assert all("/val/" in name for name in info.names)
    assert load_images(tree, split="train", img_size=32).dataset.info.n == 9
    assert load_images(tree / "train", img_size=32).dataset.info.notes[0].startswith("no split folders")


@pytest.mark.parametrize("prefix", ["", "set"])
def test_tar_equals_its_folder(tree, tmp_path, prefix):
    packed = load_images(_tar(tree, tmp_path / "t.tar", prefix), img_size=32)
    plain = load_images(tree, img_size=32)
    for a, b in zip(_all(packed), _all(plain), strict=True):
        assert torch.equal(a, b)
    assert packed.dataset.info.classes == plain.dataset.info.classes
    pickle.loads(pickle.dumps(packed.dataset))  # workers that are spawned get it so


def test_flat_tar_has_no_labels(flat, tmp_path):
    loader = load_images(_tar(flat, tmp_path / "t.tar", "pictures"), img_size=32)
    assert loader.dataset.info.n == 7
    assert loader.dataset.info.classes == ()


def test_linked_class_folders_are_followed_and_circles_are_not(tree, tmp_path):
    subset = tmp_path / "subset"
    (subset / "val").mkdir(parents=True)
    (subset / "val" / "cat").symlink_to(tree / "val" / "cat")
    (subset / "val" / "dog").symlink_to(tree / "val" / "dog")
    (tree / "val" / "dog" / "again").symlink_to(subset)
    assert load_images(subset).dataset.info.n == 5
    assert load_images(subset).dataset.info.classes == ("cat", "dog")


def test_one_image_file(flat):
    assert load_images(flat / "3.png").dataset.info.n == 1


def test_the_order_is_the_same_every_time(tree):
    runs = [load_images(tree, split="train", n_images=5, seed=s).dataset.info.names for s in (0, 0, 1)]
    assert runs[0] == runs[1] != runs[2]
    shorter = load_images(tree, split="train", n_images=3, seed=0).dataset.info.names
    assert runs[0][:3] == shorter


def test_balanced_order_by_hand():
    labels = np.array([2, 2, 2, 2, 0, 0, 1])
    order = balanced_order(labels, seed=0)
    assert labels[order].tolist() == [0, 1, 2, 0, 2, 2, 2]
    assert sorted(order) == list(range(7))


def test_every_block_gives_one_crop_before_any_gives_two():
    loader = load_images("photo_crops", n_images=256)
    labels, clusters = torch.cat([batch.labels for batch in loader]).numpy(), loader.dataset.clusters
    for label in np.unique(labels):
        counts = np.bincount(clusters[labels == label], minlength=crops.blocks("test").labels.numel())
        own = counts[crops.blocks("test").labels.numpy() == label]
        assert own.max() - own.min() <= 1
    assert f"256 crops of {len(set(clusters))} blocks" in " ".join(loader.dataset.info.notes)
    few = load_images("photo_crops", n_images=128).dataset
    assert len(set(few.clusters)) == 128
    assert "blocks" not in " ".join(few.info.notes)


def test_splits_in_capitals(tree, tmp_path):
    (tree / "train").rename(tree / "Train")
    (tree / "val").rename(tree / "TESTING")
    info = load_images(tree).dataset.info
    assert (info.n, info.classes) == (6, ("cat", "dog", "owl"))
    assert load_images(tree, split="train").dataset.info.n == 9
    shutil.copytree(tree / "Train", tree / "train")
    with pytest.raises(DataError, match="differ in capitals only: TESTING, Train, train"):
        load_images(tree)


def test_folders_beside_those_of_splits(tree):
    shutil.copytree(tree / "val", tree / "__MACOSX")
    with pytest.raises(DataError, match=r"folders beside those of its splits \(.*\): __MACOSX"):
        load_images(tree)
    shutil.rmtree(tree / "val")  # now "train" may be a class of vehicles
    assert load_images(tree).dataset.info.classes == ("__MACOSX", "train")


def test_unlabelled_test_images_beside_labelled_training_images(trainable, tmp_path):
    for image in list((trainable / "val").rglob("*.png")):
        image.rename(trainable / "val" / f"{image.parent.name}{image.name}")
    info = load_images(trainable).dataset.info
    assert (info.n, info.classes) == (5, ())
    assert load_images(trainable, split="train").dataset.info.classes == ("cat", "dog")


@pytest.mark.parametrize("packed", [False, True])
def test_tiny_imagenet_s_own_layout(tmp_path, packed):
    root = tmp_path / "tiny"
    lines = []
    for number, wnid in enumerate(["n02124075", "n04067472", "n04067472"]):
        for folder in (f"train/{wnid}/images", "val/images", "test/images"):
            (root / folder).mkdir(parents=True, exist_ok=True)
            _noise().save(root / folder / f"{folder.split('/')[0]}_{number}.JPEG")
        lines.append(f"val_{number}.JPEG\t{wnid}\t0\t0\t10\t10\n")
    annotations = root / "val" / "val_annotations.txt"
    annotations.write_text("".join(lines))
    (root / "wnids.txt").write_text("n02124075\n")
    data = _tar(root, tmp_path / "tiny.tar", "tiny") if packed else root
    loader = load_images(data, img_size=32)
    info = loader.dataset.info
    assert _all(loader)[1].tolist() == [0, 1, 1]
    assert info.classes == ("n02124075", "n04067472")
    assert info.notes[:2] == (
        "test/ has no labels: val/ is used",
        "files that are not read: 1 .txt",
    )
    assert len(train_data(data)) == 3
    assert train_data(data, split="test").info.classes == info.classes
    annotations.write_text(lines[0])
    with pytest.raises(DataError, match=r"2 images are not in val_annotations\.txt"):
        load_images(root)


def test_class_folders_that_are_numbers_come_in_their_order(tmp_path):
    for number in range(12):
        (tmp_path / str(number)).mkdir()
        _noise().save(tmp_path / str(number) / "a.png")
    loader = load_images(tmp_path, img_size=32)
    assert loader.dataset.info.classes == tuple(map(str, range(12)))
    assert "order of their numbers: 0, 1, 2" in loader.dataset.info.notes[-1]


def test_a_folder_that_holds_the_folder_of_the_classes(tree, tmp_path):
    above = tmp_path / "above"
    shutil.copytree(tree / "train", above / "set")
    assert load_images(above).dataset.info.classes == ("cat", "dog")


def test_every_file_is_read_or_counted(tmp_path):
    names = [
        "a.jpg",
        "b.JPE",
        "c.jfif",
        "d.jp2",
        "e.heic",
        "f.heic",
        "notes",
        "._a.jpg",
        ".ipynb_checkpoints/a.png",
    ]
    (tmp_path / ".ipynb_checkpoints").mkdir()
    for name in names:
        kind = {".jp2": "JPEG2000", ".png": "PNG"}.get(Path(name).suffix, "JPEG")
        (tmp_path / name).write_bytes(_saved(_noise(), kind))
    loader = load_images(tmp_path, img_size=32)
    assert len(_all(loader)[0]) == 4
    wanted = "files that are not read: 2 .heic, 2 hidden, 1 without extension"
    assert loader.dataset.info.notes[-1] == wanted
    (tmp_path / "only").mkdir()
    (tmp_path / "e.heic").rename(tmp_path / "only" / "e.heic")
    with pytest.raises(DataError, match=r"holds no images .*; files that are not read: 1 \.heic"):
        load_images(tmp_path / "only")


def test_links_inside_a_tar(tmp_path):
    _noise().save(tmp_path / "a.png")
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        tar.add(tmp_path / "a.png", arcname="./x/a.png")
        for name, kind, target in [
            ("x/b.png", tarfile.LNKTYPE, "x/a.png"),
            ("y/c.png", tarfile.SYMTYPE, os.path.join(os.pardir, "x", "b.png")),
            ("y/d.png", tarfile.SYMTYPE, "nowhere.png"),
            ("y/e.png", tarfile.SYMTYPE, "e.png"),
        ]:
            link = tarfile.TarInfo(name)
            link.type, link.linkname = kind, target
            tar.addfile(link)
    loader = load_images(tmp_path / "t.tar", img_size=32)
    images, labels, _ = _all(loader)
    assert labels.tolist() == [0, 1, 0]
    assert torch.equal(images[0], images[1])
    assert torch.equal(images[0], images[2])
    assert loader.dataset.info.notes[-1] == "files that are not read: 2 broken link or sparse file"


def test_names_that_do_not_print(tmp_path):
    for name in (b"caf\xe9.png", "日本.png".encode(), b"two\nlines.png"):
        (tmp_path / os.fsdecode(name)).write_bytes(_saved(_noise(), "PNG"))
    info = load_images(tmp_path, img_size=32).dataset.info
    assert [Path(name).name for name in info.names] == ["caf\\udce9.png", "two\\nlines.png", "日本.png"]
    "".join(info.names).encode()


# ---- ImageNet's class names ------------------------------------------------------------------------------


def _wnid_folders(path: Path, *wnids: str) -> Path:
    for wnid in wnids:
        (path / wnid).mkdir(parents=True)
        _noise().save(path / wnid / "a.png")
    return path


def _head(outputs: int) -> torch.nn.Module:
    return timm.create_model("test_vit", num_classes=outputs)


def test_a_subset_of_imagenet_keeps_the_numbers_of_its_head(tmp_path):
    folder = _wnid_folders(tmp_path, "n01440764", "n02123045", "n15075141")  # tench, tabby, toilet tissue
    loader = load_images(folder, model=_head(1000))
    assert _all(loader)[1].tolist() == [0, 281, 999]
    info = loader.dataset.info
    assert (len(info.classes), info.classes[281], info.chance) == (1000, "tabby", pytest.approx(1 / 3))
    assert len(set(info.classes)) == 1000
    assert "3 class folders named by WordNet ids, numbered as in imagenet-1k" in info.notes
    large = _all(load_images(folder, model=_head(21_843)))[1]
    assert large.tolist() == sorted(large.tolist()) != [0, 281, 999]
    for model in (None, _head(3), _head(7)):
        assert load_images(folder, model=model).dataset.info.classes == (
            "n01440764",
            "n02123045",
            "n15075141",
        )


def test_a_class_that_the_head_lacks_is_refused(tmp_path):
    folder = _wnid_folders(tmp_path, "n01440764", "n00005787")  # benthos is in the large set only
    with pytest.raises(DataError, match=r"no class of imagenet-1k.*1000 outputs.*: n00005787$"):
        load_images(folder, model=_head(1000))


# ---- batches: shards, workers ----------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 1])
def test_shards_together_see_the_batches_of_one(tree, workers):
    whole = list(load_images(tree, split="train", img_size=32, batch_size=2))
    shards = [
        list(load_images(tree, split="train", img_size=32, batch_size=2, workers=workers, shard=(rank, 2)))
        for rank in (0, 1)
    ]
    assert [len(shard) for shard in shards] == [3, 2]
    dealt = [shards[i % 2][i // 2] for i in range(len(whole))]
    for one, two in zip(whole, dealt, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert whole[0]._fields == dealt[0]._fields == ("images", "labels", "index")


def test_bad_loader_options():
    with pytest.raises(DataError, match="shard"):
        load_images("photos", shard=(2, 2))
    with pytest.raises(UnknownNameError, match="did you mean 'skip'"):
        load_images("photos", on_error="skipp")
    with pytest.raises(DataError, match="batch_size=0"):
        load_images("photos", batch_size=0)
    with pytest.raises(DataError, match=r"n_images=21.*20 images"):
        load_images("photos", n_images=21)
    with pytest.raises(UnknownNameError, match="valid"):
        load_images("photo_crops", split="valid")


def test_only_cuda_pins():
    assert load_images("photos", device="cuda:0").pin_memory
    assert not load_images("photos").pin_memory


# ---- odd and damaged images ------------------------------------------------------------------------------


def _png(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def _read(data: bytes) -> np.ndarray:
    return np.asarray(read_rgb(io.BytesIO(data), "picture"))


def _saved(image: Image.Image, kind: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def test_16_bit_is_scaled_not_clipped():
    grey = _png(2, 1, 16, 0, b"\0" + struct.pack(">HH", 0x8080, 0xFFFF))
    assert _read(grey)[0].tolist() == [[128] * 3, [255] * 3]
    colour = _png(1, 1, 16, 2, b"\0" + struct.pack(">HHH", 0x4040, 0x8080, 0xFFFF))
    assert _read(colour)[0, 0].tolist() == [64, 128, 255]


@pytest.mark.parametrize("mode", [np.int32, np.uint16])
def test_values_of_8_bits_in_a_wider_type_are_not_black(mode):
    values = np.array([[0, 100, 255]], dtype=mode)
    assert _read(_saved(Image.fromarray(values), "TIFF"))[0, :, 0].tolist() == [0, 100, 255]
    assert _read(_saved(Image.fromarray(values * 257), "TIFF"))[0, :, 0].tolist() == [0, 100, 255]
    with pytest.raises(DataError, match="mode I with values from -5 to"):
        _read(_saved(Image.fromarray(np.array([[-5, 7]], dtype=np.int32)), "TIFF"))


@pytest.mark.parametrize(
    ("image", "kind", "wanted"),
    [
        (Image.new("L", (3, 2), 77), "PNG", (77, 77, 77)),
        (Image.new("1", (3, 2), 1), "PNG", (255, 255, 255)),
        (Image.new("RGBA", (3, 2), (0, 0, 0, 0)), "PNG", (255, 255, 255)),
        (Image.new("RGBA", (3, 2), (200, 0, 0, 51)), "PNG", (244, 204, 204)),
        (Image.new("LA", (3, 2), (0, 255)), "PNG", (0, 0, 0)),
        (Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", (254, 0, 0)),
        (Image.new("F", (3, 2), 0.5), "TIFF", (128, 128, 128)),
    ],
)
def test_modes(image, kind, wanted):
    pixel = _read(_saved(image, kind))[0, 0].astype(int)
    assert np.abs(pixel - wanted).max() <= 2


def test_palette_with_transparency_is_laid_over_white():
    image = Image.new("P", (2, 2), 0)
    image.putpalette([10, 20, 30, 40, 50, 60])
    assert _read(_saved(image, "PNG", transparency=0))[0, 0].tolist() == [255] * 3
    assert _read(_saved(image, "PNG"))[0, 0].tolist() == [10, 20, 30]


def test_exif_orientation_is_honoured():
    image = Image.new("RGB", (20, 10), "black")
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned
    assert _read(_saved(image, "JPEG", exif=exif)).shape == (20, 10, 3)


def test_unscaled_floats_are_refused():
    with pytest.raises(DataError, match=r"picture: mode F .*expected 8 or 16 bits"):
        _read(_saved(Image.new("F", (2, 2), 1000.0), "TIFF"))


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 2)])
def test_one_pixel_and_strips(tmp_path, size):
    Image.new("RGB", size, "white").save(tmp_path / "a.png")
    images = next(iter(load_images(tmp_path))).images
    assert images.shape == (1, 3, 224, 224)
    assert images.isfinite().all()


def test_too_many_pixels():
    with pytest.raises(DataError, match=r"picture: too many pixels .*limit 178,956,970"):
        _read(_png(20_000, 20_000, 8, 0, b""))


DAMAGED = {
    "truncated": lambda: _saved(_noise(), "PNG")[:2000],
    "foreign": lambda: b"not an image at all",
    "empty": lambda: b"",
    "header only": lambda: _png(40, 40, 8, 2, b""),
    "wrong checksum": lambda: _saved(_noise(), "PNG").replace(b"IDAT", b"IDAX"),
}


@pytest.mark.parametrize("how", DAMAGED)
def test_unreadable_images_are_named(flat, how):
    (flat / "3b.png").write_bytes(DAMAGED[how]())
    with pytest.raises(DataError, match=r"3b\.png"):
        list(load_images(flat, img_size=32))


def test_workers_that_are_spawned_give_the_same(flat):
    loader = load_images(flat, img_size=32, workers=1)
    loader.multiprocessing_context = "spawn"
    for spawned, here in zip(_all(loader), _all(load_images(flat, img_size=32)), strict=True):
        assert torch.equal(spawned, here)


@pytest.mark.parametrize("name", ["photos", "photo_crops", "tree", "to train", "crops to train"])
def test_data_sets_can_be_sent_to_workers(name, tree):
    shutil.rmtree(tree / "val" / "owl")
    dataset = {
        "photos": lambda: load_images("photos", img_size=32).dataset,
        "photo_crops": lambda: load_images("photo_crops").dataset,
        "tree": lambda: load_images(tree, img_size=32).dataset,
        "to train": lambda: train_data(tree),
        "crops to train": lambda: train_data("photo_crops"),
    }[name]()
    sent = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(sent[1][0], dataset[1][0])


@pytest.mark.parametrize("wrap", [torch.nn.DataParallel, lambda model: torch.compile(model, backend="eager")])
def test_a_wrapped_model_wants_the_images_of_the_model_inside(wrap):
    model = timm.create_model("test_vit").eval()
    plain = load_images("photos", model=model, n_images=2)
    assert load_images("photos", model=wrap(model), n_images=2).config == plain.config
    assert seen_by(load_images("photos", n_images=2), [wrap(model)])[0].dataset[0].images.shape[-1] == 160


def test_unreadable_images_are_named_by_workers_too(flat, monkeypatch):
    monkeypatch.setattr(
        "torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.1
    )  # torch waits 5 s for the worker
    (flat / "3b.png").write_bytes(b"not an image at all")
    with pytest.raises(DataError, match=r"3b\.png") as caught:
        list(load_images(flat, img_size=32, workers=1))
    del caught
    gc.collect()  # ends the worker here, not in a later test


def test_unreadable_images_are_skipped_counted_and_replaced(tree):
    for name in ("train/cat/1.png", "train/dog/0.png"):
        (tree / name).write_bytes(b"")
    loader = load_images(tree, split="train", img_size=32, n_images=4, on_error="skip", batch_size=3)
    images, labels, index = _all(loader)
    assert (len(images), labels.tolist(), index.tolist()) == (4, [0, 1, 0, 1], [0, 1, 2, 3])
    info = load_images(tree, split="train", img_size=32, on_error="skip").dataset.info
    assert info.n == 7
    assert len(info.skipped) == 2
    assert "cat/1.png" in info.skipped[0]
    assert "dog/0.png" in info.skipped[1]
    assert any("2 unreadable" in note for note in info.notes)
    with pytest.raises(DataError, match=r"n_images=8 .* 7 images"):
        load_images(tree, split="train", n_images=8, on_error="skip")


def test_links_to_nothing_and_pipes_are_named_and_counted(flat):
    (flat / "3b.png").symlink_to(flat / "gone.png")
    os.mkfifo(flat / "3c.png")  # who reads it waits for ever
    with pytest.raises(DataError, match=r"3b\.png: it is a link to nothing"):
        list(load_images(flat, img_size=32))
    info = load_images(flat, img_size=32, on_error="skip").dataset.info
    assert info.n == 7
    assert [Path(line.split(": ")[0]).name for line in info.skipped] == ["3b.png", "3c.png"]
    assert any("2 unreadable" in note for note in info.notes)


def test_nothing_readable(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"none of the 1 images.*a\.png"):
        load_images(tmp_path, on_error="skip")


# ---- what is not there -----------------------------------------------------------------------------------


def test_missing_paths_name_the_nearest(tree, monkeypatch):
    with pytest.raises(DataError, match=r"did you mean '.*train'"):
        load_images(tree / "trian")
    with pytest.raises(DataError, match=r"the folder .* does not exist either"):
        load_images("/no/such/place.tar")
    with pytest.raises(UnknownNameError, match=r"did you mean 'photos'.*torch/cifar10"):
        load_images("photo")
    monkeypatch.chdir(tree.parent)
    with pytest.raises(UnknownNameError, match="did you mean 'tree'"):
        load_images("treee")


@pytest.mark.parametrize("data", ["", " ", "a\0b", "x" * 5000])
def test_names_that_no_file_can_have(data):
    with pytest.raises((DataError, UnknownNameError)):
        load_images(data)


def test_nothing_inside(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "a.txt").write_text("text")
    with pytest.raises(DataError, match="holds no images"):
        load_images(tmp_path / "empty")
    with pytest.raises(DataError, match=r"the tar .* holds no images"):
        load_images(_tar(tmp_path / "empty", tmp_path / "e.tar"))
    (tmp_path / "bad.tar").write_bytes(b"x" * 1000)
    with pytest.raises(DataError, match="uncompressed tar"):
        load_images(tmp_path / "bad.tar")
    (tmp_path / "a.csv").write_text("1,2")
    with pytest.raises(DataError, match="neither a folder"):
        load_images(tmp_path / "a.csv")


def test_mixed_folder_and_missing_split(tree):
    (tree / "train" / "loose.png").write_bytes(_saved(_noise(), "PNG"))
    with pytest.raises(DataError, match="1 images beside"):
        load_images(tree, split="train")
    for image in (tree / "val").rglob("*.png"):
        image.unlink()
    with pytest.raises(DataError, match=r"no images for split 'test'.*train"):
        load_images(tree)


# ---- timm's data sets ------------------------------------------------------------------------------------


@pytest.fixture
def mnist(tmp_path: Path) -> Path:
    """A tiny set in MNIST's own format: 12 training and 8 test images of 28x28."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, count in (("train", 12), ("t10k", 8)):
        pixels = RNG.integers(0, 256, count * 28 * 28, dtype=np.uint8).tobytes()
        labels = bytes(i % 10 for i in range(count))
        (raw / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 2051, count, 28, 28) + pixels)
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, count) + labels)
    return tmp_path


@pytest.fixture
def cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny set in CIFAR-10's own format; only its checksums are not those of the real one."""
    from torchvision.datasets import CIFAR10

    folder = tmp_path / CIFAR10.base_folder
    folder.mkdir()
    for name, count in (("data_batch_1", 24), ("test_batch", 12)):
        batch = {
            "data": RNG.integers(0, 256, (count, 3072), dtype=np.uint8),
            "labels": [i % 3 for i in range(count)],
        }
        (folder / name).write_bytes(pickle.dumps(batch))
    names = ["plane", "car", "bird", *"abcdefg"]
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": names}))
    monkeypatch.setattr(CIFAR10, "train_list", [["data_batch_1", None]])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", None]])
    monkeypatch.setattr(CIFAR10, "meta", {"filename": "batches.meta", "key": "label_names", "md5": None})
    return tmp_path


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args, **kwargs):
        raise OSError("network is unreachable")

    monkeypatch.setattr("socket.getaddrinfo", refuse)


@pytest.mark.usefixtures("no_network")
def test_cifar10_from_disk(cifar):
    loader = load_images("torch/cifar10", root=cifar, n_images=6, img_size=32, workers=1, batch_size=4)
    images, labels, _ = _all(loader)
    assert images.shape == (6, 3, 32, 32)
    assert labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert loader.dataset.info.classes[:3] == ("plane", "car", "bird")
    assert loader.dataset.info.chance == pytest.approx(1 / 3)
    assert len(train_data("torch/cifar10", root=cifar, fraction=0.5)) == 12


@pytest.mark.usefixtures("no_network")
def test_a_cached_set_of_grey_images(mnist, monkeypatch):
    monkeypatch.setenv("T2T_ANALYSIS_CACHE", str(mnist))
    (mnist / "datasets" / "torch--mnist").mkdir(parents=True)
    (mnist / "MNIST").rename(mnist / "datasets" / "torch--mnist" / "MNIST")
    images, labels, _ = _all(load_images("torch/mnist", img_size=32))
    assert images.shape == (8, 3, 32, 32)
    assert sorted(labels.tolist()) == list(range(8))


@pytest.mark.usefixtures("no_network")
def test_timm_names_that_cannot_be_had(tmp_path):
    with pytest.raises(DataError, match=r"torch/cifar10.*download=True would fetch it"):
        load_images("torch/cifar10", root=tmp_path, download=False)
    with pytest.raises(DataError, match=r"timm could not open 'torch/cifar10'.*unreachable"):
        load_images("torch/cifar10", root=tmp_path)
    with pytest.raises(UnknownNameError, match="did you mean 'torch/cifar10'"):
        load_images("torch/cifar1o", root=tmp_path)
    with pytest.raises(DataError, match="timm could not open 'wds/thing'"):
        load_images("wds/thing", root=tmp_path)


class _Reader:
    """Stands in for a timm reader that streams (image, label)."""

    def __init__(self, pictures: list[Image.Image]) -> None:
        self.pictures = pictures

    def __iter__(self):
        return ((picture, number % 2) for number, picture in enumerate(self.pictures))


def test_streams_are_read_in_their_own_order(monkeypatch):
    stream = IterableImageDataset(None, reader=_Reader([_noise() for _ in range(7)]))
    monkeypatch.setattr("timm.data.create_dataset", lambda *args, **kwargs: stream)
    loader = load_images("wds/thing", img_size=32, n_images=5, batch_size=2)
    assert _all(loader)[2].tolist() == [0, 1, 2, 3, 4]
    assert "not balanced" in loader.dataset.info.notes[0]
    shard = load_images("wds/thing", img_size=32, batch_size=2, shard=(1, 2))
    assert [batch.index.tolist() for batch in shard] == [[2, 3], [6]]
    with pytest.raises(DataError, match="images by number"):
        train_data("wds/thing")


def test_a_stream_that_ends_too_soon(monkeypatch):
    stream = IterableImageDataset(None, reader=_Reader([_noise() for _ in range(3)]))
    monkeypatch.setattr("timm.data.create_dataset", lambda *args, **kwargs: stream)
    with pytest.raises(DataError, match=r"n_images=4 .* ended after 3"):
        list(load_images("wds/thing", img_size=32, n_images=4))


class _Table:
    """Stands in for timm's reader of a Hugging Face set: files by number, and a column of labels."""

    column_names, label_key, class_to_idx = ("label",), "label", {"no": 0, "yes": 1}

    def __init__(self) -> None:
        self.dataset = self
        self.files = [_saved(_noise(), "PNG"), b"damaged", _saved(_noise(), "PNG")]

    def __getitem__(self, key):
        return [1, 0, 1] if key == "label" else (io.BytesIO(self.files[key]), [1, 0, 1][key])

    def __len__(self) -> int:
        return 3


def test_hub_sets_fall_back_to_validation_and_never_swap_images(monkeypatch):
    def create(name, root, split, download):
        if split == "test":
            raise ValueError('Unknown split "test". Should be one of ["train", "validation"].')
        assert split == "validation"
        return ImageDataset(None, reader=_Table())

    monkeypatch.setattr("timm.data.create_dataset", create)
    loader = load_images("hfds/thing", img_size=32, batch_size=1, on_error="skip")
    assert loader.dataset.info.notes[0] == "hfds/thing has no split test: validation used"
    assert _all(loader)[1].tolist() == [1, 1]
    assert loader.dataset.info.classes == ("no", "yes")
    with pytest.raises(DataError, match=r"hfds/thing\[1\]"):
        list(load_images("hfds/thing", img_size=32))
    monkeypatch.setattr("timm.data.create_dataset", lambda *a, **k: create("x", None, "test", False))
    with pytest.raises(DataError, match="Unknown split"):
        load_images("hfds/thing", split="dev")


# ---- training data ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("img_size", [32, (64, 80)])
def test_augmentation_replays_and_leaves_the_global_generators_alone(trainable, img_size):
    data, again = (train_data(trainable, img_size=img_size, seed=1) for _ in range(2))
    states = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    data.set_epoch(2)
    wanted = [data[i] for i in range(4)]
    assert random.getstate() == states[0]
    assert (np.random.get_state()[1] == states[1]).all()
    assert torch.equal(torch.get_rng_state(), states[2])
    random.seed(5)
    again.set_epoch(2)
    for index in (3, 0, 2, 1):
        assert torch.equal(again[index][0], wanted[index][0])
        assert again[index][1] == wanted[index][1]
    again.set_epoch(3)
    assert not torch.equal(again[0][0], wanted[0][0])
    assert wanted[0][0].shape[1:] == ((32, 32) if img_size == 32 else img_size)


def test_training_and_test_share_classes_and_nothing_else(trainable):
    train, test = train_data(trainable), train_data(trainable, split="test")
    assert train.info.classes == test.info.classes == ("cat", "dog")
    assert not set(train.info.names) & set(test.info.names)
    assert torch.equal(test[0][0], test[0][0])
    plain = load_images(trainable, img_size=32)
    number = plain.dataset.info.names.index(test.info.names[0])
    assert torch.equal(plain.dataset[number].images, test[0][0])


def test_a_class_without_an_image_to_train_on_is_refused(tree):
    for split in ("train", "test"):
        with pytest.raises(DataError, match=r"1 classes of val/ have no image to train on: owl"):
            train_data(tree, split=split)


def test_training_needs_labels_and_split_folders(flat, tree):
    with pytest.raises(DataError, match="no class labels"):
        train_data("photos")
    with pytest.raises(DataError, match="no split folders"):
        train_data(tree / "train")
    with pytest.raises(DataError, match="no split folders"):
        train_data(flat)
    shutil.rmtree(tree / "val" / "owl")
    with pytest.raises(DataError, match=r"fraction=1\.5"):
        train_data(tree, fraction=1.5)


def test_train_data_of_the_crops():
    train, test = train_data(fraction=0.25, seed=4), train_data(split="test")
    assert isinstance(train, EpochCrops)
    assert isinstance(test, FixedCrops)
    assert train.info.classes == test.info.classes
    assert train.info.chance == pytest.approx(1 / 19)
    assert train.info.n == len(train)
    images, labels = next(iter(DataLoader(train, batch_size=32)))
    assert images.shape == (32, 3, 32, 32)
    assert labels.tolist() == [i % 19 for i in range(32)]
