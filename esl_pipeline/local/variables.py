"""The variables of `up`: which part is given which, and the files in ESL_HOME that keep them."""

from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path

from esl_pipeline.environment import SettingsError
from esl_pipeline.local.one_up import unusable_home
from esl_pipeline.settings import every_field
from esl_pipeline.sources.registry import SOURCES

# Filled in for a first run, when the settings leave them out.
DEVELOPMENT_ENV = "dev.env"
# Where the commands find a running stack.
RUNNING = "up.env"
CONNECTIONS = (
    "ESL_DATABASE_URL",
    "ESL_DAGSTER_DATABASE_URL",
    "HIPOINK_API_BASE_URL",
    "HIPOINK_API_SECRET",
)
SHOP_CONNECTIONS = ("SHOPIFY_ADMIN_URL", "SHOPIFY_APPS", "APP_BASE_URL")

# --- what of this process' environment each part is given, as patterns of names
_ANY_PROGRAM = (
    *("PATH", "HOME", "USER", "LOGNAME", "LANG", "LC_*", "TZ", "TMPDIR"),
    *("PYTHON*", "LD_LIBRARY_PATH", "SSL_CERT_*"),
    *("APP_ENVIRONMENT", "LOG_LEVEL"),  # by which each writes its log
)
_CALLS_OUT = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
_DATABASE_CLIENT = ("PG*",)
_DAGSTER = (*_ANY_PROGRAM, *_DATABASE_CLIENT, "DAGSTER_*", "ESL_DAGSTER_DATABASE_URL")
# Where frames are kept has credentials of its own (ESL_FRAMES_URL).
_FRAMES = ("AWS_*", "AZURE_*", "GOOGLE_*", "GCSFS_*", "S3FS_*", "FSSPEC_*")
_BUFFER = ("ESL_DATABASE_URL", "SUPABASE_SERVICE_KEY")
_PLAIN_SETTINGS = tuple(
    name.upper() for name, field in every_field().items() if "SecretStr" not in str(field.annotation)
)
# What signs a source's webhooks is the receiver's, what opens its shops the runs'.
_OF_SOURCES = [
    name.upper()
    for source in SOURCES.values()
    for name, field in source.settings_class.model_fields.items()
    if "SecretStr" in str(field.annotation)
]
_SIGNING = tuple(name for name in _OF_SOURCES if name.endswith("_WEBHOOK_SECRET"))
_OPENING = tuple(name for name in _OF_SOURCES if name not in _SIGNING)
_GIVEN = {
    "label server": _ANY_PROGRAM,
    "shop": _ANY_PROGRAM,
    "receiver": (
        *(*_ANY_PROGRAM, *_CALLS_OUT, *_DATABASE_CLIENT, *_PLAIN_SETTINGS, *_BUFFER),
        *(*_SIGNING, "ESL_ADMIN_TOKEN", "FORWARDED_ALLOW_IPS"),
    ),
    # It starts the runs, and answers for schedules and sensors.
    "code server": (
        *(*_DAGSTER, *_CALLS_OUT, *_FRAMES, *_PLAIN_SETTINGS, *_BUFFER),
        *(
            "HIPOINK_API_SECRET",
            "HIPOINK_API_SECRET__*",
            *_OPENING,
            "ESL_ALERT_WEBHOOK_URL",
            "ESL_HEARTBEAT_URL",
            "ESL_OPERATOR_DATABASE_URL",
        ),
    ),
    "Dagster webserver": _DAGSTER,
    "Dagster daemon": _DAGSTER,
}


def given_to(part: str, environment: Mapping[str, str]) -> dict[str, str]:
    """What a part may know of our environment."""
    return {
        name: value
        for name, value in environment.items()
        if any(fnmatchcase(name.upper(), pattern) for pattern in _GIVEN[part])
    }


def running_environment(home: Path) -> dict[str, str]:
    """The connections of the stack that runs on this ESL_HOME; empty when none does."""
    return read_variables(home / RUNNING)


def read_variables(file: Path) -> dict[str, str]:
    try:
        text = file.read_text()
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise SettingsError([unusable_home(file.parent, error)]) from None
    return dict(line.removeprefix("export ").split("=", 1) for line in text.splitlines())


def write_private(file: Path, variables: Mapping[str, str]) -> None:
    file.touch(mode=0o600)
    file.chmod(0o600)  # somebody may have copied it
    file.write_text("".join(f"export {name}={value}\n" for name, value in variables.items()))
