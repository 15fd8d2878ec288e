"""The body of `esl-pipeline demo`: a day and a night of a made-up shop, through the pipeline, every label compared.

Everything is brought along and thrown away: the demo has a folder, settings and servers of its own, and reads none of
the user's settings, so that it can never write to a real label server or buffer.
"""

import contextlib
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
from rich.console import Console
from rich.status import Status

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.buffer.errors import BufferError
from esl_pipeline.connections import open_buffer
from esl_pipeline.demo.files import FilesDemo
from esl_pipeline.demo.report import Report, by_check, print_failure, print_report
from esl_pipeline.demo.scenes import Stage, inbox_of
from esl_pipeline.demo.shop import STORE, DemoError, ShopUnderDemo
from esl_pipeline.demo.shopify import ShopifyDemo
from esl_pipeline.demo.woocommerce import WooCommerceDemo
from esl_pipeline.environment import SettingsError
from esl_pipeline.label_servers import is_sign_variable
from esl_pipeline.local.parts import StackError
from esl_pipeline.local.postgres import PostgresUnavailable
from esl_pipeline.local.stack import Ports, Stack
from esl_pipeline.local.webserver import Webserver, WebserverError
from esl_pipeline.settings import Settings, every_field, load_settings

DEMOS: dict[str, type[ShopUnderDemo]] = {
    demo.system: demo for demo in (ShopifyDemo, WooCommerceDemo, FilesDemo)
}
# Of the user's settings, those that somebody could fear for.
_NEVER_TOUCHED = (
    "hipoink_api_base_url",
    "hipoink_servers_file",
    "supabase_url",
    "esl_database_url",
    "esl_dagster_database_url",
)


def run_demo(
    settings: Settings,
    console: Console,
    *,
    source: str = "shopify",
    refresh: str = "after_push",
    as_json: bool = False,
) -> bool:
    """Play the demo of a source and print what happened; True when every label is right.

    refresh: the policy of its store; with `never` nothing reaches the shelf, and the report says what does not.
    `settings` are the user's, read only to say that they are not used. With `as_json` one JSON object is printed and
    nothing else. What goes wrong on the way is printed as a sentence, and the answer is False; the parts' logs are
    kept then. KeyboardInterrupt passes through when everything has been stopped.
    """
    story = Console(quiet=True) if as_json else console
    _say_what_is_safe(settings, story)
    shop = DEMOS[source]()
    with _scratch_home() as home, shop.running(), _own_settings(home, shop.environment()):
        try:
            report = _play(shop, story, refresh)
        except (
            DemoError,
            StackError,
            WebserverError,
            PostgresUnavailable,
            BufferError,
            SettingsError,
            httpx.HTTPError,
        ) as error:
            print_failure(console, str(error) or type(error).__name__, _keep_logs(home), as_json=as_json)
            return False
    print_report(console, report, as_json=as_json)
    return report.right


# --- playing it


def _play(shop: ShopUnderDemo, story: Console, refresh: str) -> Report:
    began = time.monotonic()
    with (
        _Starting(story) as starting,
        _stack(starting) as stack,
        _buffer(stack.settings) as buffer,
    ):
        started = time.monotonic()
        starting.done()
        stage = Stage(shop, stack, buffer, story)
        # Until the night, what a dropped webhook would have told must stay unknown.
        Webserver(stack.urls.ui).stop_schedules()
        stage.connect_shop({} if refresh == "after_push" else {"refresh": refresh})
        story.print(f"\n  [bold]labels[/]    {stack.urls.labels}    what the shelf shows, live")
        story.print(f"  [bold]Dagster[/]   {stack.urls.ui}    assets and runs")
        story.print("  Both answer while the demo runs; esl-pipeline up keeps them running.", style="dim")
        waves, night = [], None
        for act in shop.acts:
            story.print(f"\n[bold]{act.title}[/]", highlight=False)
            with _part_is_to_blame(stack):
                waves.append(stage.perform(act))
            if waves[-1].wrong:
                break
        else:
            title = "The night: labels were changed behind our back, and the whole shop is read and compared"
            story.print(f"\n[bold]{title}[/]", highlight=False)
            with _part_is_to_blame(stack):
                night = stage.night()
        code = shop.example()
        trace, status, sandbox = buffer.story(store=STORE, code=code), buffer.status(), stage.sandbox()
        shelf = stage.shelf()
        findings, files = by_check(buffer.findings()), dict(shop.files)
    return Report(
        waves=waves,
        night=night,
        inbox=inbox_of(status),
        files=files,
        held_back=status["stores"][0]["held_back"],
        expected_held_back=shop.held_back,
        findings=findings,
        sandbox=sandbox,
        shelf=shelf,
        traced_code=code,
        trace=trace,
        start_seconds=round(started - began, 1),
        total_seconds=round(time.monotonic() - began, 1),
    )


