"""`curate init`: inspect a folder and write a commented curation.yaml for it."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from string import Template

from curation_assets.config.config_file import json_schema, parse_settings
from curation_assets.config.corpus_settings import Corpus
from curation_assets.corpus.first_rows import read_first_rows
from curation_resources.errors import UserError
from curation_resources.storage.digests import DigestCache
from curation_resources.storage.landing import FolderLanding

INSPECTED_BYTES = 1 << 20
DEFAULT_MIN_POOL = 100
TEMPLATE = Path(__file__).parent / "templates" / "curation.yaml"


class InitError(UserError):
    """The configuration cannot be written."""


@dataclass(frozen=True)
class FolderSummary:
    """Findings from the first rows of a landing folder."""

    files: int
    bytes: int
    formats: dict[str, int]
    rows: int
    rejected: int
    reasons: dict[str, int]
    marked: int = 0
    right: int = 0

    @property
    def min_pool(self) -> int:
        """Pool size that the warm-up waits for: the default, or the current number of rows if that is smaller."""
        usable = self.rows - self.rejected
        return min(DEFAULT_MIN_POOL, usable) if usable > 0 else DEFAULT_MIN_POOL


def inspect_folder(folder: Path) -> FolderSummary:
    """Read the first mebibyte of every file in a folder.

    Raises:
        LandingError: the folder does not exist.
    """
    landing, corpus = FolderLanding(folder, DigestCache()), Corpus(landing=str(folder))
    files = landing.files()
    formats: dict[str, int] = {}
    reasons: dict[str, int] = {}
    rows = marked = right = 0
    for file in files:
        shard, _ = read_first_rows(landing, file, corpus, INSPECTED_BYTES, landing.folder(file.shard))
        formats[shard.format] = formats.get(shard.format, 0) + 1
        rows += shard.rows_in
        marked += shard.accepted["correct"].count()
        right += int(shard.accepted["correct"].sum() or 0)
        for reason in shard.rejected["reason"].to_list():
            reasons[reason] = reasons.get(reason, 0) + 1
    size = sum(file.size for file in files)
    return FolderSummary(
        len(files), size, formats, rows, sum(reasons.values()), dict(sorted(reasons.items())), marked, right
    )


def write_config(folder: Path, model: str, out: Path, force: bool = False) -> FolderSummary:
    """Write curation.yaml, and beside it the JSON Schema that editors validate it with.

    Raises:
        InitError: the file exists and `force` is off, a name is not UTF-8, or the folder is in a bucket.
    """
    if folder.parts[:1] in {("s3:",), ("gs:",), ("az:",)}:
        raise InitError(
            "`curate init` can only inspect a local folder. Name a folder with a few of the files, then set "
            f"corpus.landing in {out} to the bucket's address (s3://BUCKET/PREFIX)."
        )
    if out.exists() and not force:
        raise InitError(f"{out} exists. Name another file with --to, or overwrite it with --force.")
    found = inspect_folder(folder)
    out.parent.mkdir(parents=True, exist_ok=True)
    if Path(model).expanduser().is_dir():
        # The path is relative to the current folder, but the configuration file may be elsewhere.
        model = _relative(Path(model).expanduser(), out.parent)
    elif model.startswith((".", "/", "~")):
        raise InitError(f"folder {model} not found. Correct --model (a folder, or a hub id such as Qwen/Qwen3-4B).")
    try:
        data = render_config(found, _relative(folder, out.parent), model).encode()
    except UnicodeEncodeError as error:
        raise InitError(f"the name of {str(folder)!r} or {model!r} is not UTF-8. Rename the folder.") from error
    parse_settings(data, out)
    out.write_bytes(data)
    write_schema(out.parent)
    return found


def write_schema(folder: Path) -> None:
    """Write the schema that the first lines of the configuration refer editors to."""
    (folder / "curation.schema.json").write_text(json.dumps(json_schema(), indent=1) + "\n")


def render_config(summary: FolderSummary, landing: str, model: str, target: str = "base") -> str:
    """Return the text of the configuration file."""
    found = [
        f"  # Found: {summary.files} files, {summary.bytes / 2**20:.1f} MiB; formats {summary.formats or 'unknown'}."
    ]
    if summary.rejected:
        found.append(f"  # {summary.rejected} of {summary.rows} inspected rows would be rejected: {summary.reasons}")
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        found="\n".join(found),
        landing=_quoted(landing),
        model=_quoted(model),
        target=target,
        min_pool=summary.min_pool,
        right=_right_only(summary),
    )


def _right_only(summary: FolderSummary) -> str:
    """Return the comment that proposes to select only from responses that are marked right."""
    if summary.right == summary.marked:
        return ""
    return (
        f"  # {summary.right} of {summary.marked} inspected responses with a mark are marked right. Select only from "
        "those:\n"
        "  # - {name: grace_20, score: grace, budget: {fraction: 0.2}, filters: {correct: true}}\n"
    )


def _quoted(text: str) -> str:
    """Return a double-quoted YAML string: JSON's escapes are valid YAML, except for characters that YAML cannot
    print."""
    quoted = json.dumps(text, ensure_ascii=False)
    return "".join(c if c.isprintable() or "\ud800" <= c <= "\udfff" else f"\\U{ord(c):08x}" for c in quoted)


def _relative(folder: Path, base: Path) -> str:
    """Return the folder relative to the configuration file if it is beside or below it, else absolute."""
    path = Path(os.path.relpath(folder.absolute(), base.absolute()))
    return str(folder.absolute()) if ".." in path.parts else f"./{path}"
