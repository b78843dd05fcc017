"""Look around in a model by hand: pick an image, a layer, a head, a channel and a token, and see what is there.

``explore`` shows controls in JupyterLab, where ipywidgets (extra ``explore``) is installed, and the same figure and
table without them everywhere else. Everything is computed by `Exploration`, which knows nothing of widgets.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from torch import Tensor, nn

from ._names import is_small
from ._progress import in_kernel
from ._show import RESULTS_VARIABLE
from .errors import DataError, T2TError, UnknownNameError
from .models.wrappers import check_bare
from .quantities import quantity
from .results import Result, tidy
from .scene import CLASS, Look, Scene, Subject

if TYPE_CHECKING:
    from .plots.base import Figure

__all__ = ["Exploration", "Selection", "explore"]


@dataclass(frozen=True)
class Selection:
    """What is looked at.

    Attributes
    ----------
    image : its number.
    row, column : of the token, on the backbone's grid of the first model; on other grids the token that holds the
        centre of its cell.
    place, head, channel : in the first model, see `Subject.places`; the second follows, see `Exploration.looks`.
    query : "patch", or "class" for the class token.
    """

    image: int
    row: int
    column: int
    place: str
    head: int = 0
    channel: int = 0
    query: str = "patch"


def following_place(place: str, of: Sequence[str], to: Sequence[str]) -> str:
    """Name of the place in ``to`` that corresponds to ``place`` in ``of``: for blocks, by relative depth.

    >>> following_place("blocks.2", ["embed", "blocks.0", "blocks.1", "blocks.2"], ["embed", "blocks.0", "blocks.1"])
    'blocks.1'
    >>> following_place("tokens.1", ["tokens.0", "tokens.1", "embed"], ["embed", "blocks.0"])
    'embed'
    """
    blocks, others = ([name for name in names if name.startswith("blocks")] for names in (of, to))
    if place not in blocks:
        return place if place in to else "embed" if "embed" in to else to[0]
    share = blocks.index(place) / max(1, len(blocks) - 1)
    return others[round(share * (len(others) - 1))]


class Exploration:
    """One or two models with some images; figure and table of any selection. Each image is run once per model.

    Parameters
    ----------
    subjects : one or two, with as many images each.
    names : of the images.

    In a notebook it shows itself, with controls where they run. ``selection`` is what they stand at.

    >>> import timm, torch
    >>> model = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=2).eval()
    >>> exploration = Exploration([Subject(model, torch.rand(1, 3, 64, 64))])
    >>> exploration.select(layer=1, head=2, token=(0, 3)).table().columns.tolist()
    ['what', 'vit_tiny_patch16_224', 'vit_tiny_patch16_224: null', 'null is']
    """

    def __init__(
        self, subjects: Sequence[Subject], names: Sequence[str] = (), interactive: bool | None = None
    ):
        counts = {len(subject.images) for subject in subjects}
        if not 1 <= len(subjects) <= 2 or len(counts) != 1:
            raise DataError(
                f"expected one or two models with the same images, not {len(subjects)} with {counts}"
            )
        self.subjects, self.interactive = tuple(subjects), interactive
        self.names = tuple(names) or tuple(f"image {i}" for i in range(counts.pop()))
        first = self.subjects[0]
        rows, columns = first.grid
        blocks = [name for name in first.places if name.startswith("blocks")]
        self.selection = Selection(0, rows // 2, columns // 2, blocks[len(blocks) // 2])

    def __repr__(self) -> str:
        models = " and ".join(subject.label for subject in self.subjects)
        return f"Exploration of {models}, images: {len(self.names)}, at {self.selection}"

    # ---------------------------------------------------------------------------------------- choosing

    @property
    def token(self) -> tuple[int, int] | str:
        """The token that is looked at, as `select` takes it."""
        at = self.selection
        return CLASS if at.query == CLASS else (at.row, at.column)

    def select(
        self,
        *,
        image: int | None = None,
        layer: int | str | None = None,
        head: int | None = None,
        channel: int | None = None,
        token: tuple[int, int] | str | None = None,
        row: int | None = None,
        column: int | None = None,
    ) -> Exploration:
        """Change what is looked at; what is None stays. Returns the exploration itself.

        Parameters
        ----------
        layer : number of a block, counted from 0, or a place such as "embed" or "tokens.0".
        token : (row, column) on the backbone's grid, or "class".
        row, column : one of the two.

        Raises
        ------
        UnknownNameError, DataError : there is no such thing; the message says what there is.
        """
        place = layer if layer is None or not str(layer).lstrip("-").isdigit() else f"blocks.{layer}"
        changes: dict[str, Any] = {"image": image, "place": place, "head": head, "channel": channel}
        changes |= {"row": row, "column": column} | _token(token)
        self.move(replace(self.selection, **{k: v for k, v in changes.items() if v is not None}))
        return self

    def add(self, photograph: Any) -> Exploration:
        """Look at a further image: the path of a file, a Pillow image, or what `explore` takes else; the first of it.

        Raises
        ------
        DataError : no such file, or not one that can be read.
        """
        found = [_images(photograph, subject.view.model, 1, 0) for subject in self.subjects]
        for subject, (pixels, _) in zip(self.subjects, found, strict=True):
            subject.add(pixels)
        self.names = (*self.names, *found[0][1])
        return self.select(image=len(self.names) - 1)

    def move(self, selection: Selection) -> None:
        """Look at ``selection``, if all models have such an image, token, place, head and channel.

        Raises
        ------
        UnknownNameError, DataError : one of them has not; what was looked at stays.
        """
        if not 0 <= selection.image < len(self.names):
            raise DataError(f"image {selection.image}: there are {len(self.names)}, numbered from 0")
        rows, columns = self.subjects[0].grid
        if not (0 <= selection.row < rows and 0 <= selection.column < columns):
            given = f"token ({selection.row}, {selection.column})"
            raise DataError(f"{given}: the grid has {rows} rows and {columns} columns, numbered from 0")
        if selection.query not in ("patch", CLASS):
            raise UnknownNameError("token", selection.query, ["patch", CLASS])
        if selection.query == CLASS and not any(subject.has_class_token for subject in self.subjects):
            names = " and ".join(subject.label for subject in self.subjects)
            raise DataError(f"token is {CLASS!r}: {names} has no class token; expected (row, column)")
        self.subjects[0].check(Look(selection.place, selection.head, selection.channel))
        self.selection = selection

    def looks(self) -> tuple[Look, ...]:
        """Place, head and channel for each model.

        The second follows the first: the block at the same relative depth, the same numbers, or the last ones there.
        """
        at, (first, *others) = self.selection, self.subjects
        looks = [Look(at.place, at.head, at.channel)]
        for other in others:
            place = following_place(at.place, list(first.places), list(other.places))
            head = min(at.head, (other.heads(place) or at.head + 1) - 1)
            looks.append(Look(place, head, min(at.channel, other.channels(place) - 1)))
        return tuple(looks)

    # ---------------------------------------------------------------------------------------- looking

    def scenes(self) -> list[Scene]:
        """What each model shows of the selection."""
        at, (rows, columns) = self.selection, self.subjects[0].grid
        point = CLASS if at.query == CLASS else ((at.row + 0.5) / rows, (at.column + 0.5) / columns)
        return [s.scene(at.image, point, look) for s, look in zip(self.subjects, self.looks(), strict=True)]

    def frame(self) -> pd.DataFrame:
        """Return the numbers with the columns of a result."""
        return self.result().frame

    def picture(self) -> tuple[Figure, pd.DataFrame]:
        """Figure, a row for each model, and readable table."""
        from .plots.scene import scene_figure

        scenes = self.scenes()
        frame = tidy([row for scene in scenes for row in scene.rows])
        return scene_figure(scenes, frame, self.names[self.selection.image]), beside(frame)

    def figure(self) -> Figure:
        """Image, attention, feature map and receptive field, a row for each model."""
        return self.picture()[0]

    def table(self) -> pd.DataFrame:
        """Return the numbers for people: each beside what it would be if there were nothing to see."""
        return beside(self.frame())

    def sentences(self) -> list[str]:
        """Say in a sentence for each model what there is to see."""
        from .plots.scene import scene_words

        return [scene_words(scene) for scene in self.scenes()]

    def result(self) -> Result:
        """Return the numbers of the current selection as a result that can be saved."""
        meta = {"images": list(self.names), "selection": asdict(self.selection)}
        rows = [row for scene in self.scenes() for row in scene.rows]
        return Result("explore", tidy(rows), meta, ("one image: a description without intervals",))

    def _ipython_display_(self) -> None:
        from ._controls import show_exploration

        show_exploration(self, runs_widgets() if self.interactive is None else self.interactive)


def _token(token: tuple[int, int] | str | None) -> dict[str, Any]:
    if token is None:
        return {}
    if isinstance(token, str):
        return {"query": token}
    if not isinstance(token, tuple | list) or len(token) != 2:
        raise DataError(f'token is {token!r}: expected (row, column) or "{CLASS}"')
    return {"query": "patch", "row": token[0], "column": token[1]}


def beside(frame: pd.DataFrame) -> pd.DataFrame:
    """Return tidy rows as a table for people: a row for each number, two columns for each model."""
    looks = [quantity(name) for name in frame["quantity"]]
    variants = ", " + frame["variant"].astype("string")
    what = [look.title + of for look, of in zip(looks, variants.fillna(""), strict=True)]
    rows = frame.assign(what=what).set_index("what")
    for name in ("value", "null"):
        rows[name] = [look.number(x) for look, x in zip(looks, frame[name], strict=True)]
    parts: dict[str, pd.Series] = {}
    for model, own in rows.groupby("model", sort=False):
        parts |= {str(model): own["value"], f"{model}: null": own["null"]}
    table = pd.DataFrame(parts, index=list(dict.fromkeys(what)))
    kinds = rows["null_kind"][~rows.index.duplicated()]
    return table.assign(**{"null is": kinds}).reset_index(names="what")


def runs_widgets() -> bool:
    """Whether controls can run here: a notebook's kernel, ipywidgets installed, and no report being made."""
    return in_kernel() and find_spec("ipywidgets") is not None and RESULTS_VARIABLE not in os.environ


