"""The README's tables are made from the models that they describe."""

from pathlib import Path

from esl_pipeline.labels.describe import describe_policy
from esl_pipeline.labels.policy import ATTRIBUTES
from esl_pipeline.settings import every_field

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def test_readme_table_is_the_settings() -> None:
    for name, field in every_field().items():
        default = "" if field.default is None else f"`{field.default}`"
        assert f"| `{name.upper()}` | {default} | {field.description} |" in README, name


def test_readme_table_is_the_policy() -> None:
    for name, values, default, meaning in describe_policy():
        assert f"| `{name}` | {values} | `{default}` | {meaning} |" in README, name


def test_readme_names_every_attribute_of_a_template() -> None:
    assert ", ".join(f"`{name}`" for name in sorted(ATTRIBUTES)) in README.replace("\n", " ")
