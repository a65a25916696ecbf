"""Generate responses to the pool's prompts with a target's checkpoint, and write them to the landing area as traces.

The responses become rows of the corpus with their own `generator`: they are measured, filtered, selected and
released like any other rows (GRAPE's self-distillation ablation skips the selection).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import orjson
import polars as pl

from curation_assets import tables
from curation_assets.config.settings import Target
from curation_assets.corpus.ingest import corpus_rows, present_shards
from curation_assets.methods.random_draws import uniform
from curation_assets.signals.warmup import alone, trainable_rows, warmup_checkpoint
from curation_assets.workspace.fingerprints import checkpoint_digest
from curation_assets.workspace.workspace import Workspace
from curation_resources.errors import UserError
from curation_resources.models.generation import Generated, GenerationSpec, Generator, open_generator
from curation_resources.progress import track
from curation_resources.scoring.spec import Sampling
from curation_resources.storage.digests import atomic_write, digest

PIECE = 64
"""Prompts per part: a killed call resumes after its last finished part."""


class DistillationError(UserError):
    """The requested generation is not possible."""


@dataclass(frozen=True)
class GenerationRequest:
    """Parameters of a generation.

    Attributes:
        responses: responses per prompt.
        sampling: how tokens are sampled.
        max_new_tokens: maximum number of tokens; truncated responses are discarded.
        prompts: maximum number of prompts, drawn by seed; None: all.
    """

    responses: int = 4
    sampling: Sampling = field(default_factory=Sampling)
    max_new_tokens: int = 512
    prompts: int | None = None


@dataclass(frozen=True)
class Distilled:
    """The result of a call.

    Attributes:
        generator: generator name of the new rows.
        place: the file that was written; empty if there was nothing to write.
        asked: prompts answered in this call.
        before: prompts answered in earlier calls.
        files: files written by earlier calls.
        written: responses in the new file.
        left_out: discarded responses, by reason.
    """

    generator: str
    place: str
    asked: int
    before: int
    files: list[str]
    written: int
    left_out: dict[str, int]


def generator_of(workspace: Workspace, target: Target, request: GenerationRequest) -> str:
    """Return the generator name of a checkpoint's responses, from the target and everything that they depend on.

    Raises:
        DistillationError: the checkpoint is not trained yet.
    """
    weights = checkpoint_digest(workspace, target)
    if weights is None:
        raise DistillationError(
            f"the checkpoint of target {target.name} is not trained yet. Use `curate run` before `curate distill`."
        )
    asking = [asdict(request.sampling), request.max_new_tokens, target.template, target.max_length]
    return f"{target.name}-{digest('distilled', weights, target.dtype, asking)[:12]}"


def record_path(generator: str) -> str:
    """Return the path of the document that describes a generator and lists the prompts it answered."""
    return f"distilled/{generator}.json"


def distill(
    workspace: Workspace, target: Target, request: GenerationRequest, to: str | None = None, anew: bool = False
) -> Distilled:
    """Generate the missing responses, and write them as one file of rows in format `messages`.

    Args:
        workspace: the configuration.
        target: target whose checkpoint generates.
        request: parameters of the generation.
        to: folder or s3://bucket/prefix of the file; default: the landing area.
        anew: whether to generate again for prompts that were answered before.

    Raises:
        DistillationError: see `generator_of`; or the corpus settings would reject such a file.
    """
    if to is None:
        _refuse_unreadable(workspace)
    generator = generator_of(workspace, target, request)
    work = workspace.work_folder(f"distill-{generator}")
    with alone(work):
        record: dict[str, Any] = workspace.warehouse.read_json(record_path(generator)) or {}
        before: dict[str, int] = {} if anew else record.get("asked", {})
        rows = prompts_of_pool(workspace, request, generator)
        count = pl.col("prompt_id").replace_strict(before, default=0, return_dtype=pl.Int64)
        left = rows.with_columns(first=count).filter(pl.col("first") < request.responses)
        files = list(record.get("files", []))
        if not len(left):
            return Distilled(generator, "", 0, len(rows), files, 0, {})
        found = list(_responses(workspace, target, request, generator, left, work))
        _leave_out_known(workspace, found)
        kept = [line["row"] for line in found if line["reason"] is None]
        place = to or workspace.settings.corpus.landing
        storage = workspace.storage_at(place if "://" in place else str(workspace.folder / Path(place).expanduser()))
        # Named by the prompts, so that a call killed before it updated the record writes the same file again.
        name = (
            f"distilled-{generator}-{digest('asked', left.select('prompt_id', 'first').rows(), request.responses)[:8]}"
        )
        shown = storage.shown(f"{name}.jsonl")
        if kept:
            storage.prepare()
            storage.write(f"{name}.jsonl", b"".join(orjson.dumps(row) + b"\n" for row in kept))
        record |= {"target": target.name, "model": target.model, "checkpoint": checkpoint_digest(workspace, target)}
        record |= {"max_new_tokens": request.max_new_tokens} | asdict(request.sampling)
        record["asked"] = {**before, **dict.fromkeys(left["prompt_id"], request.responses)}
        record["files"] = list(dict.fromkeys([*files, *([shown] if kept else [])]))
        workspace.warehouse.write_json(record_path(generator), record)
        shutil.rmtree(work, ignore_errors=True)
    reasons = [line["reason"] for line in found if line["reason"] is not None]
    left_out = {reason: reasons.count(reason) for reason in sorted(set(reasons))}
    return Distilled(generator, shown if kept else "", len(left), len(rows) - len(left), files, len(kept), left_out)


def prompts_of_pool(workspace: Workspace, request: GenerationRequest, generator: str) -> pl.DataFrame:
    """Return the pool's prompts without images, one row of `raw_corpus` each, sorted by prompt_id.

    The row is the first one by another generator, preferably with a correct answer.
    """
    rows = corpus_rows(workspace, trainable_rows(workspace)["sample_id"].to_list())
    rows = rows.sort(pl.col("generator").eq_missing(generator), pl.col("answer").is_null(), "sample_id")
    rows = rows.unique("prompt_id", keep="first", maintain_order=True)
    if request.prompts is not None:
        rows = rows.with_columns(draw=uniform(rows["prompt_id"], request.sampling.seed)).sort("draw", "prompt_id")
        rows = rows.head(request.prompts).drop("draw")
    return rows.sort("prompt_id")


def _refuse_unreadable(workspace: Workspace) -> None:
    """Raise an error if the corpus' column mapping would reject the written rows."""
    corpus = workspace.settings.corpus
    mapped = any(value for value in corpus.columns.model_dump().values())
    if corpus.format not in ("auto", "messages") or mapped:
        raise DistillationError(
            "responses are written as rows in format messages, which corpus.format and corpus.columns of "
            f"{workspace.config_file} cannot read. Set format: auto without columns, or write them elsewhere (--to)."
        )


