import os
import re
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from dotenv import dotenv_values

from esl_pipeline.label_servers import PUBLIC_SIGN
from esl_pipeline.secret_files import export
from esl_pipeline.settings import Settings, SettingsError, every_field, load_settings, secret_names
from esl_pipeline.sources.shopify.settings import ShopifySettings
from esl_pipeline.sources.shopify.shop_names import shop_named

ROOT = Path(__file__).parents[1]
NAMES = [name.upper() for name in every_field()]
DSN = "postgresql://esl:canary-dsn@db.example.com:5432/postgres"
SECRETS = {
    "HIPOINK_API_SECRET": "canary-sign",
    "HIPOINK_PASSWORD": "canary-password",
    "SUPABASE_SERVICE_KEY": "canary-key",
    "ESL_DATABASE_URL": DSN,
    "ESL_DAGSTER_DATABASE_URL": DSN,
    "SHOPIFY_WEBHOOK_SECRET": "canary-webhook",
    "SHOPIFY_API_KEY": "canary-client",
    "SHOPIFY_API_SECRET": "canary-client-secret",
    "SHOPIFY_APPS": "a=canary-app:canary-app-secret",
    "ESL_ADMIN_TOKEN": "canary-admin-token-of-32-characters",
    "ESL_ALERT_WEBHOOK_URL": "https://alerts.example.com/canary-alerts",
    "ESL_HEARTBEAT_URL": "https://alive.example.com/canary-heartbeat",
}


def problems(**overrides: Any) -> dict[str, str]:
    """What is wrong, by name."""
    with pytest.raises(SettingsError) as caught:
        load_settings(**overrides)
    assert all(problem in str(caught.value) for problem in caught.value.problems)
    return dict(problem.split(": ", 1) for problem in caught.value.problems)


# Names and defaults


def test_the_names_are_the_documented_ones() -> None:
    assert sorted(NAMES) == sorted(
        [
            "ALLOW_INSECURE_LABEL_SERVER",
            "HIPOINK_API_BASE_URL",
            "HIPOINK_CA_FILE",
            "HIPOINK_CLIENT_ID",
            "HIPOINK_API_SECRET",
            "HIPOINK_USERNAME",
            "HIPOINK_PASSWORD",
            "HIPOINK_RATE_LIMIT_PER_SECOND",
            "HIPOINK_BATCH_SIZE",
            "HIPOINK_CONCURRENCY",
            "HIPOINK_SERVERS_FILE",
            "SUPABASE_URL",
            "SUPABASE_SERVICE_KEY",
            "ESL_DATABASE_URL",
            "ESL_DAGSTER_DATABASE_URL",
            "SHOPIFY_WEBHOOK_SECRET",
            "SHOPIFY_API_KEY",
            "SHOPIFY_API_SECRET",
            "SHOPIFY_APPS",
            "SHOPIFY_ADMIN_TOKEN",
            "WOOCOMMERCE_KEYS",
            "WOOCOMMERCE_WEBHOOK_SECRET",
            "WOOCOMMERCE_URL",
            "FILES_FOLDERS",
            "FILES_SMALLEST_SHARE_PCT",
            "FILES_SETTLE_SECONDS",
            "SHOPIFY_ADMIN_URL",
            "SHOPIFY_API_VERSION",
            "APP_BASE_URL",
            "APP_ENVIRONMENT",
            "LOG_LEVEL",
            "SYNC_WORKER_INTERVAL_SECONDS",
            "MAX_RETRY_ATTEMPTS",
            "RETRY_BACKOFF_MULTIPLIER",
            "RETRY_INITIAL_DELAY_SECONDS",
            "ESL_DRAIN_IDLE_SECONDS",
            "ESL_DRAIN_KEEP_WARM",
            "ESL_DRAIN_MAX_AGE_SECONDS",
            "ESL_NIGHTLY_CRON",
            "ESL_NIGHTLY_TIME_ZONE",
            "ESL_HOUSEKEEPING_CRON",
            "ESL_CATCH_UP_MINUTES",
            "ESL_OPERATOR_DATABASE_URL",
            "ESL_SHELF_MINUTES",
            "ESL_SILENCE_HOURS",
            "ESL_ALERT_WEBHOOK_URL",
            "ESL_ALERT_QUIET_HOURS",
            "ESL_HEARTBEAT_URL",
            "ESL_DAGSTER_URL",
            "ESL_ADMIN_TOKEN",
            "ESL_TRUSTED_PROXIES",
            "ESL_HOME",
            "ESL_HOST_NAMES",
            "ESL_FRAMES_URL",
            "ESL_WEBHOOK_BODY_LIMIT_BYTES",
            "ESL_KEEP_BODIES_DAYS",
            "ESL_KEEP_DELIVERIES_DAYS",
            "ESL_KEEP_RUNS_DAYS",
        ]
    )


