"""Every environment variable of the pipeline, typed: those of one class, and those of each source in the source's own.

What is allowed but worth saying comes from `Settings.warnings`.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

from pydantic import (
    AfterValidator,
    Field,
    PrivateAttr,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic.fields import FieldInfo

from esl_pipeline.addresses import TRANSACTION_POOLER_PORT, Network, networks
from esl_pipeline.alerts.addresses import checked_address, checked_hours, checked_recipients
from esl_pipeline.environment import (
    ENV_FILE,
    Environment,
    HttpUrl,
    SettingsError,
    did_you_mean,
    folded,
    misspelt,
    problem,
)
from esl_pipeline.label_servers import (
    FurtherServers,
    LabelServerVariables,
    ServersFile,
    is_sign_variable,
    read_servers,
)
from esl_pipeline.postgres_urls import DagsterUrl, PostgresUrl, may_be_overheard, ports
from esl_pipeline.secret_files import SUFFIX, from_files
from esl_pipeline.sources.registry import SOURCES
from esl_pipeline.sources.source import Source, SourceSettings


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


def _home(value: Path) -> Path:
    try:
        home = value.expanduser()
        usable = next(path for path in (home, *home.absolute().parents) if path.exists()).is_dir()
    except (OSError, RuntimeError):
        usable = False
    if not usable:
        raise ValueError("cannot be a folder of ours; name a folder that exists or can be made")
    return home


def _frames_url(value: str) -> str:
    scheme, separator, rest = value.partition("://")
    if separator and "@" in rest.partition("/")[0] and scheme not in {"abfs", "abfss"}:
        raise ValueError("has credentials in it; give them through the storage's own variables or files")
    return value


def _host_names(value: str) -> str:
    if not all(re.fullmatch(r"[A-Za-z0-9._-]+(:[0-9]+)?", name) for name in host_names_in(value)):
        raise ValueError(
            "is no list of host names; write for example labels.example.com,admin.example.com:8443"
        )
    return value


def host_names_in(value: str) -> tuple[str, ...]:
    """What ESL_HOST_NAMES lists."""
    return tuple(name.strip() for name in value.split(",") if name.strip())


def _misspelt_names() -> list[str]:
    return [
        sentence
        for sentence in misspelt([*every_field(), *(name + SUFFIX for name in secret_names())])
        if not is_sign_variable(sentence)  # of which the servers' file says more
    ]


Part = TypeVar("Part", bound=SourceSettings)


class Settings(LabelServerVariables):
    """What the environment says. Build it with `load_settings`: it brings the sources with their own settings."""

    esl_database_url: PostgresUrl | None = Field(
        None,
        description="Postgres address of the buffer, direct or through a pooler of either kind. Overrides "
        "SUPABASE_URL and SUPABASE_SERVICE_KEY.",
    )
    esl_operator_database_url: PostgresUrl | None = Field(
        None,
        description="Postgres address of the buffer with a login of the group esl_admin, for the operators' jobs in "
        "Dagster (pause, push again, approve, remove, …). Without it there are none.",
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
    app_base_url: HttpUrl | None = Field(
        None, description="Public address of the receiver, e.g. https://hooks.example.com."
    )
    esl_host_names: Annotated[str, AfterValidator(_host_names)] | None = Field(
        None,
        description="Host names, by commas, under which people reach the pages and the store-mapping API, beside "
        "localhost, plain addresses and that of APP_BASE_URL. Under another name they answer 421.",
    )
    app_environment: Annotated[Literal["development", "staging", "production"], folded(str.lower)] = Field(
        "development", description="development, staging or production. Production shows no OpenAPI page."
    )
    log_level: Annotated[Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"], folded(str.upper)] = Field(
        "INFO",
        description="Least severe message that is logged: DEBUG, INFO, WARNING, ERROR or CRITICAL.",
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
        3600, ge=1, le=86400, description="Seconds after which a drain run hands over to the next, or ends."
    )
    esl_drain_keep_warm: bool = Field(
        True,
        description="Keep one drain run alive also while nothing is due, so that the first change after a silence does "
        "not wait for a start. false for small machines: about 200 MB less, and some seconds more.",
    )
    esl_nightly_cron: Annotated[str, AfterValidator(_cron)] = Field(
        "0 2 * * *", description="When every shop is reconciled, as a cron expression."
    )
    esl_nightly_time_zone: Annotated[str, AfterValidator(_time_zone)] = Field(
        "UTC", description="Time zone of ESL_NIGHTLY_CRON, e.g. Europe/Berlin."
    )
    esl_housekeeping_cron: Annotated[str, AfterValidator(_cron)] = Field(
        "30 4 * * *", description="When what is no longer kept is deleted, in the same time zone."
    )
    esl_catch_up_minutes: int = Field(
        15, ge=1, le=59, description="Minutes between two reads of what has changed at the shops lately."
    )
    esl_shelf_minutes: int = Field(
        15, ge=1, le=59, description="Minutes between two reads of which physical labels hang in the stores."
    )
    esl_silence_hours: float = Field(
        24, gt=0, le=720, description="Hours without a webhook after which a shop that sent some is reported."
    )
    esl_alert_webhook_url: Annotated[SecretStr, AfterValidator(checked_recipients)] | None = Field(
        None,
        description="Where alerts are posted, as JSON that Slack and those like it show: addresses, separated by "
        "commas or spaces, each with the least severity that it is told of (info, warning or critical): "
        "critical=https://…, else warning.",
    )
    esl_alert_quiet_hours: Annotated[str, AfterValidator(checked_hours)] | None = Field(
        None,
        description="Hours during which only critical alerts go out, e.g. 22:00-06:30, in ESL_NIGHTLY_TIME_ZONE. The "
        "rest waits until they end.",
    )
    esl_heartbeat_url: Annotated[SecretStr, AfterValidator(checked_address)] | None = Field(
        None,
        description="Address that is called every minute while all is well; whoever watches it tells when it is not.",
    )
    esl_dagster_url: HttpUrl | None = Field(
        None, description="Address of Dagster's pages, for links in alerts, e.g. https://dagster.example.com."
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
    _sources: dict[str, Source[Any]] = PrivateAttr(default_factory=dict)

    # The cross-checks are field validators, because a model validator would be skipped whenever a single
    # field is wrong, and the reader would meet the problems in turns. `info.data` lacks the fields that are.

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
    def crons(self) -> dict[str, str]:
        """The settings that are cron expressions, of which Dagster is the judge (local/schedules.py)."""
        return {name: getattr(self, name.lower()) for name in ("ESL_NIGHTLY_CRON", "ESL_HOUSEKEEPING_CRON")}

    @property
    def host_names(self) -> tuple[str, ...]:
        """Under which people reach what is served here: ESL_HOST_NAMES, and the host of APP_BASE_URL."""
        public = (urlsplit(self.app_base_url).netloc,) if self.app_base_url else ()
        return (*host_names_in(self.esl_host_names or ""), *public)

    @property
    def sources(self) -> Mapping[str, Source[Any]]:
        """Every registered source by its system, with its settings."""
        return self._sources

    @property
    def sources_in_use(self) -> list[Source[Any]]:
        """Those of which anything is set; where nothing is, the first one registered."""
        every = list(self._sources.values())
        return [source for source in every if source.is_set_up] or every[:1]

    def not_readable(self, shops: Iterable[Mapping[str, Any]]) -> dict[str, str]:
        """Of these shops (rows with source_system and source_store_id) those that nothing opens although others of
        their source can be read: shop to the reason."""
        found: dict[str, str] = {}
        for row in shops:
            source = self._sources.get(row["source_system"])
            if source and source.not_readable([row["source_store_id"]]):
                found[row["source_store_id"]] = source.opens_others
        return dict(sorted(found.items()))

    def of(self, kind: type[Part]) -> Part:
        """The settings of one source."""
        return next(source.settings for source in self._sources.values() if type(source.settings) is kind)

    @property
    def trusted_proxies(self) -> tuple[Network, ...]:
        """Whose X-Forwarded-For is believed."""
        return networks(self.esl_trusted_proxies or "")

    @property
    def frames_url(self) -> str:
        """Where Dagster steps keep their frames: ESL_FRAMES_URL, else a folder below ESL_HOME."""
        return self.esl_frames_url or str(self.esl_home.absolute() / "frames")

    def warnings(self) -> list[str]:
        """Sentences about settings that work but deserve a second look; no secret in them."""
        said = self.label_server_warnings()
        if self.esl_dagster_database_url and TRANSACTION_POOLER_PORT in ports(self.esl_dagster_database_url):
            said.append(
                f"ESL_DAGSTER_DATABASE_URL uses port {TRANSACTION_POOLER_PORT}, Supabase's transaction pooler: no "
                "LISTEN, no session state. Use the session pooler or the direct address (port 5432)."
            )
        for name in ("esl_database_url", "esl_operator_database_url", "esl_dagster_database_url"):
            dsn: SecretStr | None = getattr(self, name)
            if dsn and may_be_overheard(dsn):
                said.append(
                    f"{name.upper()} reaches another machine without sslmode: who sits between can pretend to be the "
                    "database. Add sslmode=verify-full, and sslrootcert=FILE when its authority is no public one."
                )
        for source in self.sources_in_use:
            said += source.settings.warnings()
        return said + self._misspelt


def every_field() -> dict[str, FieldInfo]:
    """Every setting by its name, those of the sources included, in the order in which they are told."""
    fields = dict(Settings.model_fields)
    for source in SOURCES.values():
        fields |= source.settings_class.model_fields
    return fields


def secret_names() -> list[str]:
    """The settings that are secrets: each may come from a file instead (see secret_files)."""
    return [name.upper() for name, field in every_field().items() if "SecretStr" in str(field.annotation)]


def load_settings(**overrides: Any) -> Settings:
    """The settings of this process: of its environment, of `.env`, and secrets also of files.

    `overrides` (names in either case) win over the environment; None or "" there means not set.
    Raises `SettingsError`, which names every problem at once.
    """
    given: dict[str, Any] = {
        name.lower(): "" if value is None else value for name, value in overrides.items()
    }
    known = every_field()
    problems = [
        f"{name.upper()}: is no setting of this program{did_you_mean(name, known) or '; remove it'}"
        for name in given
        if name not in known and not is_sign_variable(name)
    ]
    in_files, unread = from_files(name for name in secret_names() if name.lower() not in given)
    given |= {name.lower(): secret for name, secret in in_files.items()}
    problems += unread
    further = _read(FurtherServers, given, [])  # what is wrong with these two has been said
    settings = _read(Settings, given, problems)
    servers = read_servers(further, settings, given) if further else ServersFile({}, [], [])
    problems += servers.problems
    sources = {system: _read(source.settings_class, given, problems) for system, source in SOURCES.items()}
    if problems:
        raise SettingsError(problems) from None
    assert settings is not None
    settings._sources.update({system: SOURCES[system](part) for system, part in sources.items()})
    settings.add_servers(servers)
    return settings


AnyEnvironment = TypeVar("AnyEnvironment", bound=Environment)


def _read(kind: type[AnyEnvironment], given: dict[str, Any], problems: list[str]) -> AnyEnvironment | None:
    """What the environment and `given` say; None where there is a problem, which is added to those of others."""
    try:
        return kind(**{name: value for name, value in given.items() if name in kind.model_fields})
    except ValidationError as error:
        problems += [problem(kind, wrong) for wrong in error.errors()]
    except (OSError, UnicodeError) as error:
        unread = f"{ENV_FILE}: cannot be read ({type(error).__name__}); make it a readable UTF-8 text file"
        if unread not in problems:
            problems.append(unread)
    return None
