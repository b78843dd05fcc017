"""What do tokens have in common? Patch tokens through their principal components, drawn as colours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .. import capture
from ..data.loading import gather_images, told
from ..errors import DataError, T2TError
from ..estimates import Estimate
from ..results import Result, as_json
from .base import View, layer_of
from .view import evaluating, views_of


@dataclass(frozen=True, eq=False)
class TokenPCA:
    """The first principal components of a layer's patch tokens, laid out as pictures.

    ``maps``: (n, h, w, K) scores; ``ranges``: (2, K), their 1 % and 99 % points over all images, common to
    all so that a colour means the same everywhere. ``tokens``: (n, h w, D); ``images``: (n, C, H, W).
    """

    label: str
    weights: str
    place: str
    images: Tensor
    tokens: np.ndarray
    maps: np.ndarray
    ranges: np.ndarray
    explained: np.ndarray
    meta: dict[str, Any]

    @property
    def rgb(self) -> np.ndarray:
        """Scores of the first three components scaled to 0..1: (n, h, w, 3)."""
        low, high = self.ranges[:, :3]
        return np.clip((self.maps[..., :3] - low) / (high - low), 0, 1)


def fit_pca(tokens: np.ndarray, components: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores (n, K) and shares of the variance (K,) of ``tokens`` (n, D).

    A component's sign means nothing; it is fixed so that its largest loading is positive.
    """
    from sklearn.decomposition import PCA

    if components > min(tokens.shape):
        raise DataError(
            f"{components} components of {tokens.shape[0]} tokens with {tokens.shape[1]} channels"
        )
    pca = PCA(components, svd_solver="covariance_eigh" if len(tokens) > tokens.shape[1] else "full")
    scores = pca.fit_transform(tokens.astype(np.float64))
    largest = np.abs(pca.components_).argmax(1)
    return scores * np.sign(pca.components_[np.arange(components), largest]), pca.explained_variance_ratio_


def token_pca(
    models: nn.Module | Sequence[nn.Module] | Mapping[str, nn.Module],
    loader: Any,
    place: str | None = None,
    *,
    n_images: int | None = 8,
    components: int = 3,
) -> list[TokenPCA]:
    """Principal components of the patch tokens of ``n_images`` images together, for each model.

    ``place`` defaults to the last block's output. Prefix tokens are left out. The same colour in two images
    of one model is the same direction; between models colours do not correspond.

    Raises
    ------
    UnknownNameError : a place that a model lacks.
    T2TError : tokens that are not finite, or fewer than three components.
    """
    if components < 3:
        raise T2TError(f"components={components}: three are drawn as red, green and blue")
    return [
        _one_pca(view, gather_images(view.model, loader, n_images)[0], place, components, loader)
        for view in views_of(models)
    ]


def _one_pca(view: View, images: Tensor, place: str | None, components: int, loader: Any) -> TokenPCA:
    name = place or view.select("blocks.*.resid_post")[-1]
    device = next(view.model.parameters()).device
    parts = []
    with evaluating(view.model), torch.no_grad(), capture.capture(view, name) as seen:
        for chunk in images.split(16):
            view.model(chunk.to(device))
            layout = seen.layout(name)
            if layout is None:
                raise T2TError(f"{name} of {view.label} holds no tokens")
            parts.append(seen[name][:, layout.prefix :].float().cpu().numpy())
    assert layout is not None
    tokens = np.concatenate(parts)  # (n, h w, D)
    if not np.isfinite(tokens).all():
        raise T2TError(f"{view.label}: {name} is not finite")
    scores, explained = fit_pca(tokens.reshape(-1, tokens.shape[-1]), components)
    maps = scores.reshape(len(tokens), *layout.grid, components)
    meta = {"models": [view.describe()], "data": as_json(told(loader))}
    ranges = np.quantile(scores, [0.01, 0.99], axis=0)
    return TokenPCA(view.label, view.weights, name, images, tokens, maps, ranges, explained, meta)


def pca_result(pcas: TokenPCA | Sequence[TokenPCA], *, draws: int = 5, seed: int = 0) -> Result:
    """Shares of variance that the components explain, by model.

    Rows ``explained_variance`` over the number of the component (``at``), with a jackknife interval over
    images. Null: the same tokens with every channel shuffled over all of them by itself, which keeps each
    channel's variance and takes away what channels have in common.
    """
    several = [pcas] if isinstance(pcas, TokenPCA) else list(pcas)
    rows = [_pca_row(one, draws, seed) for one in several]
    meta = {"seed": seed, "runs": [one.meta for one in several]}
    return Result.of_rows("token_pca", rows, meta)


def _pca_row(one: TokenPCA, draws: int, seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    flat = one.tokens.reshape(-1, one.tokens.shape[-1])
    components = len(one.explained)
    null = np.array([fit_pca(rng.permuted(flat, axis=0), components)[1] for _ in range(draws)])
    return {
        "measure": "token_pca", "quantity": "explained_variance", "model": one.label, "weights": one.weights,
        "place": one.place, "layer": layer_of(one.place), "estimate": _shares(one), "tokens": "patch",
        "at": np.arange(1.0, components + 1), "at_unit": "component", "value_unit": "fraction",
        "null": null.mean(0), "null_low": null.min(0), "null_high": null.max(0),
        "null_kind": f"each channel shuffled over tokens; mean and range of {draws} draws",
        "estimator": "PCA of patch tokens",
    }  # fmt: skip


def _shares(one: TokenPCA) -> Estimate:
    """Shares of the variance (K,), without each of at most 16 groups of images."""
    group = np.arange(len(one.tokens)) % min(16, len(one.tokens))
    components, sizes = len(one.explained), np.bincount(group)
    if len(sizes) < 2:
        return Estimate(one.explained, one.explained[None], sizes)
    rest = (one.tokens[group != g].reshape(-1, one.tokens.shape[-1]) for g in range(len(sizes)))
    return Estimate(one.explained, np.array([fit_pca(x, components)[1] for x in rest]), sizes)
