"""What the operator of the service decides: limits, history, token, address."""

import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pneumo_lib import runtime
from pneumo_lib.errors import ServiceError, UsageError
from pneumo_lib.images import MAX_PIXELS

LOOPBACK = ("127.0.0.1", "localhost", "::1")
HISTORY = Path("runs", "history.sqlite3")
MB = 2**20
FORM_BYTES = 2**16  # of a body that carries no files: werkzeug reads it whole and in Python


@dataclass(frozen=True)
class Settings:
    """The configuration of one service.

    Attributes:
        history: database URL, "sqlite:///PATH" or "mysql+pymysql://USER:PASSWORD@HOST/NAME".
        token: what a caller must show; empty asks for none.
        file_bytes, pixels, files: limits per file, per file, and per request.
        queue: films that may be in work at once; more are sent away with 503.
        batch: films that go through a network together at most.
        recent_bytes, recent_seconds: how much, and how long, pictures of diagnosed films are held in memory.
    """

    history: str
    token: str = ""
    file_bytes: int = 16 * MB
    pixels: int = MAX_PIXELS
    files: int = 20
    queue: int = 64
    batch: int = 8
    recent_bytes: int = 64 * MB
    recent_seconds: float = 900.0

    @property
    def request_bytes(self) -> int:
        """The largest request that is read at all: every file at its limit, and a little for the form."""
        return self.files * self.file_bytes + MB


def settings(
    *, host: str, proxy: bool = False, history: str = "", token: str = "", environment: Mapping[str, str] | None = None
) -> Settings:
    """The settings of a service on that address.

    A service that others can reach must be given a token, or makes one up.

    Args:
        host: address to bind.
        proxy: visitors come through a reverse proxy, from anywhere.
        history: database URL; by default PNEUMO_HISTORY, else an SQLite file beside the runs.
        token: by default PNEUMO_TOKEN; needed elsewhere than on this machine. Spaces and line ends around it, as files
            have them, do not count.
        environment: instead of the process's own, for tests.

    Raises:
        UsageError: a database URL of a kind that the history cannot use.
    """
    environment = os.environ if environment is None else environment
    token = (token or environment.get("PNEUMO_TOKEN", "")).strip()
    if not token and (proxy or host not in LOOPBACK):
        token = secrets.token_urlsafe(24)
    url = history or environment.get("PNEUMO_HISTORY", "") or f"sqlite:///{runtime.locate(HISTORY)}"
    if not url.startswith(("sqlite:///", "mysql+pymysql://")):
        raise UsageError(
            f"the history's address begins with {url.partition(':')[0]!r}; "
            "expected sqlite:///PATH or mysql+pymysql://USER:PASSWORD@HOST/NAME."
        )
    return Settings(history=url, token=token)


def check_threshold(value: float) -> float:
    """The threshold itself, a fraction.

    Raises:
        ServiceError: it is none.
    """
    if not 0 <= value <= 1:
        raise ServiceError(f"the threshold is {value}; a fraction from 0 to 1 was expected", code="bad_threshold")
    return value + 0.0  # without this, minus zero would be shown as such
