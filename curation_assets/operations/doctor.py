"""`curate doctor`: check the installation and the configuration, and report problems."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path

from curation_assets.config.corpus_settings import ValidationSet
from curation_assets.config.settings import Target
from curation_assets.corpus.first_rows import read_first_rows
from curation_assets.corpus.formats import Mapped
from curation_assets.corpus.held_out import read_validation
from curation_assets.quality.checks import benchmark_files
from curation_assets.signals.warmup import warmup_checkpoint
from curation_assets.workspace.workspace import Workspace, dagster_home
from curation_resources.errors import UserError, in_a_line
from curation_resources.models.model_files import check_weights, processor_digest
from curation_resources.quiet import quieten_transformers
from curation_resources.storage.files import FolderStorage
from curation_resources.storage.landing import FolderLanding, printable

NEEDED = ("dagster", "torch", "transformers", "polars", "pyarrow")
OPTIONAL = {
    "dagster-webserver": "ui",
    "peft": "train",
    "rensa": "filters",
    "py3langid": "filters",
    "sentence-transformers": "embedding",
    "dagster-aws": "s3",
    "ray": "ray",
    "dagster-postgres": "postgres",
    "dagster-k8s": "kubernetes",
}
LITTLE_DISK_GIB = 2.0

INSPECTED_FILES, INSPECTED_BYTES = 3, 1 << 16
"""Files to read some rows of, and bytes to read of each."""

FAST_BFLOAT16 = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
"""Features of CPUs that compute in bfloat16: of x86, and of ARM."""


@dataclass(frozen=True)
class Finding:
    """The result of one check; a warning does not make the setup wrong."""

    what: str
    found: str
    ok: bool = True
    warning: bool = False


def examine(config: Path | None) -> Iterator[Finding]:
    """Check the installation, then the configuration and everything that it names."""
    yield Finding("python", f"{platform.python_version()} ({sys.executable})")
    yield from _packages()
    yield _device()
    try:
        workspace = Workspace.load(config)
    except UserError as error:
        yield Finding("configuration", str(error), ok=False)
        return
    yield Finding("configuration", f"{workspace.config_file} (digest {workspace.config_digest[:12]})")
    yield Finding("DAGSTER_HOME", str(dagster_home(workspace)))
    yield _attempt("landing area", partial(_landing, workspace))
    yield _ignored(workspace)
    yield from _files(workspace)
    yield _warehouse(workspace)
    yield from _filters(workspace)
    for held_out in workspace.settings.validation:
        yield _attempt(f"validation set {held_out.name}", partial(_validation, workspace, held_out))
    yield _engine(workspace)
    yield from _slow_cpu(workspace)
    yield _alerts(workspace)
    for target in workspace.settings.targets:
        if target.endpoint is not None:
            yield _judge(target)
            continue
        model = _attempt(f"model of target {target.name}", partial(_model, workspace, target))
        yield model
        if model.ok:
            yield Finding(f"images for target {target.name}", _images(workspace, target))
        yield Finding(f"signals of target {target.name}", ", ".join(target.signals))
        if target.warmup != "none" and not _installed("peft"):
            yield Finding(f"warm-up of target {target.name}", "requires the extra `train`, or warmup: none", ok=False)


def _packages() -> Iterator[Finding]:
    for name in NEEDED:
        version = _installed(name)
        yield Finding(name, version or "not installed", ok=version is not None)
    for name, extra in OPTIONAL.items():
        yield Finding(name, _installed(name) or f"not installed (extra `{extra}`)")


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _device() -> Finding:
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
        return Finding("device", ", ".join(names))
    return Finding("device", f"CPU, {os.cpu_count()} cores, {torch.get_num_threads()} threads")


def _engine(workspace: Workspace) -> Finding:
    """Check that every device in `engine.device` is available."""
    from curation_resources.scoring.device_names import devices_of
    from curation_resources.scoring.errors import ScoringError

    engine = workspace.settings.engine
    asked = engine.device
    if engine.kind == "ray":
        return Finding("engine.device", f"{asked}, on the workers of the Ray cluster at {engine.address}")
    try:
        return Finding("engine.device", f"{asked}: {', '.join(devices_of(asked))}")
    except ScoringError as error:
        return Finding("engine.device", f"{error}. Correct engine.device in curation.yaml.", ok=False)


def _slow_cpu(workspace: Workspace) -> Iterator[Finding]:
    """Warn of settings that make measuring on a CPU slow."""
    import torch

    if workspace.settings.engine.kind == "ray" or torch.cuda.is_available():
        return
    load, cores = os.getloadavg()[0], len(os.sched_getaffinity(0))
    policy = os.environ.get("OMP_WAIT_POLICY", "")
    if load > cores and policy.upper() != "PASSIVE" and torch.get_num_threads() > 1:
        yield Finding(
            "OMP_WAIT_POLICY",
            f"{policy or 'not set'}, while {load:.1f} processes on average are at work on {cores} cores: threads that "
            "wait for others keep their core busy. Set OMP_WAIT_POLICY=PASSIVE, or OMP_NUM_THREADS to fewer threads.",
            warning=True,
        )
    half = [target.name for target in workspace.settings.targets if target.dtype == "bfloat16"]
    flags = cpu_flags()
    if half and flags is not None and not flags & FAST_BFLOAT16:
        yield Finding(
            "dtype",
            f"bfloat16 for target {', '.join(half)}: this CPU has neither AVX512-BF16 nor AMX, so bfloat16 is slower "
            "than float32. Use dtype: float32, or a GPU.",
            warning=True,
        )


def cpu_flags(file: Path = Path("/proc/cpuinfo")) -> frozenset[str] | None:
    """Return the features of the CPU; None if the system does not list them."""
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return None
    # x86 calls them flags, ARM calls them features.
    listed = next((line for line in lines if line.lower().startswith(("flags", "features"))), None)
    return None if listed is None else frozenset(listed.partition(":")[2].split())


def _alerts(workspace: Workspace) -> Finding:
    """Check the recipients of alerts: the program must exist, and the variable must be set."""
    alerts = workspace.settings.alerts
    found, ok = [], True
    if alerts.command is not None:
        there = shutil.which(alerts.command[0]) is not None
        found.append(f"command {alerts.command[0]}" + ("" if there else ": program not found"))
        ok = ok and there
    if alerts.webhook_variable is not None:
        there = bool(os.environ.get(alerts.webhook_variable))
        found.append(f"webhook of {alerts.webhook_variable}" + ("" if there else ": the variable is not set"))
        ok = ok and there
    return Finding(
        "alerts", ", ".join(found) or "failed runs are not reported to anyone (alerts in curation.yaml)", ok=ok
    )


def _attempt(what: str, look: Callable[[], object]) -> Finding:
    try:
        return Finding(what, str(look()))
    except UserError as error:
        return Finding(what, str(error), ok=False)


def _landing(workspace: Workspace) -> str:
    files = workspace.landing.files()
    size = sum(file.size for file in files) / 2**20
    return f"{workspace.landing.place}: {len(files)} shards, {size:.1f} MiB"


def _files(workspace: Workspace) -> Iterator[Finding]:
    """Check that files can be opened, and what mapped columns find in the first rows of some of them."""
    with contextlib.suppress(UserError):
        landing, corpus = workspace.landing, workspace.settings.corpus
        files = landing.files()
        # A bucket's objects are opened when they are read: asking for each would take a request.
        local = isinstance(landing, FolderLanding)
        closed = {file for file in files if local and not os.access(landing.path(file.shard), os.R_OK)}
        if closed:
            names = ", ".join(sorted(printable(file.name) for file in closed))
            yield Finding("unreadable files", f"{names}. Allow this user to read them.", ok=False)
        mapped, rejected = Mapped(), Counter[str]()
        for file in [file for file in files if file not in closed][:INSPECTED_FILES]:
            rows, _ = read_first_rows(landing, file, corpus, INSPECTED_BYTES, workspace.image_root(file.shard))
            mapped += rows.mapped
            rejected.update(rows.rejected["reason"].to_list())
            if rows.file_problem is not None:
                yield Finding(printable(file.name), rows.file_problem, ok=False)
        if mapped.filled:
            yield Finding("mapped columns", mapped.warning() or mapped.shares(), warning=bool(mapped.empty))
        if rejected:
            told = ", ".join(f"{count} x {reason}" for reason, count in rejected.most_common())
            yield Finding("rejected rows", f"{told}, among the first rows of some files", warning=True)


def _filters(workspace: Workspace) -> Iterator[Finding]:
    """Check the requirements of the pool's filters."""
    filters = workspace.settings.corpus.filters
    if filters.contamination is not None:
        yield _attempt("benchmarks", lambda: ", ".join(benchmark_files(workspace)))
    for package, wanted in (("rensa", filters.near_duplicates), ("py3langid", filters.languages)):
        if wanted is not None and not _installed(package):
            yield Finding("corpus.filters", f"needs {package}. Install the extra `filters`.", ok=False)


