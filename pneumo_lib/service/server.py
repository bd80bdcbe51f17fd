"""Starts and stops the service: waitress, signals, the way from run folders to an application."""

import logging
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import waitress
from waitress.server import BaseWSGIServer
from werkzeug.middleware.proxy_fix import ProxyFix

from pneumo_lib import runtime
from pneumo_lib.errors import ServiceError, UsageError
from pneumo_lib.service import catalog, create_app, spool
from pneumo_lib.service.cases import Clinic
from pneumo_lib.service.history import History
from pneumo_lib.service.settings import Settings

if TYPE_CHECKING:
    from wsgiref.types import WSGIApplication

logger = logging.getLogger(__name__)
DRAIN_SECONDS = 9.0  # of the 10 that whoever stops the service gives it
THREADS = 24  # requests at a time: they wait for the queue, not for a core
POLL_SECONDS = 0.2
IDLE_SECONDS = 30  # after which a connection that sends nothing is dropped


def serve(
    folders: Sequence[str],
    settings: Settings,
    *,
    host: str,
    port: int,
    proxy: bool = False,
    upgrade: bool = False,
    announce: Callable[[str], None] = logger.info,
) -> None:
    """Serve until SIGTERM or Ctrl-C, then finish what is in work.

    Args:
        folders: run folders.
        proxy: believe the X-Forwarded headers of one reverse proxy.
        upgrade: bring the history's tables to this version first.
        announce: told the address once the service can be reached.

    Raises:
        UsageError: the address cannot be bound.
        ServiceError: the history cannot be upgraded.
    """
    bound = _bind(host, port)
    runtime.keep_memory()
    clinic = open_clinic(folders, settings, upgrade=upgrade)
    app = create_app(clinic)
    wsgi = ProxyFix(app, x_for=1, x_proto=1, x_host=1, x_prefix=1) if proxy else app
    server = _listen(wsgi, bound, settings.request_bytes)
    stop = threading.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, lambda *_: stop.set())
    name = f"[{host}]" if ":" in host else host
    announce(f"http://{name}:{bound.getsockname()[1]}/")
    threading.Thread(target=clinic.catalog.compile, name="compile", daemon=True).start()
    try:
        _run(server, stop)
    finally:
        clinic.close()


def _listen(wsgi: "WSGIApplication", bound: socket.socket, request_bytes: int, **options: Any) -> BaseWSGIServer:
    """A server whose loop is still to be run; `options` are further ones of waitress, or others than ours."""
    ours = {"threads": THREADS, "ident": "pneumo", "channel_timeout": IDLE_SECONDS, "connection_limit": 500}
    ours |= {"sockets": [bound], "max_request_body_size": request_bytes}
    server = waitress.create_server(wsgi, **ours | options)
    server.channel_class = spool.Channel
    return server


def _run(server: BaseWSGIServer, stop: threading.Event) -> None:
    """The loop of waitress until `stop` is set, then as long as requests are in work, but not for ever."""
    loop = partial(server.asyncore.loop, timeout=POLL_SECONDS, map=server._map, use_poll=True, count=1)
    while not stop.is_set():
        loop()
    server.del_channel()  # new connections are refused from here on
    server.socket.close()
    end = time.monotonic() + DRAIN_SECONDS
    while time.monotonic() < end and any(c.requests or c.total_outbufs_len for c in server.active_channels.values()):
        loop()
    server.task_dispatcher.shutdown(cancel_pending=True, timeout=max(0.1, end - time.monotonic()))


def open_clinic(folders: Sequence[str], settings: Settings, *, upgrade: bool = False) -> Clinic:
    """Models and history of a service.

    A history without tables gets them; older ones are left as they are unless `upgrade` is set. What cannot be used
    now is told by `Clinic.ready`.
    """
    offered, history = catalog.load(folders), History(settings.history)
    try:
        if upgrade or history.is_empty():
            history.upgrade()
    except ServiceError:
        if upgrade:
            raise
        logger.warning("the history cannot be reached; answers will not be saved")
    return Clinic(settings, offered, history, threads=torch.get_num_threads())


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except (OSError, OverflowError) as error:
        bound.close()
        raise UsageError(
            f"cannot listen on {host} port {port}: {error}. Choose another with --port or --host."
        ) from error
    return bound
