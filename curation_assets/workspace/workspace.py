"""The workspace that every stage uses: settings, landing area, warehouse and model folders."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from curation_assets.config.config_file import DEFAULT_CONFIG, ConfigError, config_path, parse_settings
from curation_assets.config.corpus_settings import ValidationSet
from curation_assets.config.settings import Settings, Target
from curation_assets.tables import images_dir
from curation_assets.workspace.limits import Allowance
from curation_resources.models.model_files import check_kind, check_model_folder, resolve_model
from curation_resources.storage.digests import DigestCache, bytes_digest
from curation_resources.storage.files import FolderStorage, Storage
from curation_resources.storage.landing import FolderLanding, Landing, LandingError
from curation_resources.storage.object_landing import ObjectLanding
from curation_resources.storage.object_store import ADDRESSES, ObjectStorage, ObjectStoreOptions, is_object_address
from curation_resources.storage.warehouse import Warehouse, WarehouseError

HOME_VARIABLE = "DAGSTER_HOME"
VALIDATION = "validation/"


@dataclass(frozen=True)
class Workspace:
    """A configuration with the locations that it names. Relative paths are relative to the configuration file.

    Attributes:
        config_file: the configuration file.
        settings: its content.
        config_digest: hash of the file's bytes, shown with every run.
        images_from: landing area for relative image paths, if it differs from that of the files.
        only_shards: treat only these shards as present; None: all shards.
        allowance: what measuring may spend; None for runs that Dagster launched, which share the day's.
        storage_options: replace the section `s3`; see `defs.object_storage`.
    """

    config_file: Path
    settings: Settings
    config_digest: str
    images_from: Landing | None = None
    only_shards: frozenset[str] | None = None
    allowance: Allowance | None = field(default=None, compare=False)
    storage_options: ObjectStoreOptions | None = field(default=None, compare=False)

    @classmethod
    def load(cls, config: Path | None = None, storage_options: ObjectStoreOptions | None = None) -> Workspace:
        """Load the given configuration file, else the one in CURATION_CONFIG, else ./curation.yaml.

        Raises:
            ConfigError: the file is missing or not valid.
            WarehouseError: the warehouse cannot be used.
        """
        path = config_path(config)
        data = path.read_bytes()
        workspace = cls(path, parse_settings(data, path), bytes_digest(data), storage_options=storage_options)
        workspace.warehouse.prepare()
        return workspace

    @property
    def folder(self) -> Path:
        """Return the folder of the configuration file."""
        return self.config_file.parent

    @cached_property
    def cache(self) -> DigestCache:
        """Hashes of landing files and weights, cached between processes."""
        return DigestCache(cache_folder() / "digests.json")

    @cached_property
    def landing(self) -> Landing:
        """The landing area, where shards arrive.

        Raises:
            LandingError: the warehouse's tables would be read as shards.
            StorageError: its address is not valid.
        """
        place = self.settings.corpus.landing
        if not is_object_address(place):
            folder = self._local(place, "corpus.landing")
            self._refuse_warehouse_inside(folder)
            return FolderLanding(folder, self.cache)
        if f"{self.settings.warehouse}/".startswith(f"{place.rstrip('/')}/"):
            raise LandingError(
                f"the warehouse {self.settings.warehouse} is inside the landing area {place}, so its tables would be "
                "read as shards. Use another prefix in curation.yaml."
            )
        return ObjectLanding(self._bucket(place), cache_folder() / "landing", self.settings.corpus.images.max_bytes)

    def _refuse_warehouse_inside(self, folder: Path) -> None:
        if is_object_address(self.settings.warehouse):
            return
        warehouse = self._local(self.settings.warehouse, "warehouse")
        if warehouse.is_relative_to(folder):
            raise LandingError(
                f"the warehouse {warehouse} is inside the landing folder {folder}, so its tables would be read as "
                f"shards. Use a folder outside it in curation.yaml: warehouse: ../{folder.name}-warehouse"
            )

    @cached_property
    def warehouse(self) -> Warehouse:
        """The warehouse, which holds all tables."""
        place = self.settings.warehouse
        if not is_object_address(place):
            return Warehouse(self._local(place, "warehouse"), self.cache)
        return Warehouse(self._bucket(place))

    def storage_at(self, place: str) -> Storage:
        """Return the storage at an address such as s3://bucket/prefix, or in a local folder."""
        if not is_object_address(place):
            return FolderStorage(Path(place).expanduser().resolve())
        return self._bucket(place)

    def validation_file(self, validation: ValidationSet) -> Path:
        """Return the file of a validation set."""
        return self._local(validation.path, "validation")

    @staticmethod
    def validation_shard(name: str) -> str:
        """Return the name that replaces the shard in a validation set's rows; its slash rules out a clash with
        partition keys."""
        return f"{VALIDATION}{name}"

    def keep_image(self, name: str, data: bytes) -> None:
        """Store the bytes of an image embedded in a row, under their digest."""
        self.warehouse.write_once(f"{images_dir()}/{name}", data)

    def image_root(self, shard: str) -> Path:
        """Return the folder that a shard's relative image paths start from: that of its file, or its local
        equivalent."""
        if shard.startswith(VALIDATION):
            return self.validation_file(self.settings.validation_set(shard.removeprefix(VALIDATION))).parent
        return (self.images_from or self.landing).folder(shard)

    def fetch_image(self, path: Path, wanted: str | None = None) -> str | None:
        """Make an image below an `image_root` available; see `Landing.fetch`."""
        return (self.images_from or self.landing).fetch(path, wanted)

    def model_folder(self, target: Target, download: bool = False) -> Path:
        """Return the folder of a target's base model after checking it; fetch it from the hub first if `download` is
        set.

        Raises:
            ModelError: it is missing, or cannot be used.
        """
        folder = resolve_model(target.model, target.revision, self.folder, download)
        check_model_folder(folder)
        check_kind(folder, target.kind)
        return folder

    def work_folder(self, name: str) -> Path:
        """Return a local folder for the state from which a killed run resumes; it may be deleted at any time."""
        return cache_folder() / "training" / name

    def _bucket(self, place: str) -> ObjectStorage:
        options = self.storage_options or ObjectStoreOptions(**self.settings.s3.model_dump())
        return ObjectStorage(place, options, cache_folder() / "s3")

    def _local(self, place: str, key: str) -> Path:
        if "://" in place:
            kinds = "only files can" if key == "validation" else f"only a folder, {ADDRESSES} can"
            raise WarehouseError(f"{self.config_file}: {key}: {place}: {kinds} be used here in this version")
        return (self.folder / Path(place).expanduser()).resolve()


def config_flag(workspace: Workspace) -> str:
    """Return the `--config PATH` flag to print in suggested commands; empty if the default finds the configuration."""
    try:
        found = config_path(None).resolve() == workspace.config_file.resolve()
    except ConfigError:
        found = False
    return "" if found else f" --config {workspace.config_file}"


def cache_folder() -> Path:
    """Return this machine's cache folder; its content can be recreated."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "curation"


def dagster_home(workspace: Workspace) -> Path:
    """Return DAGSTER_HOME, else the folder `.dagster` beside the configuration file, or `.dagster-NAME` beside a
    NAME.yaml.

    Each configuration has its own partitions; sharing them would remove one's landing files from the other.
    """
    named = os.environ.get(HOME_VARIABLE)
    if named:
        return Path(named).expanduser().absolute()
    own = workspace.config_file
    return workspace.folder / (".dagster" if own.name == DEFAULT_CONFIG else f".dagster-{own.stem}")