def test_the_defaults_are_the_documented_ones() -> None:
    given = {name: value for name, value in load_settings().model_dump().items() if value is not None}
    assert given == {
        "allow_insecure_label_server": False,
        "hipoink_client_id": "default",
        "hipoink_rate_limit_per_second": 10,
        "hipoink_batch_size": 100,
        "hipoink_concurrency": 4,
        "esl_housekeeping_cron": "30 4 * * *",
        "esl_nightly_cron": "0 2 * * *",
        "esl_nightly_time_zone": "UTC",
        "esl_catch_up_minutes": 15,
        "esl_shelf_minutes": 15,
        "esl_silence_hours": 24,
        "app_environment": "development",
        "log_level": "INFO",
        "sync_worker_interval_seconds": 5,
        "max_retry_attempts": 25,
        "retry_backoff_multiplier": 2,
        "retry_initial_delay_seconds": 2,
        "esl_drain_idle_seconds": 20,
        "esl_drain_max_age_seconds": 3600,
        "esl_drain_keep_warm": True,
        "esl_home": Path(".esl"),
        "esl_webhook_body_limit_bytes": 5_000_000,
        "esl_keep_bodies_days": 30,
        "esl_keep_deliveries_days": 90,
        "esl_keep_runs_days": 30,
    }


def test_every_setting_has_a_description() -> None:
    assert not [name for name, field in every_field().items() if not field.description]


def test_the_unused_account_says_so() -> None:
    for name in ("hipoink_username", "hipoink_password"):
        assert "does not use" in str(every_field()[name].description)


# Where values come from


def test_names_are_read_in_either_case(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("hipoink_batch_size", "7")
    assert load_settings().hipoink_batch_size == 7


def test_overrides_win_over_the_environment_and_that_over_the_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / ".env").write_text("HIPOINK_BATCH_SIZE=1\nMAX_RETRY_ATTEMPTS=1\nLOG_LEVEL=ERROR\nOTHER=x\n")
    monkeypatch.setenv("HIPOINK_BATCH_SIZE", "2")
    monkeypatch.setenv("MAX_RETRY_ATTEMPTS", "2")
    settings = load_settings(HIPOINK_BATCH_SIZE=3)
    assert (settings.hipoink_batch_size, settings.max_retry_attempts, settings.log_level) == (3, 2, "ERROR")


@pytest.mark.parametrize("blank", ["", "  "])
def test_a_blank_variable_is_not_set(monkeypatch: pytest.MonkeyPatch, blank: str) -> None:
    for name in NAMES:
        monkeypatch.setenv(name, blank)
    assert load_settings().model_dump() == Settings(_env_file=None).model_dump()  # type: ignore[call-arg]


@pytest.mark.parametrize("nothing", ["", None])
def test_an_override_can_take_a_variable_away(monkeypatch: pytest.MonkeyPatch, nothing: str | None) -> None:
    monkeypatch.setenv("HIPOINK_API_BASE_URL", "https://labels.example.com")
    assert load_settings(hipoink_api_base_url=nothing).hipoink_api_base_url is None


def test_values_are_freed_of_blanks_around_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOPIFY_API_KEY", "id")
    monkeypatch.setenv("SHOPIFY_API_SECRET", " abc\n")
    secret = load_settings().of(ShopifySettings).shopify_api_secret
    assert secret and secret.get_secret_value() == "abc"


def test_the_example_file_names_every_setting_with_a_comment_and_no_secret(tmp_path: Path) -> None:
    example = (ROOT / ".env.example").read_text()
    entries = re.findall(r"^# (.+)\n([A-Z_]+)=(.*)$", example, re.MULTILINE)
    assert sorted(name for _, name, _ in entries) == sorted(NAMES)
    assert len(entries) == len(re.findall(r"^\w+=", example, re.MULTILINE))
    assert not [name for _, name, value in entries if value and name in SECRETS]
    defaults = load_settings().model_dump()
    (tmp_path / ".env").write_text(example)
    assert load_settings().model_dump() == defaults


def test_a_shell_reads_the_example_file_as_we_do() -> None:
    example = ROOT / ".env.example"
    read = f"set -eu; set -a; . {example}; env -0"
    told = subprocess.run(["sh", "-c", read], env={}, capture_output=True, text=True, timeout=30, check=True)
    assert told.stderr == ""
    in_shell = dict(line.split("=", 1) for line in told.stdout.split("\0") if line)
    ours = {name: value or "" for name, value in dotenv_values(example).items()}
    assert {name: in_shell[name] for name in ours} == ours


# Secrets from files


def secret_file(folder: Path, text: str, name: str = "secret") -> str:
    (folder / name).write_text(text)
    return str(folder / name)


