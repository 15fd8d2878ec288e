"""The checks applied to the facts of variants, as a pandera schema of two levels: every row's findings."""

from collections.abc import Mapping
from functools import lru_cache

import pandas as pd
import pandera.pandas as pa
from pandera.errors import SchemaErrors

from esl_pipeline.labels.checks import FACTS, RULES, level_of
from esl_pipeline.labels.policy import Policy

_FOUND = {
    "row": "int64",
    "check_name": "str",
    "level": "str",
    "column_name": "str",
    "value": "str",
    "reason": "str",
    "action": "str",
}

_NOTHING = pd.DataFrame(columns=list(_FOUND)).astype(_FOUND)

_FEW = 8

TOLD = {"source": "the shop", "how_to_read": "set what opens it"}
"""What stands for the names in a rule's words where nothing is known of the source."""


def schema_for(policy: Policy, facts: pd.DataFrame) -> pa.DataFrameSchema | None:
    """The schema of what these facts break under a policy; each check's error is its rule's name. None: nothing.

    What all rows fulfil is not in it: pandera asks 3 ms for each check of whatever size, a comparison takes 0.1.
    """
    values = {str(name): frozenset(facts[name].tolist()) for name in facts.columns}
    broken = tuple(
        rule.name
        for rule in RULES.values()
        if rule.applies(policy) and not _holds(rule.name, values[rule.checked])
    )
    return _schema_of(broken) if broken else None


def _holds(rule: str, values: frozenset[str | bool]) -> bool:
    """Whether all these values fulfil the rule. What was asked of few is remembered, as most facts have few: yes or no,
    mostly nothing. Of many it is not: titles and codes would be kept as long as the process lives."""
    return _known(rule, values) if len(values) <= _FEW else _is_right(rule, values)


def _is_right(rule: str, values: frozenset[str | bool]) -> bool:
    """Not where it raises: pandera tells that."""
    checked = RULES[rule].checked
    try:
        return bool(RULES[rule].right(pd.Series(list(values), dtype=FACTS[checked])).all())
    except Exception:
        return False


_known = lru_cache(maxsize=5_000)(_is_right)


@lru_cache  # a schema takes as long to make as many of its checks, and policies turn few rules on or off
def _schema_of(rules: tuple[str, ...]) -> pa.DataFrameSchema:
    checks: dict[str, list[pa.Check]] = {}
    for rule in map(RULES.__getitem__, rules):
        checks.setdefault(rule.checked, []).append(pa.Check(rule.right, error=rule.name))
    return pa.DataFrameSchema({column: pa.Column(checks=of) for column, of in checks.items()})


def findings(facts: pd.DataFrame, policy: Policy, told: Mapping[str, str] = TOLD) -> pd.DataFrame:
    """Every finding of every row.

    In: one row per variant (FACTS; the index is int). Out: columns row (the index label of the facts), check_name,
    level, column_name, value, reason, action. Never raises for the content of a row; ValueError when a column is
    missing or of another type. told: what stands for {source} and {how_to_read} in what people read.
    """
    # Compared here, all at once: pandera's own look at the type of each column costs more than its checks.
    if (kinds := {str(name): str(kind) for name, kind in facts.dtypes.items()}) != FACTS:
        raise ValueError(f"these are not the facts of variants: {kinds}")
    try:
        if schema := schema_for(policy, facts):
            schema.validate(facts, lazy=True)
    except SchemaErrors as failed:
        cases = failed.failure_cases
        if cases["index"].isna().any():  # not a row's fault: a check itself raised
            raise ValueError(f"the schema could not be applied: {cases.to_dict('records')}") from failed
        found = cases[["check", "index"]].drop_duplicates()
        # Of what nobody has said, nothing else can be found wrong.
        unknown = found.loc[found["check"].eq("not_said"), "index"]
        found = found[found["check"].eq("not_said") | ~found["index"].isin(unknown)]
    else:
        return _NOTHING.copy(deep=False)
    per_rule = []
    for name, rows in found.groupby("check", sort=True)["index"]:
        rule = RULES[str(name)]
        per_rule.append(
            pd.DataFrame(
                {
                    "row": rows.to_numpy(),
                    "check_name": rule.name,
                    "level": level_of(rule.name, policy),
                    "column_name": rule.column,
                    "value": facts[rule.column].loc[rows].to_numpy(),
                    "reason": _words(rule.reason, told),
                    "action": _words(rule.action, told),
                }
            )
        )
    return pd.concat(per_rule, ignore_index=True)[list(_FOUND)].astype(_FOUND)


def _words(text: str, told: Mapping[str, str]) -> str:
    for name, value in told.items():
        text = text.replace(f"{{{name}}}", value)
    return text
