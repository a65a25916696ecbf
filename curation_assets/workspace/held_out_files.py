"""Files of validation sets, and the fingerprint that decides when to read them again."""

from __future__ import annotations

from pathlib import Path

from curation_assets.config.corpus_settings import ValidationSet
from curation_assets.workspace.purge_list import PurgedList
from curation_assets.workspace.versions import CORPUS_VERSION
from curation_assets.workspace.workspace import Workspace
from curation_resources.errors import UserError
from curation_resources.storage.digests import digest


class ValidationSetError(UserError):
    """A validation set cannot be read."""


def wanted_validation(workspace: Workspace, validation: ValidationSet) -> str:
    """Return the fingerprint of a set for its current file and configuration.

    Raises:
        ValidationSetError: the file does not exist.
    """
    path = validation_path(workspace, validation)
    corpus = workspace.settings.corpus
    reading = [validation.format, validation.columns.model_dump(mode="json"), corpus.reasoning, corpus.max_row_bytes]
    purged = PurgedList.read(workspace.warehouse).ids_of(workspace.validation_shard(validation.name))
    parts = [reading, purged] if purged else [reading]
    return digest("validation", CORPUS_VERSION, workspace.cache.file_digest(path), *parts)


def validation_path(workspace: Workspace, validation: ValidationSet) -> Path:
    """Return the file of a set.

    Raises:
        ValidationSetError: it does not exist.
    """
    path = workspace.validation_file(validation)
    if not path.is_file():
        raise ValidationSetError(
            f"validation set {validation.name}: file {path} not found. Correct its path in {workspace.config_file}."
        )
    return path