def _validation(workspace: Workspace, held_out: ValidationSet) -> str:
    rows = read_validation(workspace, held_out)
    return f"{workspace.validation_file(held_out)}: {len(rows.accepted)} samples, {len(rows.rejected)} rejected"


def _model(workspace: Workspace, target: Target) -> str:
    """Return the folders of a target's model and its warm-up, after checking their weights."""
    folder = workspace.model_folder(target)
    check_weights(folder)
    _check_loading(folder, target)
    if target.warmup == "none":
        return str(folder)
    trained = warmup_checkpoint(workspace, target)
    if trained is None:
        return f"{folder}; its warm-up is not trained yet"
    own = workspace.warehouse.local(trained.folder)
    check_weights(own)
    return f"{folder}; its warm-up is in {own}"


def _check_loading(folder: Path, target: Target) -> None:
    """Check that transformers knows the architecture, and that the chat template can be used.

    Raises:
        UserError: the model could not be loaded, or none of its prompts could be rendered.
    """
    quieten_transformers()
    from transformers import AutoTokenizer

    from curation_resources.scoring.complete_weights import load_config
    from curation_resources.scoring.encoding import Encoder
    from curation_resources.scoring.errors import ScoringError

    if target.kind == "embedding":
        return
    try:
        config = load_config(folder, target.trust_remote_code)
        # A vision-language model's template is its processor's, which is slow to load.
        if target.kind == "language" and getattr(config, "vision_config", None) is None:
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=target.trust_remote_code)
            Encoder(tokenizer, target.template, max_length=64)
    except ScoringError as error:
        raise UserError(str(error)) from error
    except (OSError, ValueError, LookupError) as error:
        raise UserError(f"the tokenizer in {folder} cannot be loaded ({in_a_line(error)}). Copy it again.") from error