# -------------------------------------------------------------------------------------------- from models and images


def explore(
    model: nn.Module | str | Mapping[str, nn.Module],
    image: Any = None,
    baseline: nn.Module | str | None = None,
    *,
    number: int = 0,
    layer: int | str | None = None,
    head: int = 0,
    channel: int = 0,
    token: tuple[int, int] | str | None = None,
    n_images: int = 8,
    seed: int = 0,
    interactive: bool | None = None,
) -> Exploration:
    """Look at one image, layer, head, channel and token of a model; beside a second model if one is given.

    As the last line of a cell it shows itself: with controls in JupyterLab if ipywidgets is installed (``pip install
    't2t-analysis[explore]'``), as a figure and a table otherwise. To get those alone: ``.figure()``, ``.table()``.

    Parameters
    ----------
    model, baseline : vision transformers, or names for `load_model`, or both as one mapping label -> model. A
        second model of the same name is called "(baseline)".
    image : what to look at. None takes embedded images that fit the model; else data as for `load_images` (a file,
        a folder, "photos", "photo_crops"), its loader, a Pillow image, or preprocessed pixels (3, H, W) or
        (n, 3, H, W). Files, names and Pillow images are preprocessed for each model as it wants them.
    number : which of the images.
    layer : number of a block or a place ("embed", "tokens.0"); the middle by default.
    head, channel : numbers.
    token : (row, column) on the grid of the backbone, or "class"; the middle by default.
    n_images, seed : at most so many images to choose from, and what they are drawn with.
    interactive : controls or not; None finds out whether they run here.

    Raises
    ------
    UnknownNameError, DataError : no such layer, head, channel, image or token; the message says what there is.
    CaptureError : the model is no vision transformer that can be observed.

    >>> from t2t_analysis import explore
    >>> seen = explore("small_hard_deep", "photo_crops", layer=3, head=1, channel=5, token=(2, 6))
    >>> seen.figure().alt[:62]
    'Maps over the image: attention, feature map, receptive field. '
    >>> seen.select(layer="embed").scenes()[0].missing
    {'attention': "this is the tokeniser's output"}
    """
    if n_images < 1:
        raise DataError(f"n_images={n_images} must be at least 1")
    given = model.items() if isinstance(model, Mapping) else ((None, one) for one in (model, baseline))
    named = [(label, _loaded(one)) for label, one in given if one is not None or one is model]
    models = [one for _, one in named]
    known = str((getattr(models[0], "pretrained_cfg", None) or {}).get("architecture", ""))
    source = ("photo_crops" if is_small(known) else "photos") if image is None else image
    chosen = [_images(source, one, n_images, seed) for one in models]
    subjects = [Subject(one, pixels, label) for (label, one), (pixels, _) in zip(named, chosen, strict=True)]
    if len(subjects) == 2 and subjects[0].label == subjects[1].label:
        subjects[1].view.label += " (baseline)"
    exploration = Exploration(subjects, chosen[0][1], interactive)
    return exploration.select(image=number, layer=layer, head=head, channel=channel, token=token)


