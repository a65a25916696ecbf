"""`sample_quality` of one shard: what the configured filters look at, measured once from the text alone."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from glob import glob
from pathlib import Path

import polars as pl

from curation_assets import tables
from curation_assets.config.corpus_settings import CorpusFilters, Repetition
from curation_assets.quality.contamination import BenchmarkIndex, read_benchmark
from curation_assets.quality.language import languages
from curation_assets.quality.near_duplicates import signature_algorithm, signatures
from curation_assets.quality.repetition import REPETITION_LIMITS, repetition, repetitive
from curation_assets.workspace.fingerprints import input_fingerprint
from curation_assets.workspace.versions import QUALITY_VERSION
from curation_assets.workspace.workspace import Workspace
from curation_resources.errors import UserError
from curation_resources.storage.digests import digest, now


class QualityError(UserError):
    """The pool's filters cannot be applied."""


def benchmark_files(workspace: Workspace) -> dict[str, Path]:
    """The held-out benchmark files, by the name that reports show: the file's name without endings.

    Raises:
        QualityError: a pattern matches no file, or two files have one name.
    """
    contamination = workspace.settings.corpus.filters.contamination
    found: dict[str, Path] = {}
    for pattern in [] if contamination is None else contamination.files:
        # Path.glob takes no absolute patterns. The folder is none: its name may hold brackets.
        wanted = str(Path(pattern).expanduser())
        found_here = glob(wanted, root_dir=workspace.folder, recursive=True)  # noqa: PTH207
        paths = sorted(str(workspace.folder / path) for path in found_here)
        if not paths:
            raise QualityError(
                f"{workspace.config_file}: corpus.filters.contamination: {pattern!r} matches no file in "
                f"{workspace.folder}: correct the pattern, or take it out"
            )
        for path in map(Path, paths):
            name = path.name.split(".")[0]
            if found.setdefault(name, path) != path:
                raise QualityError(
                    f"corpus.filters.contamination: {found[name]} and {path} would both be called {name!r}: "
                    "rename one of them"
                )
    return found


def checks_key(workspace: Workspace) -> str:
    """Of all that `sample_quality` depends on beside a shard's text: which checks, how, against which benchmarks.

    Thresholds are not among it: they are applied when the pool is made.
    """
    filters = workspace.settings.corpus.filters
    parts: list[object] = [QUALITY_VERSION, filters.languages is not None, filters.repetition is not None]
    parts.append(signature_algorithm() if filters.near_duplicates is not None else None)
    if filters.contamination is not None:
        files = benchmark_files(workspace)
        digests = {name: workspace.cache.file_digest(path) for name, path in files.items()}
        parts += [filters.contamination.ngram, filters.contamination.field, digests]
    return digest("sample_quality", *parts)


def quality_fingerprint(checks: str, corpus_fp: str) -> str:
    """Of one shard's `sample_quality`: of `checks_key` and of its text."""
    return digest(checks, corpus_fp)


def benchmark_index(workspace: Workspace) -> BenchmarkIndex | None:
    """The n-grams of all benchmarks; None if contamination is not looked for."""
    contamination = workspace.settings.corpus.filters.contamination
    if contamination is None:
        return None
    files = benchmark_files(workspace)
    items = {name: read_benchmark(path, contamination.field) for name, path in files.items()}
    return BenchmarkIndex.of(items, contamination.ngram)


def check_shards(workspace: Workspace, shards: Sequence[str]) -> Iterator[pl.DataFrame]:
    """Measure and write the shards' `sample_quality`; see `check_shard`."""
    # Before the benchmarks are read: if one is replaced meanwhile, the checks are due again.
    checks = checks_key(workspace)
    index = benchmark_index(workspace)
    for shard in shards:
        yield check_shard(workspace, shard, checks, index)


def check_shard(workspace: Workspace, shard: str, checks: str, index: BenchmarkIndex | None) -> pl.DataFrame:
    """Measure and write a shard's `sample_quality`; empty for a shard that was never read.

    Args:
        workspace: the configuration.
        shard: the shard.
        checks: `checks_key`, from before the benchmarks were read.
        index: their n-grams, if contamination is looked for.
    """
    source = f"{tables.raw_corpus_dir()}/{shard}.parquet"
    facts = workspace.warehouse.table_metadata(source)
    if not facts:
        return tables.SAMPLE_QUALITY.empty()
    rows = workspace.warehouse.read_table(source).unique("sample_id", keep="first", maintain_order=True)
    checked = tables.SAMPLE_QUALITY.conform(check(rows, workspace.settings.corpus.filters, index))
    metadata = {"fingerprint": quality_fingerprint(checks, input_fingerprint(facts)), "made": now()}
    workspace.warehouse.write_table(f"{tables.sample_quality_dir()}/{shard}.parquet", checked, metadata)
    return checked


def check(rows: pl.DataFrame, filters: CorpusFilters, index: BenchmarkIndex | None) -> pl.DataFrame:
    """What the filters look at, of rows of `raw_corpus`; null where nothing looks.

    Language and repetition are those of the response; near-duplicates and contamination look at the prompt too.
    """
    whole = _prompts(rows["messages"]) + "\n" + rows["response"]
    columns: dict[str, pl.Series] = {"sample_id": rows["sample_id"]}
    if filters.languages is not None:
        columns |= languages(rows["response"]).to_dict()
    if filters.repetition is not None:
        shares = repetition(rows["response"])
        columns["repetition"] = shares.to_struct("repetition")
    if index is not None:
        matches = index.matches(whole)
        columns |= {"benchmarks": matches["benchmark"], "benchmark_share": matches["shared"]}
    if filters.near_duplicates is not None:
        columns["signature"] = signatures(whole)
    frame = pl.DataFrame(columns)
    missing = [name for name in tables.SAMPLE_QUALITY.columns if name not in frame.columns]
    return frame.with_columns(pl.lit(None).alias(name) for name in missing)


def _prompts(messages: pl.Series) -> pl.Series:
    texts = ["\n".join(turn["content"] for turn in json.loads(turns)) for turns in messages]
    return pl.Series("prompt", texts, dtype=pl.String)


def limits_of(setting: Repetition) -> dict[str, float]:
    """The limits on repetition in force: the paper's, but for those that are given."""
    return REPETITION_LIMITS | setting.limits if setting.paper else setting.limits


def exceeded(quality: pl.DataFrame, setting: Repetition) -> pl.Series:
    """Which limits on repetition each row of `sample_quality` exceeds."""
    return repetitive(quality.select("repetition").unnest("repetition"), limits_of(setting))
