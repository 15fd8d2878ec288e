"""Whether Dagster takes the times of its schedules: it alone judges them.

    python -m esl_pipeline.orchestration.crons TIME_ZONE NAME=CRON ...

prints one sentence for each that it refuses. A process of its own, for those who may not load Dagster
(local/schedules.py): that takes seconds, and every command would pay them.
"""

import sys
from collections.abc import Mapping

import dagster as dg

from esl_pipeline.environment import SettingsError


def refused(crons: Mapping[str, str], time_zone: str) -> list[str]:
    """A sentence for each setting whose cron expression Dagster refuses in this time zone."""
    return [
        f"{name}: Dagster cannot run a schedule at {cron}; write for example 0 2 * * * for two o'clock every night"
        for name, cron in crons.items()
        if not _is_taken(cron, time_zone)
    ]


def check(crons: Mapping[str, str], time_zone: str) -> None:
    """Raise SettingsError when Dagster refuses any."""
    if problems := refused(crons, time_zone):
        raise SettingsError(problems)


def _is_taken(cron: str, time_zone: str) -> bool:
    try:
        dg.ScheduleDefinition(name="judged", cron_schedule=cron, execution_timezone=time_zone, job_name="any")
    except dg.DagsterInvalidDefinitionError:
        return False
    return True


if __name__ == "__main__":
    zone, *named = sys.argv[1:]
    for sentence in refused(dict(argument.split("=", 1) for argument in named), zone):
        print(sentence)
