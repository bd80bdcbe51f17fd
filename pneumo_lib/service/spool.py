"""Requests whose body finds no room on the disk: waitress would hang up on them, here they get an answer.

A body above half a megabyte goes to a temporary file before the application hears of the request, so that 500 slow
visitors of 300 MB each fill no memory. Where that file cannot be written, the rest of the body is read and thrown away,
since a client that is still sending would not hear an answer, and the application meets the fault when it reads the
body: it answers in its own way, as it does when its own temporary files find no room.
"""

import errno
import logging
from contextlib import suppress
from typing import BinaryIO

from waitress.buffers import OverflowableBuffer
from waitress.channel import HTTPChannel
from waitress.parser import HTTPRequestParser

from pneumo_lib.errors import ServiceError

logger = logging.getLogger(__name__)
FULL = (errno.ENOSPC, errno.EDQUOT, errno.ENOENT)  # no room, none left for this user, no folder that takes the file


class NoRoom:
    """Stands for a body that was thrown away."""

    def read(self, size: int = -1) -> bytes:
        """Raise ServiceError `history_full`."""
        raise ServiceError("there is no room for the upload on the service's disk", code="history_full")

    readline = readlines = __iter__ = readinto = read


class Body(OverflowableBuffer):
    """A request's body on its way in: counts every byte, and holds them as long as there is room."""

    def __init__(self, overflow: int) -> None:
        super().__init__(overflow)
        self._length, self._full = 0, False

    def __len__(self) -> int:
        return self._length

    def append(self, data: bytes) -> None:
        """Take a piece, or throw it away."""
        self._length += len(data)
        if self._full:
            return
        try:
            super().append(data)
        except OSError as error:
            if error.errno not in FULL:
                raise
            logger.warning("there is no room on the disk for the body of a request")
            self._full = True
            self.close()
            self.buf = None

    def getfile(self) -> BinaryIO | NoRoom:
        """What the application reads the body from."""
        return NoRoom() if self._full else super().getfile()

    def close(self) -> None:
        """Let go of the temporary file; what a full disk did not take goes with it."""
        with suppress(OSError):
            super().close()


class _Parser(HTTPRequestParser):
    def parse_header(self, header_plus: bytes) -> None:
        super().parse_header(header_plus)
        if self.body_rcv is not None:
            self.body_rcv.buf = Body(self.adj.inbuf_overflow)


class Channel(HTTPChannel):
    """A connection whose requests have such bodies."""

    parser_class = _Parser
