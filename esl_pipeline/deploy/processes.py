"""Every process of a production installation: its command, its login, what it cannot do without, who asks how it is.

The one list of them. The systemd units are made from it (units.py); Dockerfile, compose.yaml and the Kubernetes files
are compared with it by the tests. What a process may know besides is in needed.py.
"""

from dataclasses import dataclass

from esl_pipeline.needed import needs
from esl_pipeline.settings import every_field, secret_names


@dataclass(frozen=True)
class Process:
    """command: a program of the virtual environment and its arguments; {host} is where it listens, {home} DAGSTER_HOME.

    needs: what must be set, `A|B` for one of two. login: the group of its login to the buffer (SECURITY.md).
    """

    name: str
    does: str
    command: tuple[str, ...]
    needs: tuple[str, ...] = ()
    login: str | None = None
    port: int | None = None
    health: tuple[str, ...] = ()
    stop_seconds: int = 30
    is_lasting: bool = True

    @property
    def has_dagster(self) -> bool:
        """Whether it works on Dagster's instance, in DAGSTER_HOME."""
        return "ESL_DAGSTER_DATABASE_URL" in self.needs

    def command_at(self, host: str, home: str) -> list[str]:
        """The command for a place."""
        return [word.format(host=host, home=home) for word in self.command]

    def settings(self) -> dict[str, bool]:
        """The settings that it may know: each name, and whether that is a secret."""
        secrets = set(secret_names())
        named = (name.upper() for name in every_field())
        return {name: name in secrets for name in named if self._may_know(name)}

    def _may_know(self, name: str) -> bool:
        if self.name == "migrate":
            return name in {"ESL_DATABASE_URL", "APP_ENVIRONMENT", "LOG_LEVEL"}
        return (self.name if self.name != "worker" else "run") in needs(name)


_BUFFER = "ESL_DATABASE_URL|SUPABASE_SERVICE_KEY"
_DAGSTER = "ESL_DAGSTER_DATABASE_URL"
# What signs a source's webhooks; an app's own secret may do so, too.
_SIGNING = "|".join(name for name in map(str.upper, every_field()) if name.endswith("_WEBHOOK_SECRET"))
_WORKSPACE = ("--workspace", "{home}/workspace.yaml")


def _health(of: str) -> tuple[str, ...]:
    return ("esl-pipeline", "health", of)


PROCESSES = (
    Process(
        "migrate",
        "brings the buffer to this build; once per deployment, before the rest",
        ("esl-pipeline", "migrate"),
        needs=("ESL_DATABASE_URL",),
        login="the owner of the buffer's database",
        is_lasting=False,
    ),
    Process(
        "receiver",
        "keeps webhooks",
        ("esl-pipeline", "receiver", "--only", "webhooks", "--host", "{host}", "--port", "8000"),
        needs=(_BUFFER, _SIGNING),
        login="esl_receiver",
        port=8000,
        health=_health("receiver"),
    ),
    Process(
        "admin",
        "the store-mapping API and the console for staff",
        ("esl-pipeline", "receiver", "--only", "admin", "--host", "{host}", "--port", "8001"),
        needs=(_BUFFER,),
        login="esl_admin",
        port=8001,
        health=(*_health("receiver"), "--at", "http://127.0.0.1:8001"),
    ),
    Process(
        "code-server",
        "answers for schedules and sensors, and starts the runs",
        ("python", "-m", "esl_pipeline.orchestration.code_server", "--host", "{host}", "--port", "4000"),
        needs=(_BUFFER, _DAGSTER, "HIPOINK_API_BASE_URL|HIPOINK_SERVERS_FILE"),
        login="esl_pipeline",
        port=4000,
        health=_health("code-server"),
        stop_seconds=60,
    ),
    Process(
        "webserver",
        "Dagster's pages, behind the guard",
        (
            "python",
            "-m",
            "esl_pipeline.orchestration.dagster_ui",
            "--host",
            "{host}",
            "--port",
            "3000",
            *_WORKSPACE,
        ),
        needs=(_DAGSTER,),
        port=3000,
    ),
    Process(
        "daemon",
        "schedules, sensors and the queue of runs; exactly one",
        ("python", "-m", "esl_pipeline.orchestration.dagster_daemon", *_WORKSPACE),
        needs=(_DAGSTER,),
        health=_health("daemon"),
    ),
    Process(
        "worker",
        "does runs in warm processes, where dagster.yaml is that of deploy/celery (docs/scale-out.md)",
        (
            *("celery", "-A", "esl_pipeline.orchestration.celery_worker", "worker"),
            *(
                "--queues",
                "dagster",
                "--concurrency",
                "4",
                "--max-tasks-per-child",
                "100",
                "--loglevel",
                "info",
            ),
        ),
        needs=(_BUFFER, _DAGSTER, "HIPOINK_API_BASE_URL|HIPOINK_SERVERS_FILE", "ESL_FRAMES_URL"),
        login="esl_pipeline",
        stop_seconds=3700,  # a drain that is told to end does so at once; a night may go on for its hour
    ),
)
