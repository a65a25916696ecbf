"""`curate init`: inspect a folder and write a commented curation.yaml for it."""

from __future__ import annotations

import contextlib
import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from string import Template

from curation_assets.config.config_file import json_schema, parse_settings
from curation_assets.config.corpus_settings import Columns, Corpus
from curation_assets.corpus.containers import read_rows
from curation_assets.corpus.fields import Row
from curation_assets.corpus.first_rows import read_first_rows
from curation_assets.corpus.formats import MOST_FIELDS, detect
from curation_assets.corpus.proposed_columns import propose_columns, written
from curation_assets.operations.intake import MOST_FILES
from curation_assets.steps.answers import find_answer
from curation_resources.errors import UserError
from curation_resources.sections import unknown
from curation_resources.storage.digests import DigestCache
from curation_resources.storage.landing import FolderLanding, printable

INSPECTED_BYTES = 1 << 20
PROPOSED_FROM = 50
"""Rows that a proposal of columns looks at."""

ANSWERS_FROM, EXAMPLE_CHARS, MOST_EXAMPLES = 200, 80, 3
"""Responses of a file in which an answer is looked for, and the ends of some without one that are shown."""
DEFAULT_MIN_POOL = 100
TEMPLATES = Path(__file__).parent / "templates"
RECIPES = {path.stem: path for path in sorted((TEMPLATES / "recipes").glob("*.yaml"))}
"""The configurations of published recipes, by name; docs/recipes has a page on each."""


class InitError(UserError):
    """The configuration cannot be written."""


@dataclass(frozen=True)
class FolderSummary:
    """Findings from the first rows of a landing folder.

    Attributes:
        files: number of files.
        bytes: their size.
        formats: number of files of each format.
        rows: rows that were inspected.
        rejected: rows and responses that would be rejected.
        reasons: their number, by reason.
        marked: responses that are marked right or wrong.
        right: those marked right.
        accepted: responses that can be used.
        problems: files that cannot be read, with the reason.
        fields: names of the fields of a row that cannot be used.
        columns: a mapping by which rows can be used that no format matches; None if some rows need none.
        proposal: such a mapping for the rows that no format matches, which need a configuration of their own.
        without_answer: responses without an answer that is recognized.
        examples: ends of some of these.
    """

    files: int
    bytes: int
    formats: dict[str, int]
    rows: int
    rejected: int
    reasons: dict[str, int]
    marked: int = 0
    right: int = 0
    accepted: int = 0
    problems: dict[str, str] = field(default_factory=dict)
    fields: tuple[str, ...] = ()
    columns: Columns | None = None
    proposal: Columns | None = None
    without_answer: int = 0
    examples: tuple[str, ...] = ()

    @property
    def min_pool(self) -> int:
        """Pool size that the warm-up waits for: the default, or the current number of rows if that is smaller."""
        usable = self.rows - self.rejected
        return min(DEFAULT_MIN_POOL, usable) if usable > 0 else DEFAULT_MIN_POOL

    def remarks(self) -> list[str]:
        """Return what people should know about the files, a line each."""
        lines = [f"{printable(name)}: {problem}" for name, problem in list(self.problems.items())[:MOST_FILES]]
        if len(self.problems) > MOST_FILES:
            lines.append(f"{len(self.problems) - MOST_FILES} more files have problems")
        if self.rejected:
            lines.append(f"{self.rejected} of {self.rows} inspected rows would be rejected: {self.reasons}")
        if self.columns is not None:
            lines.append(f"no format matches the rows; proposed columns: {written(self.columns)}. Check them.")
        elif self.fields and self.accepted:
            names = f"rows that no format matches have the fields {printable(', '.join(self.fields))}"
            hint = f"; for a configuration of their own: columns: {written(self.proposal)}" if self.proposal else ""
            lines.append(names + hint)
        if self.without_answer:
            ends = "; ".join(repr(end) for end in self.examples)
            lines.append(
                f"{self.without_answer} inspected responses state no answer that is recognized, and GRACE gives them "
                f"no score. They end in: {ends}"
            )
        return lines

    def unreadable(self) -> str:
        """Return why no row can be used, and what to do."""
        if not self.files:
            return "it has no file of .jsonl, .jsonl.gz or .parquet. Put some there."
        if not self.fields:
            return "the lines above say why. Correct the files."
        fields = printable(", ".join(self.fields))
        return f"their fields are {fields}. Map the prompt and the response under corpus.columns."