def test_a_secret_may_stand_in_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("ESL_ADMIN_TOKEN", "ESL_DATABASE_URL", "SHOPIFY_WEBHOOK_SECRET"):
        monkeypatch.setenv(f"{name}_FILE", secret_file(tmp_path, SECRETS[name] + "\n", name))
    settings = load_settings()
    assert settings.esl_database_url and settings.esl_database_url.get_secret_value() == DSN
    assert (
        settings.esl_admin_token and settings.esl_admin_token.get_secret_value() == SECRETS["ESL_ADMIN_TOKEN"]
    )
    assert settings.of(ShopifySettings).webhook_secrets
    assert not [warning for warning in settings.warnings() if "_FILE" in warning]
    # An override takes its place, as it does that of the variable.
    assert load_settings(esl_admin_token="", esl_database_url=None).esl_database_url is None


def test_every_secret_has_its_file_and_nothing_else_has_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert set(SECRETS) <= set(secret_names())
    assert not {"HIPOINK_CA", "HIPOINK_SERVERS", "APP_BASE_URL", "LOG_LEVEL", "ESL_HOME"} & set(
        secret_names()
    )
    monkeypatch.setenv("LOG_LEVEL_FILE", secret_file(tmp_path, "DEBUG"))
    assert load_settings().log_level == "INFO"


