"""What SQL reads of a mapping's settings, and what it takes where they say nothing, is what labels/policy.py says."""

import re
from typing import Any

import psycopg
from psycopg.types.json import Jsonb

from esl_pipeline.buffer.migrate import functions
from esl_pipeline.labels.policy import Policy

_READ = re.compile(r"(?:policy_(?:number|text)\([\w.]*settings, |settings ->>? )'(\w+)'")


def one(connection: psycopg.Connection, query: str, *values: Any) -> Any:
    (value,) = connection.execute(query.encode(), values).fetchone() or (None,)
    return value


def test_every_default_is_the_models(buffer_dsn: str) -> None:
    with psycopg.connect(buffer_dsn) as connection:
        defaults = one(connection, "select esl.policy_defaults()")
    model = Policy().model_dump(mode="json")
    assert defaults == {name: model[name] for name in defaults}


def test_sql_reads_no_setting_whose_default_it_does_not_know(buffer_dsn: str) -> None:
    with psycopg.connect(buffer_dsn) as connection:
        defaults = one(connection, "select esl.policy_defaults()")
    assert set(_READ.findall(functions())) == set(defaults)


def test_every_number_has_the_models_bounds_and_is_its_default_beyond_them(buffer_dsn: str) -> None:
    schema = Policy.model_json_schema()["properties"]
    with psycopg.connect(buffer_dsn) as connection:
        defaults = one(connection, "select esl.policy_defaults()")
        bounds = one(connection, "select esl.policy_bounds()")
        numbers = {name for name, value in defaults.items() if type(value) is int}
        assert set(bounds) == numbers
        for name, (least, most) in bounds.items():
            assert (least, most) == (schema[name]["minimum"], schema[name]["maximum"])
            read = {
                value: one(connection, "select esl.policy_number(%s, %s)", Jsonb({name: value}), name)
                for value in (least, most, least - 1, most + 1)
            }
            assert read == {least: least, most: most, least - 1: defaults[name], most + 1: defaults[name]}
            assert one(connection, "select esl.policy_number('{}', %s)", name) == defaults[name]


def test_a_text_is_the_settings_own_or_the_default(buffer_dsn: str) -> None:
    with psycopg.connect(buffer_dsn) as connection:
        read = "select array[esl.policy_text('{}', 'refresh'), esl.policy_text('{\"refresh\": \"never\"}', 'refresh')]"
        assert one(connection, read) == ["after_push", "never"]
