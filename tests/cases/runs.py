"""Cases that need a run: with the tiny model of the tests, in a temporary folder."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import dagster as dg
import polars as pl
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

from curation_assets import tables
from curation_assets.cli.app import app
from curation_assets.corpus.ingest import pool_rows
from curation_assets.defs.main_job import MainJob
from curation_assets.releases.file_names import DATA_PARQUET
from curation_assets.subsets.stored_tables import read_stored
from curation_assets.workspace.workspace import Workspace
from curation_resources.scoring.encoding import Encoder
from curation_resources.scoring.samples import Sample
from curation_resources.storage.landing import LandingError, file_name
from tests.cases.findings import Case, Findings
from tests.corpus.helpers import read
from tests.models import CHAT_TEMPLATE, byte_tokenizer, write_tiny_model
from tests.pipeline.daemon import Daemon
from tests.pipeline.workspaces import instance_of, release_folder, run, signal_rows

CONFIG = """\
corpus: {{landing: {landing}{corpus}}}
warehouse: {warehouse}
targets:
  - {{name: tiny, model: ./model, warmup: none, dtype: float32, signals: [{signal}]}}
scores:
  - {{name: by, target: tiny, method: {method}}}
subsets:
  - {{name: best, score: by, budget: {{fraction: 1.0}}{subset}}}
engine: {{device: cpu, part_seconds: 5.0, batch_tokens: 8192}}
releases: {{policy: manual}}
"""

OLD = 60
"""Seconds since a landing file was written, so that the sensor does not wait for it to settle."""


@contextlib.contextmanager
def place(
    inputs: Path | None = None,
    *,
    landing: str = "./landing",
    warehouse: str = "./warehouse",
    corpus: str = "",
    signal: str = "likelihoods",
    method: str = "perplexity",
    subset: str = "",
    context: int = 512,
) -> Iterator[Path]:
    """Make a folder with a model, a configuration and a landing folder that holds copies of the inputs."""
    with TemporaryDirectory(prefix="cases-") as name:
        folder = Path(name).resolve()
        write_tiny_model(folder / "model", context=context)
        if inputs is not None:
            shutil.copytree(inputs, folder / "landing")
            for path in (folder / "landing").iterdir():
                os.utime(path, (path.stat().st_mtime - OLD,) * 2)
        values = {"landing": landing, "warehouse": warehouse, "signal": signal, "method": method}
        (folder / "curation.yaml").write_text(
            CONFIG.format(**values, corpus=corpus and f", {corpus}", subset=subset and f", {subset}")
        )
        yield folder


def workspace_of(folder: Path) -> Workspace:
    """Return the workspace of a folder's configuration."""
    return Workspace.load(folder / "curation.yaml")


def curate(folder: Path, *words: str) -> Result:
    """Run a command on a folder's configuration, in this process."""
    config = ["--config", str(folder / "curation.yaml")]
    return CliRunner().invoke(app, [*words, *config], env={"DAGSTER_HOME": None, "COLUMNS": "200"})


def fails(found: Findings, what: str, result: Result, *words: str) -> None:
    """Check that a command ended with exit code 1 and a message, not with a traceback."""
    found.equal(f"{what}, exit code", result.exit_code, 1)
    found.holds(f"{what}: {result.exception!r}", result.exception is None or isinstance(result.exception, SystemExit))
    found.contains(what, " ".join(result.output.split()), *words)


def works(found: Findings, what: str, result: Result, *words: str) -> None:
    """Check that a command ended well, and what it printed."""
    found.holds(f"{what}: exit code {result.exit_code}: {result.output[-LAST:]}", result.exit_code == 0)
    found.contains(what, " ".join(result.output.split()), *words)


LAST = 200
"""Characters of an output's end that a difference shows."""

POWERS = ["717897987691852588770249", "2153693963075557766310747", "4052555153018976267"]
"""3 to the 50, 51 and 39."""


