"""``load_images``: a loader of images in one deterministic order, preprocessed as the model wants them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from .._device import torch_device
from ..errors import DataError, UnknownNameError
from ..models.wrappers import unwrapped
from .crops import CROP, FixedCrops, as_images, crop_classes, crops_info
from .imagenet import number_as_head
from .info import DataInfo, chance_level
from .reading import to_rgb
from .sources import Source, StreamSource, find_source

#: Below this input size no border is cut off: a 32 px image has none to spare.
SMALL = 64


class Batch(NamedTuple):
    """Images (B, 3, H, W); labels (B,), -1 where there are none; index (B,) in the loader's order."""

    images: Tensor
    labels: Tensor
    index: Tensor  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<Batch: images {'x'.join(map(str, self.images.shape))}, with labels and index>"


def balanced_order(
    labels: np.ndarray, seed: int, bad: Collection[int] = (), clusters: np.ndarray | None = None
) -> np.ndarray:
    """All positions but the ``bad``, so that the first n are balanced over classes for every n.

    Classes take turns in sorted order; the order inside a class is drawn with ``seed``. With ``clusters`` (one
    number per position; images of one cluster are not independent), those of a class take turns too: none
    gives a second image before all have given their first.

    >>> labels = np.array([0, 0, 0, 1])
    >>> labels[balanced_order(labels, seed=0)].tolist()
    [0, 1, 0, 0]
    >>> clusters = np.array([7, 7, 7, 7, 8, 9])
    >>> clusters[balanced_order(np.zeros(6), seed=0, clusters=clusters)][:3].tolist()
    [7, 9, 8]
    """
    rng = np.random.default_rng(seed)
    drawn = [rng.permutation(np.flatnonzero(labels == label)) for label in np.unique(labels)]
    queues = [queue[~np.isin(queue, list(bad))] for queue in drawn]
    if clusters is not None:
        queues = [queue[np.argsort(_repeats(clusters[queue]), kind="stable")] for queue in queues]
    turn = np.concatenate([np.arange(len(queue)) for queue in queues])
    owner = np.repeat(np.arange(len(queues)), [len(queue) for queue in queues])
    return np.concatenate(queues)[np.lexsort((owner, turn))]


def _repeats(values: np.ndarray) -> np.ndarray:
    """How often each value has come before.

    >>> _repeats(np.array([5, 6, 5, 5])).tolist()
    [0, 0, 1, 2]
    """
    by_value = np.argsort(values, kind="stable")
    ordered = values[by_value]
    repeats = np.empty(len(values), dtype=int)
    repeats[by_value] = np.arange(len(values)) - np.searchsorted(ordered, ordered)
    return repeats


def _choose(
    labels: np.ndarray, n_images: int | None, seed: int, name: str, bad: Collection[int] = (),
    clusters: np.ndarray | None = None,
) -> np.ndarray:  # fmt: skip
    """Positions of the chosen images, in the order of the loader."""
    available = len(labels) - len(bad)
    if n_images is not None and not 1 <= n_images <= available:
        raise DataError(f"n_images={n_images} of {name!r}: it has {available} images that can be used")
    chosen = balanced_order(labels, seed, bad, clusters)[:n_images]
    return np.sort(chosen) if (labels < 0).all() else chosen  # without labels, the order of the names


def _choose_readable(source: Source, n_images: int | None, seed: int) -> tuple[np.ndarray, tuple[str, ...]]:
    """The choice among the readable images, and why the others are not; every chosen image is decoded once.

    Done before the first batch, so that batches, shards and counts do not depend on who meets a damaged file.
    """
    bad: dict[int, str] = {}

    @cache
    def problem(number: int) -> str:
        try:
            source.image(number)
        except DataError as error:
            return str(error)
        return ""

    while len(bad) < len(source.labels):
        chosen = _choose(source.labels, n_images, seed, source.name, bad)
        found = {number: problem(number) for number in chosen.tolist() if problem(number)}
        if not found:
            return chosen, tuple(bad[number] for number in sorted(bad))
        bad |= found
    raise DataError(
        f"none of the {len(bad)} images of {source.name!r} can be read; {next(iter(bad.values()))}"
    )


