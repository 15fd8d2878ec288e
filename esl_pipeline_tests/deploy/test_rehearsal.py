"""The rehearsal (rehearsal.py) as a test, some ten minutes; and that it would notice what it is there to notice."""

import sys
from dataclasses import replace

import pytest

from esl_pipeline.sandbox.shopify.webhooks import Delivery
from esl_pipeline_tests.deploy.rehearsal import MissingError, lost, main, rehearse, unread
from esl_pipeline_tests.releases import BEFORE
from esl_pipeline_tests.reliability.outside import body_hash, scratch_home

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are found in /proc")

FIRST = Delivery(
    "products/update", b'{"id": 1}', "shop.myshopify.com", "first", "event", "2026-11-29T03:00:00.000Z"
)


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_a_rolling_upgrade_and_the_end_of_each_part_lose_nothing() -> None:
    with scratch_home("esl-rehearsal-") as home:
        try:
            verdict = rehearse(BEFORE, home)
        except MissingError as missing:
            pytest.skip(str(missing))
        assert verdict.problems == []


def test_without_the_older_release_it_says_so_and_is_no_failure(capsys: pytest.CaptureFixture[str]) -> None:
    main("0123456789abcdef")

    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("rehearsal skipped, it cannot be held here: ")


def test_it_notices_what_is_lost_and_what_is_not_read() -> None:
    kept, again, gone = (
        FIRST,
        replace(FIRST, webhook_id="again"),
        replace(FIRST, webhook_id="gone", body=b"{}"),
    )
    inbox = [(kept.webhook_id, kept.topic, body_hash(kept), "done"), ("other", "t", "h", "failed")]

    assert lost([kept, again, gone], inbox) == ["lost: products/update gone"], "the same body counts as kept"
    assert unread(inbox) == ["failed: t other"]
