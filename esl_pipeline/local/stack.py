"""Everything on one machine: embedded Postgres, sandboxes of Shopify and the label server, receiver and Dagster.

What the settings name is used; what they leave out is brought along. Every process is on a leash of this one, so
nothing is left behind however this process ends.
"""

import os
import re
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from importlib import resources
from types import TracebackType
from typing import Self

import httpx
import psycopg

from esl_pipeline.addresses import is_loopback
from esl_pipeline.buffer.migrate import migrate
from esl_pipeline.commands.shopify import first_day
from esl_pipeline.connections import open_buffer
from esl_pipeline.environment import SettingsError
from esl_pipeline.local.databases import (
    DATABASE,
    OPERATOR,
    PIPELINE,
    RECEIVER,
    dagster_url,
    make_logins,
    prepare_database,
)
from esl_pipeline.local.leash import Leashed
from esl_pipeline.local.log_files import keep_small
from esl_pipeline.local.one_up import OneUp, unusable_home
from esl_pipeline.local.parts import Part, StackError
from esl_pipeline.local.ports import free_port
from esl_pipeline.local.postgres import EmbeddedPostgres
from esl_pipeline.local.schedules import refused_crons
from esl_pipeline.local.variables import (
    CONNECTIONS,
    DEVELOPMENT_ENV,
    RUNNING,
    SHOP_CONNECTIONS,
    given_to,
    read_variables,
    write_private,
)
from esl_pipeline.local.webserver import Webserver
from esl_pipeline.model.shop import shop_key
from esl_pipeline.sandbox.shopify.oauth import CLIENT_ID
from esl_pipeline.sandbox.shopify.shop import DOMAIN
from esl_pipeline.secret_files import from_files
from esl_pipeline.settings import Settings, every_field, load_settings, secret_names
from esl_pipeline.sources.secrets import keys_for
from esl_pipeline.sources.shopify.connect import Line, NotConnectedError
from esl_pipeline.sources.shopify.settings import ShopifySettings

_READY_SECONDS = 120.0
# A sensor tick holds the code server and the daemon for longer; nothing is lost when they are killed.
_GRACE_SECONDS = 4.0
_ADDRESS = "127.0.0.1"
# Where the sandbox shop's labels hang, until somebody maps it elsewhere.
_STORE = "001"
_BY = "esl-pipeline up"
_HEALTH = {
    "receiver": "/health",
    "ui": "/server_info",
    "labels": "/api/query/env",
    "shop": "/sandbox/faults",
}


@dataclass(frozen=True)
class Ports:
    """Ports on 127.0.0.1; 0 takes a free one."""

    receiver: int = 8000
    ui: int = 3000
    labels: int = 8090
    shop: int = 8091


@dataclass(frozen=True)
class Urls:
    """Where the parts answer. labels and shop are None when label server and Shopify are not ours."""

    receiver: str
    ui: str
    labels: str | None
    shop: str | None


