"""The OpenAPI page against the application on the real buffer, by schemathesis: they agree, and nothing is a 5xx."""

import itertools
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pytest
import requests
import schemathesis
from schemathesis import engine
from schemathesis.engine.events import FatalError, NonFatalError, ScenarioFinished
from schemathesis.engine.recorder import ScenarioRecorder

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.receiver.app import create_app
from esl_pipeline.sources.shopify.deliveries import LIFECYCLE_TOPICS
from esl_pipeline.sources.shopify.topics import TOPICS
from esl_pipeline_tests.receiver.support import TOKEN, make_settings, signature

PHASES = ("examples", "coverage", "fuzzing", "stateful")


class FromEverywhere:
    """The application; each request comes from another address, so that no wrong token locks the next one out."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._numbers = itertools.count()

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        scope["client"] = (f"address-{next(self._numbers)}", 50_000)
        await self._app(scope, receive, send)


def signed(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """As Shopify or as an administrator, whoever speaks at this address."""
    if "/webhooks/" in str(request.url):
        body = request.body or b""
        raw = body.encode() if isinstance(body, str) else body
        request.headers["X-Shopify-Hmac-Sha256"] = signature(raw)
    else:
        request.headers["Authorization"] = f"Bearer {TOKEN}"
    return request


@dataclass
class Outcome:
    """Failures as text, how often each check was made, and which operations have done what was asked."""

    failures: set[str] = field(default_factory=set)
    checks: Counter[str] = field(default_factory=Counter)
    succeeded: set[str] = field(default_factory=set)


def run(buffer: Buffer, examples: int, *phases: str) -> Outcome:
    """The same cases each time; `examples` for each operation in fuzzing."""
    config = schemathesis.Config.from_dict(
        {
            "seed": 1,
            "phases": {name: {"enabled": name in phases} for name in PHASES},
            "generation": {
                "max-examples": examples,
                "deterministic": True,
                "database": "none",
                "with-security-parameters": False,  # `signed` gives them
            },
            "checks": {
                # A policy has rules that no JSON schema says: templates, time zones, settings that need each other.
                "positive_data_acceptance": {"enabled": False},
                # Starlette answers 405 for the first route of a path, and names the methods of that one only.
                "allow_header_conformance": {"enabled": False},
                # By itself it wants no 413, and what has too many items is too long as well.
                "negative_data_rejection": {"expected-statuses": ["4xx"]},
            },
        }
    )
    app = FromEverywhere(create_app(make_settings(), buffer))
    schema = schemathesis.openapi.from_asgi("/openapi.json", app, config=config)
    schema.auth.set_from_requests(signed)  # type: ignore[arg-type]
    outcome = Outcome()
    for event in engine.from_schema(schema).execute():
        if isinstance(event, NonFatalError):
            outcome.failures.add(f"{event.label}: {event.value!r}")
        elif isinstance(event, FatalError):
            outcome.failures.add(repr(event.exception))
        elif isinstance(event, ScenarioFinished):
            _count(event.recorder, outcome)
    return outcome


def _count(recorder: ScenarioRecorder, outcome: Outcome) -> None:
    for case_id, checks in recorder.checks.items():
        operation = recorder.cases[case_id].value.operation.label
        answer = recorder.interactions[case_id].response
        if answer is not None and answer.status_code < 300:
            outcome.succeeded.add(operation)
        for check in checks:
            outcome.checks[check.name] += 1
            if check.failure_info is not None:
                outcome.failures.add(
                    f"{operation}: {check.failure_info.failure}\n{check.failure_info.code_sample}"
                )


WEBHOOKS = {
    "POST /webhooks/shopify",
    *(f"POST /webhooks/shopify/{topic}" for topic in (*TOPICS, *LIFECYCLE_TOPICS)),
}
MAPPINGS = {
    "GET /api/store-mappings/",
    "POST /api/store-mappings/",
    "GET /api/store-mappings/{mapping_id}",
    "PUT /api/store-mappings/{mapping_id}",
}


@pytest.mark.long
def test_s13_a_few_requests_of_every_kind(buffer: Buffer) -> None:
    outcome = run(buffer, 5, "fuzzing", "stateful")
    assert not outcome.failures, "\n\n".join(sorted(outcome.failures))
    assert outcome.checks["ignored_auth"] > 40


@pytest.mark.slow
def test_s13_many_requests_and_every_edge(buffer: Buffer) -> None:
    """Each value that the page allows or forbids, each header left out, each method that is not there."""
    outcome = run(buffer, 25, *PHASES)
    assert not outcome.failures, "\n\n".join(sorted(outcome.failures))
    assert {
        "not_a_server_error",
        "status_code_conformance",
        "content_type_conformance",
        "response_schema_conformance",
        "negative_data_rejection",
        "missing_required_header",
        "unsupported_method",
        "ignored_auth",
        "use_after_free",
    } <= set(outcome.checks)
    assert min(outcome.checks.values()) > 1_000
    assert outcome.succeeded == WEBHOOKS | MAPPINGS | {"GET /", "GET /health", "GET /metrics"}