def big_integers(folder: Path, found: Findings) -> None:
    """Answers beyond 64 bits: as stored, as compared, and as exported for verl."""
    found.equal("the powers", [int(power) for power in POWERS], [3**50, 3**51, 3**39])
    rows = read(folder / "landing" / "a.jsonl", "a.jsonl")
    found.equal("answers", rows.accepted["answer"].to_list(), POWERS)
    with place(folder / "landing", subset="filters: {correct: true}") as there:
        workspace = workspace_of(there)
        run(workspace)
        chosen = workspace.warehouse.read_table(tables.subset_path("best"))
        found.equal("rows whose answer is right", chosen.height, 3)
        works(found, "release", curate(there, "release", "best"), "best")
        exported = there / "verl"
        works(found, "export", curate(there, "export", "best@1", "--format", "verl", "--to", str(exported)), "3 rows")
        records = pl.read_parquet(exported / "train.parquet").to_dicts()
    truths = {record["prompt"][0]["content"]: record["reward_model"]["ground_truth"] for record in records}
    asked = [f"What is 3 to the {power}?" for power in (50, 51, 39)]
    found.equal("ground truths for verl", truths, dict(zip(asked, POWERS, strict=True)))


def duplicates_of_cjk(folder: Path, found: Findings) -> None:
    """Check that the filters know scripts without spaces."""
    duplicates = {("en_dup.jsonl", 2): 1, ("zh.jsonl", 6): 1}
    overlap = {("en_dup.jsonl", 2): 0, ("zh.jsonl", 6): 3}
    for reason, filters, expected in (
        ("near_duplicate", "near_duplicates: 0.7", duplicates),
        ("contaminated", "contamination: [./bench.jsonl]", overlap),
    ):
        with place(folder / "landing", corpus=f"filters: {{{filters}}}") as there:
            shutil.copy(folder / "bench.jsonl", there / "bench.jsonl")
            workspace = workspace_of(there)
            MainJob(workspace, instance_of(workspace)).run("corpus")
            pool = workspace.warehouse.read_table(tables.pool_path()).join(places_of(workspace), on="sample_id")
        counts = {
            (file_name(str(shard)), rows.height): rows.filter(reason=reason).height
            for (shard,), rows in pool.group_by("shard")
        }
        found.equal(f"rows of each file, and how many are {reason}", counts, expected)


def places_of(workspace: Workspace) -> pl.DataFrame:
    """Return sample_id, shard and row of all samples."""
    raw = workspace.warehouse.scan(tables.raw_corpus_dir())
    assert raw is not None
    return raw.select("sample_id", "shard", "row").collect()


THINKS = "<think>\nTwo and two.\n\nThat is four.\n</think>\n\nIt is four."
NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    + CHAT_TEMPLATE
)
ALTERNATING = (
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate user/assistant') }}{% endif %}{% endfor %}" + CHAT_TEMPLATE
)
OPENS = CHAT_TEMPLATE.replace("assistant: {% endif %}", "assistant: <think>\n{% endif %}")
REFUSES = "{{ raise_exception('Only for tools') }}"
BROKEN = "{% for m in messages %}{{ m['content'] }"
GENERATION = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}assistant: {% generation %}{{ m['content'] }}"
    "{% endgeneration %}{% else %}{{ m['role'] }}: {{ m['content'] }}{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
LOOP_CONTROLS = (
    "{% for m in messages %}{% if m['role'] == 'tool' %}{% continue %}{% endif %}"
    + CHAT_TEMPLATE.partition("{% for m in messages %}")[2]
)

SYSTEM_ROWS, BROKEN_ROWS = {1, 7}, {1, 2, 4, 5, 7}
"""Rows with a system turn, and rows whose turns do not alternate between user and assistant."""

USABLE = 8
"""Rows that end with the assistant's turn."""


TEMPLATES: dict[str, tuple[str | dict[str, str], set[int], str]] = {
    "plain": (CHAT_TEMPLATE, set(), ""),
    "generation": (GENERATION, set(), ""),
    "loop_controls": (LOOP_CONTROLS, set(), ""),
    "opens_thought": (OPENS, set(), ""),
    "named": ({"tool_use": REFUSES, "default": CHAT_TEMPLATE}, set(), ""),
    "no_system": (NO_SYSTEM, SYSTEM_ROWS, "System role not supported"),
    "alternating": (ALTERNATING, BROKEN_ROWS, "Roles must alternate user/assistant"),
}
"""Templates that some rows can be measured with: the rows that each refuses, and what it says."""


def chat_templates(folder: Path, found: Findings) -> None:
    """Templates that open the thought, refuse some turns or all, or are broken."""
    _usable_templates(folder, found)
    _thoughts(found)
    named = {"tool_use": CHAT_TEMPLATE, "rag": CHAT_TEMPLATE}
    for name, unusable, words in (
        ("refuses everything", REFUSES, ("refuses even a single turn of the user", "Only for tools")),
        ("not Jinja", BROKEN, ("not valid Jinja",)),
        ("named, without default", named, ("chat templates named rag, tool_use", "none named default")),
    ):
        with place(folder / "landing") as there:
            use_template(there / "model", unusable)
            fails(found, f"{name}: curate doctor", curate(there, "doctor"), *words)
            fails(found, f"{name}: curate run", curate(there, "run"), *words)