def inspect_folder(folder: Path) -> FolderSummary:
    """Read the first mebibyte of every file in a folder.

    If no row can be used as it is, columns are proposed, and the summary is that of reading with them.

    Raises:
        LandingError: the folder does not exist.
    """
    landing = FolderLanding(folder, DigestCache())
    found = _inspected(landing, Corpus(landing=str(folder)))
    if not found.rows or (found.accepted and "unknown_format" not in found.reasons):
        return found
    unused = list(islice(_unused_rows(landing, unknown=found.accepted > 0), PROPOSED_FROM))
    fields = tuple(sorted(unused[0])[:MOST_FIELDS]) if unused else ()
    columns = propose_columns(unused)
    found = replace(found, proposal=columns)
    if columns is not None and not found.accepted:
        mapped = _inspected(landing, Corpus(landing=str(folder), columns=columns))
        if mapped.accepted:
            return replace(mapped, columns=columns, fields=fields, formats=found.formats)
    return replace(found, fields=fields)


def _inspected(landing: FolderLanding, corpus: Corpus) -> FolderSummary:
    files = landing.files()
    formats, reasons, problems = Counter[str](), Counter[str](), dict[str, str]()
    rows = marked = right = accepted = without_answer = 0
    examples: list[str] = []
    for file in files:
        try:
            shard, _ = read_first_rows(landing, file, corpus, INSPECTED_BYTES, landing.folder(file.shard))
        except OSError as error:
            problems[file.name] = f"it cannot be opened: {error.strerror}"
            continue
        formats[shard.format] += 1
        rows += shard.rows_in
        accepted += len(shard.accepted)
        marked += shard.accepted["correct"].count()
        right += int(shard.accepted["correct"].sum() or 0)
        reasons.update(shard.rejected["reason"].to_list())
        if shard.file_problem is not None:
            problems[file.name] = shard.file_problem
        for response, answer in shard.accepted.select("response", "answer").head(ANSWERS_FROM).iter_rows():
            if find_answer(response, answer) is None:
                without_answer += 1
                examples.append(response.strip()[-EXAMPLE_CHARS:])
    size = sum(file.size for file in files)
    return FolderSummary(
        len(files),
        size,
        dict(formats),
        rows,
        reasons.total(),
        dict(sorted(reasons.items())),
        marked,
        right,
        accepted,
        problems,
        without_answer=without_answer,
        examples=tuple(examples[:MOST_EXAMPLES]),
    )


def _unused_rows(landing: FolderLanding, *, unknown: bool) -> Iterator[Row]:
    """Yield the first rows of every file; with `unknown`, those that no format matches."""
    for file in landing.files():
        with contextlib.suppress(OSError):
            rows = read_rows(landing.path(file.shard), file.name, Corpus(landing="").max_row_bytes)
            values = (row.value for row in rows if row.value is not None)
            yield from islice((row for row in values if not unknown or detect([row]) is None), PROPOSED_FROM)


