"""`sample_quality` of a shard: the filters' measurements, made once from the text alone."""

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
from curation_resources.scoring.samples import turn_text
from curation_resources.storage.digests import digest, now


class QualityError(UserError):
    """The pool's filters cannot be applied."""


def benchmark_files(workspace: Workspace) -> dict[str, Path]:
    """Return the held-out benchmark files by the name shown in reports: the file name without extensions.

    Raises:
        QualityError: a pattern matches no file, or two files have the same name.
    """
    contamination = workspace.settings.corpus.filters.contamination
    found: dict[str, Path] = {}
    for pattern in [] if contamination is None else contamination.files:
        # Path.glob does not accept absolute patterns. root_dir is not a pattern, so the folder's name may contain
        # brackets.
        wanted = str(Path(pattern).expanduser())
        found_here = glob(wanted, root_dir=workspace.folder, recursive=True)  # noqa: PTH207
        paths = sorted(str(workspace.folder / path) for path in found_here)
        if not paths:
            raise QualityError(
                f"{workspace.config_file}: corpus.filters.contamination: {pattern!r} matches no file in "
                f"{workspace.folder}. Correct the pattern, or remove it."
            )
        for path in map(Path, paths):
            name = path.name.split(".")[0]
            if found.setdefault(name, path) != path:
                raise QualityError(
                    f"corpus.filters.contamination: {found[name]} and {path} would both have the name {name!r}. "
                    "Rename one of them."
                )
    return found


def checks_key(workspace: Workspace) -> str:
    """Return the key of everything but the text that `sample_quality` depends on: checks, parameters and benchmarks.

    Thresholds are not included, because they are applied when the pool is built.
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
    """Return the fingerprint of one shard's `sample_quality`, from `checks_key` and the corpus fingerprint."""
    return digest(checks, corpus_fp)


def benchmark_index(workspace: Workspace) -> BenchmarkIndex | None:
    """Return the n-grams of all benchmarks; None if contamination is not checked."""
    contamination = workspace.settings.corpus.filters.contamination
    if contamination is None:
        return None
    files = benchmark_files(workspace)
    items = {name: read_benchmark(path, contamination.field) for name, path in files.items()}
    return BenchmarkIndex.of(items, contamination.ngram)


def check_shards(workspace: Workspace, shards: Sequence[str]) -> Iterator[pl.DataFrame]:
    """Measure and write the shards' `sample_quality`; see `check_shard`."""
    # Computed before reading the benchmarks: if one is replaced in the meantime, the checks become due again.
    checks = checks_key(workspace)
    index = benchmark_index(workspace)
    for shard in shards:
        yield check_shard(workspace, shard, checks, index)


def check_shard(workspace: Workspace, shard: str, checks: str, index: BenchmarkIndex | None) -> pl.DataFrame:
    """Measure and write a shard's `sample_quality`; return an empty frame for a shard that was never read.

    Args:
        workspace: the configuration.
        shard: the shard.
        checks: `checks_key`, computed before the benchmarks were read.
        index: n-grams of the benchmarks, if contamination is checked.
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
    """Return the measurements that the filters need, for rows of `raw_corpus`; null if no filter needs them.

    Language and repetition use the response only; near-duplicates and contamination also use the prompt.
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
    texts = ["\n".join(map(turn_text, json.loads(turns))) for turns in messages]
    return pl.Series("prompt", texts, dtype=pl.String)


def limits_of(setting: Repetition) -> dict[str, float]:
    """Return the effective limits on repetition: the configured ones, on top of the paper's if requested."""
    return REPETITION_LIMITS | setting.limits if setting.paper else setting.limits


def exceeded(quality: pl.DataFrame, setting: Repetition) -> pl.Series:
    """Return the limits on repetition that each row of `sample_quality` exceeds."""
    return repetitive(quality.select("repetition").unnest("repetition"), limits_of(setting))
