"""Asks Dagster whether it takes the times of our schedules. It is the judge, and is asked in a process of its own:
nothing outside orchestration/ loads it."""

import os
import subprocess
import sys

from esl_pipeline.local.variables import given_to
from esl_pipeline.settings import Settings


def refused_crons(settings: Settings) -> list[str]:
    """A sentence for each cron expression that Dagster refuses; asks only where one is not the default.

    Raises OSError or subprocess.SubprocessError when it cannot be asked.
    """
    fields = type(settings).model_fields
    asked = {name: cron for name, cron in settings.crons.items() if cron != fields[name.lower()].default}
    if not asked:
        return []
    command = [sys.executable, "-m", "esl_pipeline.orchestration.crons", settings.esl_nightly_time_zone]
    done = subprocess.run(
        [*command, *(f"{name}={cron}" for name, cron in asked.items())],
        env=given_to("Dagster webserver", os.environ),
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return done.stdout.splitlines()