def write_config(folder: Path, model: str, out: Path, force: bool = False, recipe: str | None = None) -> FolderSummary:
    """Write curation.yaml, and beside it the JSON Schema that editors validate it with.

    Args:
        folder: the landing folder.
        model: the model to measure with.
        out: the file to write.
        force: whether to overwrite it.
        recipe: name of a published recipe; None: a commented configuration to start from.

    Raises:
        InitError: there is no such recipe, the file exists and `force` is off, a name is not UTF-8, or the folder is in
            a bucket.
    """
    if folder.parts[:1] in {("s3:",), ("gs:",), ("az:",)}:
        raise InitError(
            "`curate init` can only inspect a local folder. Name a folder with a few of the files, then set "
            f"corpus.landing in {out} to the bucket's address (s3://BUCKET/PREFIX)."
        )
    if recipe is not None and recipe not in RECIPES:
        raise InitError(unknown("recipe", recipe, RECIPES))
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
        landing, warehouse = _relative(folder, out.parent), _warehouse(folder, out.parent)
        if recipe is None:
            text = render_config(found, landing, model, warehouse=warehouse)
        else:
            text = render_recipe(recipe, landing, model, warehouse, found)
        data = text.encode()
    except UnicodeEncodeError as error:
        raise InitError(f"the name of {str(folder)!r} or {model!r} is not UTF-8. Rename the folder.") from error
    parse_settings(data, out)
    out.write_bytes(data)
    write_schema(out.parent)
    return found


def write_schema(folder: Path) -> None:
    """Write the schema that the first lines of the configuration refer editors to."""
    (folder / "curation.schema.json").write_text(json.dumps(json_schema(), indent=1) + "\n")


def _warehouse(folder: Path, base: Path) -> str:
    """Return where to keep the warehouse: beside the configuration file, unless that is inside the landing folder."""
    landing = folder.resolve()
    if not (base.resolve() / "warehouse").is_relative_to(landing):
        return "./warehouse"
    return os.path.relpath(landing.parent / f"{landing.name}-warehouse", base.resolve())


def render_config(
    summary: FolderSummary, landing: str, model: str, target: str = "base", warehouse: str = "./warehouse"
) -> str:
    """Return the text of the configuration file."""
    found = [
        f"  # Found: {summary.files} files, {summary.bytes / 2**20:.1f} MiB; formats {summary.formats or 'unknown'}."
    ]
    if summary.rejected:
        found.append(f"  # {summary.rejected} of {summary.rows} inspected rows would be rejected: {summary.reasons}")
    return Template((TEMPLATES / "curation.yaml").read_text(encoding="utf-8")).substitute(
        found="\n".join(found),
        landing=_quoted(landing),
        model=_quoted(model),
        target=target,
        min_pool=summary.min_pool,
        right=_right_only(summary),
        columns=_columns(summary),
        warehouse=_quoted(warehouse) if warehouse != "./warehouse" else warehouse,
    )


def render_recipe(
    recipe: str, landing: str, model: str, warehouse: str = "./warehouse", summary: FolderSummary | None = None
) -> str:
    """Return the configuration of a published recipe; a summary adds what was found in the landing folder."""
    return Template(RECIPES[recipe].read_text(encoding="utf-8")).substitute(
        landing=_quoted(landing),
        model=_quoted(model),
        warehouse=_quoted(warehouse),
        columns="" if summary is None else _columns(summary),
        min_pool=DEFAULT_MIN_POOL if summary is None else summary.min_pool,
    )


def left_to_do(config: Path) -> list[str]:
    """Return what a configuration names that its user has to provide: endpoints, and files that do not exist."""
    settings = parse_settings(config.read_bytes(), config)
    found = [
        f"target {target.name}: set model and endpoint to those of your server ({target.endpoint.url})"
        for target in settings.targets
        if target.endpoint is not None
    ]
    found += [
        f"validation set {validation.name}: write its examples to {validation.path}"
        for validation in settings.validation
        if validation.path is not None and not (config.parent / validation.path).exists()
    ]
    return found


def _columns(summary: FolderSummary) -> str:
    """Return the proposed columns, as a line of the section `corpus`."""
    if summary.columns is None:
        return ""
    return (
        f"  # Proposed, because no format matches these fields: {printable(', '.join(summary.fields))}. Check them.\n"
        f"  columns: {written(summary.columns)}\n"
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
