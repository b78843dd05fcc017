"""One photograph in one model, in one forward pass: where it attends, which tokens stand apart, which heads agree."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from .. import capture
from ..data.loading import preprocessing
from ..errors import CaptureError, DataError
from .head_maps import head_cosine, off_diagonal_mean
from .sinks import upper_part
from .token_components import fit_pca
from .view import View, evaluating


@dataclass(frozen=True, eq=False)
class Glance:
    """What one image shows in one model; L blocks, a grid of h x w patch tokens.

    Attributes
    ----------
    image : (H, W, C) as the model was given it, scaled to 0..1.
    asks : whose attention is shown, the class token's or the mean patch's.
    attention : (L, h, w), over patches only, mean over heads; sums to 1 in every block.
    norms : (L, h, w), norm of the patch tokens that leave the block; ``apart`` those that stand above the others.
    components : (h, w, K), up to three principal components of the last block's patch tokens, and what share of the
        variance each explains, (K,).
    agreement : (L, heads, heads), centred cosine of the heads' attention maps, mean over queries.
    logits : (K,), empty without a classifier.
    """

    label: str
    weights: str
    untrained: bool
    image: np.ndarray
    asks: str
    attention: np.ndarray
    norms: np.ndarray
    apart: np.ndarray
    components: np.ndarray
    explained: np.ndarray
    agreement: np.ndarray
    logits: Tensor

    @property
    def half(self) -> np.ndarray:
        """Smallest share of the patches that hold half of the attention, (L,): 0.5 if all get the same."""
        return np.array([half_share(block) for block in self.attention])

    @property
    def apart_share(self) -> np.ndarray:
        """Share of the patch tokens whose norm stands apart, (L,)."""
        return self.apart.mean((1, 2))

    @property
    def most_apart(self) -> int:
        """The block in which most tokens stand apart, the last of several."""
        return int(len(self.apart) - 1 - self.apart_share[::-1].argmax())

    @property
    def apart_ratio(self) -> float:
        """Mean norm of the tokens that stand apart in that block over that of the others; NaN without any."""
        norms, apart = self.norms[self.most_apart], self.apart[self.most_apart]
        return float(norms[apart].mean() / norms[~apart].mean()) if apart.any() else float("nan")

    @property
    def mean_agreement(self) -> np.ndarray:
        """Mean over pairs of different heads, (L,); NaN with one head."""
        return off_diagonal_mean(torch.from_numpy(self.agreement)).numpy()

    @property
    def closest_heads(self) -> tuple[int, int, int, float] | None:
        """Block, two heads and their cosine, where it is largest; None without two heads that can be compared."""
        pairs = np.where(np.triu(np.ones(self.agreement.shape[1:], bool), 1), self.agreement, np.nan)
        if np.isnan(pairs).all():
            return None
        block, head, other = np.unravel_index(np.nanargmax(pairs), pairs.shape)
        return int(block), int(head), int(other), float(pairs[block, head, other])


def half_share(weights: np.ndarray) -> float:
    """Smallest share of ``weights`` that hold half of their sum.

    >>> half_share(np.array([[5.0, 1.0], [1.0, 1.0]])), half_share(np.ones(8))
    (0.25, 0.5)
    """
    flat = np.sort(weights.ravel())[::-1]
    return float((np.searchsorted(flat.cumsum(), flat.sum() / 2 * (1 - 1e-9)) + 1) / flat.size)


def glance(model: nn.Module, image: Tensor, label: str | None = None) -> Glance:
    """Look at ``image`` (1, C, H, W), prepared for ``model``, once.

    Which norms stand apart is found in the norms of each block: a mixture of two normal distributions of their
    logarithms has to beat a single one (`upper_part`).

    Raises
    ------
    CaptureError, UnknownNameError
        The model has no blocks whose attention can be observed.
    DataError
        What the model makes of the image is not finite.
    """
    view = View(model, label, image)
    patterns, tokens = view.select("blocks.*.attn.pattern"), view.select("blocks.*.resid_post")
    device = next(model.parameters()).device
    with evaluating(model), torch.no_grad(), capture.capture(view, [*patterns, *tokens]) as seen:
        logits = model(image.to(device))
        layout = seen.layout(tokens[-1])
    if layout is None:
        raise CaptureError(f"the last block of {view.label} puts out no tokens on a grid")
    grid, prefix = layout.grid, layout.prefix
    maps = torch.cat([seen[name] for name in patterns]).float().cpu()  # (L, heads, N, N)
    out = torch.cat([seen[name] for name in tokens])[:, prefix:].float().cpu()  # (L, h w, D)
    if not (maps.isfinite().all() and out.isfinite().all()):
        raise DataError(f"{view.label} makes values that are not finite of this image")
    by_class = prefix > 0 and getattr(model, "cls_token", None) is not None
    asked = maps[:, :, 0] if by_class else maps[:, :, prefix:].mean(2)
    attention = asked.mean(1)[:, prefix:]
    norms = out.norm(dim=-1)
    scores, explained = fit_pca(out[-1].numpy(), min(3, *out[-1].shape))
    classifier = (
        isinstance(logits, Tensor) and logits.ndim == 2 and bool(getattr(model, "num_classes", False))
    )
    return Glance(
        view.label,
        view.weights,
        bool(view.untrained),
        _picture(image[0], model),
        "class token" if by_class else "mean patch",
        (attention / attention.sum(-1, keepdim=True)).view(-1, *grid).numpy(),
        norms.view(-1, *grid).numpy(),
        upper_part(norms.log()).view(-1, *grid).numpy(),
        scores.reshape(*grid, -1),
        explained,
        torch.stack([head_cosine(block) for block in maps]).numpy(),
        logits[0].float().cpu() if classifier else torch.empty(0),
    )


def _picture(image: Tensor, model: nn.Module) -> np.ndarray:
    """The pixels before they were standardised, (H, W, C) in 0..1."""
    config = preprocessing(model)
    mean, std = (torch.tensor(config[key])[:, None, None] for key in ("mean", "std"))
    return (image.cpu().float() * std + mean).clamp(0, 1).permute(1, 2, 0).numpy()
