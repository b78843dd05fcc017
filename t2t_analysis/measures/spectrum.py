"""Do layers keep fine detail or smooth it away? Spatial spectra of the token maps.

Attention is said to be a low-pass filter (Park & Kim, ICLR 2022). Two quantities: theirs, relative to the mean of
the map, and one without the mean, which otherwise drowns everything else.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from .. import capture
from ..errors import T2TError
from ..results import Result
from .base import Estimate, ImageMeans, View

#: What white noise gives: its mean is real, its other coefficients complex, and E ln|z| differs by ln(2) / 2.
WHITE_TAIL = math.log(2) / 2
#: What is called high, as fraction of the Nyquist frequency along an axis.
HIGH = 0.5
#: added to amplitudes before the logarithm
_EPS = 1e-6


# ------------------------------------------------------------------------------------ pure functions


def diagonal_frequencies(grid: tuple[int, int]) -> Tensor:
    """Frequencies on the diagonal from the mean to the corner, as fractions of pi per token: (K,).

    2k / n for the shorter side n, below the Nyquist frequency itself, whose coefficient is real for even n. So the
    last one on a 14x14 grid is 12/14, not 1.

    >>> [round(f, 3) for f in diagonal_frequencies((14, 14)).tolist()]
    [0.0, 0.143, 0.286, 0.429, 0.571, 0.714, 0.857]
    """
    n = min(grid)
    if n < 3:
        raise T2TError(f"a {grid[0]}x{grid[1]} grid has no frequency below Nyquist; 3x3 is the least")
    return 2 * torch.arange((n + 1) // 2, dtype=torch.float64) / n


def log_amplitude(maps: Tensor) -> Tensor:
    """Log amplitude along the diagonal, relative to that of the mean: (..., C, h, w) to (..., K).

    D(f) = g(f) - g(0), g = mean over channels of ln(|F| + 1e-6), F the 2-D discrete Fourier transform, f as in
    `diagonal_frequencies` (Park & Kim 2022, Fig. 2, with the frequencies put right). On a grid that is not square, g is
    interpolated along the longer side. The mean of the logarithm, not the logarithm of the mean.

    >>> delta = torch.zeros(1, 5, 5)
    >>> delta[0, 2, 2] = 1  # all frequencies alike
    >>> log_amplitude(delta).abs().max().item() < 1e-9
    True
    """
    height, width = maps.shape[-2:]
    g = torch.log(torch.fft.fft2(maps.double()).abs() + _EPS).mean(-3)  # (..., h, w)
    f = diagonal_frequencies((height, width)).to(g.device)
    diagonal = _bilinear(g, f * height / 2, f * width / 2)
    return diagonal - diagonal[..., :1]


def _bilinear(g: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """Values of (..., h, w) at K fractional positions: (..., K)."""
    # Whole numbers that rounding has moved a little are put back, or the mean would leak into its neighbours.
    row, column = (torch.where((x - x.round()).abs() < 1e-9, x.round(), x) for x in (row, column))
    r, c = row.floor().long(), column.floor().long()
    a, b = row - r, column - c
    down, right = (r + 1) % g.shape[-2], (c + 1) % g.shape[-1]
    upper = g[..., r, c] * (1 - b) + g[..., r, right] * b
    lower = g[..., down, c] * (1 - b) + g[..., down, right] * b
    return upper * (1 - a) + lower * a


def radial_frequency(grid: tuple[int, int]) -> Tensor:
    """Distance of every Fourier coefficient from the mean, in units of the Nyquist frequency of an axis: (h, w)."""
    y, x = (2 * torch.fft.fftfreq(n, dtype=torch.float64) for n in grid)
    return torch.hypot(y[:, None], x[None, :])


def high_frequency_share(maps: Tensor) -> Tensor:
    """Share of the mean-removed energy above half of the Nyquist frequency: (..., C, h, w) to (...).

    Energy |F|^2 summed over channels, without the spatial mean, over its total: by Parseval h w times the variance.
    NaN for maps that are constant.
    """
    centred = maps.double() - maps.double().mean((-2, -1), keepdim=True)
    power = torch.fft.fft2(centred).abs().square().sum(-3)  # (..., h, w)
    power[..., 0, 0] = 0.0
    high = _is_high((maps.shape[-2], maps.shape[-1])).to(power.device)
    return power[..., high].sum(-1) / power.sum((-2, -1))


def _is_high(grid: tuple[int, int]) -> Tensor:
    """Which Fourier coefficients lie above half of the Nyquist frequency, (h, w) bool."""
    return radial_frequency(grid) > HIGH + 1e-9


def white_share(grid: tuple[int, int]) -> float:
    """What `high_frequency_share` expects of white noise: the share of coefficients but the mean."""
    return float(_is_high(grid).sum()) / (grid[0] * grid[1] - 1)


# ------------------------------------------------------------------------------------ the measure


class Spectrum(ImageMeans):
    """Spectra of the token maps (prefix removed, on their own grid), by place; averaged over images.

    Quantities: ``log_amplitude`` at the frequencies of `diagonal_frequencies` (in pi per token), and
    ``high_frequency_share`` of the mean-removed energy, above half of Nyquist. The null is white noise: +ln(2)/2 for
    the first, the share of coefficients for the second. A second null is a `random_twin` measured beside the model:
    soft splits overlap, so they smooth whatever was learned. A position table is part of the maps it is added to.

    Source: Park & Kim 2022.
    """

    name: ClassVar[str] = "spectrum"
    invariances: ClassVar[frozenset[str]] = frozenset({"scale", "permute_images", "permute_channels"})

    places = ("embed", "tokens.*.out", "blocks.*.resid_post")

    def bind(self, views: Sequence[View]) -> None:
        """Sums of spectra, per place."""
        (view,) = views
        names = view.offered(self.places)
        self.grids = [self._grid(view, name) for name in names]
        self.frequencies = [diagonal_frequencies(grid) for grid in self.grids]
        self.add_means(names, 1 + max(map(len, self.frequencies)))

    def _grid(self, view: View, name: str) -> tuple[int, int]:
        layout = view.layout_of(name)
        if layout is None:
            raise T2TError(f"{view.label}: {name} has no grid, so it has no spatial spectrum")
        return layout.grid

    def reduce(self, obs: capture.Observation) -> Tensor:
        """Share of high frequencies and diagonal log amplitude, (B, 1 + K)."""
        maps = obs.maps
        return torch.cat([high_frequency_share(maps).unsqueeze(-1), log_amplitude(maps)], dim=-1)

    def compute(self) -> Result:
        """Rows per place and frequency."""
        found = self.means()
        rows = [row for i in range(len(self.names)) for row in self._rows(i, found[i])]
        grids = {name: list(grid) for name, grid in zip(self.names, self.grids, strict=True)}
        return self.result(rows, grids=grids)

    def _rows(self, i: int, found: Estimate) -> Iterator[dict[str, Any]]:
        at = self.frequencies[i].numpy()
        row = self.row(self.names[i], tokens="patch", null_kind="white noise, expectation")
        yield row | {
            "quantity": "log_amplitude", "value_unit": "log amplitude", "at": at, "at_unit": "frequency, pi per token",
            "null": np.where(at > 0, WHITE_TAIL, 0.0), "estimate": found[1 : 1 + len(at)],
            "estimator": "mean over channels and images of ln|F|, minus that of the mean",
        }  # fmt: skip
        yield row | {
            "quantity": "high_frequency_share", "value_unit": "fraction", "at": HIGH,
            "at_unit": "above this fraction of Nyquist", "null": white_share(self.grids[i]), "estimate": found[0],
            "estimator": "share of mean-removed |F|^2 summed over channels, mean over images",
        }  # fmt: skip
