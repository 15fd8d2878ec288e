"""The console script. A probe comes every few seconds: it does not load the other commands."""

import sys
from typing import NoReturn


def main() -> NoReturn:
    """`esl-pipeline`, as it was called."""
    if sys.argv[1:2] == ["health"]:
        import typer

        from esl_pipeline.commands.health import health

        app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
        app.command("health")(health)
        app(sys.argv[2:], prog_name="esl-pipeline health")
        raise SystemExit
    from esl_pipeline.commands import cli

    cli.main()


if __name__ == "__main__":
    main()