def test_the_env_file_may_name_it(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(f"ESL_DATABASE_URL_FILE={secret_file(tmp_path, DSN)}\n")
    assert load_settings().esl_database_url


def test_systemds_credentials_are_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert load_settings().esl_database_url is None
    secret_file(tmp_path, DSN, "ESL_DATABASE_URL")
    assert load_settings().esl_database_url
    monkeypatch.setenv("ESL_DATABASE_URL", "postgresql://other.example.com/db")
    kept = load_settings().esl_database_url
    assert kept and "other" in kept.get_secret_value()


def test_what_is_wrong_with_a_file_is_said_without_its_content(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ESL_ADMIN_TOKEN_FILE", str(tmp_path / "nothing"))
    monkeypatch.setenv("ESL_DATABASE_URL_FILE", secret_file(tmp_path, " \n", "empty"))
    monkeypatch.setenv("SUPABASE_SERVICE_KEY_FILE", secret_file(tmp_path, "canary-key", "key"))
    monkeypatch.setenv("SUPABASE_SERVICE_KEY", "canary-other")
    monkeypatch.setenv("HIPOINK_API_SECRET_FILE", secret_file(tmp_path, "canary-a\ncanary-b", "lines"))
    found = problems()
    assert "cannot be read (FileNotFoundError)" in found["ESL_ADMIN_TOKEN_FILE"]
    assert "is empty" in found["ESL_DATABASE_URL_FILE"]
    assert "and so is SUPABASE_SERVICE_KEY; remove one" in found["SUPABASE_SERVICE_KEY_FILE"]
    assert "cannot be printed" in found["HIPOINK_API_SECRET"]
    assert "canary" not in str(found)


def test_the_sign_of_a_further_label_server_may_stand_in_a_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    servers = secret_file(
        tmp_path,
        '[north]\nbase_url = "https://n.example.com"\n[north-file]\nbase_url = "https://f.example.com"\n',
    )
    monkeypatch.setenv("HIPOINK_SERVERS_FILE", servers)
    monkeypatch.setenv(
        "HIPOINK_API_SECRET__NORTH_FILE", "canary-of-north-file"
    )  # a sign: that server is called so
    assert load_settings().label_server("north-file").sign.get_secret_value() == "canary-of-north-file"
    (tmp_path / "secret").write_text('[north]\nbase_url = "https://n.example.com"\n')
    monkeypatch.setenv("HIPOINK_API_SECRET__NORTH_FILE", secret_file(tmp_path, "canary-north", "sign"))
    settings = load_settings()
    assert settings.label_server("north").sign.get_secret_value() == "canary-north"
    assert not [warning for warning in settings.warnings() if "NORTH" in warning]


def test_a_misspelt_file_variable_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ESL_ADMIN_TOKN_FILE", "x")
    assert any("did you mean ESL_ADMIN_TOKEN_FILE?" in warning for warning in load_settings().warnings())


def test_for_a_library_a_secret_goes_into_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ESL_DAGSTER_DATABASE_URL_FILE", secret_file(tmp_path, DSN))
    monkeypatch.delenv("ESL_DAGSTER_DATABASE_URL", raising=False)
    export("ESL_DAGSTER_DATABASE_URL")
    assert os.environ["ESL_DAGSTER_DATABASE_URL"] == DSN
    assert load_settings().esl_dagster_database_url, "the same in both places is no contradiction"
    monkeypatch.setenv("ESL_DAGSTER_DATABASE_URL", "")
    monkeypatch.setenv("ESL_DAGSTER_DATABASE_URL_FILE", "/nothing")
    with pytest.raises(SystemExit, match="ESL_DAGSTER_DATABASE_URL_FILE: the file cannot be read"):
        export("ESL_DAGSTER_DATABASE_URL")


# Values that mean something


def test_admin_tokens_are_one_for_all_shops_or_one_for_each() -> None:
    def token(shop: str, given: str | None) -> str | None:
        found = load_settings(shopify_admin_token=given).of(ShopifySettings).admin_access(shop)
        return found and found.get_secret_value()

    assert token("a.myshopify.com", None) is None
    assert token("a.myshopify.com", "shpat_1") == "shpat_1"
    both = "a.myshopify.com=shpat_1, b.myshopify.com=shpat_2"
    assert [token(f"{shop}.myshopify.com", both) for shop in "abc"] == ["shpat_1", "shpat_2", None]


@pytest.mark.parametrize(
    "written",
    [
        "Corner-Market.myshopify.com",
        "https://corner-market.myshopify.com/",
        "https://Corner-Market.myshopify.com/admin/products",
        "https://admin.shopify.com/store/corner-market/settings",
        "corner-market.myshopify.com.",
        "corner-market",
    ],
)
def test_field_29_a_shop_has_one_name_however_it_is_written(written: str) -> None:
    assert shop_named(written) == "corner-market.myshopify.com"
    for given in (f"{written}=shpat_1", f" {written} = shpat_1 , other=shpat_2"):
        settings = load_settings(shopify_admin_token=given)
        token = settings.of(ShopifySettings).admin_access("corner-market.myshopify.com")
        assert token and token.get_secret_value() == "shpat_1"
        assert settings.of(ShopifySettings).admin_access("third.myshopify.com") is None


@pytest.mark.parametrize(
    ("written", "says"),
    [
        ("a=shpat_canary,A.myshopify.com=shpat_canary2", "entry 2 is a second token for a.myshopify.com"),
        ("a=shpat_canary,b=", "entry 2 holds no token"),
        ("www.corner-market.example=shpat_canary", "entry 1 names its shop wrongly"),
        ("a=shpat_canary,=shpat_canary", "entry 2 names its shop wrongly"),
        ("cornér=shpat_canary", "entry 1 names its shop wrongly"),
        ("a=shpat canary", "entry 1 holds a token with characters that no token has"),
    ],
)
def test_field_29_what_names_no_shop_or_holds_no_token_is_refused(written: str, says: str) -> None:
    said = problems(shopify_admin_token=written)["SHOPIFY_ADMIN_TOKEN"]
    assert says in said and "canary" not in said


def test_field_29_webhook_secrets_take_the_domain_only_and_refuse_what_is_near_it() -> None:
    secret = "shpss_" + "c0ffee" * 6
    (found,) = (
        load_settings(shopify_webhook_secret=f"Corner-Market.myshopify.com={secret}")
        .of(ShopifySettings)
        .webhook_secrets
    )
    assert (found.shop, found.key) == ("corner-market.myshopify.com", secret.encode())
    for near in (
        "corner-market",
        "https://corner-market.myshopify.com/",
        "admin.shopify.com/store/corner-market",
    ):
        said = problems(shopify_webhook_secret=f"{near}={secret}")["SHOPIFY_WEBHOOK_SECRET"]
        assert "entry 1 names its shop wrongly" in said and secret not in said


def test_field_29_shops_without_a_token_are_told_from_shops_that_need_none() -> None:
    names = ("b.myshopify.com", "a.myshopify.com", "b.myshopify.com")
    shops = [{"source_system": "shopify", "source_store_id": name} for name in names]
    assert load_settings().not_readable(shops) == {}
    assert load_settings(shopify_admin_token="shpat_1").not_readable(shops) == {}
    assert load_settings(shopify_admin_token="a=shpat_1").not_readable(shops) == {
        "b.myshopify.com": "SHOPIFY_APPS or SHOPIFY_ADMIN_TOKEN opens other shops only"
    }


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SHOPIFY_ADMIN_TOKEN", "shpat_1,shpat_2"),
        ("SHOPIFY_ADMIN_TOKEN", ","),
        ("SHOPIFY_API_VERSION", "latest"),
        ("SHOPIFY_ADMIN_URL", "ftp://x"),
        ("ESL_NIGHTLY_CRON", "nightly"),
        ("ESL_NIGHTLY_TIME_ZONE", "Mars/Olympus"),
        ("ESL_CATCH_UP_MINUTES", "60"),
        ("ESL_SHELF_MINUTES", "0"),
    ],
)
def test_wrong_values_for_the_reconciliation_are_named(name: str, value: str) -> None:
    assert list(problems(**{name.lower(): value})) == [name]


