"""Find the samples that a run would measure, and count the tokens that it would pass through a model.

Samples come from `raw_corpus`, from files that have not been read, and from validation sets. Small unread files are
read completely. Of large files only the first rows are read; each of them then stands for several rows, in proportion
to the file's size. Tokens are counted by encoding all samples, or a random subset of them, with the code of real runs;
the weights are not loaded. Nothing is stored.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from curation_assets import tables
from curation_assets.config.settings import Target
from curation_assets.corpus.first_rows import read_first_rows
from curation_assets.corpus.held_out import read_validation
from curation_assets.corpus.purging import rows_without_purged
from curation_assets.corpus.samples import samples_of
from curation_assets.methods.random_draws import draw_bits
from curation_assets.methods.selectors.temp import STEPS
from curation_assets.operations.plan_formulas import GRADIENT
from curation_assets.operations.stages import current_shards
from curation_assets.signals.held_out import validation_of
from curation_assets.signals.perturbation import perturbed_request
from curation_assets.signals.requests import request_for
from curation_assets.steps.segmentation import segment_frame
from curation_assets.tables.signals import SEGMENTED_SIGNALS, SignalName
from curation_assets.workspace.fingerprints import judge_spec, steps_fingerprint
from curation_assets.workspace.held_out_files import ValidationSetError
from curation_assets.workspace.purge_list import PurgedList, copy_purged
from curation_assets.workspace.workspace import Workspace
from curation_resources.models.embedder import describe_text, text_limits
from curation_resources.models.judge import JudgeScorer, JudgeSpec
from curation_resources.models.process_reward import describe_steps, separator_of
from curation_resources.models.reward import conversation_ids, describe_conversation
from curation_resources.progress import track
from curation_resources.quiet import quieten_transformers
from curation_resources.scoring.images import ImageLimits
from curation_resources.scoring.retrieval_task import retrieval_prompts
from curation_resources.scoring.samples import UNRUNNABLE, Encoded, PerturbedRequest, Request, Sample
from curation_resources.storage.landing import LandingFile, printable

if TYPE_CHECKING:
    from curation_resources.scoring.encoding import Encoder

HEAD_BYTES = 16 * 2**20
"""Bytes of unread files to read in total."""

SMALLEST_HEAD = 2**18
"""Bytes to read of each unread file, however many there are."""

EXACT_BYTES = 8 * 2**20
"""Amount of text that is encoded completely: about twenty seconds on a slow processor."""

EXACT_IMAGES = 200
"""Maximum number of images to process: each takes as long as a hundred rows of text."""

SAMPLED_ROWS = 2000
"""Number of rows to encode if there is more text than that."""

LEAST_OF_KIND = 100
"""Minimum number of rows to encode for each set of signals, with and without images."""

CHUNK = 128
SEED = 0

KNOWN = {
    "sample_id": pl.String,
    "shard": pl.String,
    "text_bytes": pl.Int64,
    "images": pl.Int64,
    "weight": pl.Float64,
}


Counted = tuple[str, int, int, int, int, int]
"""A sample's sample_id, length, tokens run with the prompt, tokens run of the response alone, backward passes, and
requests to an endpoint."""

Counter = Callable[[Sequence[Sample], Request], Iterator[Counted]]
"""A function that counts what is run of each sample."""


@dataclass(frozen=True)
class Head:
    """The first rows of a file that has not been read, and how many rows each of them stands for."""

    rows: pl.DataFrame
    weight: float


@dataclass(frozen=True)
class Pool:
    """The distinct samples of everything that is present.

    Attributes:
        workspace: the configuration.
        scratch: the same with a temporary warehouse, which holds the images embedded in rows of unread files.
        known: one row per sample seen: sample_id, shard, bytes of prompt and response, number of images, and the number
            of samples it stands for (1, or more if its file was not parsed completely).
        heads: by shard, the first rows of unread files.
        held_out: the validation sets that scores need, by their shard name.
        shards: number of present shards.
        problems: files that cannot be read, or not completely, with the reason.
    """

    workspace: Workspace
    scratch: Workspace
    known: pl.DataFrame
    heads: Mapping[str, Head]
    held_out: Mapping[str, Head]
    shards: int
    problems: Sequence[str]

    @property
    def size(self) -> int:
        """Number of samples; an estimate if `estimated`."""
        return round(float(self.known["weight"].sum()))

    @property
    def estimated(self) -> bool:
        """True if some file is so large that its rows were extrapolated from its first rows."""
        return any(head.weight != 1.0 for head in self.heads.values())

    def samples(self, shard: str, sample_ids: Collection[str], segmented: bool) -> list[Sample]:
        """Return samples of a shard or validation set as a pass takes them, in order, with segments if requested."""
        head = self.heads.get(shard) or self.held_out.get(shard)
        stored = None if head is not None else self.workspace.warehouse.scan(tables.raw_corpus_dir(), [shard])
        rows = tables.RAW_CORPUS.empty().lazy() if stored is None else stored
        rows = rows if head is None else head.rows.lazy()
        wanted = rows.filter(pl.col("sample_id").is_in(list(sample_ids))).collect()
        wanted = wanted.unique("sample_id", keep="first", maintain_order=True)
        steps = self._steps(shard, wanted) if segmented else None
        return samples_of(self.workspace if head is None else self.scratch, wanted, steps)

    def _steps(self, shard: str, rows: pl.DataFrame) -> pl.DataFrame:
        """Return the segments of these rows: the stored ones if they are current, else new ones."""
        if shard not in self.heads and shard not in self.held_out:
            warehouse = self.workspace.warehouse
            path = f"{tables.segmented_steps_dir()}/{shard}.parquet"
            corpus = warehouse.table_metadata(f"{tables.raw_corpus_dir()}/{shard}.parquet")
            wanted = steps_fingerprint(self.workspace, corpus["fingerprint"])
            if warehouse.table_metadata(path).get("fingerprint") == wanted:
                return warehouse.read_table(path).join(rows.select("sample_id"), on="sample_id", how="semi")
        return segment_frame(rows, self.workspace.settings.corpus.segmentation)


@dataclass(frozen=True)
class TokenCount:
    """Token counts of the samples that lack some signal.

    Attributes:
        rows: one row per encoded sample: sample_id, shard, the signals that it lacks (`lacking`, joined by +), number
            of images, `length` in tokens as a run would pass it, `forward` and `alone` (tokens run with the prompt, and
            of the response alone), number of backward passes (`back`), `requests` to an endpoint, and the number of
            samples that it stands for (`weight`).
        of: number of samples seen that lack some signal.
        exact: whether every sample was seen and encoded.
        margin: twice the standard error of `tokens` from encoding only a subset; 0 if all samples were encoded.
    """

    rows: pl.DataFrame
    of: int
    exact: bool
    margin: float

    @property
    def tokens(self) -> int:
        """All tokens to run."""
        return self.forward_tokens + self.alone_tokens

    @property
    def forward_rows(self) -> int:
        """Number of samples run with their prompt."""
        return self._sum(pl.col("forward") > 0)

    @property
    def forward_tokens(self) -> int:
        """Tokens of the samples run with their prompt."""
        return self._sum(pl.col("forward"))

    @property
    def forward_passes(self) -> float:
        """Forward passes over whole samples: one per sample, or more if there are several checkpoints.

        A forward pass with its backward pass counts as three.
        """
        back = pl.col("back") * (GRADIENT - 1)
        passes = pl.when(pl.col("forward") > 0).then(pl.col("forward") / pl.col("length") + back).otherwise(0)
        return float(self.rows.select((passes * pl.col("weight")).sum()).item())

    @property
    def requests(self) -> int:
        """Number of requests to an endpoint; answers to one prompt that have to be asked for singly count as one."""
        return self._sum(pl.col("requests"))

    @property
    def alone_rows(self) -> int:
        """Number of samples whose response is run alone."""
        return self._sum(pl.col("alone") > 0)

    @property
    def alone_tokens(self) -> int:
        """Tokens of the responses run alone."""
        return self._sum(pl.col("alone"))

    @property
    def alone_length(self) -> int:
        """Tokens, prompts included, of the samples whose response is run alone."""
        return self._sum(pl.when(pl.col("alone") > 0).then("length").otherwise(0))

    def _sum(self, column: pl.Expr) -> int:
        return round(float(self.rows.select((column * pl.col("weight")).sum()).item()))


def read_pool(workspace: Workspace, scratch_folder: Path) -> Pool:
    """Find the samples that are present, reading only ids and lengths of stored rows.

    Args:
        workspace: the configuration.
        scratch_folder: an empty folder for images embedded in rows of unread files; the caller removes it.

    Raises:
        LandingError: the landing folder is missing, or has lost too many files at once.
    """
    settings = workspace.settings.model_copy(update={"warehouse": str(scratch_folder)})
    scratch = replace(workspace, settings=settings)
    copy_purged(workspace.warehouse, scratch.warehouse)
    files = workspace.landing.files()
    read = current_shards(workspace, workspace.landing.digests(files))
    heads, problems = _read_heads(scratch, [file for file in files if file.shard not in set(read)])
    held_out, unusable = _validation_sets(scratch)
    workspace.cache.save()
    stored = workspace.warehouse.scan(tables.raw_corpus_dir(), read)
    parts = [known_samples(head.rows.lazy(), head.weight) for head in heads.values()]
    parts += [] if stored is None else [known_samples(stored, 1.0)]
    known = pl.concat([pl.DataFrame(schema=KNOWN), *parts]).sort("weight", "shard", maintain_order=True)
    known = known.unique("sample_id", keep="first", maintain_order=True)
    return Pool(workspace, scratch, known, heads, held_out, len(files), [*problems, *unusable])


def _validation_sets(scratch: Workspace) -> tuple[dict[str, Head], list[str]]:
    """Read the validation sets that scores need; also return the problems of those that cannot be used."""
    heads: dict[str, Head] = {}
    problems: list[str] = []
    wanted = {name for target in scratch.settings.targets for name in validation_of(scratch, target)}
    for name in sorted(wanted):
        try:
            rows = read_validation(scratch, scratch.settings.validation_set(name))
        except ValidationSetError as error:
            problems.append(str(error))
            continue
        heads[scratch.validation_shard(name)] = Head(rows.accepted, 1.0)
    return heads, problems


def known_samples(rows: pl.LazyFrame, weight: float) -> pl.DataFrame:
    """Return the rows of `Pool.known` for rows of `raw_corpus`, each of which stands for `weight` rows."""
    size = pl.col("messages").str.len_bytes() + pl.col("response").str.len_bytes()
    return rows.select(
        "sample_id",
        "shard",
        text_bytes=size.cast(pl.Int64),
        images=pl.col("images").list.len().cast(pl.Int64),
        weight=pl.lit(weight),
    ).collect()


def count_tokens(
    workspace: Workspace, target: Target, pool: Pool, lacking: pl.DataFrame, checkpoints: int = 0
) -> TokenCount:
    """Count the tokens that a run would pass through a target's model.

    Args:
        workspace: the configuration.
        target: the target whose tokenizer, template and maximum length apply.
        pool: the source of the samples.
        lacking: the rows of `pool.known`, and of validation sets, that lack signals; column `lacking` lists these
            signals, joined by +.
        checkpoints: number of checkpoints at which trajectories are measured.

    Raises:
        EncodingError: the tokenizer lacks a feature that encoding needs.
        RetrievalError: the model's context or tokenizer does not allow the requested attention influence.
    """
    chosen = _chosen(lacking, pool.estimated)
    numbers = dict.fromkeys(("length", "forward", "alone", "back", "requests"), pl.Int64)
    schema = {"lacking": pl.String, "sample_id": pl.String, **numbers}
    counts = pl.DataFrame(list(_encode(workspace, target, pool, chosen, checkpoints)), schema=schema, orient="row")
    # A sample in both the pool and a validation set may be run for different signals.
    rows = chosen.join(counts, on=["sample_id", "lacking"], how="inner", maintain_order="left")
    margin = _margin(lacking, rows) if len(chosen) < len(lacking) else 0.0
    whole = len(chosen) == len(lacking) and not pool.estimated and target.endpoint is None
    return TokenCount(rows, len(lacking), whole, margin)


def make_encoder(workspace: Workspace, target: Target) -> Encoder:
    """Return the encoder that a run would use for a target, without loading the weights."""
    quieten_transformers()
    from transformers import AutoTokenizer

    from curation_resources.scoring.complete_weights import load_config  # noqa: PLC0415
    from curation_resources.scoring.encoding import Encoder  # noqa: PLC0415
    from curation_resources.scoring.loading import context_length, load_processor, reads_images  # noqa: PLC0415

    folder, trust = workspace.model_folder(target), target.trust_remote_code
    config = load_config(folder, trust)
    context = context_length(config)
    images = workspace.settings.corpus.images
    return Encoder(
        AutoTokenizer.from_pretrained(folder, trust_remote_code=trust),
        target.template,
        min(context, target.max_length or context),
        processor=load_processor(folder, config, trust) if reads_images(config) else None,
        vocabulary=int(config.get_text_config().vocab_size),
        limits=ImageLimits(images.max_pixels, images.max_bytes, images.fetch_remote),
    )


def signals_in(lacking: str) -> list[SignalName]:
    """Split an entry of column `lacking` into its signals."""
    return lacking.split("+")


def segmented(signals: Sequence[SignalName]) -> bool:
    """Return whether any of the signals depends on segments."""
    return not SEGMENTED_SIGNALS.isdisjoint(signals)


def _read_heads(scratch: Workspace, files: Sequence[LandingFile]) -> tuple[dict[str, Head], list[str]]:
    """Read the first rows of files, by shard; also return the problems of files as a whole."""
    heads: dict[str, Head] = {}
    problems: list[str] = []
    if not files:
        return heads, problems
    size = max(SMALLEST_HEAD, HEAD_BYTES // len(files))
    corpus, purged = scratch.settings.corpus, PurgedList.read(scratch.warehouse).ids()
    with track("reading new files", len(files)) as advance:
        for file in files:
            root = scratch.image_root(file.shard)
            try:
                rows, share = read_first_rows(scratch.landing, file, corpus, size, root, scratch.keep_image)
                heads[file.shard] = Head(rows_without_purged(rows, purged).accepted, 1 / share)
                problem = rows.file_problem
            except OSError as error:
                # A run stores an empty shard for it and reports the same problem.
                problem = f"cannot be opened: {error.strerror or error}"
            if problem is not None:
                problems.append(f"{printable(file.name)}: {problem}")
            advance(1)
    return heads, problems


def _kind() -> list[pl.Expr]:
    """Return the grouping keys: samples of a group lack the same signals and all do, or do not, have images."""
    return [pl.col("lacking"), (pl.col("images") > 0).alias("with_images")]


def _size() -> pl.Expr:
    """Return the size that tokens are assumed to be proportional to: text bytes, or 1 for samples with images."""
    return pl.when(pl.col("images") > 0).then(1).otherwise(pl.col("text_bytes")) * pl.col("weight")


def _chosen(lacking: pl.DataFrame, estimated: bool) -> pl.DataFrame:
    """Return the rows to encode, all or a seeded random subset, with the number of samples that each stands for.

    If even the number of samples is an estimate, encoding all rows would not make the count exact.
    """
    little = int(lacking["images"].sum()) <= EXACT_IMAGES and int(lacking["text_bytes"].sum()) <= EXACT_BYTES
    if lacking.is_empty() or (little and not estimated):
        return lacking
    parts = []
    for _, rows in lacking.group_by(_kind(), maintain_order=True):
        count = max(LEAST_OF_KIND, SAMPLED_ROWS * len(rows) // len(lacking))
        if int(rows["images"][0]) > 0:
            count = min(count, EXACT_IMAGES)
        drawn = rows.with_columns(draw=pl.Series(draw_bits(rows["sample_id"], SEED))).sort("draw").head(count)
        share = rows.select(_size().sum()).item() / drawn.select(_size().sum()).item()
        parts.append(drawn.drop("draw").with_columns(pl.col("weight") * share))
    return pl.concat(parts).sort("shard", maintain_order=True)


def _margin(lacking: pl.DataFrame, rows: pl.DataFrame) -> float:
    """Return twice the standard error of the total: a ratio estimate in each group of samples."""
    variance = 0.0
    sizes = {kind: len(part) for kind, part in lacking.group_by(_kind())}
    for kind, part in rows.group_by(_kind()):
        count, total = len(part), sizes[kind]
        tokens = (part["forward"] + part["alone"]).to_numpy().astype(float)
        size = (part.select(_size()).to_series() / part["weight"]).to_numpy()
        if count > 1:
            spread = (tokens - size * (tokens.sum() / size.sum())).var(ddof=1)
            variance += total**2 * (1 - count / total) * spread / count
    return float(2 * variance**0.5)


def _encode(
    workspace: Workspace, target: Target, pool: Pool, chosen: pl.DataFrame, checkpoints: int
) -> Iterator[tuple[str | int, ...]]:
    """Yield, for each row, the signals that it lacks and the tokens to run."""
    if chosen.is_empty():
        return
    if target.endpoint is not None:
        count = _question_counter(judge_spec(target))
    elif target.kind in ("reward", "process_reward"):
        count = _conversation_counter(workspace, target)
    elif target.kind == "embedding":
        count = _text_counter(workspace, target)
    else:
        count = _pass_counter(workspace, target, checkpoints)
    with track(f"{target.name}: counting tokens", len(chosen)) as advance:
        for (shard, lacking), rows in chosen.group_by("shard", "lacking", maintain_order=True):
            signals = signals_in(str(lacking))
            request = request_for(target, signals)
            samples = pool.samples(str(shard), rows["sample_id"].to_list(), segmented(signals))
            for start in range(0, len(samples), CHUNK):
                chunk = samples[start : start + CHUNK]
                yield from ((str(lacking), *counted) for counted in count(chunk, request))
                advance(len(chunk))


def _pass_counter(workspace: Workspace, target: Target, checkpoints: int) -> Counter:
    """Return a counter for a pass over a language model."""
    encoder, perturbation = make_encoder(workspace, target), perturbed_request(target, 1.0)
    if "attention_influence" in target.signals:
        # Refuses a model that a run would refuse.
        assert encoder.vocabulary is not None
        spec = replace(target.attention_influence.spec(), prompts=1)
        retrieval_prompts(encoder.tokenizer, spec, encoder.max_length, encoder.vocabulary)

    def count(samples: Sequence[Sample], request: Request) -> Iterator[Counted]:
        for encoded in encoder.encode(samples):
            found = _tokens_run(encoder, encoded, request, checkpoints, perturbation)
            yield (encoded.sample.sample_id, len(encoded), *found, 0)

    return count


def _text_counter(workspace: Workspace, target: Target) -> Counter:
    """Return a counter for an embedding model."""
    quieten_transformers()
    folder = workspace.model_folder(target)
    tokenizer, longest = text_limits(folder, target.max_length, target.trust_remote_code)

    def count(samples: Sequence[Sample], _request: Request) -> Iterator[Counted]:
        for sample in samples:
            tokens = describe_text(tokenizer, longest, sample).tokens
            yield sample.sample_id, tokens, tokens, 0, 0, 0

    return count


def _conversation_counter(workspace: Workspace, target: Target) -> Counter:
    """Return a counter for a reward model, or for a process reward model."""
    quieten_transformers()
    from transformers import AutoTokenizer

    from curation_resources.scoring.complete_weights import load_config  # noqa: PLC0415
    from curation_resources.scoring.loading import context_length  # noqa: PLC0415

    folder, trust = workspace.model_folder(target), target.trust_remote_code
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust)
    context = context_length(load_config(folder, trust))
    longest = min(context, target.max_length or context)
    process = target.process_reward.spec()
    separator = separator_of(tokenizer, process, folder) if target.kind == "process_reward" else None

    def count(samples: Sequence[Sample], _request: Request) -> Iterator[Counted]:
        for sample in samples:
            if separator is None:
                ids = conversation_ids(tokenizer, sample)
                tokens = describe_conversation(tokenizer, sample, ids, longest).tokens
            else:
                ids, described = describe_steps(tokenizer, sample, process, separator, longest)
                tokens = described.tokens
            yield sample.sample_id, len(ids or ()), tokens, 0, 0, 0

    return count


def _question_counter(spec: JudgeSpec) -> Counter:
    """Return a counter for an endpoint, estimated from bytes: only its replies report the exact number of tokens.

    A question that is already counted, or whose reply is cached on this machine, is not asked again.
    """
    scorer, counted = JudgeScorer(spec), set[Path]()

    def count(samples: Sequence[Sample], request: Request) -> Iterator[Counted]:
        for sample in samples:
            due = [one for one in scorer.due(sample, request) if one.path not in counted]
            counted.update(one.path for one in due)
            tokens = sum(one.tokens for one in due)
            yield sample.sample_id, tokens, tokens, 0, 0, len(due)

    return count


def _tokens_run(
    encoder: Encoder, encoded: Encoded, request: Request, checkpoints: int, perturbation: PerturbedRequest
) -> tuple[int, int, int]:
    """Return the tokens run of a sample with the prompt, those of the response alone, and the backward passes."""
    from curation_resources.scoring.measuring import describe, narrowed  # noqa: PLC0415

    perturbed = 0
    if request.perturbed:
        perturbed = _perturbed_tokens(encoded, perturbation)
        request = replace(request, perturbed=False)
    # Values recorded by a training run are looked up, not computed.
    wanted = narrowed(replace(request, in_run=False), describe(encoded, 0))
    steps = len(describe(encoded, 0).segment_tokens)
    there, back = _passes(replace(wanted.here, unconditional=False, direct=frozenset()), steps)
    there_on_the_way, back_on_the_way = _passes(wanted.on_the_way, steps)
    passes = there + wanted.base_likelihoods + (wanted.attention_influence is not None) + checkpoints * there_on_the_way
    alone = encoded.response_tokens if wanted.unconditional else 0
    alone += sum(len(encoder.direct_answer(encoded, prefix)[0]) for prefix in wanted.direct)
    return len(encoded) * passes + perturbed, alone, back + checkpoints * back_on_the_way


def _passes(request: Request, steps: int) -> tuple[int, int]:
    """Return how often a request needs all passes, and how often a backward pass, at one checkpoint.

    Proxy `projected` needs one backward pass for each of the sample's segments.
    """
    whole = replace(request, step_gradients=None, step_features=None)
    back = int(whole.forward != whole) + (steps if request.step_features is not None else 0)
    return back + (request.forward != Request()), back


def _perturbed_tokens(encoded: Encoded, request: PerturbedRequest) -> int:
    """Return the tokens run of a sample at the base model and at all perturbed checkpoints."""
    from curation_resources.scoring.measuring import describe  # noqa: PLC0415
    from curation_resources.scoring.prefixes import cut_to_windows  # noqa: PLC0415

    early, path = request.windows(request.filter_windows), request.windows(request.path_windows)
    described = describe(encoded, 0, early)
    if described.prefix_flags or set(described.flags) & UNRUNNABLE.keys():
        return 0
    tokens = 2 * len(cut_to_windows(encoded, early))
    return tokens + STEPS * len(cut_to_windows(encoded, path)) if request.directional else tokens
