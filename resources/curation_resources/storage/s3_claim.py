"""Who makes a folder in a bucket: an object that its maker puts, renews, and removes when the folder is whole."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Protocol

from curation_resources.storage.digests import now

logger = logging.getLogger("curation")

CLAIM_SECONDS = 300.0
"""A claim that has not been renewed for so long is a dead maker's."""

CLAIM_PAUSE = 1.0
"""Seconds between two looks at another's claim."""


class PutIf(Protocol):
    """A conditional put: the new ETag, or None if its condition does not hold."""

    def __call__(self, path: str, data: bytes, **condition: str) -> str | None:
        """Put the object under If-None-Match or If-Match."""


class Claim:
    """A claim on a folder.

    Args:
        path: of the object that stands for it.
        put_if: puts it.
        head: what S3 tells of it; None if there is none.
    """

    def __init__(self, path: str, put_if: PutIf, head: Callable[[str], dict[str, Any] | None]) -> None:
        self._path = path
        self._put_if = put_if
        self._head = head
        self._version: str | None = None

    def take(self, unless: Callable[[], bool]) -> bool:
        """Wait until nobody else holds it; False, and not taken, if the folder was made meanwhile."""
        mine, told = _text(), False
        while not unless():
            self._version = self._put_if(self._path, mine, IfNoneMatch="*") or self._take_over()
            if self._version is not None:
                return True
            if not told:
                logger.info(
                    "another run is making %s: waiting for it, for %.0f s if it died", self._path, CLAIM_SECONDS
                )
                told = True
            time.sleep(CLAIM_PAUSE)
        return False

    def renew(self) -> bool:
        """Say that its maker lives; False if another took it over."""
        if self._version is not None:
            self._version = self._put_if(self._path, _text(), IfMatch=self._version)
        return self._version is not None

    def _take_over(self) -> str | None:
        """The ETag of a dead maker's claim that is ours now."""
        head = self._head(self._path)
        if head is None or (datetime.now(UTC) - head["LastModified"]).total_seconds() < CLAIM_SECONDS:
            return None
        return self._put_if(self._path, _text(), IfMatch=head["ETag"])


def _text() -> bytes:
    return f"{os.urandom(16).hex()} {now()}".encode()
