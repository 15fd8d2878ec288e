"""The catalogue of checks: complete, and in words for a shopkeeper."""

import re
from importlib.resources import files

from esl_pipeline.labels.checks import ELSEWHERE, FACTS, RULES


def test_every_rule_speaks_to_a_shopkeeper() -> None:
    assert len(RULES) > 30
    for rule in RULES.values():
        assert {rule.checked, rule.column} <= FACTS.keys(), rule.name
        assert rule.reason and rule.action, rule.name
        assert not (rule.reason + rule.action).endswith("."), rule.name


def test_what_is_found_elsewhere_is_found_there_and_named_here() -> None:
    package = files("esl_pipeline")
    functions = package.joinpath("buffer", "functions").iterdir()
    sql = "".join(file.read_text(encoding="utf-8") for file in functions if file.name.endswith(".sql"))
    evaluate = package.joinpath("labels", "evaluate.py").read_text(encoding="utf-8")
    found = re.findall(r"check_name (?:=|<>) '(\w+)'", sql) + re.findall(r'check_name="(\w+)"', evaluate)
    assert set(found) == set(ELSEWHERE)
    assert not ELSEWHERE.keys() & RULES.keys()