def _each(ways: Sequence[Callable[[Any], Tensor]], pixels: Any) -> tuple[Tensor, ...]:
    """The same pixels prepared in several ways."""
    return tuple(way(pixels) for way in ways)


class _Prepared:
    """A data set whose images are prepared in one way, or in several at once."""

    info: DataInfo
    prepare: Callable[[Any], Any]

    @staticmethod
    def config(model: nn.Module | None, img_size: Any) -> dict[str, Any]:
        """What a model wants."""
        return preprocessing(model, img_size)

    @staticmethod
    def way(config: Mapping[str, Any]) -> Callable[[Any], Tensor]:
        """What makes images of pixels in the way of ``config``."""
        return transform_of(config)

    def prepared(self, configs: Sequence[Mapping[str, Any]]) -> Self:
        """Return the same images in these ways; with several, ``Batch.images`` has a tensor for each."""
        twin = copy.copy(self)
        ways = tuple(self.way(config) for config in configs)
        twin.prepare = ways[0] if len(ways) == 1 else partial(_each, ways)
        return twin


class _Images(_Prepared, Dataset):
    """Chosen images of a source."""

    def __init__(self, source: Source, chosen: np.ndarray, info: DataInfo) -> None:
        self.source, self.chosen, self.info = source, chosen, info

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, index: int) -> Batch:
        number = int(self.chosen[index])
        return Batch(self.prepare(self.source.image(number)), int(self.source.labels[number]), index)  # type: ignore[arg-type]


class _Crops(_Prepared, Dataset):
    """Chosen crops of ``photo_crops``, a whole batch at a time."""

    def __init__(self, crops: FixedCrops, chosen: np.ndarray, info: DataInfo) -> None:
        self.crops, self.chosen, self.info = crops, chosen, info
        self.clusters = crops.clusters[chosen]
        self.photographs = crops.labels[chosen]

    @staticmethod
    def config(model: nn.Module | None, img_size: Any) -> dict[str, Any]:
        """The size alone: crops are standardised already, so the model's mean and std are not applied."""
        size = as_pair(img_size) if img_size is not None else _model_size(model) or (CROP, CROP)
        return {"input_size": (3 if model is None else channels_of(model), *size)}

    @staticmethod
    def way(config: Mapping[str, Any]) -> Callable[[Any], Tensor]:
        channels, *size = config["input_size"]
        return partial(as_images, img_size=tuple(size), channels=channels)

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, index: int) -> Batch:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Batch]:
        numbers = self.chosen[list(indices)].tolist()
        made = self.prepare(self.crops.cut(numbers))
        images = zip(*made, strict=True) if isinstance(made, tuple) else made
        labels = self.crops.labels[numbers].tolist()
        return [Batch(x, y, i) for x, y, i in zip(images, labels, indices, strict=True)]  # type: ignore[arg-type]


class _Stream(_Prepared, IterableDataset):
    """The first images of a set that can only be read in its own order; whole batches are dealt to shards."""

    def __init__(self, dataset: Any, info: DataInfo, batch_size: int, shard: tuple[int, int]) -> None:
        self.dataset, self.info, self.batch_size, self.shard = dataset, info, batch_size, shard

    def __iter__(self) -> Iterator[Batch]:
        rank, world = self.shard
        index = -1
        for index, (image, label) in enumerate(islice(self.dataset, self.info.n)):
            if index // self.batch_size % world == rank:
                picture = self.prepare(to_rgb(image, f"{self.info.name}[{index}]"))
                yield Batch(picture, int(label), index)  # type: ignore[arg-type]
        if self.info.n is not None and index + 1 < self.info.n:
            about = f"n_images={self.info.n} of {self.info.name!r}"
            raise DataError(f"{about}: it ended after {index + 1} images")


def dealt_batches(n: int, batch_size: int, shard: tuple[int, int]) -> list[list[int]]:
    """Every ``world``-th batch of consecutive indices, from ``rank`` on."""
    rank, world = shard
    starts = range(rank * batch_size, n, world * batch_size)
    return [list(range(start, min(start + batch_size, n))) for start in starts]


