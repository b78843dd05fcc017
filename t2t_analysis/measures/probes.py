"""What can be read off a layer? Linear and nearest-neighbour probes by depth."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from .. import capture
from .._progress import progress as counted
from ..data.loading import batches_for, told
from ..errors import DataError, T2TError, UnknownNameError
from ..results import Result, as_json
from ..stats import proportion_ci
from .base import layer_of
from .clusters import cluster_mean
from .view import evaluating, result_of, views_of

Tokens = Literal["pooled", "class"]
KINDS = ("linear", "knn")
#: inverse strengths of the L2 penalty that the inner cross-validation chooses from
STRENGTHS = (0.001, 0.01, 0.1, 1.0, 10.0)
#: of the inner cross-validation
FOLDS = 3
#: most steps of a logistic regression
ITERATIONS = 1000


# ------------------------------------------------------------------------------------------ features


@dataclass(frozen=True, eq=False)
class Features:
    """One vector per image and place, with labels and the clusters of images that belong together.

    ``values``: place -> (n, D) float32; ``labels``, ``clusters``: (n,). ``bad``: places that were not finite.
    """

    values: dict[str, np.ndarray]
    labels: np.ndarray
    clusters: np.ndarray
    bad: tuple[str, ...] = ()


def collect_features(
    model: nn.Module | capture.ModelView,
    loader: Any,
    places: str = "blocks.*.resid_post",
    tokens: Tokens = "pooled",
) -> Features:
    """Pass all images of ``loader`` once and keep one vector per image and place.

    "pooled" is the mean patch token, "class" the first token. Images times widths are kept, in float32.

    Raises
    ------
    DataError : an image without a label.
    T2TError : no class token where it is asked for.
    """
    view = capture.view(model)
    if tokens not in ("pooled", "class"):
        raise UnknownNameError("tokens", tokens, ("pooled", "class"))
    if tokens == "class" and not getattr(view.model, "num_prefix_tokens", 0):
        raise T2TError(f"{view.label} has no class token; tokens='pooled' would do")
    kept: dict[str, list[Tensor]] = {name: [] for name in view.select(places)}

    def keep(seen: capture.Observation) -> None:
        first = tokens == "class" and seen.layout is not None and seen.layout.prefix
        kept[seen.name].append((seen.value[:, 0] if first else seen.patches.mean(1)).float().cpu())

    labels, index, device = [], [], next(view.model.parameters()).device
    with evaluating(view.model), torch.no_grad(), capture.observe(view, dict.fromkeys(kept, keep)):
        for batch in batches_for(view.model, loader):
            view.model(batch.images.to(device))
            labels.append(batch.labels)
            index.append(batch.index)
    known, where = torch.cat(labels).numpy(), torch.cat(index).numpy()
    if (known < 0).any():
        raise DataError(f"a probe needs labels; {(known < 0).sum()} of {len(known)} images have none")
    groups = getattr(getattr(loader, "dataset", None), "clusters", None)
    values = {name: torch.cat(parts).numpy() for name, parts in kept.items()}
    bad = tuple(name for name, x in values.items() if not np.isfinite(x).all())
    clusters = where if groups is None else np.asarray(groups)[where]
    return Features({k: v for k, v in values.items() if k not in bad}, known, clusters, bad)


# ------------------------------------------------------------------------------------------ probes


def whole_clusters(
    labels: np.ndarray, clusters: np.ndarray, seed: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Folds (train, held out) of images, balanced over classes; no cluster lies on both sides."""
    from sklearn.model_selection import StratifiedGroupKFold

    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed)
    return list(folds.split(np.zeros(len(labels)), labels, clusters))


def _linear(features: np.ndarray, labels: np.ndarray, clusters: np.ndarray, seed: int) -> tuple[Any, str]:
    """Standardise, then logistic regression; its penalty by cross-validation over whole clusters."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    search = GridSearchCV(
        make_pipeline(StandardScaler(), LogisticRegression(max_iter=ITERATIONS, tol=1e-3)),
        {"logisticregression__C": STRENGTHS},
        cv=whole_clusters(labels, clusters, seed),
        scoring="accuracy",
    ).fit(features, labels)
    chosen, best = search.best_params_["logisticregression__C"], search.best_estimator_
    stopped = ", not converged" if max(best[-1].n_iter_) >= ITERATIONS else ""
    return best, f"logistic regression, C={chosen:g} of {len(STRENGTHS)} by {FOLDS}-fold CV{stopped}"


def _knn(neighbours: int) -> Any:
    """Standardise, then majority among the nearest by cosine."""
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), KNeighborsClassifier(neighbours, metric="cosine"))


def shuffled_labels(labels: np.ndarray, clusters: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Labels (n,) permuted among clusters, so that crops of one block still share theirs.

    >>> shuffled_labels(np.array([7, 7, 8, 8]), np.array([0, 0, 1, 1]), np.random.default_rng(3)).tolist()
    [8, 8, 7, 7]
    """
    first, groups = np.unique(clusters, return_index=True, return_inverse=True)[1:]
    return rng.permutation(labels[first])[groups]


