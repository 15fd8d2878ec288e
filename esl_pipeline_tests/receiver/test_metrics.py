"""/metrics: who may read it. (What it says: stages/test_numbers.py.)"""

import pytest
from prometheus_client.parser import text_string_to_metric_families

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.receiver.app import create_app
from esl_pipeline.receiver.tokens import digest, new_token
from esl_pipeline_tests.receiver.support import TOKEN, call, make_app, make_settings
from esl_pipeline_tests.watched import WatchedBuffer


def bearer(token: str = TOKEN) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


@pytest.fixture
def buffer(watched: WatchedBuffer) -> WatchedBuffer:
    return watched


def test_without_any_token_it_is_closed(buffer: WatchedBuffer) -> None:
    app = create_app(make_settings(esl_admin_token=None), buffer)
    assert call(app, "GET", "/metrics", headers=bearer()).status_code == 403
    assert "numbers" not in buffer.calls


@pytest.mark.parametrize("headers", [{}, bearer("wrong" * 10), {"Authorization": f"Basic {TOKEN}"}])
def test_without_the_right_token_nothing_is_told(buffer: WatchedBuffer, headers: dict[str, str]) -> None:
    answer = call(make_app(buffer), "GET", "/metrics", headers=headers)
    assert answer.status_code == 401 and "esl_" not in answer.text
    assert "numbers" not in buffer.calls


def test_the_scope_read_is_enough(buffer: Buffer) -> None:
    made = new_token()
    buffer.token_add(name="prometheus", sha256=digest(made), scope="read")
    answer = call(make_app(buffer), "GET", "/metrics", headers=bearer(made))
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain")
    assert {"esl_pushes", "process_resident_memory_bytes"} <= {
        f.name for f in text_string_to_metric_families(answer.text)
    }


def test_it_is_no_part_of_the_webhooks(buffer: Buffer) -> None:
    app = create_app(make_settings(), buffer, only="webhooks")
    assert call(app, "GET", "/metrics", headers=bearer()).status_code == 404