def as_pair(size: int | Sequence[int]) -> tuple[int, int]:
    """(H, W) of an image size given as one number or two."""
    pair = size if isinstance(size, Sequence) else (size, size)
    if len(pair) != 2 or not all(_whole(side) and side > 0 for side in pair):
        raise DataError(f"img_size={size!r} must be a positive number of pixels, or (height, width)")
    return int(pair[0]), int(pair[1])


def _whole(number: object) -> bool:
    return isinstance(number, int | np.integer) and not isinstance(number, bool)


def _model_size(model: nn.Module | None) -> tuple[int, int] | None:
    """The input size that a model was built for, if it says; its pretrained config may say another."""
    for owner in (model, getattr(model, "patch_embed", None)):
        size = getattr(owner, "img_size", None)
        if isinstance(size, int | tuple | list):
            return as_pair(size)
    return None


def channels_of(model: nn.Module) -> int:
    """Channels of the images that a model takes."""
    embed = getattr(model, "patch_embed", None)
    told = (getattr(owner, "in_chans", None) for owner in (model, embed))
    kernel = getattr(getattr(embed, "proj", None), "in_channels", None)
    config: Any = getattr(model, "pretrained_cfg", None) or {}
    count = next((c for c in (*told, kernel) if isinstance(c, int)), config.get("input_size", (3,))[0])
    if count not in (1, 3):
        what = f"takes images of {count} channels"
        raise DataError(f"{type(model).__name__} {what}; here they have 3, or 1 if grey")
    return count


def preprocessing(
    model: nn.Module | None = None, img_size: int | Sequence[int] | None = None
) -> dict[str, Any]:
    """The model's own preprocessing as timm's ``create_transform`` takes it; ImageNet's without a model.

    The size is ``img_size``, else what the model was built for, else its pretrained config, else 224. Under
    64 pixels nothing is cut off the border. A model of grey images is given the means over the colours.
    """
    from timm.data import resolve_data_config

    usual = {"img_size": 224, "interpolation": "bicubic"}
    config = resolve_data_config({} if model is not None else usual, model=model)
    size = as_pair(img_size) if img_size is not None else _model_size(model) or config["input_size"][1:]
    channels = 3 if model is None else channels_of(model)
    config["input_size"] = (channels, *size)
    for key in ("mean", "std"):
        given = tuple(float(value) for value in config[key])
        config[key] = given if len(given) == channels else (sum(given) / len(given),) * channels
    if min(size) < SMALL:
        config["crop_pct"] = 1.0
    return config


def transform_of(config: Mapping[str, Any]) -> Callable[[Any], Tensor]:
    """The transform of an RGB picture that `preprocessing` describes."""
    from timm.data import create_transform
    from torchvision.transforms import Compose, Grayscale

    made: Any = create_transform(**config)
    return Compose([Grayscale(), made]) if config["input_size"][0] == 1 else made


def check_types(data: Any, model: Any, split: Any, **counts: Any) -> None:
    """Refuse what could only fail later, and less clearly; ``counts`` are whole numbers or None."""
    if not isinstance(split, str):
        raise DataError(f'split={split!r}: expected a name, as "test"')
    if not isinstance(data, str | Path) or not str(data):
        raise DataError(f'data={data!r}: expected a name or a path, as "photos"')
    if not isinstance(model, nn.Module | None):
        name = f", as load_model({model!r}) gives it" if isinstance(model, str) else ""
        raise DataError(f"model={model!r}: expected a model{name}, or None")
    for name, count in counts.items():
        if count is None and name == "n_images":
            continue
        if not _whole(count):
            raise DataError(f"{name}={count!r}: expected a whole number")
        if name != "n_images" and count < (least := int(name in ("batch_size", "crops_per_block"))):
            raise DataError(f"{name}={count}: expected {least} or more")