def _loaded(model: nn.Module | str) -> nn.Module:
    if isinstance(model, str):
        from .models import load_model

        return load_model(model)
    if not isinstance(model, nn.Module):
        raise T2TError(f"model of type {type(model).__name__}: expected a model, or a name for load_model")
    check_bare(model)
    return model


def _images(source: Any, model: nn.Module, n_images: int, seed: int) -> tuple[Tensor, tuple[str, ...]]:
    """Up to ``n_images`` images (n, 3, H, W) for a model, and their names."""
    from PIL import Image

    from .data.loading import first_images, load_images, preprocessing, told, transform_of
    from .data.reading import to_rgb

    names: tuple[str, ...] = ()
    if isinstance(source, Tensor):
        pixels = (source[None] if source.ndim == 3 else source)[:n_images]
        if pixels.ndim != 4 or not len(pixels):
            raise DataError(f"image of shape {tuple(source.shape)}: expected (3, H, W) or (n, 3, H, W)")
        if not pixels.is_floating_point():
            raise DataError(
                f"image of type {pixels.dtype}: expected pixels that are preprocessed; raw ones as a Pillow image are "
                "preprocessed for each model"
            )
    elif isinstance(source, Image.Image):
        pixels, names = transform_of(preprocessing(model))(to_rgb(source))[None], ("the image",)
    else:
        if isinstance(source, str | Path):
            path, source = Path(source), load_images(source, model=model, batch_size=n_images, seed=seed)
            if path.is_file() and path.suffix != ".tar":
                n_images, names = 1, (path.name,)
        if not hasattr(source, "dataset"):
            raise T2TError(
                f"image of type {type(source).__name__}: expected a tensor of preprocessed pixels, a Pillow image, a "
                "path or a loader"
            )
        pixels = first_images(model, source, n_images)
        names = names or tuple(getattr(told(source), "names", ()))
    return pixels, names[: len(pixels)] or tuple(f"image {i}" for i in range(len(pixels)))
