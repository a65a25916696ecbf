"""The list of samples that `curate purge` removed from the warehouse."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from curation_assets import tables
from curation_resources.errors import UserError
from curation_resources.storage.digests import now
from curation_resources.storage.warehouse import Warehouse

SCHEMA_VERSION = 1


class PurgedListError(UserError):
    """The list of purged samples cannot be read."""


@dataclass(frozen=True)
class PurgedSample:
    """A sample removed from the warehouse.

    Attributes:
        sample_id: its id; nothing else of the sample is kept.
        reason: the reason given by the person who removed it.
        when: time (UTC) of the first removal.
        shards: shards and validation sets whose tables contained it.
    """

    sample_id: str
    reason: str
    when: str
    shards: Sequence[str]


@dataclass(frozen=True)
class PurgedList:
    """All purged samples, by sample_id."""

    samples: Mapping[str, PurgedSample]

    @classmethod
    def read(cls, warehouse: Warehouse) -> PurgedList:
        """Read the current list; empty if nothing was ever purged.

        Raises:
            PurgedListError: the list is damaged or was written by another version, so rows cannot be checked against
                it.
        """
        return cls._parse(warehouse, warehouse.read_text(tables.purged_path()))

    @classmethod
    def _parse(cls, warehouse: Warehouse, text: str | None) -> PurgedList:
        if text is None:
            return cls({})
        try:
            document = json.loads(text)
            if document["schema_version"] != SCHEMA_VERSION:
                raise ValueError(f"schema version {document['schema_version']}")
            return cls({entry["sample_id"]: PurgedSample(**entry) for entry in document["samples"]})
        except (ValueError, TypeError, KeyError) as error:
            raise PurgedListError(
                f"{warehouse.storage.shown(tables.purged_path())} cannot be read ({error!r}). Restore it from a "
                "backup; without it purged samples would come back."
            ) from error

    def ids_of(self, shard: str) -> list[str]:
        """Return the purged ids of a shard or validation set; its rows depend on them."""
        return sorted(sample.sample_id for sample in self.samples.values() if shard in sample.shards)

    def ids(self) -> list[str]:
        """Return all purged ids."""
        return sorted(self.samples)


def add_purged(warehouse: Warehouse, sample_id: str, reason: str, shards: Collection[str]) -> PurgedList:
    """Add a sample to the list, or add shards to its entry; return the new list."""
    while True:
        before = warehouse.read_text(tables.purged_path())
        known = PurgedList._parse(warehouse, before).samples
        former = known.get(sample_id, PurgedSample(sample_id, reason, now(), ()))
        entry = replace(former, shards=sorted({*former.shards, *shards}))
        after = {**known, sample_id: entry}
        document = {"schema_version": SCHEMA_VERSION, "samples": [asdict(after[key]) for key in sorted(after)]}
        if warehouse.compare_and_swap(tables.purged_path(), before, json.dumps(document, indent=1)):
            return PurgedList(after)


def copy_purged(source: Warehouse, target: Warehouse) -> None:
    """Copy the list to another warehouse, so that a dry run in a temporary folder shows no purged sample."""
    text = source.read_text(tables.purged_path())
    if text is not None:
        target.storage.write(tables.purged_path(), text.encode())