ENDS_WITH_USER = 6


def _usable_templates(folder: Path, found: Findings) -> None:
    """Check one run with a target for each template."""
    with place(folder / "landing") as there:
        config, targets = there / "curation.yaml", []
        for name, (template, _, _) in TEMPLATES.items():
            shutil.copytree(there / "model", there / name)
            use_template(there / name, template)
            targets.append(
                f"  - {{name: {name}, model: ./{name}, warmup: none, dtype: float32, signals: [likelihoods]}}"
            )
        config.write_text(config.read_text().replace("targets:\n", "\n".join(["targets:", *targets, ""])))
        workspace = workspace_of(there)
        summary = run(workspace)
        found.equal("rejected rows", summary.rejected, {"missing_response": 1})
        found.equal(
            "measured", {name: summary.measured.get(name) for name in TEMPLATES}, dict.fromkeys(TEMPLATES, USABLE)
        )
        for name, (_, rows, said) in TEMPLATES.items():
            expected = ["template_refused", f"template_refused: {said}"]
            wanted = {row: expected if row in rows else [] for row in range(9) if row != ENDS_WITH_USER}
            found.equal(f"{name}: flags", flags_by_row(workspace, name), wanted)


def _thoughts(found: Findings) -> None:
    """Check that a thought is opened once, and that a response without one follows what the template opened."""
    turn: dict[str, Any] = {"role": "user", "content": "plain?"}
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = OPENS
    encoder = Encoder(tokenizer, "chat", 500)
    for response, text in (
        (THINKS, f"user: plain?\nassistant: {THINKS}"),
        ("4", "user: plain?\nassistant: <think>\n4"),
    ):
        (encoded,) = encoder.encode([Sample("x", [turn], response)])
        measured = tokenizer.decode(encoded.input_ids, skip_special_tokens=True)
        found.equal("measured text", measured, text)
        start = tokenizer.decode(encoded.input_ids[encoded.prompt_tokens :], skip_special_tokens=True)
        found.equal("measured response", start, response)


def use_template(model: Path, template: str | Mapping[str, str]) -> None:
    """Write a chat template, or named ones, into a model's folder."""
    (model / "chat_template.jinja").unlink(missing_ok=True)
    listed = template if isinstance(template, str) else [{"name": name, "template": t} for name, t in template.items()]
    edit_json(model / "tokenizer_config.json", chat_template=listed)


def edit_json(path: Path, **values: object) -> None:
    """Set values of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def flags_by_row(workspace: Workspace, target: str = "tiny") -> dict[int, list[str]]:
    """Return the flags of every sample's likelihoods, by row."""
    measured = read_stored(workspace, "likelihoods", target=target).collect()
    joined = places_of(workspace).join(measured, on="sample_id").select("row", "flags")
    return dict(sorted(joined.iter_rows()))


NAN = "model.layers.1.mlp.down_proj.weight"


def model_folders(folder: Path, found: Findings) -> None:
    """Model folders that cannot be loaded are refused with the reason; long samples have flags."""
    with place(folder / "landing") as there:
        summary = run(workspace_of(there))
        found.equal("samples measured", summary.measured.get("tiny"), 4)
        flags = flags_by_row(workspace_of(there))
        found.equal("flags", {row: flags[row] for row in (0, 1, 3)}, {0: [], 1: [], 3: ["prompt_too_long"]})
        found.contains("flags of the long response", " ".join(flags[2]), "truncated")
    with place(folder / "landing") as there:
        edit_json(there / "model" / "config.json", model_type="qwen99", architectures=["Qwen99ForCausalLM"])
        refused(found, "unknown architecture", there, "does not know the architecture 'qwen99'")
    with place(folder / "landing") as there:
        weights = there / "model" / "model.safetensors"
        tensors = load_file(weights)
        tensors[NAN][0, 0] = float("nan")
        save_file(tensors, weights, {"format": "pt"})
        # Only a pass over the model finds it.
        fails(found, "NaN weights: curate run", curate(there, "run"), f"tensor {NAN}", "contains NaN or Infinity")
    with place(folder / "landing") as there:
        make_adapter(there / "model", base="example/base-7b")
        refused(found, "LoRA folder", there, "holds a LoRA adapter of example/base-7b", "Name example/base-7b")
    with place(folder / "landing") as there:
        (there / "model" / "model.safetensors").rename(there / "model" / "pytorch_model.bin")
        refused(found, "pickled weights", there, "only pickled weights (pytorch_model.bin)")
    with place(folder / "landing") as there:
        weights = there / "model" / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1000])
        refused(found, "cut weights", there, "download it again")
    with place(folder / "landing") as there:
        shutil.rmtree(there / "model")
        (there / "model").mkdir()
        (there / "model" / "model.gguf").write_bytes(b"GGUF")
        refused(found, "GGUF", there, "has no config.json")


