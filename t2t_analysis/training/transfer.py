"""From one data set to another: a linear probe on frozen features, and fine-tuning of every parameter.

Both start from weights of known origin: the study's own runs on ``source``, or whatever ``load_model`` takes, the
authors' checkpoints among them. ``random`` weights are the null of a probe.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from .._progress import progress
from ..errors import DataError
from ..models import load_model
from .accuracy import Scores, scored
from .design import WEIGHTS, Run, data_label

#: Inverse strength of the probe's L2 penalty on standardised features (scikit-learn's C), the same for all models.
PENALTY = 1.0


def weights_of(run: Run, rows: pd.DataFrame, runs: Path) -> Path:
    """Weights of the study's longest run of this model and seed on the source data, all of them.

    Parameters
    ----------
    rows : the table of runs.
    runs : folder of run folders.

    Raises
    ------
    DataError
        with the command that makes them, if they are not there.
    """
    same = (rows["task"] == "train") & (rows["model"] == run.model) & (rows["data"] == data_label(run.source))
    rows = rows[same & (rows["seed"] == run.recipe.seed) & (rows["fraction"] == 1.0) & ~rows["sweep"]]
    for name in rows.sort_values("epochs", ascending=False)["run"]:
        if (path := runs / str(name) / WEIGHTS).exists():
            return path
    words = f"--data {run.source} --cells {run.model} --seeds {run.recipe.seed} --fractions 1"
    raise DataError(
        f"no weights of {run.model}, seed {run.recipe.seed}, from {run.source!r} in {runs}; "
        f"python -m t2t_analysis study {words} makes them, --weights takes others"
    )


def start(run: Run, weights: str | Path, device: str, num_classes: int) -> Any:
    """The model that a transfer starts from: trained features, a fresh classifier drawn with the run's seed."""
    model: Any = load_model(run.model, weights, device=device, seed=run.recipe.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run.recipe.seed)
        model.reset_classifier(num_classes)
    return model


def features(model: Any, loader: Any, device: str = "cpu") -> tuple[np.ndarray, np.ndarray]:
    """What the classifier sees: (n, D) in float64, and labels (n,)."""
    model.eval().to(device)
    found, labels = [], []
    with torch.inference_mode():
        for images, target, _ in progress(loader, "features", total=len(loader)):
            hidden = model.forward_head(model.forward_features(images.to(device)), pre_logits=True)
            found.append(hidden.double().cpu().numpy())
            labels.append(np.asarray(target))
    return np.concatenate(found), np.concatenate(labels)


def linear_probe(model: nn.Module, train: Any, test: Any, device: str = "cpu") -> tuple[Scores, Scores]:
    """Multinomial logistic regression on standardised features of the frozen model (Alain & Bengio, 2017).

    Parameters
    ----------
    train, test : loaders of (images, labels, index), neither augmented.

    Returns
    -------
    Scores on ``test`` and on ``train``. Raises ``DataError`` if a class has no training image.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x, y = features(model, train, device)
    classes = len(train.dataset.info.classes)
    if missing := sorted(set(range(classes)) - set(y.tolist())):
        raise DataError(f"no training image of class {missing[0]} of {train.dataset.info.name}")
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=PENALTY, max_iter=2000)).fit(x, y)
    x_test, y_test = features(model, test, device)
    cluster = np.asarray(getattr(test.dataset, "clusters", np.arange(len(y_test))))

    def scores(x: np.ndarray, y: np.ndarray, cluster: np.ndarray) -> Scores:
        chances = torch.from_numpy(probe.predict_proba(x)).clamp_min(np.finfo(float).tiny)
        return Scores._make([*scored(chances.log(), torch.from_numpy(y)), cluster])

    return scores(x_test, y_test, cluster), scores(x, y, np.arange(len(y)))
