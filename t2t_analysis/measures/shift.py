"""Does the token map move with the image? Correlation of shifted and interpolated token maps, by shift.

A hard split sees a new picture whenever an edge moves from one cell to the next, and its old one again after a whole
cell: the correlation has a period of one patch. Overlap should make the dip shallower.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .. import capture
from ..errors import T2TError, UnknownNameError
from ..results import Result
from .base import Estimate, RunAgain, View
from .edges import cell_size

PIXELS = "pixels.mean"


# ------------------------------------------------------------------------------------ pure functions


def shifted(images: Tensor, pixels: int, axis: int) -> Tensor:
    """Move the view by ``pixels`` down (axis 2) or right (axis 3); what is missing is mirrored: same shape.

    >>> shifted(torch.arange(4.0).view(1, 1, 1, 4), 1, axis=3).tolist()
    [[[[1.0, 2.0, 3.0, 2.0]]]]
    """
    size = images.shape[axis]
    if not 0 <= pixels < size:
        raise T2TError(f"cannot shift an image of {size} pixels by {pixels}; give 0 to {size - 1}")
    index = torch.arange(pixels, size + pixels, device=images.device)
    return images.index_select(axis, torch.where(index < size, index, 2 * (size - 1) - index))


def shifted_pair(original: Tensor, moved: Tensor, pixels: int, cell: int, axis: int) -> tuple[Tensor, Tensor]:
    """The tokens that can be compared after a shift, and what interpolation expects them to be.

    Parameters
    ----------
    original, moved : (B, C, h, w) token maps of the image and of the image shifted by ``pixels`` along ``axis``.
    cell : side of a cell in pixels.

    Returns
    -------
    Part of ``moved``, and ``original`` linearly interpolated at the same places. Left out along the axis: the first
    cell, which padding reaches, and those at the end that would see mirrored pixels, with one pixel to spare for
    windows that overlap.

    Raises
    ------
    T2TError : nothing is left.
    """
    n = original.shape[axis]
    whole, part = divmod(pixels, cell)
    last = (n * cell - pixels - cell - 1) // cell  # the last cell all whose pixels, and one more, are real
    last = min(last, n - 1 - whole - (1 if part else 0))
    if last < 1:
        raise T2TError(
            f"a shift by {pixels} px leaves no token to compare on {n} cells of {cell} px; use smaller shifts"
        )
    kept = torch.arange(1, last + 1, device=original.device)
    here = original.index_select(axis, kept + whole)
    if part:
        here = torch.lerp(here, original.index_select(axis, kept + whole + 1), part / cell)
    return moved.index_select(axis, kept), here


def map_correlation(a: Tensor, b: Tensor, scale: Tensor | None = None) -> Tensor:
    """Correlation over channels and positions of what is particular to each image: (B, C, h, w) twice to (B,).

    The mean over the batch is removed at every position and channel (a position table is the same in all images, and
    does not move with them), and channels are divided by ``scale`` (C,). NaN where nothing varies, as in a batch of
    one.
    """
    a, b = (x.double() - x.double().mean(0, keepdim=True) for x in (a, b))
    if scale is not None:
        a, b = (x / scale.to(x).clamp_min(torch.finfo(torch.float32).tiny)[:, None, None] for x in (a, b))
    product = (a * b).flatten(1).sum(1)
    norms = a.flatten(1).norm(dim=1) * b.flatten(1).norm(dim=1)
    return torch.where(norms > 0, product / norms, torch.nan)


def default_shifts(cell: int, cells: int) -> tuple[int, ...]:
    """About eight shifts per cell, up to two cells where the grid allows it, whole cells always among them.

    >>> default_shifts(4, 8), default_shifts(16, 14)[:5]
    ((1, 2, 3, 4, 5, 6, 7, 8), (2, 4, 6, 8, 10))
    """
    step = next(s for s in range(max(1, cell // 8), 0, -1) if cell % s == 0)
    longest = cell * min(2, cells - 3)
    if longest < cell:
        raise T2TError(f"shifts by a whole cell need at least 4 cells a side, got {cells}; use larger images")
    return tuple(range(step, longest + 1, step))


# ------------------------------------------------------------------------------------ the measure


class ShiftConsistency(RunAgain):
    """Correlation of the token map of a shifted image with the interpolated map of the original, by shift.

    The view moves by so many pixels down and, separately, right; missing pixels are mirrored and the tokens that see
    them are left out (`shifted_pair`), so nothing wraps round. Channels are scaled by their standard deviation, and
    what all images of the batch share at a position is removed (`map_correlation`), so that batches of several images
    are needed. Quantities: ``shift_correlation`` at every shift, and ``shift_dip``, the correlation at a shift of one
    cell minus that at half a cell. The null is the same for the mean of the pixels in each cell: what bilinear
    interpolation alone loses.

    Parameters
    ----------
    shifts : in pixels; default `default_shifts`. Each costs two forward passes.
    places : shell-style patterns of places on the last grid; those that a model lacks are passed over.
    max_images : only the first so many images of the data are used.

    Source: this package; the question is that of Zhang 2019 (shift equivariance).
    """

    name: ClassVar[str] = "shift_consistency"
    invariances: ClassVar[frozenset[str]] = frozenset({"scale", "translation", "permute_channels"})

    def __init__(
        self,
        *,
        shifts: Sequence[int] | None = None,
        places: Sequence[str] = ("embed", "blocks.*.resid_post"),
        max_images: int = 64,
        groups: int = 32,
    ) -> None:
        super().__init__(max_images, groups)
        self.shifts, self.places = shifts, tuple(places)

    def bind(self, views: Sequence[View]) -> None:
        """Sums of correlations, per place, shift and axis."""
        (view,) = views
        layout = view.layout_of("embed")
        if layout is None or view.example is None:
            raise T2TError(f"{view.label} tells no grid of tokens, so there is no map to shift")
        self.grid = layout.grid
        self.cell = cell_size(view.example.shape[-2:], self.grid)
        places = view.offered(self.places)
        self.observed = [n for n in places if (at := view.layout_of(n)) is not None and at.grid == self.grid]
        if not self.observed:
            raise UnknownNameError(
                "place on the last grid", ", ".join(places), view.names, hint=f"in {view.label}"
            )
        given = default_shifts(min(self.cell), min(self.grid)) if self.shifts is None else self.shifts
        self.used = tuple(sorted({int(s) for s in given}))
        if not self.used or self.used[0] < 1:
            raise T2TError(f"expected shifts of at least 1 pixel, got {tuple(given)}")
        self.add_means([*self.observed, PIXELS], len(self.used))
        self.add_sum("left_out", dtype=torch.int64)

    def run_again(self, view: View, images: Tensor, index: Tensor) -> None:
        """Run the images and their shifted versions."""
        if len(images) < 2:
            self.left_out += len(images)
            return
        original = self._maps(view, images)
        scale = {name: maps.double().std((0, 2, 3)) for name, maps in original.items()}

        def correlations(pixels: int, axis: int) -> Tensor:
            """Of every place, (B, places)."""
            moved, cell = self._maps(view, shifted(images, pixels, axis)), self.cell[axis - 2]
            pairs = {n: shifted_pair(original[n], moved[n], pixels, cell, axis) for n in original}
            return torch.stack([map_correlation(*pair, scale[name]) for name, pair in pairs.items()], -1)

        found = [torch.stack([correlations(s, axis) for axis in (2, 3)]).mean(0) for s in self.used]
        both = torch.stack(found, -1)  # (B, places, shifts)
        self.left_out += (~both.isfinite().any(-1).any(-1)).sum().to(self.left_out.device)
        for i in range(len(self.names)):
            self.add(i, index % self.groups, both[:, i])

    def _maps(self, view: View, images: Tensor) -> dict[str, Tensor]:
        """(B, C, h, w) of every place, then of the pixels' means."""
        with torch.no_grad(), capture.capture(view, self.observed) as seen:
            view.model(images)
        maps = {name: seen.observation(name).maps for name in self.observed}
        (ph, pw), (h, w) = self.cell, self.grid
        return maps | {PIXELS: F.avg_pool2d(images[:, :, : h * ph, : w * pw].float(), self.cell)}

    def compute(self) -> Result:
        """Rows per place and shift; the pixels' values are the null of the others."""
        if left_out := int(self.left_out):
            self.note(
                f"{left_out} images are left out: alone in a batch, or in one whose maps do not vary or are not finite"
            )
        found = self.means()
        rows = [self._row(found, np.array(self.used), "shift_correlation"), *self._dip(found)]
        return self.result(rows, cell=list(self.cell), max_images=self.max_images)

    def _row(self, found: Estimate, at: np.ndarray, quantity: str) -> dict[str, Any]:
        """Rows of every place (L,) and shift (S,), of an estimate (L, S)."""
        pixels = found[[len(self.names) - 1] * len(self.names)]  # of the pixels themselves: what they are
        row = self.row(
            np.array(self.names, dtype=object)[:, None], estimate=found, quantity=quantity, at=at,
            at_unit="shift, pixels", tokens="patch", value_unit="none",
            null=pixels,
            null_kind="bilinear interpolation of the pixels' means per cell",
            estimator="correlation with the interpolated map, mean of two directions and of images",
        )  # fmt: skip
        top = (
            {}
            if quantity == "shift_dip"
            else {"ceiling": 1.0, "ceiling_kind": "the map moves with the image"}
        )
        return row | top

    def _dip(self, found: Estimate) -> Iterator[dict[str, Any]]:
        """Correlation at one cell minus that at the shift nearest to half a cell."""
        cell = min(self.cell)
        if cell not in self.used:
            self.note(f"no shift_dip: the shifts {self.used} do not contain one cell, {cell} px")
            return
        whole = self.used.index(cell)
        half = min(range(len(self.used)), key=lambda j: abs(self.used[j] - cell / 2))
        dip = found.map(lambda x: x[..., [whole]] - x[..., [half]], found.sizes[..., [whole]])
        yield self._row(dip, np.array([float(self.used[half])]), "shift_dip")
