"""What taking heads out does to an output: changes image by image, gradients, random subspaces; pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .ablation import Edit, Replay, Site, Start

#: What is known of an image whose output changed, in the order of a state's last axis.
QUANTITIES = ("kl", "output_shift", "loss_change", "lost", "gained")
LABELLED = ("loss_change", "lost", "gained")


def kl_divergence(logits: Tensor, other: Tensor) -> Tensor:
    """KL(p || q) in nats of the output distributions of two sets of logits, (B, K) each -> (B,) float64.

    Zero where they differ by a constant, and without any label: what ``other`` loses of ``logits``.

    >>> kl_divergence(torch.tensor([[0.0, 0.0]]), torch.tensor([[5.0, 5.0]])).tolist()
    [0.0]
    """
    p, q = logits.double().log_softmax(-1), other.double().log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1)


def effects(full: Tensor, changed: Tensor, labels: Tensor, labelled: Tensor) -> Tensor:
    """What a change did to each image: (B, K) outputs before and after -> (B, 5), see ``QUANTITIES``.

    ``loss_change`` is that of the cross-entropy (nats), ``lost`` and ``gained`` say whether the right class
    was lost or won, all 0 where not ``labelled`` (B,); ``output_shift`` is the squared distance.
    """
    shift = (changed.double() - full.double()).square().sum(-1)
    target = labels.clamp_min(0).clamp_max(full.shape[-1] - 1)
    loss = [-o.double().log_softmax(-1).gather(-1, target[:, None])[:, 0] for o in (full, changed)]
    before, after = full.argmax(-1), changed.argmax(-1)
    right = [(guess == labels) & labelled for guess in (before, after)]
    rows = [
        kl_divergence(full, changed),
        shift,
        torch.where(labelled, loss[1] - loss[0], 0.0),
        right[0] & ~right[1],
        right[1] & ~right[0],
    ]
    return torch.stack([row.double() for row in rows], dim=-1)


def random_subspaces(count: int, dim: int, width: int, seed: int) -> Tensor:
    """Orthonormal bases (count, dim, width) of uniformly random subspaces."""
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(count, dim, width, generator=generator, dtype=torch.float64))[0]


def projected(x: Tensor, bases: Tensor) -> Tensor:
    """Part of x (B, N, D) that lies in the subspace of its image, bases (B, D, r)."""
    return (x @ bases) @ bases.transpose(-2, -1)


def _ratio(wanted: Tensor, given: Tensor) -> Tensor:
    return torch.where(given > 0, wanted / given, 0.0)


def put(heads: Sequence[int], reference: Tensor) -> Edit:
    """Edit that replaces heads by ``reference``, broadcastable to (B, N, H, d)."""
    chosen = list(heads)

    def edit(z: Tensor) -> None:
        z[:, :, chosen] = reference.to(z).expand_as(z)[:, :, chosen]

    return edit


def remove_subspace(head: int, reference: Tensor, bases: Tensor) -> Edit:
    """Edit that takes a random subspace (B, D, r) out of z - reference, as much of it as ``head`` has."""

    def edit(z: Tensor) -> None:
        delta = z - reference.to(z)  # (B, N, H, d)
        part = projected(delta.flatten(-2), bases.to(z))  # (B, N, D)
        wanted = delta[:, :, head].norm(dim=-1, keepdim=True)
        z -= (part * _ratio(wanted, part.norm(dim=-1, keepdim=True))).unflatten(-1, z.shape[-2:])

    return edit


def head_gradients(replay: Replay, start: Start, losses: Any) -> dict[int, tuple[Tensor, Tensor]]:
    """Head outputs and the gradients of some losses by them, in one forward pass.

    Parameters
    ----------
    losses : function of the output (B, K) -> (T, B), one row a loss.

    Returns
    -------
    layer -> joined head outputs z (B, N, H d) and gradients (T, B, N, H d). The derivative of an image's loss
    by the factor xi_h of a head is <gradient, z> over the head's channels and all tokens.
    """
    kept: dict[int, Tensor] = {}
    handles = [site.hook(_leaf(kept, layer)) for layer, site in replay.sites.items()]
    try:
        with torch.enable_grad():
            x = start.tokens
            for i in range(len(replay.steps)):
                x = replay.step(i, x, start)
            rows = losses(replay.finish(x)).sum(-1)  # (T,)
            layers = list(kept)
            grads = [
                torch.autograd.grad(row, [kept[i] for i in layers], retain_graph=t + 1 < len(rows))
                for t, row in enumerate(rows)
            ]
    finally:
        for handle in handles:
            handle.remove()
    return {i: (kept[i].detach(), torch.stack([g[j] for g in grads])) for j, i in enumerate(layers)}


def _leaf(kept: dict[int, Tensor], layer: int) -> Any:
    def keep(z: Tensor) -> Tensor:
        kept[layer] = z if z.requires_grad else z.detach().requires_grad_()
        return kept[layer]

    return keep


def head_scores(z: Tensor, gradients: Tensor, site: Site) -> Tensor:
    """dL/dxi_h at xi = 1 of every image: (T, B, H)."""
    return site.heads(z * gradients).sum((-3, -1))


def subspace_scores(z: Tensor, gradients: Tensor, site: Site, bases: Tensor) -> Tensor:
    """The same for a random subspace that is given each head's norm at every token: (T, B, H)."""
    part = projected(z, bases.to(z))  # (B, N, D)
    along = (gradients * part).sum(-1)  # (T, B, N)
    scale = _ratio(site.heads(z).norm(dim=-1), part.norm(dim=-1, keepdim=True))  # (B, N, H)
    return torch.einsum("tbn,bnh->tbh", along, scale)
