"""What the files of the landing area gave: rows read and rejected, files that cannot be read, mapped columns, answers.

Everything is taken from the metadata of stored tables, so a file that was read by an earlier run is reported until it
changes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from curation_assets import tables
from curation_assets.corpus.formats import Mapped
from curation_assets.corpus.ingest import present_shards
from curation_assets.steps.segmentation import EXAMPLES, MOST_EXAMPLES, SAMPLES, WITHOUT_ANSWER
from curation_assets.workspace.workspace import Workspace, config_flag
from curation_resources.storage.landing import file_name, printable

MOST_FILES = 5
"""Files that a message names."""


@dataclass
class Intake:
    """The rows of the files in the landing area.

    Attributes:
        files: number of files that were read.
        rows: number of rows in them.
        accepted: number of responses taken from them.
        rejected: number of rejections, by reason, the most frequent first.
        problems: files that cannot be used, wholly or from some row on, with the problem and its fix.
        not_finite: values NaN and Infinity, which were read as null.
        mapped: how many rows have a value at each mapped path.
        samples: distinct samples of each file that were cut into steps.
        without_answer: those in whose response no answer was found.
        examples: ids of some of these.
    """

    files: int = 0
    rows: int = 0
    accepted: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    not_finite: int = 0
    mapped: Mapped = field(default_factory=Mapped)
    samples: int = 0
    without_answer: int = 0
    examples: list[str] = field(default_factory=list)


def stored_intake(workspace: Workspace) -> Intake:
    """Return what the present files gave when they were last read."""
    corpus = workspace.warehouse.folder_metadata(tables.raw_corpus_dir())
    steps = workspace.warehouse.folder_metadata(tables.segmented_steps_dir())
    found, rejected = Intake(), dict[str, int]()
    for shard in present_shards(workspace):
        facts, cut = corpus.get(shard, {}), steps.get(shard, {})
        if "rows_in" not in facts:
            # The table is damaged; the next run writes it again.
            continue
        found.files += 1
        found.rows += int(facts["rows_in"])
        found.accepted += int(facts["rows"])
        for reason, count in json.loads(facts.get("reasons", "{}")).items():
            rejected[reason] = rejected.get(reason, 0) + count
        if facts["file_problem"]:
            found.problems[file_name(shard)] = facts["file_problem"]
        found.not_finite += int(facts.get("not_finite", 0))
        found.mapped += Mapped(**json.loads(facts.get("mapped", "{}")))
        found.samples += int(cut.get(SAMPLES, 0))
        found.without_answer += int(cut.get(WITHOUT_ANSWER, 0))
        found.examples += cut.get(EXAMPLES, "").split()
    found.examples = found.examples[:MOST_EXAMPLES]
    found.rejected = dict(sorted(rejected.items(), key=lambda one: (-one[1], one[0])))
    return found


def remarks(workspace: Workspace, found: Intake) -> list[str]:
    """Return what people should know about the files, a line each."""
    flag = config_flag(workspace)
    lines: list[str] = []
    if found.rejected:
        reasons = ", ".join(f"{count} x {reason}" for reason, count in found.rejected.items())
        lines.append(f"rejected: {reasons}; see: curate table rejected_rows{flag}")
    lines += [f"{printable(name)}: {problem}" for name, problem in list(found.problems.items())[:MOST_FILES]]
    if len(found.problems) > MOST_FILES:
        lines.append(f"{len(found.problems) - MOST_FILES} more files have problems; see: curate doctor{flag}")
    if found.not_finite:
        lines.append(f"{found.not_finite} values of NaN or Infinity were read as null")
    if (warning := found.mapped.warning()) is not None:
        lines.append(warning)
    if found.without_answer and any(score.method == "grace" for score in workspace.settings.scores):
        lines.append(
            f"{found.without_answer} of {found.samples} responses state no answer that is recognized, and GRACE gives "
            f"them no score; see: curate show {found.examples[0]}{flag}"
            + (f" (also {', '.join(found.examples[1:])})" if found.examples[1:] else "")
        )
    return lines


def ignored_line(ignored: list[str]) -> str | None:
    """Return a line about the files that are no shards, those with a reason first; None if there are none."""
    if not ignored:
        return None
    ordered = sorted(ignored, key=lambda name: not name.endswith(")"))
    shown = ordered[:MOST_FILES]
    more = f" and {len(ignored) - len(shown)} more; see: curate doctor" if len(shown) < len(ignored) else ""
    return f"ignored (not a file of .jsonl, .jsonl.gz or .parquet): {', '.join(shown)}{more}"
