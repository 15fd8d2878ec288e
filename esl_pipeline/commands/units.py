"""`esl-pipeline install-units`: what one machine needs under systemd."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from esl_pipeline.commands.shared import CommandError, err, out


def install_units(
    to_stdout: Annotated[
        bool, typer.Option("--print", help="Print the files instead of writing them.")
    ] = False,
    workers: Annotated[
        bool, typer.Option("--workers", help="With a Celery worker and its dagster.yaml.")
    ] = False,
    programs: Annotated[
        Path, typer.Option(help="The bin folder of the virtual environment that the units start.")
    ] = Path(sys.executable).parent,
    root: Annotated[Path, typer.Option(help="Write below this folder, e.g. of a package.")] = Path("/"),
) -> None:
    """Write systemd units for every process and the files of variables; as root. What was filled in stays."""
    from esl_pipeline.deploy.instances import instance_text, workers_text
    from esl_pipeline.deploy.units import Places, own_files, unit_files

    places = Places(programs=str(programs.absolute()))
    units = unit_files(places, workers=workers)
    own = own_files(workers_text() if workers else instance_text(), places, workers=workers)
    if to_stdout:
        for path, text in (units | own).items():
            print(f"# --- {path}\n{text}")
        return
    try:
        written = [path for path, text in units.items() if _write(root, path, text, mode=0o644)]
        for path, text in own.items():
            if not _at(root, path).exists():
                # Variables are read by systemd as root; Dagster's files by its processes.
                written += (
                    [path] if _write(root, path, text, mode=0o600 if path.endswith(".env") else 0o644) else []
                )
            elif path.endswith(".yaml") and _at(root, path).read_text(encoding="utf-8") != text:
                err.print(
                    f"[yellow]kept {_at(root, path)}, which is not that of this build[/]", soft_wrap=True
                )
    except OSError as error:
        raise CommandError(
            f"{error.filename} cannot be written ({error.strerror}); run this as root"
        ) from None
    for path in written:
        out.print(f"wrote {_at(root, path)}", soft_wrap=True, highlight=False)
    out.print(
        f"fill in {_at(root, places.variables)}/*.env, then: systemd-sysusers && systemctl daemon-reload && "
        "systemctl start esl-migrate && systemctl enable --now esl-pipeline.target",
        soft_wrap=True,
        highlight=False,
    )


def _at(root: Path, path: str) -> Path:
    return root / path.lstrip("/")


def _write(root: Path, path: str, text: str, *, mode: int) -> bool:
    """Whether the file had to be written: it is not there as it should be."""
    file = _at(root, path)
    if file.exists() and file.read_text(encoding="utf-8") == text:
        return False
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch(mode=mode)
    file.chmod(mode)
    file.write_text(text, encoding="utf-8")
    return True