def _check_loader(on_error: str, shard: tuple[int, int] | None) -> tuple[int, int]:
    if on_error not in ("raise", "skip"):
        raise UnknownNameError("on_error", on_error, ("raise", "skip"))
    pair = (0, 1) if shard is None else shard
    fits = isinstance(pair, Sequence) and len(pair) == 2 and all(map(_whole, pair))
    if not fits or not 0 <= pair[0] < pair[1]:
        raise DataError(f"shard={shard!r} must be (rank, world) with 0 <= rank < world")
    return pair


def _crops_dataset(split: str, n_images: int | None, seed: int, size: tuple[int, int]) -> _Crops:
    crops = FixedCrops(split)
    chosen = _choose(crops.labels.numpy(), n_images, seed, "photo_crops", clusters=crops.clusters)
    return crops_of(crops, chosen, split, size)


def crops_of(crops: FixedCrops, chosen: np.ndarray, split: str, size: tuple[int, int]) -> _Crops:
    """Chosen crops as a loader takes them."""
    labels = crops.labels.numpy()[chosen]
    names = tuple(f"{crop_classes()[label]}, crop {i}" for label, i in zip(labels, chosen, strict=True))
    n_blocks = len(np.unique(crops.clusters[chosen]))
    return _Crops(crops, chosen, crops_info(split, labels, size, names, n_blocks))


def source_info(source: Source, split: str, chosen: np.ndarray, skipped: tuple[str, ...] = ()) -> DataInfo:
    """What to say about the chosen images of a source."""
    notes = source.notes
    if skipped:
        notes += (f"{len(skipped)} unreadable images skipped: {'; '.join(skipped[:3])}",)
    names = tuple(source.label_of(int(number)) for number in chosen)
    chance = chance_level(source.labels[chosen])
    about = (source.classes, source.licence, chance, notes, names, skipped)
    return DataInfo(source.name, split, len(chosen), *about)


def _images_dataset(source: Source, split: str, n_images: int | None, seed: int, on_error: str) -> _Images:
    if on_error == "skip":
        return images_of(source, *_choose_readable(source, n_images, seed), split=split)
    return images_of(source, _choose(source.labels, n_images, seed, source.name), split=split)


def images_of(source: Source, chosen: np.ndarray, skipped: tuple[str, ...] = (), *, split: str) -> _Images:
    """Chosen images of a source as a loader takes them."""
    return _Images(source, chosen, source_info(source, split, chosen, skipped))


def _stream_info(source: StreamSource, split: str, n_images: int | None) -> DataInfo:
    order = "read in its own order: n_images takes the first images, not balanced over classes"
    notes = (f"{source.name} is {order}", *source.notes)
    return DataInfo(source.name, split, n_images, (), "see the data set's own page", float("nan"), notes)


class ImageLoader(DataLoader):
    """What `load_images` returns: batches for one model, and the same images as any other model wants them."""

    def __init__(self, dataset: Any, model: nn.Module | None, img_size: Any, **how: Any) -> None:
        config = dataset.config(model, img_size)
        super().__init__(dataset.prepared([config]), **how)
        self.config, self.img_size, self._how = config, img_size, how

    def __repr__(self) -> str:
        size = self.batch_size or max(map(len, self.batch_sampler), default=0)  # type: ignore[arg-type]
        return f"<images: {self.dataset.info._line()}, batches of {size}>"  # type: ignore[attr-defined]

    def _repr_html_(self) -> str:
        return self.dataset.info._repr_html_()  # type: ignore[attr-defined]

    def config_of(self, model: nn.Module) -> dict[str, Any]:
        """How this model wants its images; as the loader was made where the model does not tell."""
        told = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None)
        return self.dataset.config(model, self.img_size) if told else self.config  # type: ignore[attr-defined]

    def showing(self, configs: Sequence[Mapping[str, Any]]) -> DataLoader:
        """Return a loader of the same images in the same order, each decoded once and prepared in all these ways."""
        if list(configs) == [self.config]:
            return self
        return DataLoader(self.dataset.prepared(configs), **self._how)  # type: ignore[attr-defined]


