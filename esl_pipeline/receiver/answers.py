"""What is answered beside store mappings, as the OpenAPI page describes it."""

from typing import Any, Literal

from pydantic import BaseModel

Answers = dict[int | str, dict[str, Any]]


class Kept(BaseModel):
    """A webhook is kept: now, or already before; or it was a greeting, which says nothing."""

    status: Literal["accepted", "duplicate", "greeted"]


class Health(BaseModel):
    """Whether webhooks can be kept, and no more: everybody may ask."""

    status: Literal["ok", "unavailable"]


class Refusal(BaseModel):
    """Why a request was not carried out, in a sentence."""

    detail: str


class FieldProblem(BaseModel):
    """What is wrong with one field."""

    field: str
    message: str


class Unprocessable(BaseModel):
    """What is wrong with each field."""

    detail: list[FieldProblem]


def refusals(descriptions: dict[int, str]) -> Answers:
    """Refusals by their status, each described."""
    return {status: {"model": Refusal, "description": says} for status, says in descriptions.items()}
