"""The standard form of a finding: value in each model with interval, null, untrained control, difference, verdict.

Words and digits come from `quantities`, verdicts from `claims`. A sentence holds no number that no result holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any

import pandas as pd

from .._names import TWIN
from .._show import code
from ..claims.base import Effect
from ..claims.headlines import pair_differences, pair_order
from ..claims.ledger import claim_named, effect_verdict, ledger, summary
from ..claims.likeness import NOT_TESTED, OPEN
from ..claims.premise import endpoint_rows
from ..claims.rule import number_in
from ..errors import T2TError
from ..quantities import listed, plural, quantity
from ..results import Result
from .claims import effect_words

Models = Mapping[str, Any]
#: finds the row of a model by its label
Finder = Callable[[str], pd.Series | None]
#: sentences in the findings of a notebook; the first three are shown, the rest is folded
MOST = 8


def kept(*sentences: str) -> list[str]:
    """The first `MOST` sentences that have something to say."""
    return [sentence for sentence in sentences if sentence][:MOST]


def largest(rows: pd.DataFrame, by: str = "value") -> pd.Series:
    """The row with the largest value, or number in another column."""
    return rows.iloc[int(rows[by].to_numpy(float).argmax())]


def beyond(row: Mapping[str, Any] | pd.Series, of: float = 0.0) -> int:
    """+1 where the whole interval of a row lies above a number, -1 where below; 0 where that is not clear.

    >>> beyond({"low": 0.1, "high": 0.3}), beyond({"low": 0.1, "high": 0.3}, 0.4), beyond({"low": -0.1, "high": 0.3})
    (1, -1, 0)
    >>> beyond({"low": None, "high": None})
    0
    """
    return int(number_in(row, "low") > of) - int(number_in(row, "high") < of)


class Facts:
    """What was measured of one or two models, and sentences of the standard form about it.

    Parameters
    ----------
    results
        Of measures, of differences between the models, of their untrained controls; None is passed over.
    models
        Label -> model: the model in question, then what it is compared with, a baseline or its untrained control.
    over
        What verdicts rest on, where the n of an effect does not say it.

    Raises
    ------
    T2TError
        By `row`: several rows where one was asked for.
    """

    def __init__(self, results: Iterable[Result | None], models: Models, over: str = "images") -> None:
        self.over = over
        self.results = [result for result in results if result is not None]
        self.models = dict(models)
        self.labels = [label for label in self.models if not label.endswith(TWIN)]  # the others are controls
        self.untrained = [label for label in self.labels if self.models[label].provenance.untrained]
        names = listed(map(code, self.untrained))
        #: the sentence about models with random weights, a list of none or one
        self.no_verdict = [f"No verdict from random weights: {names}."] if self.untrained else []

    @cached_property
    def frame(self) -> pd.DataFrame:
        """All rows, each once."""
        return pd.concat([result.frame for result in self.results], ignore_index=True).drop_duplicates()

    # ---------------------------------------------------------------------------------- one number

    def rows(self, name: str, **where: Any) -> pd.DataFrame:
        """Rows of a quantity that have a value, with these columns; None asks for a missing one.

        Raises
        ------
        UnknownNameError
            For a quantity that is not registered.
        """
        frame = self.frame[self.frame["quantity"] == quantity(name).name]
        for column, value in where.items():
            frame = frame[frame[column].isna() if value is None else (frame[column] == value).fillna(False)]
        return frame[frame["value"].notna()]

    def row(self, name: str, label: str, **where: Any) -> pd.Series | None:
        """The one row of a model; None where it was not measured."""
        found = self.rows(name, model=label, **({"model_b": None} | where))
        if len(found) > 1:
            raise T2TError(f"{len(found)} rows of {name} of {label} where {where}; say which")
        return found.iloc[0] if len(found) else None

    def most(self, name: str, label: str, by: str = "value", **where: Any) -> pd.Series | None:
        """Of several rows of a model, that with the largest value, or number in another column."""
        found = self.rows(name, model=label, **where)
        found = found[found[by].notna()]
        return largest(found, by) if len(found) else None

    def difference(self, name: str, **where: Any) -> pd.Series | None:
        """The row of the difference of the two models, or of one and its control: the first minus the second."""
        if len(self.models) < 2:
            return None
        first, second = self.models
        known = {column: value for column, value in where.items() if value is not None}
        return self.row(f"{name}_difference", first, **known, model_b=second)

    # ---------------------------------------------------------------------------------- one sentence

    def line(self, name: str, *, note: str = "", **where: Any) -> str:
        """A quantity in the standard form; empty where no model has it.

        Parameters
        ----------
        name
            Of the quantity.
        note
            What a reader must know to read it, at the end.
        """
        apart = self.difference(name, **where)
        return self.of_rows(name, lambda label: self.row(name, label, **where), apart, note)

    def of_rows(self, name: str, row: Finder, apart: pd.Series | None = None, note: str = "") -> str:
        """As `line`, of the row that a function finds for each model."""
        about = quantity(name)
        rows = {label: found for label in self.labels if (found := row(label)) is not None}
        if not rows:
            return ""
        each = listed(f"{about.interval(found)} in {code(label)}" for label, found in rows.items())
        beside = [*self._nulls(name, rows), *self._controls(name, rows, row)]
        shown = f" ({'; '.join(beside)})" if beside else ""
        text = f"{about.title}: {each}{shown}"
        if apart is not None:
            of = quantity(str(apart["quantity"]))
            twin = str(apart["model_b"]).endswith(TWIN)
            names = (
                f"{code(apart['model'])} minus {'the untrained control' if twin else code(apart['model_b'])}"
            )
            text += f"; {'the first minus the second' if len(rows) == 2 else names} {of.interval(apart)}"
        counts = listed(dict.fromkeys(plural(row["n"], row["unit"]) for row in rows.values() if row["n"] > 0))
        return f"{text}{f', n = {counts}' if counts else ''}.{' ' * bool(note)}{note}"

    def _nulls(self, name: str, rows: Mapping[str, pd.Series]) -> list[str]:
        """What the numbers would be with nothing to find, once if it is the same for all."""
        nulls = [quantity(name).number(row["null"]) for row in rows.values() if pd.notna(row["null"])]
        return [f"null {listed(dict.fromkeys(nulls))}"] if nulls else []

    def _controls(self, name: str, rows: Mapping[str, pd.Series], row: Finder) -> list[str]:
        """The untrained controls of the models, by name only where one is missing."""
        values = {
            label: quantity(name).number(twin["value"])
            for label in rows
            if (twin := row(label + TWIN)) is not None
        }
        if len(values) == len(rows):
            return [f"untrained {listed(values.values())}"]
        return [f"{code(label)} untrained {value}" for label, value in values.items()]

    # ---------------------------------------------------------------------------------- verdicts

    def claim(self, name: str) -> list[str]:
        """What these models say of a claim, as the ledger has it: the two together, then each trained one alone.

        A sentence each with the first number that decides, and how the others were judged where not all agree; they
        follow after them.
        """
        said: list[str] = []
        also: list[str] = []
        asked = ""
        for about, frame in self._ledgers(name).items():
            (row,) = summary(frame).to_dict("records")
            votes = f" ({row['votes']})" if "," in row["votes"] else ""
            effects = [effect for _, effect in frame[frame["deciding"]].iterrows()]
            first = effect_words(effects[0], judged=bool(votes))
            rest = [effect_words(one) for one in effects[1:]]
            because = f"; {row['because']}" if row["because"] not in ("", OPEN, NOT_TESTED) else ""
            if row["statement"] == asked:
                start, first = "The same:", first.partition(": ")[2]  # the words of the effect stand above
            else:
                start = asked = row["statement"]
            verdict = f"**{row['verdict'].capitalize()}** for {about}{votes}"
            said.append(f"{start} {verdict}. {first.removesuffix('.')}{because}.")
            also += [f"Also asked of {about}: {' '.join(rest)}"] * bool(rest)
        return [*said, *self.no_verdict, *also]

    def _ledgers(self, name: str) -> dict[str, pd.DataFrame]:
        """What evidence is about, in words -> its ledger of one claim."""
        claim, found = claim_named(name), {}
        order = pair_order(self.models)
        if order and not self.untrained and claim.of_kind("pair"):
            rows = pair_differences(self._by_measure, *order)
            evidence = Result("evidence", pd.DataFrame(rows), {"kind": "pair"})
            about = f"{code(order[0])} against {code(order[1])}, two models as they are, over {self.over}"
            found[about] = ledger(evidence, claims=[claim])
        for label in self.labels:
            if label in self.untrained or not claim.of_kind("premise"):
                continue
            rows = endpoint_rows(label, self.models[label], self._by_measure)
            evidence = Result.of_rows("evidence", rows, {"kind": "premise"})
            frame = ledger(evidence, claims=[claim])
            if (frame["verdict"] != "not tested").any():
                found[f"{code(label)} alone, over {self.over}"] = frame
        return found

    @cached_property
    def _by_measure(self) -> dict[str, Result]:
        """Measure -> its result; a difference carries the same name, and is taken where there is nothing else."""
        named = {result.measure: result for result in self.results if result.measure not in ("", "evidence")}
        return named | {r.measure: r for r in self.results if r.frame["model_b"].isna().any()}

    def closing(self, name: str) -> list[str]:
        """What would change the verdicts; nothing where there is none."""
        change = [f"What would change the verdict: {claim_named(name).change}"]
        return [*self.no_verdict, *(change if self._ledgers(name) else [])]

    def judged(self, effects: Iterable[Effect], **where: Any) -> list[str]:
        """Differences that no claim of the ledger is about, judged by the same rule, each by itself.

        Of a soft and a hard split alone, whose difference the paper says something of; in either order.
        """
        said: list[str] = []
        order = pair_order(self.models)
        if order is None:
            return said
        for effect in effects:
            row = self.difference(effect.pair, **where)
            if row is None:
                continue
            of, soft = quantity(str(row["quantity"])), row["model"] == order[0]
            asked = effect if soft else replace(effect, direction=-effect.direction)
            found = effect_verdict(asked, "pair", dict(row))
            verdict = f"{found.verdict}{f' ({found.reason})' if found.reason else ''}"
            more = "more" if effect.direction > 0 else "less"
            said.append(
                f"{effect.words[:1].upper()}{effect.words[1:]}, said to be {more} in {code(order[0])} than in "
                f"{code(order[1])}: **{verdict}**. {code(row['model'])} minus {code(row['model_b'])} "
                f"{of.interval(row)}, n = {plural(row['n'], row['unit'])}; smallest that counts "
                f"{of.number(of.smallest) if of.smallest else '0'}."
            )
        return said