def seen_by(loader: Any, models: Sequence[nn.Module]) -> tuple[Any, list[int]]:
    """Show images to several models, each through its own preprocessing.

    Returns
    -------
    A loader of the same images, whose ``Batch.images`` is a list of tensors where the models want more than one
    kind, and for each model which of them is its own. What `load_images` did not make is left as it is.
    """
    if not isinstance(loader, ImageLoader):
        return loader, [0] * len(models)
    configs = [loader.config_of(unwrapped(model)) for model in models]
    distinct = [config for i, config in enumerate(configs) if config not in configs[:i]]
    return loader.showing(distinct), [distinct.index(config) for config in configs]


def as_seen_by(loader: Any, model: nn.Module) -> Any:
    """Return a loader of the same images, prepared as ``model`` wants them."""
    return seen_by(loader, [model])[0]


def batches_of(loader: Any, rank: int = 0, world: int = 1) -> Iterator[Batch]:
    """Batches of whatever holds images; those without a number get one, as share ``rank`` of ``world`` shares.

    Parameters
    ----------
    loader : what `load_images` gives, a tensor of images (B, C, H, W), or an iterable of such tensors, of pairs
        (images, labels), or of objects with images, labels and index.

    Raises
    ------
    DataError : anything else, or no images.
    """
    if isinstance(loader, str | Path):
        raise DataError(
            f"loader {str(loader)!r}: a name; expected a loader, as load_images({str(loader)!r}) gives"
        )
    if not isinstance(loader, Iterable):
        kind = type(loader).__name__
        raise DataError(f"loader of type {kind}: expected what load_images gives, or batches")
    start = 0
    for item in [loader] if isinstance(loader, Tensor) else loader:
        batch = _as_batch(item, start, rank, world)
        start += len(batch.index)
        if len(batch.index):
            yield batch
    if not start:
        raise DataError("the loader gave no images; every process needs at least one batch")


def _as_batch(item: Any, start: int, rank: int, world: int) -> Batch:
    if hasattr(item, "index") and hasattr(item, "images"):
        return Batch(item.images, item.labels, item.index)
    item = getattr(item, "images", item)
    pair: Any = (item,) if isinstance(item, Tensor) else item
    fitting = isinstance(pair, Sequence) and pair and isinstance(pair[0], Tensor) and pair[0].ndim == 4
    if not fitting:
        raise DataError(
            f"a batch of type {type(item).__name__}: expected a tensor of images (B, C, H, W), a pair (images, labels) "
            "or an object with images, labels and index"
        )
    labels = pair[1] if len(pair) > 1 else torch.full((len(pair[0]),), -1)
    return Batch(pair[0], labels, (start + torch.arange(len(pair[0]))) * world + rank)


def batches_for(model: nn.Module, loader: Any) -> Iterator[Batch]:
    """`batches_of` as a model takes them: through its own preprocessing, in the precision of its weights."""
    weight = next((one for one in model.parameters() if one.is_floating_point()), torch.empty(0))
    for images, labels, index in batches_of(as_seen_by(loader, model)):
        yield Batch(images.to(weight.dtype), torch.as_tensor(labels).cpu(), torch.as_tensor(index).cpu())


def told(loader: Any) -> DataInfo | None:
    """What a loader says of its images, if it does."""
    return getattr(getattr(loader, "dataset", None), "info", None)


def must_tell(loader: Any) -> DataInfo:
    """What a loader of `load_images` says of its images.

    Raises
    ------
    DataError : it is something else, of which neither classes nor number are known.
    """
    if (info := told(loader)) is None:
        kind = type(loader).__name__
        raise DataError(f"loader of type {kind}: expected what load_images gives, which tells its classes")
    return info


def first_images(model: nn.Module, loader: Any, most: int) -> Tensor:
    """The first ``most`` images (n, C, H, W), or all if there are fewer, as the model takes them."""
    return gather_images(model, loader, most, fewer=True)[0]


