"""The whole stack of `esl-pipeline up`: a wrong secret is told within a minute, by Dagster's own daemon."""

import json
import signal
import time
from pathlib import Path

import httpx
import pytest

from esl_pipeline.receiver.refusals import TELL_SECONDS
from esl_pipeline.sandbox.shopify.shop import DOMAIN
from esl_pipeline_tests.alerts.listener import listening
from esl_pipeline_tests.orchestration.world import product
from esl_pipeline_tests.processes import Up
from esl_pipeline_tests.receiver.support import signed
from esl_pipeline_tests.waiting import eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

_UPDATE = "/webhooks/shopify/products/update"


def test_five_webhooks_with_a_wrong_secret_are_told_within_a_minute(place: Path) -> None:
    with listening() as listener, listening() as heart:
        up = Up(place, ESL_ALERT_WEBHOOK_URL=listener.url, ESL_HEARTBEAT_URL=heart.url)
        try:
            eventually(up.ready.exists, 200, "the stack")
            urls = up.wait_until_ready()
            ready = time.monotonic()
            eventually(lambda: heart.calls, 120, "a heartbeat: the daemon ticks")
            # The receiver was there before the mapping; it asks every so many seconds which shops are mapped.
            time.sleep(max(0, ready + TELL_SECONDS + 2 - time.monotonic()))
            raw = json.dumps(product(1)).encode()
            began = time.monotonic()
            for number in range(5):
                headers = signed(
                    "products/update", raw, secret="wrong", shop_domain=DOMAIN, webhook_id=f"w{number}"
                )
                assert httpx.post(urls["receiver"] + _UPDATE, content=raw, headers=headers).status_code == 401
            eventually(lambda: listener.messages, 60, "the alert")
            print(f"told after {time.monotonic() - began:.0f} s")
            assert listener.events() == [("opened", "signatures_refused")]
            (told,) = listener.alerts()
            assert f"5 webhooks that name shop {DOMAIN}" in told["says"]
            assert told["link"] == f"{urls['ui']}/"
        finally:
            up.end(signal.SIGTERM)
