"""Every environment variable of the pipeline, typed, in one class.

A field's name in capitals is the variable's name. What is wrong is reported all at once, by that name and
without the values; what is allowed but worth saying comes from `Settings.warnings`.
"""

import difflib
import ipaddress
import os
import re
import ssl
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

import psycopg
from dotenv import dotenv_values
from psycopg.conninfo import conninfo_to_dict
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PrivateAttr,
    SecretStr,
    StringConstraints,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, SettingsConfigDict

from esl_pipeline.addresses import Network, networks
from esl_pipeline.sources.shopify.apps import App, app_for, read_apps, read_word, signing
from esl_pipeline.sources.shopify.secrets import WebhookSecret, read_secrets
from esl_pipeline.sources.shopify.shop_names import shop_named

# The sign of a fresh label server's "default" app key, as printed in the vendor's documentation.
PUBLIC_SIGN = "80805d794841f1b4"
ENV_FILE = ".env"
TRANSACTION_POOLER_PORT = "6543"
_SAID_BEFORE_EXPIRY = timedelta(days=14)

_PRIVATE_NETWORKS = tuple(
    map(ipaddress.ip_network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7"))
)


class SettingsError(ValueError):
    """The settings cannot be used. `problems` holds one sentence per setting, without its value."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        heading = "1 setting is wrong:" if len(problems) == 1 else f"{len(problems)} settings are wrong:"
        super().__init__("\n".join([heading, *(f"  - {problem}" for problem in problems)]))


def _http_url(value: str) -> str:
    try:
        parts = urlsplit(value)
        usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable or re.search(r"\s", value):
        raise ValueError(
            "is not a web address; write http:// or https:// and a host, e.g. https://labels.example.com"
        )
    if parts.query or parts.fragment or value.endswith(("?", "#")):
        raise ValueError("has a query or a fragment; leave out everything from the first '?' or '#'")
    if "@" in parts.netloc:
        raise ValueError("has a user name or password in it; leave out everything up to the '@'")
    return value.rstrip("/")


def _postgres_url(value: SecretStr) -> SecretStr:
    dsn = value.get_secret_value()
    if not dsn.startswith(("postgresql://", "postgres://")):
        raise ValueError("is not a Postgres address; write postgresql://user:password@host:5432/database")
    try:
        conninfo_to_dict(dsn)
    except (psycopg.Error, UnicodeError):
        if unknown := _unknown_parameters(dsn):
            raise ValueError(
                f"has {' and '.join(unknown)} after the '?', which Postgres does not know as a parameter; leave it out "
                "(a pooler needs none of its own)"
            ) from None
        raise ValueError(
            "cannot be read as a Postgres address; write postgresql://user:password@host:5432/database and"
            " percent-encode special characters in the password (@ is %40, / is %2F, # is %23, % is %25)"
        ) from None
    return value


def _unknown_parameters(dsn: str) -> list[str]:
    """The names of parameters that libpq does not have; none where what follows a '?' may be part of a password."""
    place, _, query = dsn.partition("?")
    authority = place.partition("://")[2].partition("/")[0]
    if "@" in query or not ("@" in authority or re.fullmatch(r"[^:]*(:[0-9]+)?", authority)):
        return []
    known = {option.keyword.decode() for option in psycopg.pq.Conninfo.get_defaults()} | {"ssl"}
    names = [part.partition("=")[0] for part in query.split("&")]
    return [name for name in names if name not in known and re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.-]*", name)]


def _dagster_url(value: SecretStr) -> SecretStr:
    _postgres_url(SecretStr(without_driver(value)))
    return value


def without_driver(dsn: SecretStr) -> str:
    """A Postgres address as libpq reads it. SQLAlchemy's form, which Dagster's may have, names a driver too."""
    return re.sub(r"^postgresql\+psycopg2://", "postgresql://", dsn.get_secret_value())


def _webhook_secrets(value: SecretStr) -> SecretStr:
    entries = _split(value)
    if not entries:
        raise ValueError("holds only commas; write the app's client secret, or remove it")
    read_secrets(entries)
    return value


def _app_id(value: SecretStr) -> SecretStr:
    read_word(value.get_secret_value())
    return value


def _app_secrets(value: SecretStr) -> SecretStr:
    secrets = _split(value)
    if not secrets:
        raise ValueError("holds only commas; write the app's client secret, or remove it")
    for secret in secrets:
        read_word(secret)
    return value


def _apps(value: SecretStr) -> SecretStr:
    entries = _split(value)
    if not entries:
        raise ValueError("holds only commas; write shop.myshopify.com=id:secret, or remove it")
    read_apps(entries)
    return value


def _split(value: SecretStr) -> tuple[str, ...]:
    return tuple(part.strip() for part in value.get_secret_value().split(",") if part.strip())


def _shop_tokens(value: SecretStr) -> SecretStr:
    parts = _split(value)
    if not parts:
        raise ValueError("holds only commas; write the Admin API token, or remove it")
    if len(parts) > 1 and not all("=" in part for part in parts):
        raise ValueError("has several tokens; write each as shop=token, e.g. demo.myshopify.com=shpat_…")
    shops = set[str | None]()
    for number, (shop, token) in enumerate(map(_shop_and_token, parts), 1):
        if shop == "":
            raise ValueError(f"entry {number} names its shop wrongly; write shop.myshopify.com=token")
        if not token:
            raise ValueError(f"entry {number} holds no token; write shop.myshopify.com=token, or remove it")
        if not re.fullmatch("[!-~]+", token):
            raise ValueError(f"entry {number} holds a token with characters that no token has; copy it anew")
        if shop in shops:
            raise ValueError(f"entry {number} is a second token for {shop}; remove one of them")
        shops.add(shop)
    return value


def _shop_and_token(part: str) -> tuple[str | None, str]:
    """`[shop=]token`: the shop's domain, None without one, "" for what is no shop's name; and the token."""
    before, separator, token = part.partition("=")
    if not separator:
        return None, part
    return shop_named(before) or "", token.strip()


def _cron(value: str) -> str:
    # Five fields of the characters that cron knows; Dagster judges the rest when it loads the schedule.
    if not re.fullmatch(r"[0-9*/,A-Za-z-]+( [0-9*/,A-Za-z-]+){4}", value):
        raise ValueError("is not a cron expression; write for example 0 2 * * * for two o'clock every night")
    return value


def _time_zone(value: str) -> str:
    try:
        ZoneInfo(value)
    except (KeyError, ValueError, OSError):
        raise ValueError("is not a time zone; write for example Europe/Berlin") from None
    return value


def _admin_token(value: SecretStr) -> SecretStr:
    token = value.get_secret_value()
    if len(token) < 32:
        raise ValueError("is too short; use at least 32 characters, e.g. from: openssl rand -hex 32")
    if not re.fullmatch(r"[!-~]+", token):
        raise ValueError("cannot be sent in a header; use letters, digits and punctuation without spaces")
    return value


def _networks(value: str) -> str:
    try:
        networks(value)
    except ValueError:
        raise ValueError(
            "is not a list of IP addresses and networks; write e.g. 10.0.0.7,192.168.1.0/24"
        ) from None
    return value


def _client_id(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", value):
        raise ValueError("cannot stand in the path of an address; use letters, digits, '_', '-' and '.'")
    return value


def _home(value: Path) -> Path:
    try:
        home = value.expanduser()
        usable = next(path for path in (home, *home.absolute().parents) if path.exists()).is_dir()
    except (OSError, RuntimeError):
        usable = False
    if not usable:
        raise ValueError("cannot be a folder of ours; name a folder that exists or can be made")
    return home


def _ca_file(value: Path) -> Path:
    try:
        ssl.create_default_context(cafile=value)
    except (OSError, ssl.SSLError):
        raise ValueError("cannot be read as certificates; name a readable file in PEM form") from None
    return value


def _frames_url(value: str) -> str:
    scheme, separator, rest = value.partition("://")
    if separator and "@" in rest.partition("/")[0] and scheme not in {"abfs", "abfss"}:
        raise ValueError("has credentials in it; give them through the storage's own variables or files")
    return value


def _folded(fold: Callable[[str], str]) -> BeforeValidator:
    return BeforeValidator(lambda value: fold(value) if isinstance(value, str) else value)


def _host_names(value: str) -> str:
    if not all(re.fullmatch(r"[A-Za-z0-9._-]+(:[0-9]+)?", name) for name in host_names_in(value)):
        raise ValueError(
            "is no list of host names; write for example labels.example.com,admin.example.com:8443"
        )
    return value


def host_names_in(value: str) -> tuple[str, ...]:
    """What ESL_HOST_NAMES lists."""
    return tuple(name.strip() for name in value.split(",") if name.strip())


HttpUrl = Annotated[str, AfterValidator(_http_url)]
PostgresUrl = Annotated[SecretStr, AfterValidator(_postgres_url)]
DagsterUrl = Annotated[SecretStr, AfterValidator(_dagster_url)]


def _misspelt_names() -> list[str]:
    """One sentence for each variable that is nearly, but not, the name of a setting."""
    set_names = {name.upper() for name in [*os.environ, *dotenv_values(ENV_FILE, encoding="utf-8")]}
    return [
        f"{name} is no setting of this program{hint}"
        for name in sorted(set_names)
        if name.startswith(("ESL_", "HIPOINK_"))
        and name.lower() not in Settings.model_fields
        and (hint := _did_you_mean(name))
    ]


def _did_you_mean(name: str) -> str:
    close = difflib.get_close_matches(
        name.upper(), [known.upper() for known in Settings.model_fields], 1, 0.8
    )
    return f": did you mean {close[0]}?" if close else ""


class Settings(BaseSettings):
    """What the environment and the file `.env` in the working directory say; the environment wins.

    Build it with `load_settings`. An empty or blank variable counts as not set.
    """

    model_config = SettingsConfigDict(
        env_file=ENV_FILE,
        env_file_encoding="utf-8",
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,
        allow_inf_nan=False,
    )

    allow_insecure_label_server: bool = Field(
        False,
        description="Accept http:// to a label server on another machine, by its private IP address: the sign and the "
        "prices travel unprotected.",
    )
    hipoink_api_base_url: HttpUrl | None = Field(
        None, description="Address of the label server, e.g. https://labels.example.com."
    )
    hipoink_ca_file: Annotated[Path, AfterValidator(_ca_file)] | None = Field(
        None,
        description="PEM file of the authority that signed the label server's certificate, when it is no public one. "
        "Only that one is trusted then.",
    )
    hipoink_client_id: Annotated[str, AfterValidator(_client_id)] = Field(
        "default", description="Name of the label server's app key; part of every request's path."
    )
    hipoink_api_secret: SecretStr | None = Field(
        None,
        description="Sign of that app key, sent as is. Without it the documented public default is used, "
        "which anybody may know.",
    )
    hipoink_username: str | None = Field(
        None,
        description="Account of the label server's admin page. Accepted; the product API does not use it.",
    )
    hipoink_password: SecretStr | None = Field(
        None, description="Password of that account. Accepted; the product API does not use it."
    )
    hipoink_rate_limit_per_second: float = Field(
        10, ge=0.01, le=1000, description="Requests per second to the label server, over all runs."
    )
    hipoink_batch_size: int = Field(
        100, ge=1, le=1000, description="Labels in one request to the label server, at most."
    )
    esl_database_url: PostgresUrl | None = Field(
        None,
        description="Postgres address of the buffer, direct or through a pooler of either kind. Overrides "
        "SUPABASE_URL and SUPABASE_SERVICE_KEY.",
    )
    supabase_url: HttpUrl | None = Field(
        None, description="Address of the Supabase project, e.g. https://abcd.supabase.co."
    )
    supabase_service_key: SecretStr | None = Field(
        None, validate_default=True, description="Secret (service role) key of the Supabase project."
    )
    esl_dagster_database_url: DagsterUrl | None = Field(
        None, description="Postgres address where Dagster keeps its own storage (runs, events, schedules)."
    )
    shopify_webhook_secret: Annotated[SecretStr, AfterValidator(_webhook_secrets)] | None = Field(
        None,
        description="Client secret that signs the webhooks; default: the secrets of the apps below. Several, separated "
        "by commas, are all accepted. Each may be bound to a shop and end: [shop.myshopify.com=]secret[@2026-12-31].",
    )
    shopify_api_key: Annotated[SecretStr, AfterValidator(_app_id)] | None = Field(
        None,
        description="Client id of the app, from the Dev Dashboard; for all shops without an app of their own.",
    )
    shopify_api_secret: Annotated[SecretStr, AfterValidator(_app_secrets)] | None = Field(
        None,
        validate_default=True,
        description="Client secret of that app; while it is being replaced both, the newest first, by a comma.",
    )
    shopify_apps: Annotated[SecretStr, AfterValidator(_apps)] | None = Field(
        None,
        description="Shops with an app of their own: shop.myshopify.com=id:secret[:older secret], by commas.",
    )
    shopify_admin_token: Annotated[SecretStr, AfterValidator(_shop_tokens)] | None = Field(
        None,
        description="Lasting Admin API access token of an app made before 2026, instead of id and secret; for several "
        "shops shop=token pairs, separated by commas. With neither there is no reconciliation with Shopify.",
    )
    shopify_admin_url: HttpUrl | None = Field(
        None, description="Address of the Admin API, instead of each shop's own; for the sandbox."
    )
    shopify_api_version: Annotated[str, StringConstraints(pattern="^20[0-9]{2}-(01|04|07|10)$")] = Field(
        "2026-10", description="Version of the Admin API."
    )
    app_base_url: HttpUrl | None = Field(
        None, description="Public address of the webhook function, e.g. https://hooks.example.com."
    )
    esl_host_names: Annotated[str, AfterValidator(_host_names)] | None = Field(
        None,
        description="Host names, by commas, under which people reach the pages and the store-mapping API, beside "
        "localhost, plain addresses and that of APP_BASE_URL. Under another name they answer 421.",
    )
    app_environment: Annotated[Literal["development", "staging", "production"], _folded(str.lower)] = Field(
        "development", description="development, staging or production. Production shows no OpenAPI page."
    )
    log_level: Annotated[Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"], _folded(str.upper)] = (
        Field(
            "INFO",
            description="Least severe message that is logged: DEBUG, INFO, WARNING, ERROR or CRITICAL.",
        )
    )
    sync_worker_interval_seconds: int = Field(
        5, ge=1, le=3600, description="Seconds between two looks of the sensor for new work."
    )
    max_retry_attempts: int = Field(
        25, ge=1, le=1000, description="Tries of one push before it is a dead letter."
    )
    retry_backoff_multiplier: float = Field(
        2, ge=1, le=10, description="Factor by which the wait grows from one try to the next."
    )
    retry_initial_delay_seconds: float = Field(
        2, ge=0.01, le=3600, description="Seconds to wait before the second try."
    )
    esl_drain_idle_seconds: float = Field(
        20, ge=0, le=3600, description="Seconds without work after which a drain run ends."
    )
    esl_drain_max_age_seconds: float = Field(
        600, ge=1, le=86400, description="Seconds after which a drain run ends even when work goes on."
    )
    esl_nightly_cron: Annotated[str, AfterValidator(_cron)] = Field(
        "0 2 * * *", description="When every shop is reconciled, as a cron expression."
    )
    esl_nightly_time_zone: Annotated[str, AfterValidator(_time_zone)] = Field(
        "UTC", description="Time zone of ESL_NIGHTLY_CRON, e.g. Europe/Berlin."
    )
    esl_catch_up_minutes: int = Field(
        15,
        ge=1,
        le=59,
        description="Minutes between two reads of what has changed at Shopify lately.",
    )
    esl_silence_hours: float = Field(
        24, gt=0, le=720, description="Hours without a webhook after which a shop that sent some is reported."
    )
    esl_admin_token: Annotated[SecretStr, AfterValidator(_admin_token)] | None = Field(
        None,
        description="Bearer token of the store-mapping API that may do everything, at least 32 characters. "
        "Tokens of `esl-pipeline tokens add` can be narrower, expire and be revoked; with neither that API is closed.",
    )
    esl_trusted_proxies: Annotated[str, AfterValidator(_networks)] | None = Field(
        None,
        description="Addresses or networks of the proxies before the receiver whose X-Forwarded-For is believed, "
        "separated by commas. Default: nobody's.",
    )
    esl_home: Annotated[Path, AfterValidator(_home)] = Field(
        Path(".esl"), description="Folder of local state: embedded Postgres, Dagster, frames."
    )
    esl_frames_url: Annotated[str, AfterValidator(_frames_url)] | None = Field(
        None,
        description="Where Dagster steps keep their Parquet frames: a folder or any fsspec URL, e.g. "
        "s3://bucket/frames. Default: frames below ESL_HOME.",
    )
    esl_webhook_body_limit_bytes: int = Field(
        5_000_000, ge=1_000, le=10_000_000, description="Longest webhook body that is read, in bytes."
    )
    esl_keep_bodies_days: int = Field(
        30,
        ge=1,
        le=3650,
        description="Days after which the body of a finished webhook is deleted (its hash stays), and a frame.",
    )
    esl_keep_deliveries_days: int = Field(
        90,
        ge=1,
        le=3650,
        description="Days after which a finished webhook is forgotten, hash and all, where the signed time in its body "
        "protects against a replay; at least ESL_KEEP_BODIES_DAYS.",
    )
    esl_keep_runs_days: int = Field(
        30,
        ge=1,
        le=3650,
        description="Days after which Dagster's record of a run is deleted, with its logs; three times as many for one "
        "that failed or was cancelled. The newest of each asset and shop stays.",
    )

    _misspelt: list[str] = PrivateAttr(default_factory=_misspelt_names)

    @model_validator(mode="before")
    @classmethod
    def _blank_is_unset(cls, values: dict[str, Any]) -> dict[str, Any]:
        stripped = {
            name: value.strip() if isinstance(value, str) else value for name, value in values.items()
        }
        return {name: value for name, value in stripped.items() if value != ""}

    @field_validator("*", mode="before")
    @classmethod
    def _printable(cls, value: object) -> object:
        # Bytes that are no UTF-8, and what slips in when copying from a web page, would only fail much later.
        if isinstance(value, str) and not value.isprintable():
            raise ValueError("holds a character that cannot be printed; type the value anew")
        return value

    # The cross-checks are field validators, because a model validator would be skipped whenever a single
    # field is wrong, and the reader would meet the problems in turns. `info.data` lacks the fields that are.

    @field_validator("hipoink_api_base_url")
    @classmethod
    def _insecure_only_when_allowed(cls, url: str | None, info: ValidationInfo) -> str | None:
        if url and is_unprotected(url):
            if not info.data.get("allow_insecure_label_server", True):
                raise ValueError(
                    "is http:// to another machine, where the sign and the prices travel unprotected; use https://, "
                    "or on a private network set ALLOW_INSECURE_LABEL_SERVER=true"
                )
            if not _is_private(url):
                raise ValueError(
                    "is http:// to an address that is not private; use https://, or write the label server's private "
                    "IP address, e.g. http://192.168.1.5:8090"
                )
        return url

    @field_validator("supabase_service_key")
    @classmethod
    def _supabase_comes_in_pairs(cls, key: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        if info.data.get("esl_database_url", "wrong") is None and "supabase_url" in info.data:
            if key and not info.data["supabase_url"]:
                raise ValueError("is set without SUPABASE_URL; set both, or ESL_DATABASE_URL instead")
            if info.data["supabase_url"] and not key:
                raise ValueError(
                    "is missing while SUPABASE_URL is set; set both, or ESL_DATABASE_URL instead"
                )
        return key

    @field_validator("shopify_api_secret")
    @classmethod
    def _app_comes_in_pairs(cls, secret: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        if "shopify_api_key" in info.data:
            if secret and not info.data["shopify_api_key"]:
                raise ValueError("is set without SHOPIFY_API_KEY; set both, or neither")
            if info.data["shopify_api_key"] and not secret:
                raise ValueError("is missing while SHOPIFY_API_KEY is set; set both, or neither")
        return secret

    @field_validator("esl_drain_max_age_seconds")
    @classmethod
    def _idle_fits_into_age(cls, age: float, info: ValidationInfo) -> float:
        if age < info.data.get("esl_drain_idle_seconds", 0):
            raise ValueError(
                "is less than ESL_DRAIN_IDLE_SECONDS; a drain run could never end idle: raise it"
            )
        return age

    @field_validator("esl_keep_deliveries_days")
    @classmethod
    def _deliveries_outlive_their_bodies(cls, days: int, info: ValidationInfo) -> int:
        return max(days, int(info.data.get("esl_keep_bodies_days", days)))

    @property
    def uses_public_sign(self) -> bool:
        """Whether the label server is addressed with the documented default sign, which is no secret."""
        return self.hipoink_sign.get_secret_value() == PUBLIC_SIGN

    @property
    def hipoink_sign(self) -> SecretStr:
        """The sign to send: HIPOINK_API_SECRET, else the documented public default."""
        return self.hipoink_api_secret or SecretStr(PUBLIC_SIGN)

    @property
    def host_names(self) -> tuple[str, ...]:
        """Under which people reach what is served here: ESL_HOST_NAMES, and the host of APP_BASE_URL."""
        public = (urlsplit(self.app_base_url).netloc,) if self.app_base_url else ()
        return (*host_names_in(self.esl_host_names or ""), *public)

    @property
    def apps(self) -> tuple[App, ...]:
        """The apps whose id and secret are set: those of SHOPIFY_APPS, then the one of all other shops."""
        own = read_apps(_split(self.shopify_apps)) if self.shopify_apps else ()
        if self.shopify_api_key is None or self.shopify_api_secret is None:
            return own
        return (*own, App(self.shopify_api_key.get_secret_value(), _split(self.shopify_api_secret)))

    @property
    def webhook_secrets(self) -> tuple[WebhookSecret, ...]:
        """Every secret that may have signed a webhook, expired ones included; empty when none is set."""
        if self.shopify_webhook_secret is None:
            return tuple(WebhookSecret(secret.encode(), shop) for secret, shop in signing(self.apps))
        return read_secrets(_split(self.shopify_webhook_secret))

    @property
    def signing_entries(self) -> SecretStr | None:
        """SHOPIFY_WEBHOOK_SECRET, or the same of the apps' secrets: for a process that need not know their ids."""
        if self.shopify_webhook_secret is not None or not self.apps:
            return self.shopify_webhook_secret
        return SecretStr(
            ",".join(f"{shop}={secret}" if shop else secret for secret, shop in signing(self.apps))
        )

    @property
    def trusted_proxies(self) -> tuple[Network, ...]:
        """Whose X-Forwarded-For is believed."""
        return networks(self.esl_trusted_proxies or "")

    @property
    def admin_tokens(self) -> Mapping[str | None, SecretStr]:
        """Admin API tokens by their shop's domain; None is every shop (there is one token then, or none)."""
        if self.shopify_admin_token is None:
            return {}
        pairs = map(_shop_and_token, _split(self.shopify_admin_token))
        return {shop: SecretStr(token) for shop, token in pairs}

    def admin_access(self, shop: str) -> SecretStr | App | None:
        """What opens the Admin API of a shop's domain: a token or an app; None when there is neither.

        What is set for the shop goes before what is set for all, and a token before an app.
        """
        tokens, app = self.admin_tokens, app_for(self.apps, shop)
        own = app if app is not None and app.shop is not None else None
        return tokens.get(shop) or own or tokens.get(None) or app

    @property
    def reads_shops(self) -> bool:
        """Whether any shop's Admin API can be read at all."""
        return bool(self.admin_tokens or self.apps)

    def not_readable(self, shops: Iterable[str]) -> list[str]:
        """Those of these shops (domains) that have no token and no app although others do; sorted, each once."""
        if not self.reads_shops:
            return []  # then there is no reconciliation at all, on purpose
        return sorted({shop for shop in shops if self.admin_access(shop) is None})

    @property
    def frames_url(self) -> str:
        """Where Dagster steps keep their frames: ESL_FRAMES_URL, else a folder below ESL_HOME."""
        return self.esl_frames_url or str(self.esl_home.absolute() / "frames")

    def warnings(self) -> list[str]:
        """Sentences about settings that work but deserve a second look; no secret in them."""
        said = []
        if self.uses_public_sign:
            said.append(
                "HIPOINK_API_SECRET is not set or is the documented public default sign: anybody who reaches "
                "the label server can change its labels. Make an app key of your own and set its sign."
            )
        if self.hipoink_api_base_url and is_unprotected(self.hipoink_api_base_url):
            said.append(
                "HIPOINK_API_BASE_URL is http:// to another machine (ALLOW_INSECURE_LABEL_SERVER): whoever is on that "
                "network can read the sign and change labels. Use https:// (HIPOINK_CA_FILE for an authority of your "
                "own)."
            )
        if not self.webhook_secrets:
            said.append(
                "SHOPIFY_WEBHOOK_SECRET is not set, nor SHOPIFY_API_KEY and SHOPIFY_API_SECRET: no webhook can be "
                "verified, so all are refused (401)."
            )
        said += self._ending_secrets(datetime.now(UTC))
        if self.esl_dagster_database_url and TRANSACTION_POOLER_PORT in _ports(self.esl_dagster_database_url):
            said.append(
                f"ESL_DAGSTER_DATABASE_URL uses port {TRANSACTION_POOLER_PORT}, Supabase's transaction pooler: no "
                "LISTEN, no session state. Use the session pooler or the direct address (port 5432)."
            )
        for name in ("esl_database_url", "esl_dagster_database_url"):
            dsn: SecretStr | None = getattr(self, name)
            if dsn and _may_be_overheard(dsn):
                said.append(
                    f"{name.upper()} reaches another machine without sslmode: who sits between can pretend to be the "
                    "database. Add sslmode=verify-full, and sslrootcert=FILE when its authority is no public one."
                )
        return said + self._misspelt

    def _ending_secrets(self, now: datetime) -> Iterator[str]:
        for number, secret in enumerate(self.webhook_secrets, 1):
            if secret.not_after is None or secret.not_after > now + _SAID_BEFORE_EXPIRY:
                continue
            whose = (
                f"entry {number} of SHOPIFY_WEBHOOK_SECRET (for {secret.shop or 'shops without their own'})"
            )
            if secret.expired(now):
                yield f"{whose} expired at {secret.not_after:%Y-%m-%d %H:%MZ}: what it signs is refused; remove it."
            else:
                yield f"{whose} expires at {secret.not_after:%Y-%m-%d %H:%MZ}: what it signs is refused from then on."


def load_settings(**overrides: Any) -> Settings:
    """The settings of this process.

    `overrides` (names in either case) win over the environment; None or "" there means not set.
    Raises `SettingsError`, which names every problem at once.
    """
    given: dict[str, Any] = {
        name.lower(): "" if value is None else value for name, value in overrides.items()
    }
    problems = [
        f"{name.upper()}: is no setting of this program{_did_you_mean(name) or '; remove it'}"
        for name in given
        if name not in Settings.model_fields
    ]
    try:
        settings = Settings(**{name: value for name, value in given.items() if name in Settings.model_fields})
    except ValidationError as error:
        problems += [_problem(str(wrong["loc"][0]), wrong["type"], wrong["msg"]) for wrong in error.errors()]
    except (OSError, UnicodeError) as error:
        problems.append(
            f"{ENV_FILE}: cannot be read ({type(error).__name__}); make it a readable UTF-8 text file"
        )
    if problems:
        raise SettingsError(problems) from None
    return settings


def _problem(field: str, kind: str, message: str) -> str:
    if kind == "value_error":
        return f"{field.upper()}: {message.removeprefix('Value error, ')}"
    return f"{field.upper()}: is not {_expected(field)}; correct it, or remove it for the default"


def _expected(field: str) -> str:
    schema = Settings.model_json_schema()["properties"][field]
    if "enum" in schema:
        return "one of " + ", ".join(schema["enum"])
    if schema.get("type") == "boolean":
        return "true or false"
    if "maximum" in schema:
        number = "a whole number" if schema["type"] == "integer" else "a number"
        return f"{number} from {schema['minimum']} to {schema['maximum']}"
    return "text"


def is_unprotected(url: str) -> bool:
    """Whether what is sent to the address can be overheard: http:// to another machine."""
    parts = urlsplit(url)
    return parts.scheme == "http" and not _is_local(parts.hostname or "")


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _is_private(url: str) -> bool:
    """Whether the host is an IP address of a private network; a name may come to mean any machine."""
    try:
        address = ipaddress.ip_address(urlsplit(url).hostname or "")
    except ValueError:
        return False
    return any(address in network for network in _PRIVATE_NETWORKS)


def _ports(dsn: SecretStr) -> list[str]:
    return str(conninfo_to_dict(without_driver(dsn)).get("port", "")).split(",")


def _may_be_overheard(dsn: SecretStr) -> bool:
    parameters = conninfo_to_dict(without_driver(dsn))
    hosts = str(parameters.get("hostaddr") or parameters.get("host") or "").split(",")
    there = [host for host in hosts if host and not host.startswith(("/", "@")) and not _is_local(host)]
    return bool(there) and not (parameters.get("sslmode") or os.environ.get("PGSSLMODE"))