# --- what it runs in


@contextlib.contextmanager
def _scratch_home() -> Iterator[Path]:
    """A new folder for everything, removed at the end."""
    home = Path(tempfile.mkdtemp(prefix="esl-demo-")).resolve()
    # Postgres does not run as root: its user must get through to its data, and need not see anything else.
    home.chmod(0o711)
    try:
        yield home
    finally:
        data = home / "postgres"
        if data.is_symlink():  # see local.postgres: it had to go where its user can reach it
            shutil.rmtree(data.resolve().parent, ignore_errors=True)
        shutil.rmtree(home, ignore_errors=True)


@contextlib.contextmanager
def _own_settings(home: Path, of_shop: dict[str, str]) -> Iterator[None]:
    """Only the demo's own settings are seen in here, by this process and those that it starts.

    Not the user's environment, and not a `.env` file, which is looked for in the working directory.
    """
    kept = dict(os.environ)
    for name in kept:
        if name.lower() in every_field() or is_sign_variable(name):
            del os.environ[name]
    os.environ |= {
        "ESL_HOME": str(home),
        "APP_ENVIRONMENT": "development",
        "HIPOINK_API_SECRET": secrets.token_hex(8),
        **of_shop,
    }
    try:
        with contextlib.chdir(home):
            yield
    finally:
        os.environ.clear()
        os.environ.update(kept)


@contextlib.contextmanager
def _stack(starting: "_Starting") -> Iterator[Stack]:
    with Stack(load_settings(), Ports(receiver=0, ui=0, labels=0, shop=0), starting) as stack:
        try:
            yield stack
        finally:
            starting.stopping()


@contextlib.contextmanager
def _part_is_to_blame(stack: Stack) -> Iterator[None]:
    """If a part has ended, that is the reason to tell."""
    try:
        yield
    except (DemoError, BufferError, WebserverError, httpx.HTTPError):
        stack.check()
        raise


@contextlib.contextmanager
def _buffer(settings: Settings) -> Iterator[Buffer]:
    buffer = open_buffer(settings)
    try:
        yield buffer
    finally:
        buffer.close()


def _keep_logs(home: Path) -> Path | None:
    """A new folder with the parts' logs; None when there are none."""
    found = list(home.glob("*.log"))
    if not found:
        return None
    kept = Path(tempfile.mkdtemp(prefix="esl-demo-logs-"))
    for log in found:
        shutil.copy(log, kept)
    return kept


# --- telling it


class _Starting:
    """Says which part is being started, and how long each took."""

    def __init__(self, story: Console) -> None:
        self._story = story
        self._status = Status("", console=story)
        self._part, self._since = "", 0.0

    def __enter__(self) -> "_Starting":
        self._story.print("\n[bold]Starting[/]")
        self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._status.stop()

    def __call__(self, part: str) -> None:
        """A part begins to start."""
        self._tick()
        self._part, self._since = part, time.monotonic()
        self._status.update(f"{part} …")

    def done(self) -> None:
        """All parts answer."""
        self._tick()
        self._status.stop()

    def stopping(self) -> None:
        """The end has begun."""
        self._part = ""
        self._status.update("stopping …")
        self._status.start()

    def _tick(self) -> None:
        if self._part:
            self._story.print(f"  {self._part:<24}{time.monotonic() - self._since:6.1f} s", highlight=False)


def _say_what_is_safe(settings: Settings, story: Console) -> None:
    story.print("Everything runs on this machine, in a folder of its own, and is removed at the end.")
    of_sources = [name for one in settings.sources.values() for name in sorted(one.settings.model_fields_set)]
    for name in [*of_sources, *(name for name in _NEVER_TOUCHED if getattr(settings, name) is not None)]:
        story.print(f"{name.upper()} is set; the demo does not use it.")
