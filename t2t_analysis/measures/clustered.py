"""Means and pairings over images of which some belong together, such as crops of one photograph's block."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike

from ..errors import DataError
from ..stats import permutation_p
from .grouped import grouped_estimate

__all__ = ["cluster_mean", "paired_against_others", "permute_clusters"]


def cluster_mean(values: ArrayLike, clusters: ArrayLike) -> dict[str, Any]:
    """Mean of ``values`` (n,) with a jackknife interval that leaves out whole ``clusters`` (n,).

    Returns the columns value, low, high, interval, n, unit of a result row. With clusters of one image it is
    Student's t interval. No interval (NaN) for a single cluster.

    >>> found = cluster_mean([1.0, 2.0, 3.0, 4.0], [0, 1, 2, 3])
    >>> round(found["low"], 5), found["n"], found["interval"]
    (0.44574, 4, 't, delete-a-group jackknife, 4 groups')
    >>> cluster_mean([1.0, 2.0, 3.0, 4.0], [0, 0, 1, 1])["interval"]
    't, delete-a-group jackknife, 2 groups (clusters of images)'
    """
    x, which = np.asarray(values, dtype=float), np.asarray(clusters)
    if not len(x) or x.shape != which.shape:
        raise DataError(
            f"a mean over images needs values and clusters alike, got {x.shape} and {which.shape}"
        )
    groups = np.unique(which, return_inverse=True)[1]
    sums = torch.from_numpy(np.bincount(groups, weights=x))
    counts = torch.from_numpy(np.bincount(groups).astype(float))
    columns = grouped_estimate(lambda s, n: s / n, (sums, counts), counts).at()
    if len(counts) < len(x) and columns["interval"]:
        columns["interval"] += " (clusters of images)"
    return columns


def permute_clusters(
    clusters: ArrayLike, rng: np.random.Generator, *, others_only: bool = False
) -> np.ndarray:
    """Partners (n,) of images under a random permutation of their clusters.

    An image is paired with the image of like rank in the cluster that takes the place of its own (in turn,
    where that one is smaller). With clusters of one image it is a plain permutation. With ``others_only`` no
    cluster keeps its place (they are turned by one in a random ring), which takes two clusters.

    >>> permute_clusters([0, 1, 2, 3], np.random.default_rng(0)).tolist()
    [2, 0, 1, 3]
    >>> permute_clusters([0, 0, 1, 1], np.random.default_rng(0), others_only=True).tolist()
    [2, 3, 0, 1]
    """
    groups = np.unique(np.asarray(clusters), return_inverse=True)[1]
    members = [np.flatnonzero(groups == g) for g in range(groups.max() + 1)]
    order = rng.permutation(len(members))
    if others_only and len(members) < 2:
        raise DataError("all images belong to one cluster, so there are no others to pair them with")
    sources = order if not others_only else np.empty_like(order)
    if others_only:
        sources[order] = np.roll(order, 1)
    partners = np.empty(len(groups), dtype=int)
    for own, other in zip(members, sources, strict=True):
        partners[own] = np.resize(members[other], len(own))
    return partners


def paired_against_others(
    similarity: np.ndarray, clusters: ArrayLike, *, draws: int = 999, seed: int = 0
) -> dict[str, Any]:
    """Are matching images more alike than others? From ``similarity`` (n, n), image i of one side with j of the other.

    Returns result columns: the mean of the diagonal with its interval, the null of pairs from different
    clusters, and a two-sided p among permutations of the clusters (which may leave some in place: that makes
    the test exact, and would lift the null).
    """
    rng, rows = np.random.default_rng(seed), np.arange(len(similarity))
    permuted = [permute_clusters(clusters, rng) for _ in range(draws)]
    others = [permute_clusters(clusters, rng, others_only=True) for _ in range(draws)]
    tested, null = (np.array([similarity[rows, p].mean() for p in ps]) for ps in (permuted, others))
    columns = cluster_mean(np.diagonal(similarity), clusters)
    low, high = np.quantile(null, [0.025, 0.975])
    return columns | {
        "null": float(null.mean()),
        "null_low": float(low),
        "null_high": float(high),
        "null_kind": f"maps of other images, paired at random {draws} times",
        "p": float(permutation_p(columns["value"], tested, "two-sided")),
    }
