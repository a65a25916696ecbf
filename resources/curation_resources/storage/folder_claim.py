"""A claim on a folder in a bucket: an object that its maker puts, renews, and removes when the folder is complete."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Protocol

from curation_resources.storage.digests import now

if TYPE_CHECKING:
    from obstore import ObjectMeta, PutResult, UpdateVersion

logger = logging.getLogger("curation")

CLAIM_SECONDS = 300.0
"""Seconds without renewal after which a claim's maker is considered dead."""

CLAIM_PAUSE = 1.0
"""Seconds between two checks of another maker's claim."""


class PutIf(Protocol):
    """A conditional put that returns the new version, or None if its condition does not hold."""

    def __call__(self, path: str, data: bytes, expected: UpdateVersion | None = None) -> UpdateVersion | None:
        """Put the object if it does not exist, or is still the expected version."""


class Claim:
    """A claim on a folder.

    Args:
        path: path of the claim's object.
        put_if: puts the object conditionally.
        head: returns an object's metadata; None if it does not exist.
    """

    def __init__(self, path: str, put_if: PutIf, head: Callable[[str], ObjectMeta | None]) -> None:
        self._path = path
        self._put_if = put_if
        self._head = head
        self._version: UpdateVersion | None = None

    def take(self, unless: Callable[[], bool]) -> bool:
        """Wait for the claim and take it; return False, without taking it, if the folder was completed meanwhile."""
        mine, logged = _text(), False
        while not unless():
            self._version = self._put_if(self._path, mine) or self._take_over()
            if self._version is not None:
                return True
            if not logged:
                logger.info(
                    "another run is creating %s; waiting for it (up to %.0f s if it died)", self._path, CLAIM_SECONDS
                )
                logged = True
            time.sleep(CLAIM_PAUSE)
        return False

    def renew(self) -> bool:
        """Renew the claim; return False if another maker took it over."""
        if self._version is not None:
            self._version = self._put_if(self._path, _text(), self._version)
        return self._version is not None

    def _take_over(self) -> UpdateVersion | None:
        """Try to take over a dead maker's claim; return its new version, or None."""
        head = self._head(self._path)
        if head is None or (datetime.now(UTC) - head["last_modified"]).total_seconds() < CLAIM_SECONDS:
            return None
        return self._put_if(self._path, _text(), update_version(head))


def update_version(found: ObjectMeta | PutResult) -> UpdateVersion:
    """Return the version that a conditional put names: services identify it by ETag, by version, or by both."""
    version: UpdateVersion = {}
    if found["e_tag"] is not None:
        version["e_tag"] = found["e_tag"]
    if found["version"] is not None:
        version["version"] = found["version"]
    return version


def _text() -> bytes:
    return f"{os.urandom(16).hex()} {now()}".encode()