def refused(found: Findings, name: str, folder: Path, *words: str) -> None:
    """Check that doctor and run refuse a model with these words."""
    fails(found, f"{name}: curate doctor", curate(folder, "doctor"), *words)
    fails(found, f"{name}: curate run", curate(folder, "run"), *words)


def make_adapter(model: Path, base: str) -> None:
    """Turn a model's folder into that of a LoRA adapter."""
    (model / "config.json").unlink()
    (model / "model.safetensors").rename(model / "adapter_model.safetensors")
    settings = {"base_model_name_or_path": base, "peft_type": "LORA", "r": 8}
    (model / "adapter_config.json").write_text(json.dumps(settings))


def warehouse_in_landing(folder: Path, found: Findings) -> None:
    """A warehouse inside the landing folder is refused, also behind a link, and `curate init` proposes none there."""
    with place(folder / "landing", warehouse="./landing/warehouse") as there:
        refused(found, "inside", there, "is inside the landing folder", "Use a folder outside it")
    with place(folder / "landing", warehouse="./linked/warehouse") as there:
        (there / "linked").symlink_to(there / "landing")
        refused(found, "behind a link", there, "is inside the landing folder")
    with place(folder / "landing", landing="./linked", warehouse="./landing") as there:
        (there / "linked").symlink_to(there / "landing")
        refused(found, "the landing folder itself, behind a link", there, "is inside the landing folder")
    with place(folder / "landing", warehouse="./landing-warehouse") as there:
        found.holds("a folder beside it is refused", bool(workspace_of(there).landing.files()))
    with place(folder / "landing") as there:
        _init_here(there, found)


def _init_here(there: Path, found: Findings) -> None:
    """Check `curate init .` inside the data folder, then runs and releases: the corpus stays what it was."""
    landing = there / "landing"
    with contextlib.chdir(landing):
        made = CliRunner().invoke(app, ["init", ".", "--model", str(there / "model")], env={"COLUMNS": "200"})
    works(found, "curate init .", made, "wrote curation.yaml")
    if made.exit_code:
        return
    try:
        workspace = workspace_of(landing)
        found.equal("shards", len(workspace.landing.files()), 1)
    except LandingError as error:
        found.holds(f"the proposed warehouse is inside the landing folder: {error}", condition=False)
        return
    for _ in range(2):
        works(found, "curate run", curate(landing, "run"))
    found.equal("shards after runs", len(workspace_of(landing).landing.files()), 1)
    found.equal("the pool", pool_rows(workspace_of(landing)).height, 2)


FORMS = ("messages", "prompt-completion", "sharegpt", "alpaca", "axolotl", "weights")
"""Exports that hold prompt and response, so that reading them gives the same samples."""

WITHOUT_RESPONSE = {"prompt": "prompt", "response": "extra_info.response"}
"""Columns to map in verl's form: it holds prompts to answer, and the response only beside them."""

LONG = 4096
"""Context of the model, in bytes of text."""


def exports(folder: Path, found: Findings) -> None:
    """Exports give the same samples when they are read again: the folder's, and those of a run of today."""
    _read_again(folder / "ex", found, "stored")
    with place(signal="step_gradients", method="grace", context=LONG) as there:
        (there / "landing").mkdir()
        shutil.copy(folder / "ex" / "messages" / "train.jsonl", there / "landing" / "train.jsonl")
        workspace = workspace_of(there)
        run(workspace)
        works(found, "release", curate(there, "release", "best"), "best")
        rows = pl.read_parquet(release_folder(workspace) / DATA_PARQUET)
        threshold = rows["step_scores"].explode().median()
        for name in (*FORMS, "stepwise", "verl"):
            words = ["--format", name, "--to", str(there / "ex" / name), "--step-threshold", str(threshold)]
            works(found, f"export {name}", curate(there, "export", "best@1", *words), "17 rows")
        _read_again(there / "ex", found, "exported")