def test_without_a_sign_the_public_default_is_used_and_said() -> None:
    settings = load_settings()
    assert settings.hipoink_sign.get_secret_value() == PUBLIC_SIGN == "80805d794841f1b4"
    assert settings.uses_public_sign
    assert load_settings(hipoink_api_secret=PUBLIC_SIGN).uses_public_sign
    own = load_settings(hipoink_api_secret="own")
    assert (own.hipoink_sign.get_secret_value(), own.uses_public_sign) == ("own", False)


@pytest.mark.parametrize(
    ("text", "secrets"),
    [
        (None, []),
        ("one", [(b"one", None, None)]),
        (" new, old ,,", [(b"new", None, None), (b"old", None, None)]),
        ("schlüssel", [("schlüssel".encode(), None, None)]),
        ("A.MyShopify.com=one", [(b"one", "a.myshopify.com", None)]),
        ("a.myshopify.com = c2VjcmV0== ", [(b"c2VjcmV0==", "a.myshopify.com", None)]),
        ("c2VjcmV0==,not.a.shop=x", [(b"c2VjcmV0==", None, None), (b"not.a.shop=x", None, None)]),
        ("one@2026-12-31", [(b"one", None, "2026-12-31T23:59:59.999999+00:00")]),
        ("one@2026-12-31T12:00:00Z", [(b"one", None, "2026-12-31T12:00:00+00:00")]),
        ("one@2026-12-31T12:00", [(b"one", None, "2026-12-31T12:00:00+00:00")]),
        ("one@2026-12-31T12:00+02:00", [(b"one", None, "2026-12-31T10:00:00+00:00")]),
        ("o@e@x", [(b"o@e@x", None, None)]),
        ("a.myshopify.com=o@e@2026-12-31T12:00Z", [(b"o@e", "a.myshopify.com", "2026-12-31T12:00:00+00:00")]),
    ],
)
def test_several_webhook_secrets_are_separated_by_commas(
    text: str | None, secrets: list[tuple[bytes, str | None, str | None]]
) -> None:
    found = load_settings(shopify_webhook_secret=text).of(ShopifySettings).webhook_secrets
    assert [(s.key, s.shop, s.not_after and s.not_after.isoformat()) for s in found] == secrets
    assert not [s for s in found if "key" in repr(s)]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (",", "only commas"),
        ("canary,a.myshopify.com=", "entry 2 holds no secret"),
        ("a.myshopify.com=@2026-12-31", "entry 1 holds no secret"),
        ("@2026-12-31", "entry 1 holds no secret"),
        ("canary@2026-02-30", "entry 1 ends with a date that is none"),
        ("canary@2026-12-31T25:00Z", "entry 1 ends with a date that is none"),
        ("https://a.myshopify.com=canary", "entry 1 names its shop wrongly"),
        ("ok,a.b.myshopify.com=canary", "entry 2 names its shop wrongly"),
    ],
)
def test_wrong_webhook_secrets_are_named_by_their_number(text: str, says: str) -> None:
    said = problems(shopify_webhook_secret=text)["SHOPIFY_WEBHOOK_SECRET"]
    assert says in said and "canary" not in said


def test_webhook_secrets_that_end_soon_are_said_without_their_value() -> None:
    now = datetime.now(UTC)
    ends = [now + timedelta(days=days) for days in (15, 13, -1)]
    text = ",".join(f"canary@{end:%Y-%m-%dT%H:%M:%SZ}" for end in ends)
    said = load_settings(
        **COMPLETE | {"shopify_webhook_secret": f"{text},a.myshopify.com=forever"}
    ).warnings()
    assert [sentence.split(" at ")[0].split(") ")[1] for sentence in said] == ["expires", "expired"]
    assert [sentence[:7] for sentence in said] == ["entry 2", "entry 3"]
    assert "canary" not in "".join(said)


def test_frames_are_kept_below_the_home_unless_told(tmp_path: Path) -> None:
    assert load_settings().frames_url == str(tmp_path / ".esl" / "frames")
    assert load_settings(esl_home="/data").frames_url == "/data/frames"
    url = "abfs://frames@account.dfs.core.windows.net/esl"
    assert load_settings(esl_frames_url=url).frames_url == url


def test_the_home_may_be_below_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_settings(esl_home="~/labels").esl_home == tmp_path / "labels"


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("http://127.0.0.1:8090", "http://127.0.0.1:8090"),
        ("https://labels.example.com/", "https://labels.example.com"),
        ("http://[::1]:9/esl/", "http://[::1]:9/esl"),
    ],
)
def test_a_base_address_is_kept_without_its_last_slash(given: str, kept: str) -> None:
    assert load_settings(hipoink_api_base_url=given).hipoink_api_base_url == kept