def accuracy_columns(correct: np.ndarray, clusters: np.ndarray) -> dict[str, Any]:
    """Result columns of an accuracy from ``correct`` (n,), with an interval over clusters of images.

    Wilson's interval where images are independent; where they are not, and all clusters agree, it is
    Wilson's over the number of clusters, since a jackknife then knows no spread.
    """
    count = len(np.unique(clusters))
    if count == len(correct) or correct.all() or not correct.any():
        found = proportion_ci(round(float(correct.mean()) * count), count)
        value = {"value": found.value, "low": found.low, "high": found.high, "interval": "Wilson"}
        return value | {"n": count, "unit": "image" if count == len(correct) else "cluster of images"}
    return cluster_mean(correct, clusters)


def _check(train: Features, test: Features, kinds: Sequence[str]) -> None:
    for kind in kinds:
        if kind not in KINDS:
            raise UnknownNameError("probe", kind, KINDS)
    unseen = sorted(set(test.labels.tolist()) - set(train.labels.tolist()))
    if unseen:
        raise DataError(f"classes {unseen[:8]} of the test images are not among the training images")
    pairs = np.unique(np.stack([train.labels, train.clusters], 1), axis=0)
    label, count = np.unique(pairs[:, 0], return_counts=True)
    if "linear" in kinds and (len(label) < 2 or count.min() < FOLDS):
        raise DataError(
            f"a linear probe needs 2 classes and {FOLDS} independent training images (clusters) of each; "
            f"class {label[count.argmin()]} has {count.min()} of {len(label)} classes"
        )


def probe(
    models: nn.Module | Sequence[nn.Module] | Mapping[str, nn.Module],
    train_loader: Any,
    test_loader: Any,
    *,
    places: str = "blocks.*.resid_post",
    tokens: Tokens = "pooled",
    kinds: Sequence[str] = KINDS,
    neighbours: int = 10,
    shuffles: int = 3,
    seed: int = 0,
    progress: bool = True,
) -> Result:
    """Accuracy of probes trained on each layer's features of one split and tested on the other.

    Linear probes (Alain & Bengio 2016): multinomial logistic regression on standardised features, its L2
    penalty chosen by cross-validation inside the training split, over whole clusters. Nearest neighbours: the
    majority of ``neighbours`` by cosine, nothing fitted but the scaling.

    Parameters
    ----------
    models : give a `random_twin` as one more model to see what the architecture alone offers to a probe.
    shuffles : refits with training labels shuffled among clusters, for the null.

    Rows, by place: ``linear_accuracy`` and ``knn_accuracy`` on the test split, with an interval over images or,
    where the loader's data set names them, over ``clusters`` of images that are not independent.

    Raises
    ------
    DataError : labels are missing, a test class was not trained on, or classes are too small.
    """
    from sklearn.exceptions import ConvergenceWarning

    rows: list[dict[str, Any]] = []
    notes: list[str] = []
    views = views_of(models)
    for view in views:
        train, test = (
            collect_features(view, loader, places, tokens) for loader in (train_loader, test_loader)
        )
        _check(train, test, kinds)
        notes.extend(
            f"{view.label}: {name} is not finite, left out" for name in dict.fromkeys(train.bad + test.bad)
        )
        good = [name for name in train.values if name in test.values]
        base = view.about | {"tokens": tokens}
        for place in counted(good, f"probing {view.label}", unit="layer", shown=progress):
            for kind in kinds:
                with warnings.catch_warnings():  # shuffled labels take long; of others the estimator says it
                    warnings.simplefilter("ignore", ConvergenceWarning)
                    found = _probe_one(train, test, place, kind, neighbours, shuffles, seed)
                rows.append(base | {"place": place, "layer": layer_of(place)} | found)
    return result_of(
        "probes", views, rows, notes, tokens=tokens, seed=seed, shuffles=shuffles, data=as_json(told(test_loader)),
        train=as_json(told(train_loader)),
    )  # fmt: skip


def _probe_one(
    train: Features, test: Features, place: str, kind: str, neighbours: int, shuffles: int, seed: int
) -> dict[str, Any]:
    """Columns of one probe: fitted, tested, and refitted on shuffled labels with the same settings."""
    from sklearn.base import clone

    x, y = train.values[place], train.labels
    if kind == "linear":
        fitted, estimator = _linear(x, y, train.clusters, seed)
    else:
        k = min(neighbours, len(x))
        fitted, estimator = _knn(k).fit(x, y), f"{k} nearest neighbours by cosine"
    rng = np.random.default_rng(seed)
    null = []
    for _ in range(shuffles):
        wrong = clone(fitted).fit(x, shuffled_labels(y, train.clusters, rng))
        null.append(float((wrong.predict(test.values[place]) == test.labels).mean()))
    correct = fitted.predict(test.values[place]) == test.labels
    return (
        {"quantity": f"{kind}_accuracy", "estimator": estimator, "value_unit": "fraction"}
        | accuracy_columns(correct, test.clusters)
        | {
            "null": float(np.mean(null)),
            "null_low": float(np.min(null)),
            "null_high": float(np.max(null)),
            "null_kind": f"training labels shuffled; mean and range of {shuffles} refit{'s' * (shuffles != 1)}",
        }
    )