def gather_images(
    model: nn.Module | None, loader: Any, n_images: int | None, *, fewer: bool = False
) -> tuple[Tensor, Tensor, np.ndarray]:
    """The first ``n_images`` as the model, if any, takes them; their labels (n,) and clusters (n,) of related ones.

    Raises
    ------
    DataError : the loader has none, or less than that and ``fewer`` will not do.
    """
    batches, count = [], 0
    for batch in batches_of(loader) if model is None else batches_for(model, loader):
        batches.append(batch._replace(images=batch.images.cpu()))
        count += len(batch.images)
        if n_images is not None and count >= n_images:
            break
    if n_images is not None and not fewer and (n_images < 1 or count < n_images):
        raise DataError(f"n_images={n_images}: the loader gave {count} images")
    images, labels, index = (torch.cat(parts)[:n_images] for parts in zip(*batches, strict=True))
    clusters = getattr(getattr(loader, "dataset", None), "clusters", None)
    return images, labels, index.numpy() if clusters is None else np.asarray(clusters)[index.numpy()]


def load_images(
    data: str | Path = "photos",
    *,
    model: nn.Module | None = None,
    n_images: int | None = None,
    batch_size: int = 16,
    split: str = "test",
    workers: int = 0,
    device: str | torch.device = "cpu",
    seed: int = 0,
    img_size: int | tuple[int, int] | None = None,
    on_error: str = "raise",
    shard: tuple[int, int] | None = None,
    root: str | Path | None = None,
    download: bool = True,
) -> ImageLoader:
    """Return a loader of ``Batch(images, labels, index)``; ``loader.dataset.info`` is its ``DataInfo``.

    Parameters
    ----------
    data : "photos" (embedded photographs, no labels), "photo_crops" (labelled crops of them), a folder of
        images, a tree of class folders, a .tar of either, one image file, or a name for timm's data set
        factory (torch/cifar10, hfds/NAME, wds/NAME). Folders and tars may hold train/ and test/ (or val/)
        folders; without them all is used.
    model : its own preprocessing is used (size, crop, interpolation, mean and std); ImageNet's at 224
        without one. `measure` and whatever else takes models and a loader shows the same images to every model
        through that model's own preprocessing. ``photo_crops`` are standardised already and only resized. Class
        folders named by WordNet
        ids get the numbers that an ImageNet head has for them, also where they are only some of its classes.
    n_images : so many, balanced over classes (and over the blocks of ``photo_crops``); the first n of one order, so
        smaller choices are subsets of larger ones. Without labels the choice is drawn with ``seed`` and keeps the
        order of the names.
    device : where the model is; batches come in pinned memory if that is a CUDA device.
    on_error : "raise" names the first unreadable image when it is reached; "skip" decodes every chosen
        image once beforehand, replaces the unreadable and lists them in ``info.skipped``.
    shard : (rank, world): this process gets every world-th batch, so all processes together see the same
        batches as one.
    root, download : for timm's data sets; the default root is in the cache, and the disk is looked at first.

    Raises ``DataError`` (missing path, no images, unreadable image, too few images), ``UnknownNameError``, or
    ``ParameterError`` for a device that torch does not know.

    >>> batch = next(iter(load_images("photos", n_images=4, img_size=64)))
    >>> batch.images.shape, batch.index.tolist()
    (torch.Size([4, 3, 64, 64]), [0, 1, 2, 3])
    """
    check_types(data, model, split, n_images=n_images, batch_size=batch_size, seed=seed, workers=workers)
    shard = _check_loader(on_error, shard)
    model = None if model is None else unwrapped(model)
    common: dict[str, Any] = {"model": model, "img_size": img_size, "num_workers": workers}
    common["pin_memory"] = torch_device(device, here=False).type == "cuda"
    common["generator"] = torch.Generator().manual_seed(seed)
    if str(data) == "photo_crops":
        size = _Crops.config(model, img_size)["input_size"][1:]
        dataset: Any = _crops_dataset(split, n_images, seed, size)
    else:
        source = find_source(data, split=split, root=root, download=download)
        if isinstance(source, StreamSource):
            info = _stream_info(source, split, n_images)
            stream = _Stream(source.dataset, info, batch_size, shard)
            return ImageLoader(stream, batch_size=batch_size, **common | {"num_workers": 0})
        source = number_as_head(source, model)
        dataset = _images_dataset(source, split, n_images, seed, on_error)
    return ImageLoader(dataset, batch_sampler=dealt_batches(len(dataset), batch_size, shard), **common)