def test_dagsters_address_may_name_its_driver_and_the_buffers_may_not() -> None:
    address = DSN.replace("postgresql:", "postgresql+psycopg2:")
    kept = load_settings(esl_dagster_database_url=address).esl_dagster_database_url
    assert kept and kept.get_secret_value() == address
    assert list(problems(esl_database_url=address)) == ["ESL_DATABASE_URL"]


# What is wrong

BAD = [
    *(
        (name, value)
        for name in ("HIPOINK_API_BASE_URL", "SUPABASE_URL", "APP_BASE_URL")
        for value in (
            "labels.example.com",
            "ftp://labels.example.com",
            "http://",
            "http:///path",
            "http://h:x",
            "http://h:99999",
            "http://h:0",
            "http://[::1",
            "http://h/?a=1",
            "http://h/#a",
            "http://h?",
            "http://user:canary@h",
            "http://a b",
            "http://a\tb",
        )
    ),
    *(("HIPOINK_CLIENT_ID", value) for value in ("a/b", "..", "a?b", "a b", "é", "x" * 65)),
    *(("HIPOINK_RATE_LIMIT_PER_SECOND", value) for value in ("0", "-1", "1001", "nan", "inf", "ten")),
    *(("HIPOINK_BATCH_SIZE", value) for value in ("0", "1001", "1.5", "x")),
    *(("HIPOINK_CONCURRENCY", value) for value in ("0", "33", "1.5")),
    *(
        (name, value)
        for name in ("ESL_DATABASE_URL", "ESL_DAGSTER_DATABASE_URL")
        for value in (
            "mysql://h/d",
            "postgresql+asyncpg://h/d",
            "host=h dbname=d",
            "db.example.com",
            "postgresql://u:canary@[h/d",
            "postgresql://u:canary%zz@h/d",
            "postgresql://h/d?no_such_word=1",
        )
    ),
    ("SHOPIFY_WEBHOOK_SECRET", " , ,"),
    *(("APP_ENVIRONMENT", value) for value in ("prod", "1")),
    *(("LOG_LEVEL", value) for value in ("loud", "10")),
    *(("SYNC_WORKER_INTERVAL_SECONDS", value) for value in ("0", "3601", "soon")),
    *(("MAX_RETRY_ATTEMPTS", value) for value in ("0", "-1")),
    *(("RETRY_BACKOFF_MULTIPLIER", value) for value in ("0.5", "11", "nan")),
    *(("RETRY_INITIAL_DELAY_SECONDS", value) for value in ("0", "-1", "inf")),
    *(("ESL_DRAIN_IDLE_SECONDS", value) for value in ("-1", "nan")),
    *(("ESL_DRAIN_MAX_AGE_SECONDS", value) for value in ("0", "86401", "19")),
    *(
        ("ESL_ADMIN_TOKEN", value)
        for value in (
            "canary-of-only-31-characters-xx",
            "thirty-two characters with blanks",
            "canary-with-an-ümlaut-in-32-chars",
        )
    ),
    *(("ESL_HOME", value) for value in ("a-file", "a-file/below", "~no-such-user-here/x")),
    *(("ESL_FRAMES_URL", value) for value in ("s3://key:canary@bucket/frames", "sftp://me@host/frames")),
    *(("ESL_WEBHOOK_BODY_LIMIT_BYTES", value) for value in ("0", "999", "50000001", "5MB")),
]


@pytest.mark.parametrize(("name", "value"), BAD)
def test_a_wrong_value_is_named_with_what_to_do_and_without_the_value(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, value: str
) -> None:
    (tmp_path / "a-file").touch()
    monkeypatch.setenv(name, value)
    if name == "SUPABASE_URL":
        monkeypatch.setenv("SUPABASE_SERVICE_KEY", "canary")
    found = problems()
    assert list(found) == [name]
    what, _, to_do = found[name].partition("; ")
    assert what and to_do
    assert "canary" not in found[name]


