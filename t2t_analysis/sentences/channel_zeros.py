"""How many channels are zero or too large, in words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from .._show import code
from ..quantities import quantity
from ..results import Result
from .feature_maps import no_path
from .template import Facts, kept, largest

_STREAM = {"place": "blocks.*.resid_post", "tokens": "patch"}


def zero_findings(results: Iterable[Result | None], models: Mapping[str, Any]) -> list[str]:
    """Sentences on invalid channels by the real forward pass, first those that answer the question.

    Parameters
    ----------
    results
        Of `InvalidChannels` for the models and their untrained controls, of `ChannelOutliers`, and differences.
    models
        Label -> model.
    """
    facts = Facts(results, models)
    kinds = ("zero_area", "flat_area", "too_large_area")
    return kept(
        *facts.claim("dead-channels"),
        *(facts.line(kind, **_STREAM) for kind in kinds),
        *(_in_block_with_most(facts, name) for name in ("outlier_tokens", "massive_activations")),
        *(_everywhere(facts, label) for label in facts.labels),
    )


def _in_block_with_most(facts: Facts, name: str) -> str:
    """Outliers of the residual stream, in the block of each model that has most of them."""

    def row(label: str) -> Any:
        rows = facts.rows(name, model=label, model_b=None, at=None)
        rows = rows[rows["layer"].notna() & rows["place"].str.endswith("resid_post")]
        return largest(rows) if len(rows) else None

    return facts.of_rows(name, row, note="In the block with most.")


def _everywhere(facts: Facts, label: str) -> str:
    """Channels that are invalid in every image: where most of them are."""
    top = facts.most("invalid_area_in_every_image", label, model_b=None)
    if top is None:
        return ""
    about = quantity("invalid_area_in_every_image")
    return f"{about.title}: at most {about.interval(top)} in {code(label)} ({top['place']}, n = {top['n']} channels)."


def path_findings(shortcut: Result | None, models: Mapping[str, Any]) -> list[str]:
    """How many flat and zero channels the released notebooks' path makes, in the block where it makes most.

    Parameters
    ----------
    shortcut
        Of `ShortcutShare`; None where no model has such a path.
    models
        Label -> model.
    """
    facts = Facts([shortcut] if shortcut else [], models)
    lines = []
    for label in facts.labels:
        if shortcut is None or label not in set(shortcut.frame["model"]):
            lines.append(no_path([label]))
            continue
        lines += [_made(facts, label, kind) for kind in ("zero", "flat")]
    return kept(*lines)


def _made(facts: Facts, label: str, kind: str) -> str:
    rows = facts.rows(f"{kind}_area_made_by_shortcut", model=label)
    rows = rows[rows["layer"].notna()]
    if rows.empty:
        return ""
    top = largest(rows)
    if not top["value"]:
        return f"The released notebooks' path makes no {kind} channels in any block of {code(label)}."
    about = quantity(str(top["quantity"]))
    shown, real = (facts.row(f"{kind}_area_{way}", label, place=top["place"]) for way in ("shortcut", "real"))
    if shown is None or real is None:
        return ""
    path, true = quantity(f"{kind}_area_shortcut"), quantity(f"{kind}_area_real")
    return (
        f"At {top['place']} of {code(label)} the released notebooks' path shows {path.interval(shown)} {kind} "
        f"channels, the real forward pass {true.interval(real)}: the path makes {about.interval(top)}, "
        f"n = {top['n']} images."
    )


def zero_conclusions(results: Iterable[Result | None], models: Mapping[str, Any]) -> list[str]:
    """What would change the verdicts; arguments as for `zero_findings`."""
    return Facts(results, models).closing("dead-channels")