def _read_again(folder: Path, found: Findings, what: str) -> None:
    """Check that every export gives the samples that it names, and that stepwise gives their steps."""
    by_id: dict[str, dict[str, Any]] = {}
    for name in FORMS:
        rows, named = _export(folder / name)
        samples = {row["sample_id"]: row for row in rows.iter_rows(named=True)}
        found.equal(f"{what} {name}: samples", sorted(samples), sorted(named))
        by_id = by_id or samples
        same = [one for one in samples if samples[one]["response"] == by_id.get(one, {}).get("response")]
        found.equal(f"{what} {name}: rows of the same text", len(same), 17)
    rows, named = _export(folder / "stepwise")
    found.equal(f"{what} stepwise: samples", rows.height, len(named))
    for row, sample_id in zip(rows.iter_rows(named=True), named, strict=False):
        original = by_id[sample_id]
        found.equal(f"{what} stepwise: prompt", row["messages"], original["messages"])
        found.holds(f"{what} stepwise: a step is not in the response", _in_order(row["steps"], original["response"]))
    verl = folder / "verl" / "train.parquet"
    refusals = read(verl, verl.name)
    found.equal(f"{what} verl, as it is: samples", refusals.accepted.height, 0)
    found.equal(f"{what} verl, as it is: refusals", set(refusals.rejected["reason"]), {"unknown_format"})
    rows, named = _export(folder / "verl", columns=WITHOUT_RESPONSE)
    found.equal(f"{what} verl, mapped: samples", sorted(rows["sample_id"]), sorted(named))


def _export(folder: Path, **settings: Any) -> tuple[pl.DataFrame, list[str]]:
    """Return an export's samples as read again, and the ids that it names."""
    (path,) = folder.glob("train.*")
    rows = read(path, path.name, **settings)
    return rows.accepted, [json.loads(extra)["sample_id"] for extra in rows.accepted["extra"]]


def _in_order(steps: list[str], response: str) -> bool:
    place = 0
    for step in steps:
        place = response.find(step, place) + len(step)
        if place < len(step):
            return False
    return True


def poison_file(folder: Path, found: Findings) -> None:
    """A table with an odd time zone is read, and a file that cannot be read stops no other."""
    with place(folder / "landing") as there, dg.DagsterInstance.ephemeral() as instance:
        (there / "landing" / "odd.parquet").write_bytes(b"PAR1 is not all that it takes. PAR1")
        os.utime(there / "landing" / "odd.parquet", (1, 1))
        daemon = Daemon(workspace_of(there), instance)
        # The first evaluation of conditions is the initial one, which requests nothing.
        daemon.conditions()
        daemon.carry_through()
        workspace = workspace_of(there)
        counts = dict(places_of(workspace).group_by("shard").len().iter_rows())
        read_rows = {file.name: counts.get(file.shard, 0) for file in workspace.landing.files()}
        found.equal("rows read", read_rows, {"a.jsonl": 2, "m.parquet": 2, "z.jsonl": 2, "odd.parquet": 0})
        rejected = workspace.warehouse.scan(tables.rejected_rows_dir())
        assert rejected is not None
        found.equal("the odd file", rejected.collect()["reason"].to_list(), ["not_parquet"])
        # One sample is in two files.
        found.equal("samples measured", signal_rows(workspace, "likelihoods").height, POOL)
        found.equal("samples selected", workspace.warehouse.read_table(tables.subset_path("best")).height, POOL)
        runs = [run.status for run in instance.get_runs()]
        found.equal("runs that failed", runs.count(dg.DagsterRunStatus.FAILURE), 0)
        found.equal("nothing is requested again", daemon.carry_through(), [])


POOL = 5

RUNS = (
    Case("10b-big-int-answer", "every digit of answers", big_integers),
    Case("17-chat-templates", "thoughts, refusals and broken templates", chat_templates),
    Case("18-model-folders", "models that cannot be loaded", model_folders),
    Case("29-warehouse-in-landing", "no tables in the landing folder", warehouse_in_landing),
    Case("30-export-round-trip", "exports read again", exports),
    Case("31-poison-file-daemon", "the odd file stops no other", poison_file),
)