class Stack:
    """The running parts. A context manager: they are stopped at the end, in order."""

    def __init__(self, settings: Settings, ports: Ports, say: Callable[[str], None]) -> None:
        self._settings, self._ports, self._say = settings, ports, say
        self._home = settings.esl_home.absolute()
        self._parts: list[Part] = []
        self._postgres: Part | None = None
        self._one_up = OneUp(self._home)
        self._owns_buffer = False
        self._logins: dict[str, str] = {}
        self.environment: dict[str, str] = {}
        self.urls = Urls("", "", None, None)
        self.mapped: str | None = None
        """What `up` has mapped by itself, as a sentence."""
        self.to_fill: str | None = None
        """The shop (its key) whose store is new and empty."""

    @property
    def settings(self) -> Settings:
        """The settings that the parts see."""
        names = {name.upper() for name in every_field()}
        return load_settings(**{name: value for name, value in self.environment.items() if name in names})

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def signing_key(self) -> str:
        """What the sandbox shop signs its webhooks with. Raises StackError when none may sign for it."""
        keys = keys_for(self.settings.of(ShopifySettings).webhook_secrets, DOMAIN, datetime.now(UTC))
        if not keys:
            raise StackError(
                f"SHOPIFY_WEBHOOK_SECRET has no valid secret for the sandbox shop: add {DOMAIN}=secret, "
                "or set SHOPIFY_API_KEY and SHOPIFY_API_SECRET to start without that shop"
            )
        return keys[0].decode()

    def check(self) -> None:
        """Raise StackError when a part has ended by itself."""
        for part in self._all():
            part.check()

    def keep_up(self, say: Callable[[str], None]) -> None:
        """Start again what has ended by itself, and tell that; keep the logs small. To be called every second or so.

        Raises StackError when a part does not stay up.
        """
        for part in self._all():
            part.keep_up(say)
        keep_small(self._home)

    def stop(self) -> None:
        """Stop the parts together, Postgres last."""
        with ThreadPoolExecutor() as pool:
            list(pool.map(Part.stop, self._parts))
        self._parts.clear()
        if self._postgres is not None:
            self._postgres.stop()
            self._postgres = None
        if self.urls.receiver:  # else it is another stack's that runs on this home
            (self._home / RUNNING).unlink(missing_ok=True)
        self._one_up.give_back()

    def _all(self) -> list[Part]:
        """Every part, Postgres first: the others need it."""
        return [*([self._postgres] if self._postgres else []), *self._parts]

    def _start(self) -> None:
        try:
            self._home.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SettingsError([unusable_home(self._home, error)]) from None
        self._one_up.take()
        if problems := refused_crons(self._settings):
            raise SettingsError(problems)
        receiver, ui = _port("receiver", self._ports.receiver), _port("ui", self._ports.ui)
        own_labels = not self._settings.label_servers
        labels = _port("labels", self._ports.labels) if own_labels else None
        # In production a shop that nobody asked for would only be in the way.
        own_shop = (
            not any(source.reads_any for source in self._settings.sources.values())
            and self._settings.app_environment != "production"
        )
        shop = _port("shop", self._ports.shop) if own_shop else None
        in_files, _ = from_files(secret_names())  # what was wrong with them, the settings have said
        self.environment = {
            **os.environ,
            **in_files,
            **self._development_secrets(),
            "ESL_HOME": str(self._home),
        }
        self._tell_sandboxes_where(receiver, own_shop=own_shop)
        self._start_databases()
        if own_labels:
            self._say("label-server sandbox")
            data, client_id = str(self._home / "label-server.sqlite"), self._settings.hipoink_client_id
            self._run(
                "label server",
                *("esl_pipeline.sandbox.label_server.server", "--port", str(labels)),
                *("--data", data, "--client-id", client_id),
                # The harder case: nothing is on a label before the pipeline says so. The labels are devices, which
                # people bind to what is new, and which look for their picture every second.
                *("--no-auto-trigger", "--staff", "--poll-seconds", "1"),
                HIPOINK_API_SECRET=self.settings.hipoink_sign.get_secret_value(),
                ESL_HOST_NAMES=self._settings.esl_host_names or "",
            )
            self.environment["HIPOINK_API_BASE_URL"] = f"http://{_ADDRESS}:{labels}"
        self._say("receiver")
        self._run(
            "receiver",
            *("esl_pipeline.commands.cli", "receiver", "--host", _ADDRESS, "--port", str(receiver)),
            **(self._login(RECEIVER) | self._signing()),
        )
        if shop is not None:
            self._start_shop(shop)
            self._connect_shop(mapped=own_labels and self._owns_buffer)
        self._say("Dagster")
        if self._settings.esl_dagster_url is None:
            self.environment["ESL_DAGSTER_URL"] = f"http://{_ADDRESS}:{ui}"
        self._start_dagster(ui)
        self.urls = Urls(
            receiver=f"http://{_ADDRESS}:{receiver}",
            ui=f"http://{_ADDRESS}:{ui}",
            labels=f"http://{_ADDRESS}:{labels}" if own_labels else None,
            shop=f"http://{_ADDRESS}:{shop}" if own_shop else None,
        )
        self._wait_until_ready()
        names = (*CONNECTIONS, *(SHOP_CONNECTIONS if own_shop else ()))
        write_private(self._home / RUNNING, {n: self.environment[n] for n in names if n in self.environment})
        self._one_up.tell(asdict(self.urls))

    def _start_databases(self) -> None:
        self._owns_buffer = self._settings.esl_database_url is None and self._settings.supabase_url is None
        own_storage = self._settings.esl_dagster_database_url is None
        if self._owns_buffer or own_storage:
            self._say("embedded Postgres")
            postgres = self._start_postgres()
            self._postgres = Part("the embedded Postgres", postgres, self._start_postgres)
            prepare_database(postgres)
            if self._owns_buffer:
                self.environment["ESL_DATABASE_URL"] = postgres.dsn(DATABASE)
                migrate(postgres.dsn(DATABASE))
                make_logins(postgres)
                self._logins = {
                    name: postgres.dsn(DATABASE, user=name) for name in (RECEIVER, PIPELINE, OPERATOR)
                }
                with psycopg.connect(postgres.dsn(DATABASE)) as connection:
                    connection.execute("select esl.release_claims()")
            if own_storage:
                self.environment["ESL_DAGSTER_DATABASE_URL"] = dagster_url(postgres)
        buffer = open_buffer(self.settings)
        try:
            buffer.check_version()
        finally:
            buffer.close()

    def _tell_sandboxes_where(self, receiver: int, *, own_shop: bool) -> None:
        """A shop on this machine sends its webhooks to our receiver, unless another address is set."""
        url = self._settings.of(ShopifySettings).shopify_admin_url
        if self._settings.app_base_url is None and (
            own_shop or (url is not None and is_loopback(httpx.URL(url).host))
        ):
            self.environment["APP_BASE_URL"] = f"http://{_ADDRESS}:{receiver}"

    def _start_shop(self, port: int) -> None:
        self._say("Shopify sandbox")
        signing = self.signing_key()
        # The app's secret signs, as at Shopify; but for one that cannot be written among SHOPIFY_APPS.
        secret = signing if re.fullmatch("[A-Za-z0-9_-]+", signing) else secrets.token_hex(24)
        self._run(
            "shop",
            *("esl_pipeline.sandbox.shopify.server", "--port", str(port)),
            *("--data", str(self._home / "shop.json"), "--token", ""),
            SHOPIFY_API_KEY=CLIENT_ID,
            SHOPIFY_API_SECRET=secret,
            SHOPIFY_WEBHOOK_SECRET=signing,
            ESL_HOST_NAMES=self._settings.esl_host_names or "",
        )
        # For this shop only: any other would be read as having the sandbox's products.
        self.environment["SHOPIFY_APPS"] = f"{DOMAIN}={CLIENT_ID}:{secret}"
        self.environment["SHOPIFY_ADMIN_URL"] = f"http://{_ADDRESS}:{port}"
        self._await("the Shopify sandbox", partial(_answers, f"http://{_ADDRESS}:{port}{_HEALTH['shop']}"))

    def _connect_shop(self, *, mapped: bool) -> None:
        """Connect the sandbox shop as any shop is; where nothing is mapped yet, let it feed a store."""
        self._say("the shop's first day")
        told: list[Line] = []
        buffer = open_buffer(self.settings)
        try:
            store = _STORE if mapped and not buffer.mapping_list() else None
            wish = first_day.Wish(DOMAIN, kind="api", store=store)
            done = first_day.connect(self.settings, buffer, wish, by=_BY, say=told.append)
            if done.is_new and done.mapping:
                first_day.live(buffer, done.mapping, by=_BY)
                name = DOMAIN.partition(".")[0]
                self.to_fill = shop_key(done.mapping)
                self.mapped = (
                    f"no shop was mapped: {DOMAIN} feeds store {_STORE} now, live, by\n"
                    f"  esl-pipeline shopify connect {name} --store {_STORE}"
                )
        except NotConnectedError as error:
            raise StackError(f"the sandbox shop could not be connected: {error}") from None
        finally:
            buffer.close()

    def _start_dagster(self, port: int) -> None:
        home = self._home / "dagster"
        is_new, is_ours = not home.exists(), self._settings.esl_dagster_database_url is None
        home.mkdir(exist_ok=True)
        (home / "dagster.yaml").write_bytes(
            resources.files("esl_pipeline.local").joinpath("dagster.yaml").read_bytes()
        )
        self.environment |= {"DAGSTER_HOME": str(home), "PYTHONUNBUFFERED": "1"}
        if is_ours and is_new:
            # Alone, for it makes Dagster's tables: of two processes that make them at once one ends with an error.
            self._fail_abandoned_runs()
        code = _port("code server", 0)
        workspace = home / "workspace.yaml"
        workspace.write_text(
            "load_from:\n  - grpc_server:\n"
            f"      host: {_ADDRESS}\n      port: {code}\n      location_name: esl_pipeline\n"
        )
        self._run(
            "code server",
            *("dagster", "api", "grpc", "--module-name", "esl_pipeline.definitions"),
            *("--host", _ADDRESS, "--port", str(code), "--location-name", "esl_pipeline"),
            # Until our code is loaded, which sees to the log, and then to its level too.
            *("--log-level", "warning"),
            **(self._login(PIPELINE) | self._operators_login()),
        )
        if is_ours and not is_new:
            self._fail_abandoned_runs()
        self._await("code server", lambda: _accepts(code))
        self._run(
            "Dagster webserver",
            *("esl_pipeline.orchestration.dagster_ui", "--host", _ADDRESS, "--port", str(port)),
            *("--workspace", str(workspace), "--host-names", self._settings.esl_host_names or ""),
        )
        self._run(
            "Dagster daemon",
            *("esl_pipeline.orchestration.dagster_daemon", "--workspace", str(workspace)),
        )

    def _signing(self) -> dict[str, str]:
        """What the receiver verifies with: also where that is an app's secret it does not learn the app's id."""
        entries = self.settings.of(ShopifySettings).signing_entries
        return {"SHOPIFY_WEBHOOK_SECRET": entries.get_secret_value()} if entries else {}

    def _login(self, name: str) -> dict[str, str]:
        """The variable that has a process use this login of the embedded buffer; another buffer has its own."""
        return {"ESL_DATABASE_URL": self._logins[name]} if self._owns_buffer else {}

    def _operators_login(self) -> dict[str, str]:
        """The login of the operators' jobs in Dagster: that of the settings, or of the embedded buffer."""
        if not self._owns_buffer or self._settings.esl_operator_database_url is not None:
            return {}  # given as it is set
        return {"ESL_OPERATOR_DATABASE_URL": self._logins[OPERATOR]}

    def _fail_abandoned_runs(self) -> None:
        """Nobody else uses our own Postgres: no run of an earlier start can be alive."""
        command = [sys.executable, "-m", "esl_pipeline.orchestration.abandoned_runs"]
        given = given_to("Dagster daemon", self.environment)
        done = subprocess.run(command, env=given, capture_output=True, text=True, check=False)
        if done.returncode:
            raise StackError(f"Dagster's storage cannot be used:\n{done.stderr[-2000:]}")

    def _start_postgres(self) -> EmbeddedPostgres:
        return EmbeddedPostgres.start(self._home / "postgres")

    def _run(self, name: str, module: str, *arguments: str, **environment: str) -> None:
        start = partial(
            Leashed.start,
            name,
            [sys.executable, "-m", module, *arguments],
            env=given_to(name, self.environment) | environment,
            log=self._home / f"{name.lower().replace(' ', '-')}.log",
            grace=_GRACE_SECONDS,
        )
        self._parts.append(Part(name, start(), start))

    def _wait_until_ready(self) -> None:
        for name, url in asdict(self.urls).items():
            if url is not None:
                self._await(name, partial(_answers, url + _HEALTH[name]))
        self._await("Dagster's code location", Webserver(self.urls.ui).is_loaded)

    def _await(self, what: str, ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _READY_SECONDS
        while not ready():
            self.check()
            if time.monotonic() > deadline:
                raise StackError(
                    f"{what} did not answer within {_READY_SECONDS:.0f} s; see {self._home}/*.log"
                )
            time.sleep(0.1)

    def _development_secrets(self) -> Mapping[str, str]:
        """Random ones for what is not set, kept in ESL_HOME/dev.env; none in production."""
        missing = list[str]()
        if not self._settings.of(ShopifySettings).webhook_secrets:  # else the apps' secrets sign
            missing.append("SHOPIFY_WEBHOOK_SECRET")
        if self._settings.esl_admin_token is None:
            missing.append("ESL_ADMIN_TOKEN")
        if not self._settings.label_servers and self._settings.hipoink_api_secret is None:
            missing.append("HIPOINK_API_SECRET")  # of the sandbox
        if not missing or self._settings.app_environment == "production":
            return {}
        file = self._home / DEVELOPMENT_ENV
        kept = read_variables(file)
        for name in missing:
            kept.setdefault(name, secrets.token_hex(24))
        write_private(file, kept)
        return {name: kept[name] for name in missing}


def _port(name: str, wanted: int) -> int:
    if not wanted:
        return free_port(_ADDRESS)
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_ADDRESS, wanted))
        except OSError as error:
            raise StackError(
                f"port {wanted} for {name} cannot be used ({error.strerror}): choose another with --{name}-port, 0 for "
                "a free one"
            ) from None
    return wanted


def _accepts(port: int) -> bool:
    try:
        socket.create_connection((_ADDRESS, port), timeout=1).close()
    except OSError:
        return False
    return True


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2).status_code == httpx.codes.OK
    except httpx.HTTPError:
        return False