def _images(workspace: Workspace, target: Target) -> str:
    if processor_digest(workspace.model_folder(target), workspace.cache) is None:
        return "the model reads text only; samples with images are counted separately"
    images = workspace.settings.corpus.images
    remote = "fetched" if images.fetch_remote else "not fetched"
    return f"used, up to {images.max_pixels:,} pixels and {images.max_bytes:,} bytes; web addresses are {remote}"


def _judge(target: Target) -> Finding:
    """Check a judge's settings, without querying it."""
    endpoint, name = target.endpoint, f"judge of target {target.name}"
    assert endpoint is not None
    if endpoint.key_variable is not None and not os.environ.get(endpoint.key_variable):
        return Finding(
            name, f"environment variable {endpoint.key_variable} is not set. Set it to the API key.", ok=False
        )
    return Finding(name, f"{target.model} at {endpoint.url}: {', '.join(target.signals)}")


def _ignored(workspace: Workspace) -> Finding:
    try:
        ignored = workspace.landing.ignored()
    except UserError:
        return Finding("ignored files", "–")
    told = f"{len(ignored)}: {', '.join(ignored)} (convert them to .jsonl or .parquet, or remove them)"
    return Finding("ignored files", told if ignored else "none", ok=not ignored)


def _warehouse(workspace: Workspace) -> Finding:
    storage = workspace.warehouse.storage
    if not isinstance(storage, FolderStorage):
        # Loading the configuration has already accessed it.
        return Finding("warehouse", storage.place)
    root = storage.root
    free = shutil.disk_usage(root).free / 2**30
    writable = os.access(root, os.W_OK)
    state = f"{root}: {free:.1f} GiB free" + ("" if writable else ", not writable")
    return Finding("warehouse", state, ok=writable and free > LITTLE_DISK_GIB)
