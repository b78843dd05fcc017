"""Means and pairings over images of which some belong together, such as crops of one photograph's block."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ..errors import DataError
from ..estimates import Estimate
from ..stats import null_columns, permutation_p


def cluster_mean(values: ArrayLike, clusters: ArrayLike) -> dict[str, Any]:
    """Mean of ``values`` (n,) with a jackknife interval that leaves out whole ``clusters`` (n,).

    Returns the columns value, low, high, interval, n, unit of a result row; n counts clusters. With clusters
    of one image it is Student's t interval. No interval (NaN) for a single cluster.

    >>> found = cluster_mean([1.0, 2.0, 3.0, 4.0], [0, 1, 2, 3])
    >>> round(found["low"], 5), found["n"], found["interval"]
    (0.44574, 4, 't, delete-a-group jackknife, 4 groups')
    >>> [cluster_mean([1.0, 2.0, 3.0, 4.0], [0, 0, 1, 1])[key] for key in ("n", "unit")]
    [2, 'cluster of images']
    """
    x, which = np.asarray(values, dtype=float), np.asarray(clusters)
    if not len(x) or x.shape != which.shape:
        raise DataError(
            f"a mean over images needs values and clusters alike, got {x.shape} and {which.shape}"
        )
    groups = len(np.unique(which))
    columns = Estimate.of_units(x, group=which, groups=groups).columns()
    return columns | ({"n": groups, "unit": "cluster of images"} if groups < len(x) else {})


def permute_clusters(
    clusters: ArrayLike, draws: int, rng: np.random.Generator, *, others_only: bool = False
) -> np.ndarray:
    """Partners (draws, n) of images under random permutations of their clusters (n,).

    An image is paired with the image of like rank in the cluster that takes the place of its own (in turn,
    where that one is smaller). With clusters of one image these are plain permutations. With ``others_only``
    no cluster keeps its place (they are turned by one in a random ring), which takes two clusters.

    >>> permute_clusters([0, 1, 2, 3], 1, np.random.default_rng(0)).tolist()
    [[2, 0, 1, 3]]
    >>> permute_clusters([0, 0, 1, 1], 1, np.random.default_rng(0), others_only=True).tolist()
    [[2, 3, 0, 1]]
    """
    groups, sizes = np.unique(np.asarray(clusters), return_inverse=True, return_counts=True)[1:]
    if others_only and len(sizes) < 2:
        raise DataError("all images belong to one cluster, so there are no others to pair them with")
    order = rng.permuted(np.tile(np.arange(len(sizes)), (draws, 1)), axis=1)  # (draws, clusters)
    sources = order
    if others_only:
        sources = np.empty_like(order)
        np.put_along_axis(sources, order, np.roll(order, 1, axis=1), axis=1)
    members = np.stack([np.resize(np.flatnonzero(groups == g), sizes.max()) for g in range(len(sizes))])
    rank = np.empty(len(groups), dtype=int)
    for g, size in enumerate(sizes):
        rank[groups == g] = np.arange(size)
    return members[sources[:, groups], rank]


def paired_against_others(
    similarity: np.ndarray, clusters: ArrayLike, *, draws: int = 999, seed: int = 0
) -> dict[str, Any]:
    """Are matching images more alike than others? From ``similarity`` (n, n), image i of one side with j of the other.

    Returns result columns: the mean of the diagonal with its interval, the null of pairs from different
    clusters, and a two-sided p among permutations of the clusters (which may leave some in place: that makes
    the test exact, and would lift the null).
    """
    rng, rows = np.random.default_rng(seed), np.arange(len(similarity))
    permuted = permute_clusters(clusters, draws, rng)
    others = permute_clusters(clusters, draws, rng, others_only=True)
    tested, null = (similarity[rows, partners].mean(1) for partners in (permuted, others))
    columns = cluster_mean(np.diagonal(similarity), clusters)
    return columns | {
        **null_columns(null),
        "null_kind": f"maps of other images, paired at random {draws} times",
        "p": float(permutation_p(columns["value"], tested, "two-sided")),
    }
