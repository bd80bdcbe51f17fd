"""`pneumo serve`: the diagnosis service on the command line."""

import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Annotated

import typer

from pneumo_lib import diagnosis, processes
from pneumo_lib.diagnosis import DISCLAIMER
from pneumo_lib.service import server
from pneumo_lib.service.settings import settings as settle

MEANT = {
    diagnosis.PUBLISHED: "figures, the published model; figures/model_card.md says what it is and what it is not",
    diagnosis.DEMO: "demo, the model of `make report`, made on drawings",
}


def serve(
    run: Annotated[list[str] | None, typer.Option("--run", help="Run folder with models; may be given again.")] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; elsewhere than on this machine a token is asked.")
    ] = ("127.0.0.1"),
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8000,
    history: Annotated[
        str, typer.Option(help="sqlite:///PATH or mysql+pymysql://USER:PASSWORD@HOST/NAME; or PNEUMO_HISTORY.")
    ] = "",
    token: Annotated[str, typer.Option(help="Token that visitors must show; better in PNEUMO_TOKEN.")] = "",
    proxy: Annotated[
        bool, typer.Option("--proxy", help="Behind one reverse proxy: believe its X-Forwarded headers.")
    ] = False,
    upgrade: Annotated[
        bool, typer.Option("--upgrade", help="Bring the history's tables to this version first.")
    ] = False,
) -> None:
    """Serve the diagnosis of films, as pages and as an API, until Ctrl-C.

    Without --run with the published model, or where there is none with the demo's.
    """
    chosen = settle(host=host, proxy=proxy, history=history, token=token)
    folders = run or [str(told_default())]

    def announce(address: str) -> None:
        typer.echo(f"serving on {address}  (stop with Ctrl-C)")
        if chosen.token:
            typer.echo(
                f"visitors need this token: {chosen.token}" if not token else "visitors need the token", err=True
            )
        typer.echo(DISCLAIMER, err=True)

    _hush()
    server.serve(folders, chosen, host=host, port=port, proxy=proxy, upgrade=upgrade, announce=announce)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # all is closed; to take torch apart would cost a busy machine seconds that SIGTERM does not leave


def told_default() -> Path:
    """The run folder where no --run is given; standard error says which and what was trained there."""
    folder = diagnosis.default_run()
    if processes.first():
        typer.echo(f"no --run given: {MEANT[folder]}.", err=True)
    return folder


def _hush() -> None:
    """Keep libraries from logging what an answer tells anyway: an odd file, a connection that was lost."""
    warnings.filterwarnings("ignore", module=r"PIL|pydicom")
    for name in ("pydicom", "sqlalchemy.pool"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
