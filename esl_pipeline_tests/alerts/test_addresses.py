"""ESL_ALERT_WEBHOOK_URL, ESL_ALERT_QUIET_HOURS and ESL_HEARTBEAT_URL: what they may be, and that they stay secret."""

from datetime import UTC, datetime

import pytest
from pydantic import SecretStr

from esl_pipeline.alerts.addresses import is_quiet, recipients
from esl_pipeline.environment import SettingsError
from esl_pipeline.settings import load_settings

SECRET = "sEcReT"


def test_several_each_with_the_severity_that_it_is_told_of() -> None:
    named = recipients(
        SecretStr(
            f"https://hooks.example.com/{SECRET}/1, critical=https://hooks.example.com/{SECRET}/2  "
            f"INFO=http://127.0.0.1:99/?key={SECRET},https://Other.example.com?x={SECRET}"
        )
    )
    assert [(one.name, one.severity) for one in named] == [
        ("https://hooks.example.com", "warning"),
        ("https://hooks.example.com (2)", "critical"),
        ("http://127.0.0.1:99", "info"),
        ("https://other.example.com", "warning"),
    ]
    assert named[1].url.get_secret_value() == f"https://hooks.example.com/{SECRET}/2"
    assert SECRET not in repr(named)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (f"http://hooks.example.com/{SECRET}", "address 1 is an address at which"),
        (f"https://user:{SECRET}@hooks.example.com/", "has a user name in it"),
        (f"https://ok.example.com/1,urgent=https://hooks.example.com/{SECRET}", "address 2 is none"),
        (f"ftp://hooks.example.com/{SECRET}", "address 1 is none"),
        (SECRET, "address 1 is none"),
        (f"https://a.example/{SECRET} info=https://a.example/{SECRET}", "names an address twice"),
    ],
)
def test_what_is_no_address_is_said_without_it(value: str, says: str) -> None:
    with pytest.raises(SettingsError) as refused:
        load_settings(esl_alert_webhook_url=value)
    assert says in str(refused.value) and SECRET not in str(refused.value)


@pytest.mark.parametrize(
    "value", [f"http://hc.example.com/{SECRET}", SECRET, f"https://{SECRET}@hc.example.com"]
)
def test_a_heartbeat_goes_where_it_cannot_be_overheard(value: str) -> None:
    with pytest.raises(SettingsError) as refused:
        load_settings(esl_heartbeat_url=value)
    assert "ESL_HEARTBEAT_URL" in str(refused.value) and SECRET not in str(refused.value)


def test_no_setting_shows_them() -> None:
    settings = load_settings(
        esl_alert_webhook_url=f"https://a.example/{SECRET}", esl_heartbeat_url=f"https://b.example/{SECRET}"
    )
    assert SECRET not in repr(settings) + str(settings.model_dump()) + settings.model_dump_json()


@pytest.mark.parametrize("hours", ["22-6", "22:00", "24:00-06:00", "08:00-08:00"])
def test_hours_that_are_none(hours: str) -> None:
    with pytest.raises(SettingsError, match="are no hours"):
        load_settings(esl_alert_quiet_hours=hours)


def test_quiet_hours_are_those_of_the_nights_time_zone() -> None:
    night = "22:00-06:30"
    for hour, minute, quiet in (
        (20, 59, False),
        (21, 0, True),
        (23, 30, True),
        (5, 29, True),
        (5, 30, False),
    ):
        assert is_quiet(night, "Europe/Berlin", datetime(2026, 1, 5, hour, minute, tzinfo=UTC)) is quiet
    assert is_quiet("12:00-13:00", "UTC", datetime(2026, 1, 5, 12, 0, tzinfo=UTC))
    assert not is_quiet(None, "UTC", datetime(2026, 1, 5, tzinfo=UTC))
