"""Which host is this machine. Whose word counts for a sender's address is tested in receiver/test_shares.py."""

import pytest

from esl_pipeline.addresses import is_loopback


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LOCALHOST",
        "shop.localhost",
        "127.0.0.1",
        "127.9.8.7",
        "::1",
        "[::1]",
        "::ffff:127.0.0.1",
    ],
)
def test_this_machine(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host",
    [
        *(
            "",
            "localhost.example.com",
            "notlocalhost",
            "127.0.0.1.example.com",
            "10.0.0.1",
            "0.0.0.0",
            "::",
            "fe80::1",
        ),
        *("::ffff:10.0.0.1", "1270.0.0.1", "example.com", "２７.0.0.1"),
    ],
)
def test_another_machine_or_none(host: str) -> None:
    assert not is_loopback(host)