def _responses(
    workspace: Workspace, target: Target, request: GenerationRequest, generator: str, rows: pl.DataFrame, work: Path
) -> Iterator[dict[str, Any]]:
    """Yield one line per response, part by part; parts finished by an earlier call are read back."""
    model: Generator | None = None
    total = int((request.responses - rows["first"]).sum())
    with track(f"{target.name}: generating", total) as advance:
        for piece in rows.iter_slices(PIECE):
            asking = [
                (row, f"{row['prompt_id']}/{number}")
                for row in piece.iter_rows(named=True)
                for number in range(row["first"], request.responses)
            ]
            names = [name for _, name in asking]
            part = work / f"{digest('piece', generator, names)}.jsonl"
            if part.is_file():
                advance(len(names))
            else:
                model = model or open_generator(_spec(workspace, target, request))
                turns = [json.loads(row["messages"]) for row, _ in asking]
                _keep(
                    part, [row for row, _ in asking], model.generate(turns, advance, request.sampling, names), generator
                )
            yield from (orjson.loads(line) for line in part.read_bytes().splitlines())


def _keep(part: Path, rows: Sequence[dict[str, Any]], said: Sequence[Generated], generator: str) -> None:
    """Write the lines of a part atomically."""
    lines = []
    for row, answer in zip(rows, said, strict=True):
        made = {"messages": [*json.loads(row["messages"]), {"role": "assistant", "content": answer.text}]}
        facts = {name: row[name] for name in ("source", "domain", "answer") if row[name] is not None}
        line = {"row": made | facts | {"generator": generator}, "reason": _objection(answer)}
        lines.append(line | {"prompt_id": row["prompt_id"]})
    atomic_write(part, b"".join(orjson.dumps(line) + b"\n" for line in lines))


def _leave_out_known(workspace: Workspace, lines: Sequence[dict[str, Any]]) -> None:
    """Mark responses that already exist with a reason, because the pool holds each text of a prompt once."""
    prompts = pl.LazyFrame({"prompt_id": sorted({line["prompt_id"] for line in lines})})
    scan = workspace.warehouse.scan(tables.raw_corpus_dir(), present_shards(workspace))
    known: set[tuple[str, str]] = set()
    if scan is not None:
        there = scan.select("prompt_id", "response").join(prompts, on="prompt_id", how="semi").collect()
        known = set(there.iter_rows())
    for line in lines:
        said = (line["prompt_id"], line["row"]["messages"][-1]["content"])
        if line["reason"] is None and said in known:
            line["reason"] = "already_there"
        known.add(said)


def _objection(answer: Generated) -> str | None:
    """Return why a response is discarded; None if it is kept."""
    if answer.flag is not None:
        return answer.flag
    if not answer.finished:
        return "not_finished"
    if "\0" in answer.text:
        return "nul_byte"
    return None if answer.text.strip() else "blank"


def _spec(workspace: Workspace, target: Target, request: GenerationRequest) -> GenerationSpec:
    """Return the specification for generating with the target's checkpoint, merged as it is measured, on one device."""
    model, adapter = workspace.model_folder(target), None
    checkpoint = None if target.warmup == "none" else warmup_checkpoint(workspace, target)
    if checkpoint is not None:
        model, adapter = checkpoint.weights(workspace, model)
    engine = workspace.settings.engine
    return GenerationSpec(
        model,
        adapter,
        template=target.template,
        max_length=target.max_length,
        max_new_tokens=request.max_new_tokens,
        device=engine.one_device,
        dtype=target.dtype,
        trust_remote_code=target.trust_remote_code,
        attention=engine.attention,
    )