@pytest.mark.parametrize("value", ["\udcff", "line\nbreak", "no-break\u00a0space", "\u200binvisible"])
def test_what_cannot_be_printed_is_a_problem_in_any_setting(
    monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    for name in NAMES:
        monkeypatch.setenv(name, value)
    assert sorted(problems()) == sorted(NAMES)


def test_a_number_out_of_range_says_the_range() -> None:
    assert "a whole number from 1 to 1000" in problems(hipoink_batch_size=0)["HIPOINK_BATCH_SIZE"]
    assert "one of development, staging, production" in problems(app_environment="x")["APP_ENVIRONMENT"]


def test_choices_are_read_in_either_case() -> None:
    settings = load_settings(app_environment="Production", log_level="debug")
    assert (settings.app_environment, settings.log_level) == ("production", "DEBUG")


def test_all_problems_are_reported_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = {
        "HIPOINK_API_BASE_URL": "labels",
        "HIPOINK_BATCH_SIZE": "many",
        "SUPABASE_URL": "https://abcd.supabase.co",  # its key is missing
        "ESL_DAGSTER_DATABASE_URL": "sqlite://",
        "ESL_DRAIN_MAX_AGE_SECONDS": "10",  # less than the idle time
        "ESL_ADMIN_TOKEN": "short",
    }
    for name, value in wrong.items():
        monkeypatch.setenv(name, value)
    expected = {"SUPABASE_SERVICE_KEY" if name == "SUPABASE_URL" else name for name in wrong}
    assert set(problems(no_such_setting=1)) == {"NO_SUCH_SETTING", *expected}


def test_the_text_is_a_list_for_the_reader() -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(esl_home="/dev/null", log_level="x")
    assert str(caught.value) == (
        "2 settings are wrong:\n"
        "  - LOG_LEVEL: is not one of DEBUG, INFO, WARNING, ERROR, CRITICAL; correct it, or remove it for the "
        "default\n"
        "  - ESL_HOME: cannot be a folder of ours; name a folder that exists or can be made"
    )


def test_supabase_address_and_key_come_together() -> None:
    url, key = "https://abcd.supabase.co", "key"
    assert "SUPABASE_URL is set" in problems(supabase_url=url)["SUPABASE_SERVICE_KEY"]
    assert "without SUPABASE_URL" in problems(supabase_service_key=key)["SUPABASE_SERVICE_KEY"]
    load_settings(supabase_url=url, supabase_service_key=key)
    load_settings(supabase_url=url, esl_database_url=DSN)
    load_settings(supabase_service_key=key, esl_database_url=DSN)


def test_a_misspelt_override_is_refused_with_the_right_name() -> None:
    assert "did you mean HIPOINK_BATCH_SIZE?" in problems(hipoink_batchsize=1)["HIPOINK_BATCHSIZE"]


def test_an_env_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes(b"ESL_HOME=\xff\xfe")
    assert "UTF-8" in problems()[".env"]


# Secrets


def test_no_secret_shows_in_any_form(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    settings = load_settings()
    shown = [repr(settings), str(settings), str(settings.model_dump()), settings.model_dump_json()]
    shown += [str(settings.warnings()), repr(settings.hipoink_sign), repr(vars(settings))]
    assert "canary" not in "\n".join(shown)
    monkeypatch.setenv("MAX_RETRY_ATTEMPTS", "canary")
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert "canary" not in repr(caught.value) + str(caught.value)
    assert caught.value.__suppress_context__


# Warnings


def test_a_bare_start_says_what_is_missing() -> None:
    assert [said.split()[0] for said in load_settings().warnings()] == [
        "HIPOINK_API_SECRET",
        "SHOPIFY_WEBHOOK_SECRET",
    ]


COMPLETE = {
    "hipoink_api_secret": "own",
    "shopify_webhook_secret": "secret",
    "hipoink_api_base_url": "https://labels.example.com",
    "esl_database_url": f"{DSN}?sslmode=verify-full",
}


def test_complete_settings_leave_nothing_to_say() -> None:
    assert load_settings(**COMPLETE).warnings() == []


@pytest.mark.parametrize(
    ("url", "secure"),
    [
        ("http://labels.example.com", False),
        ("http://127.0.0.1.example.com", False),
        ("http://192.168.1.5:8090", False),
        ("http://[fd00::5]:8090", False),
        ("http://127.0.0.1:8090", True),
        ("http://[::1]:8090", True),
        ("http://localhost:8090", True),
        ("https://192.168.1.5", True),
    ],
)
def test_s22_plain_http_to_another_machine_is_refused(url: str, secure: bool) -> None:
    if secure:
        assert load_settings(**COMPLETE | {"hipoink_api_base_url": url}).warnings() == []
    else:
        assert "ALLOW_INSECURE_LABEL_SERVER" in problems(hipoink_api_base_url=url)["HIPOINK_API_BASE_URL"]


@pytest.mark.parametrize(
    ("url", "accepted"),
    [
        ("http://192.168.1.5:8090", True),
        ("http://10.0.0.1", True),
        ("http://172.31.255.254", True),
        ("http://[fd12:3456::1]:80", True),
        ("http://172.32.0.1", False),
        ("http://8.8.8.8", False),
        ("http://169.254.169.254", False),
        ("http://0.0.0.0", False),
        ("http://[::ffff:10.0.0.1]", False),
        ("http://labels.lan", False),
        ("http://192.168.1.5.example.com", False),
    ],
)
def test_s22_allowed_plain_http_needs_a_private_address_and_is_still_warned_of(
    url: str, accepted: bool
) -> None:
    allowed = {"hipoink_api_base_url": url, "allow_insecure_label_server": "true"}
    if accepted:
        (said,) = load_settings(**COMPLETE | allowed).warnings()
        assert said.startswith("HIPOINK_API_BASE_URL is http:// to another machine")
    else:
        assert "not private" in problems(**allowed)["HIPOINK_API_BASE_URL"]


def test_s22_nothing_but_a_clear_word_allows_plain_http() -> None:
    assert "true or false" in problems(allow_insecure_label_server="maybe")["ALLOW_INSECURE_LABEL_SERVER"]


def test_s22_the_ca_file_must_hold_certificates(tmp_path: Path) -> None:
    (tmp_path / "no.pem").write_text("no certificate")
    for file in (tmp_path / "no.pem", tmp_path / "absent.pem", tmp_path):
        assert "PEM" in problems(hipoink_ca_file=str(file))["HIPOINK_CA_FILE"]


@pytest.mark.parametrize("name", ["esl_database_url", "esl_dagster_database_url"])
@pytest.mark.parametrize(
    ("place", "warned"),
    [
        ("u:canary@db.example.com/postgres", True),
        ("u:canary@10.0.0.5:5432/postgres", True),
        ("u:canary@localhost,db.example.com/postgres", True),
        ("u:canary@db.example.com/postgres?sslmode=verify-full", False),
        ("u:canary@127.0.0.1/postgres", False),
        ("u:canary@localhost/postgres", False),
        ("u@/postgres?host=/tmp/socket", False),
    ],
)
def test_s22_a_database_that_can_be_impersonated_is_said(name: str, place: str, warned: bool) -> None:
    said = load_settings(**COMPLETE | {name: f"postgresql://{place}"}).warnings()
    assert ["Add sslmode=verify-full" in sentence for sentence in said] == [True] * warned
    assert all(sentence.startswith(name.upper()) and "canary" not in sentence for sentence in said)


def test_the_transaction_pooler_is_said_where_it_matters() -> None:
    dsn = "postgres://u:canary@aws.pooler.supabase.com:6543/postgres?sslmode=require"
    (said,) = load_settings(**COMPLETE | {"esl_dagster_database_url": dsn}).warnings()
    assert said.startswith("ESL_DAGSTER_DATABASE_URL") and "6543" in said and "canary" not in said
    assert load_settings(**COMPLETE | {"esl_database_url": dsn}).warnings() == []


@pytest.mark.parametrize("name", ["esl_database_url", "esl_dagster_database_url"])
@pytest.mark.parametrize(
    ("place", "named"),
    [
        ("u:canary@pooler.example.com:6543/postgres?pgbouncer=true", "pgbouncer"),
        ("u:canary@h/db?sslmode=require&connection_limit=1&schema=canary", "connection_limit and schema"),
        ("h/db?pgbouncer=true", "pgbouncer"),
        # What follows the '?' is, or may be, a part of the password.
        ("u:ca@x?canary=1@h/db", None),
        ("u:ca?canary=1", None),
        ("u:ca/x?canary=1", None),
    ],
)
def test_field_34_a_parameter_that_postgres_does_not_know_is_named(
    name: str, place: str, named: str | None
) -> None:
    with pytest.raises(SettingsError) as refused:
        load_settings(**COMPLETE | {name: f"postgresql://{place}"})
    (said,) = refused.value.problems
    assert said.startswith(f"{name.upper()}: ") and "canary" not in said
    if named is None:
        assert "percent-encode" in said
    else:
        assert f"has {named} after the '?'" in said and "password" not in said


def test_field_42_a_delivery_outlives_its_body() -> None:
    kept = load_settings(**COMPLETE | {"esl_keep_bodies_days": 120, "esl_keep_deliveries_days": 100})
    assert kept.esl_keep_deliveries_days == 120
    assert load_settings(**COMPLETE | {"esl_keep_bodies_days": 365}).esl_keep_deliveries_days == 365


def test_a_misspelt_variable_is_said_wherever_it_stands(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / ".env").write_text("HIPOINK_BATCHSIZE=canary\nSUPABSE_URL=canary\nSHOPIFY_STORE=x\n")
    monkeypatch.setenv("SHOPIFY_WEBHOOKS_SECRET", "canary")
    monkeypatch.setenv("WOOCOMERCE_SHOPS", "of another program, perhaps")
    monkeypatch.setenv("ESL_HOEM", "x")
    monkeypatch.setenv("ESL_SOMETHING_ELSE", "x")
    monkeypatch.setenv("OTHER_HOME", "x")
    assert load_settings(**COMPLETE).warnings() == [
        "ESL_HOEM is no setting of this program: did you mean ESL_HOME?",
        "HIPOINK_BATCHSIZE is no setting of this program: did you mean HIPOINK_BATCH_SIZE?",
        "SHOPIFY_WEBHOOKS_SECRET is no setting of this program: did you mean SHOPIFY_WEBHOOK_SECRET?",
        "SUPABSE_URL is no setting of this program: did you mean SUPABASE_URL?",
    ]
