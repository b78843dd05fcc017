"""Whether attribution maps can be trusted, in words: what each method was asked, and what it answered."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd

from .._show import code
from ..claims.rule import SMALLEST, place
from ..results import Result, Results
from ..stats import holm
from .words import interval, listed, no_verdict, number, percent, untrained_in

__all__ = ["attribution_card", "attribution_conclusions", "attribution_findings"]

SMALLEST_EFFECT = SMALLEST["rank_correlation"]
#: level of the tests against random orders, after Holm's correction over all of them
LEVEL = 0.05
#: share of permuted labels that has to be learned by heart before the check means anything
BY_HEART = 0.9

_METHODS = {
    "integrated_gradients": "integrated gradients of pixels",
    "token_integrated_gradients": "integrated gradients of tokens",
    "occlusion": "occlusion of pixel cells",
    "token_occlusion": "occlusion of tokens",
    "grad_cam": "Grad-CAM",
    "attention_gradient": "gradient-weighted attention",
    "rollout": "attention rollout",
}
_CHECKS = {
    "deletion": "deletion",
    "insertion": "insertion",
    "class": "another class",
    "weights": "random weights",
}
PASSED, FAILED, OPEN, NOT_ASKED = "passes", "fails", "not settled", "not asked"
#: in place of all of these where weights are random
UNJUDGED = "no verdict"


def attribution_card(results: Results) -> pd.DataFrame:
    """What every method was asked and what came out, one row for each method and model.

    Parameters
    ----------
    results : of `check_attribution`.
    """
    tests = _faithful(results)
    rows = [
        {"method": _METHODS.get(method, method), "model": model}
        | {_CHECKS[check]: _answer(results, tests, check, method, model) for check in _CHECKS}
        for method in _methods(results)
        for model in _models(results)
    ]
    return pd.DataFrame(rows)


def attribution_findings(results: Results) -> list[str]:
    """Sentences on the maps, first the one that answers the question."""
    return [
        _answered(results),
        *_completeness(results),
        *_margins(results),
        *_failures(results, "class"),
        *_failures(results, "weights"),
        *_agreement(results),
    ]


def attribution_conclusions(
    results: Results, labels: Result | None = None, learned: tuple[int, float] | None = None
) -> list[str]:
    """One sentence per method, then what permuted labels say.

    Parameters
    ----------
    labels : of `label_randomisation`, or None where it was not run.
    learned : images that the model with permuted labels saw, and the share of them that it learned by heart.
    """
    lines = [_verdict(rows) for _, rows in attribution_card(results).groupby("method", sort=False)]
    if _untrained(results):
        lines = [line for line in (_unjudged(results),) if line] or lines
    return [*lines, *_permuted(labels, learned)]


# ------------------------------------------------------------------------------------------ the checks


def _frame(results: Results, measure: str) -> pd.DataFrame:
    """Rows of one measure; none where it is missing."""
    if measure in results:
        return results[measure].frame
    return next(iter(results.values())).frame.iloc[:0]


def _methods(results: Results) -> list[str]:
    return [str(name) for name in results["attribution_faithfulness"].frame["estimator"].unique()]


def _models(results: Results) -> list[str]:
    return [str(name) for name in results["attribution_faithfulness"].frame["model"].unique()]


def _untrained(results: Results) -> bool:
    return any(untrained_in(result.frame) for result in results.values())


def _unjudged(results: Results) -> str:
    return no_verdict(*(result.frame for result in results.values()))


def _faithful(results: Results) -> pd.DataFrame:
    """Areas with p corrected over all methods, models and both curves, and whether they beat random orders."""
    frame = _frame(results, "attribution_faithfulness")
    areas = frame[frame["quantity"].isin(["deletion_area", "insertion_area"])].copy()
    areas["corrected"] = holm(areas["p"].to_numpy(float, na_value=float("nan")))
    areas["gain"] = areas["value"] - areas["null"]
    areas.loc[areas["quantity"] == "deletion_area", "gain"] *= -1
    return areas


def _rows(frame: pd.DataFrame, **where: str) -> pd.DataFrame:
    for column, value in where.items():
        frame = frame[frame[column] == value]
    return frame


def _answer(results: Results, tests: pd.DataFrame, check: str, method: str, model: str) -> str:
    if _untrained(results):
        return UNJUDGED
    if check in ("deletion", "insertion"):
        rows = _rows(tests, quantity=f"{check}_area", estimator=method, model=model)
        return _beats(rows.iloc[0]) if len(rows) else NOT_ASKED
    row = _row(results, check, method, model)
    if row is None:
        return NOT_ASKED
    if pd.isna(row["low"]):
        return OPEN
    ask = {"class": _changes, "weights": _forgets}[check]
    return ask(row)


def _beats(row: Any) -> str:
    if not row["corrected"] < LEVEL:
        return OPEN
    return PASSED if row["gain"] > 0 else FAILED


def _row(results: Results, check: str, method: str, model: str) -> Any:
    """The number behind a check, None where it was not asked."""
    if check == "class":
        rows = _rows(_frame(results, "attribution_other_class"), quantity="other_class")
    else:
        rows = _rows(_frame(results, "attribution_cascade"), quantity="spearman_abs")
        rows = rows[rows["null"].notna()]
    rows = _rows(rows, estimator=method, model=model)
    return None if rows.empty else rows.sort_values("at").iloc[-1]


def _changes(row: Any) -> str:
    """Whether the map for another class is another map; 1 would be the map itself."""
    where = place(row["low"] - 1, row["high"] - 1, SMALLEST_EFFECT)
    return {"below": PASSED, "within": FAILED, "across": OPEN, "above": FAILED}[where]


def _forgets(row: Any) -> str:
    """Whether the map, with all weights random, is no more like the original than maps of other images."""
    where = place(row["low"] - row["null"], row["high"] - row["null"], SMALLEST_EFFECT)
    return {"above": FAILED, "across": OPEN, "within": PASSED, "below": PASSED}[where]


# ------------------------------------------------------------------------------------------ findings


def _answered(results: Results) -> str:
    if _untrained(results):
        return _unjudged(results)
    card = attribution_card(results)
    models = _models(results)
    parts = [_standing(card[card["model"] == model], model) for model in models]
    return f"Of {len(_methods(results))} methods, those whose maps pass all four checks: {'; '.join(parts)}."


def _standing(card: pd.DataFrame, model: str) -> str:
    """Which methods pass everything, which fail something, and how many do neither."""
    answers = card[list(_CHECKS.values())]
    passed = card.loc[(answers == PASSED).all(axis=1), "method"]
    failed = card.loc[(answers == FAILED).any(axis=1), "method"]
    rest = len(card) - len(passed) - len(failed)
    fails = (
        f"{listed(failed)} {'fails' if len(failed) == 1 else 'fail'} at least one"
        if len(failed)
        else "none fails"
    )
    leave = "leaves" if rest == 1 else "leave"
    return f"in {code(model)} {listed(passed) if len(passed) else 'none'}, while {fails} and {rest} {leave} some open"


def _completeness(results: Results) -> Iterator[str]:
    rows = _rows(_frame(results, "attribution_completeness"), quantity="completeness_error")
    if len(rows):
        parts = [
            f"{_percent(row)} in {code(row['model'])} (maps of other images would miss {percent(row['null'])})"
            for _, row in rows.iterrows()
        ]
        names = listed(dict.fromkeys(_METHODS[name] for name in rows["estimator"]))
        yield (
            f"The path is taken in steps: of the change of the logit that they should add up to, {names} miss "
            f"{'; '.join(parts)}."
        )


def _percent(row: Any) -> str:
    if pd.isna(row["low"]):
        return percent(row["value"])
    return f"{percent(row['value'])} [{percent(row['low'])}, {percent(row['high'])}]"


def _margins(results: Results) -> Iterator[str]:
    """The method furthest from random orders, per model and curve."""
    areas = _faithful(results)
    words = {"deletion_area": ("deletion", "small is good"), "insertion_area": ("insertion", "large is good")}
    for model in _models(results):
        parts = []
        for quantity, (curve, good) in words.items():
            rows = _rows(areas, quantity=quantity, model=model)
            if len(rows):
                row = rows.sort_values("gain").iloc[-1]
                parts.append(
                    f"for {curve} ({good}) {_METHODS[row['estimator']]}, area {interval(row)}, random orders "
                    f"{number(row['null'])}, p = {_p(row['corrected'])} after Holm"
                )
        if parts:
            n = int(areas["n"].max())
            yield f"Furthest beyond random orders in {code(model)}, over {n} images: {'; '.join(parts)}."


def _p(value: float) -> str:
    return "missing" if pd.isna(value) else f"{value:.3f}"


_FAILING = {
    "class": "The map does not change with the class (rank correlation with the map for another class)",
    "weights": "The map outlives its weights (rank correlation of sizes with the original, all weights random)",
}


def _failures(results: Results, check: str) -> Iterator[str]:
    """Methods that fail a check, with their numbers; or that none does."""
    if _untrained(results):
        return
    tests = _faithful(results)
    pairs = [(method, model) for method in _methods(results) for model in _models(results)]
    rows = {pair: row for pair in pairs if (row := _row(results, check, *pair)) is not None}
    failed = {p: row for p, row in rows.items() if _answer(results, tests, check, *p) == FAILED}
    if failed:
        yield f"{_FAILING[check]}: {'; '.join(_failed(check, *pair, row) for pair, row in failed.items())}."
    elif rows:
        yield f"No method fails the check of {_CHECKS[check]}."


def _failed(check: str, method: str, model: str, row: Any) -> str:
    null = f", maps of other images {number(row['null'])}" if check == "weights" else ""
    blind = ", which does not look at the class," if (check, method) == ("class", "rollout") else ""
    return f"{_METHODS[method]}{blind} in {code(model)} {interval(row)}{null}, n = {row['n']}"


def _agreement(results: Results) -> Iterator[str]:
    """Whether two models look at the same pixels."""
    rows = _rows(_frame(results, "attribution_agreement"), quantity="agreement")
    if rows.empty:
        if "attribution_agreement" in results:
            yield "The two models answer the same class too rarely to compare their maps."
        return
    row, places = rows.iloc[0], [_above_null(r) for _, r in rows.iterrows()]
    every = "; ".join(
        f"{_METHODS[r['estimator']]} {interval(r)}, null {number(r['null'])}" for _, r in rows.iterrows()
    )
    yield (
        f"On the {row['n']} images that {code(row['model'])} and {code(row['model_b'])} give the same class, their "
        f"maps are more alike than maps of different images, by more than {SMALLEST_EFFECT:g}, for "
        f"{places.count('above')} of {len(places)} methods, and not settled for {places.count('across')}. Rank "
        f"correlations: {every}."
    )


def _above_null(row: Any) -> str:
    if pd.isna(row["low"]):
        return "across"
    return place(row["low"] - row["null"], row["high"] - row["null"], SMALLEST_EFFECT)


# ------------------------------------------------------------------------------------------ conclusions


def _verdict(rows: pd.DataFrame) -> str:
    """What one method's maps are worth, model by model."""
    return f"{_capital(rows['method'].iloc[0])}: {'; '.join(_worth(row) for _, row in rows.iterrows())}."


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _worth(row: Any) -> str:
    """Passed, failed and open checks of one method in one model."""
    words = {PASSED: "passes {}", FAILED: "fails {}", OPEN: "leaves {} open", NOT_ASKED: "was not asked {}"}
    checks = {answer: [check for check in _CHECKS.values() if row[check] == answer] for answer in words}
    return f"in {code(row['model'])} {', '.join(words[a].format(listed(c)) for a, c in checks.items() if c)}"


def _permuted(labels: Result | None, learned: tuple[int, float] | None) -> Iterator[str]:
    if labels is None or learned is None:
        yield (
            "The check by permuted labels was not run here, since it trains a second model: "
            "`-p label_randomisation True`."
        )
        return
    images, share = learned
    text = f"The same architecture, trained on {images} images with permuted labels, knows {percent(share, 0)} by heart"
    if share < BY_HEART:
        yield f"{text}, too few for the check to say anything."
        return
    rows = _rows(labels.frame, quantity="spearman_abs")
    yield f"{text}; {_likeness(rows)}" if len(rows) else f"{text}, and no map could be compared."


def _likeness(rows: pd.DataFrame) -> str:
    """How alike the maps of both are."""
    kept = [_METHODS[r["estimator"]] for _, r in rows.iterrows() if _above_null(r) == "above"]
    every = "; ".join(
        f"{_METHODS[r['estimator']]} {interval(r)}, other images {number(r['null'])}"
        for _, r in rows.iterrows()
    )
    which = listed(kept) if kept else "no method demonstrably"
    return (
        f"its maps keep more than {SMALLEST_EFFECT:g} of likeness beyond maps of other images by {which} (rank "
        f"correlation of sizes: {every})."
    )
