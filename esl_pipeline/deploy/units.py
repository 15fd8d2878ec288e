"""What one machine needs under systemd, made from the list of processes: units, their variables, Dagster's files.

What strangers reach (the receivers) runs under a user that systemd makes for as long as it runs; Dagster's processes
share DAGSTER_HOME and so a user. Variables are read by systemd as root: the users cannot read the files.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from esl_pipeline.deploy.processes import PROCESSES, Process
from esl_pipeline.settings import every_field

UNITS = "/etc/systemd/system"
USERS = "/etc/sysusers.d/esl-pipeline.conf"
USER = "esl-pipeline"
TARGET = "esl-pipeline.target"

_HARDENED = """\
UMask=0077
NoNewPrivileges=yes
CapabilityBoundingSet=
ProtectSystem=strict
ProtectHome=yes
ProtectProc=invisible
ProtectClock=yes
ProtectHostname=yes
ProtectControlGroups=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
PrivateDevices=yes
PrivateTmp=yes
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
"""

_WORKSPACE = """\
load_from:
  - grpc_server:
      host: 127.0.0.1
      port: {port}
      location_name: esl_pipeline
"""

_EVERY_PROCESS = """\
# Variables of every process, without secrets. docs/configuration.md has the rest.
APP_ENVIRONMENT=production
LOG_LEVEL=INFO
# Names under which people reach Dagster's pages and the console, by commas.
#ESL_HOST_NAMES=
# The proxy is on this machine.
ESL_TRUSTED_PROXIES=127.0.0.1
"""


@dataclass(frozen=True)
class Places:
    """Where the virtual environment, the variables and what is kept are."""

    programs: str = "/opt/esl-pipeline/bin"
    variables: str = "/etc/esl-pipeline"
    state: str = "/var/lib/esl-pipeline"

    @property
    def home(self) -> str:
        """DAGSTER_HOME."""
        return f"{self.state}/dagster"


def unit_files(places: Places = Places(), *, workers: bool = False) -> dict[str, str]:
    """What belongs to root and may be made anew: path to text. workers: runs in Celery's processes."""
    processes = [process for process in PROCESSES if workers or process.name != "worker"]
    return {
        USERS: f'u {USER} - "esl-pipeline" {places.state}\n',
        f"{UNITS}/{TARGET}": _target([process for process in processes if process.is_lasting]),
        **{f"{UNITS}/{unit_of(process)}": _service(process, places) for process in processes},
        **_watch(places),
    }


def own_files(instance: str, places: Places = Places(), *, workers: bool = False) -> dict[str, str]:
    """What the reader fills in, and nobody writes over: path to text. instance: the text of dagster.yaml."""
    processes = [process for process in PROCESSES if workers or process.name != "worker"]
    (port,) = [process.port for process in PROCESSES if process.name == "code-server"]
    return {
        f"{places.variables}/common.env": _EVERY_PROCESS,
        **{f"{places.variables}/{process.name}.env": _variables(process) for process in processes},
        f"{places.home}/dagster.yaml": instance,
        f"{places.home}/workspace.yaml": _WORKSPACE.format(port=port),
    }


def unit_of(process: Process) -> str:
    """The name of its unit."""
    return f"esl-{process.name}.service"


def _target(lasting: list[Process]) -> str:
    wanted = " ".join(map(unit_of, lasting))
    return _sections(
        Unit={
            "Description": "esl-pipeline: Shopify to shelf labels",
            "Wants": f"{wanted} esl-daemon-watch.timer",
        },
        Install={"WantedBy": "multi-user.target"},
    )


def _service(process: Process, places: Places) -> str:
    program, *arguments = process.command_at("127.0.0.1", places.home)
    unit = {
        "Description": f"esl-pipeline {process.name}: {process.does}",
        "Wants": "network-online.target",
        "After": "network-online.target postgresql.service",
    }
    service = {
        "Type": "exec" if process.is_lasting else "oneshot",
        **_as_whom(process, places),
        "ExecStart": " ".join([f"{places.programs}/{program}", *arguments]),
    }
    if process.is_lasting:
        # Again and again: what it waits for (a database, a network) may take its time.
        unit |= {"PartOf": TARGET, "StartLimitIntervalSec": "0"}
        service |= {"Restart": "always", "RestartSec": "2"}
        # To its first process alone, which ends what it has started.
        service |= {"KillMode": "mixed", "TimeoutStopSec": str(process.stop_seconds)}
    return _sections(Unit=unit, Service=service) + _HARDENED


def _as_whom(process: Process, places: Places) -> dict[str, str]:
    """User, variables and folder of a process."""
    common, own = f"{places.variables}/common.env", f"{places.variables}/{process.name}.env"
    given = {"EnvironmentFile": f"{common}\nEnvironmentFile={own}"}
    if not process.has_dagster:
        return {"DynamicUser": "yes", **given}
    return {
        "User": USER,
        "StateDirectory": places.state.rpartition("/")[2],
        "StateDirectoryMode": "0700",
        "WorkingDirectory": places.home,
        **given,
        "Environment": f"ESL_HOME={places.state} DAGSTER_HOME={places.home} PYTHONUNBUFFERED=1",
    }


def _watch(places: Places) -> dict[str, str]:
    """A daemon that lives and does nothing is started again: runs go on meanwhile, in the code server."""
    (daemon,) = [process for process in PROCESSES if process.name == "daemon"]
    program, *arguments = daemon.health
    look = _sections(
        Unit={
            "Description": "esl-pipeline: whether the daemon is at work",
            "OnFailure": "esl-daemon-restart.service",
            "After": unit_of(daemon),
        },
        Service={
            "Type": "oneshot",
            **_as_whom(daemon, places),
            "ExecStart": " ".join([f"{places.programs}/{program}", *arguments, "--json"]),
            "TimeoutStartSec": "60",
        },
    )
    timer = _sections(
        Unit={"Description": "esl-pipeline: looks at the daemon", "PartOf": TARGET},
        # The first look when it has had time to start.
        Timer={"OnActiveSec": "5min", "OnUnitActiveSec": "1min"},
    )
    again = _sections(
        Unit={"Description": "esl-pipeline: starts the daemon again"},
        Service={"Type": "oneshot", "ExecStart": f"systemctl try-restart {unit_of(daemon)}"},
    )
    return {
        f"{UNITS}/esl-daemon-watch.service": look + _HARDENED,
        f"{UNITS}/esl-daemon-watch.timer": timer,
        f"{UNITS}/esl-daemon-restart.service": again,
    }


def _variables(process: Process) -> str:
    """What a process reads beside common.env: what it needs first, then the secrets that it may know."""
    needed = [name for need in process.needs for name in need.split("|")]
    secrets = [name for name, is_secret in process.settings().items() if is_secret and name not in needed]
    login = f"\n# Its login to the buffer: {process.login}." if process.login else ""
    lines = [f"# Variables of {process.name}, which {process.does}.{login}", "# It needs:"]
    for need in process.needs:
        first, *others = need.split("|")
        lines += [f"# {_meaning(first)}", f"{first}=", *(f"# or\n#{name}=" for name in others)]
    lines += ["# And may know:"] if secrets else []
    lines += [f"# {_meaning(name)}\n#{name}=" for name in secrets]
    return "\n".join(lines) + "\n"


def _meaning(name: str) -> str:
    return str(every_field()[name.lower()].description)


def _sections(**sections: Mapping[str, str]) -> str:
    return "\n".join(
        f"[{name}]\n" + "".join(f"{key}={value}\n" for key, value in lines.items())
        for name, lines in sections.items()
    )
