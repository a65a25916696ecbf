"""Turn the parts that a format found in a row into checked drafts: mapped columns, shared fields, and the remainder.

Mapped columns (`corpus.columns`) take precedence over a format's own names, and a mapped field is hidden from the
format under its own name. Every format shares these fields, unless a column is mapped: source, domain, generator,
correct, reward, images, steps, and a short explicit answer. A shared field whose value has an unexpected type is left
in `extra`; a mapped one is rejected.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from curation_assets.config.corpus_settings import Columns, Corpus
from curation_assets.corpus.drafts import Draft, Refused, Turn
from curation_assets.corpus.explicit_steps import locate_steps
from curation_assets.corpus.fields import (
    MISSING,
    Row,
    absent,
    boolean,
    lookup,
    number,
    optional_text,
    remainder,
    step_list,
    text,
    to_json,
)
from curation_assets.corpus.images import image_sources
from curation_assets.corpus.row_parts import (
    SYSTEM_NAMES,
    Candidate,
    Reading,
    candidates_in,
    is_short_answer,
    prompt_turns,
)

SHARED_NAMES: dict[str, tuple[str, ...]] = {
    "source": ("source", "data_source", "dataset"),
    "domain": ("domain", "subject", "task"),
    "generator": ("generator", "model"),
    "correct": ("correct", "is_correct"),
    "reward": ("reward",),
    "answer": ("answer", "final_answer", "reference_answer", "reference"),
    "steps": ("steps",),
    "images": ("images", "image", "image_url", "image_path"),
}
PER_CANDIDATE = ("answer", "steps", "generator", "correct", "reward")

LONG_THOUGHT = 40
"""Characters of a thought that an answer does not repeat by chance."""

Spec = str | list[str | None] | list[str | bool | None] | None


def claims(columns: Columns) -> frozenset[str]:
    """Return every path that is mapped to something."""
    paths: set[str] = set()
    for name in Columns.model_fields:
        value = getattr(columns, name)
        entries = value if isinstance(value, list) else [value]
        paths.update(path for path in entries if isinstance(path, str))
    return frozenset(paths)


def unclaimed(row: Row, claimed: frozenset[str]) -> Row:
    """Return the row without the fields that are mapped as a whole."""
    return {name: value for name, value in row.items() if name not in claimed} if claimed else row


def assemble(reading: Reading, row: Row, corpus: Corpus, claimed: frozenset[str]) -> list[Draft | Refused]:
    """Build drafts of a row's candidates, in order; see `formats.Parser`.

    Args:
        reading: the parts that the format found.
        row: the row.
        corpus: the mapped columns, and the conventions for reasoning and tool calls.
        claimed: `claims(corpus.columns)`.

    Raises:
        Refused: the row as a whole cannot be used.
    """
    columns = corpus.columns
    parts = _Parts(reading, row, columns, claimed)
    turns = parts.prompt()
    candidates = parts.candidates()
    if not candidates:
        raise Refused("missing_response", "the list of responses is empty")
    values = {name: parts.values(name, len(candidates)) for name in PER_CANDIDATE}
    # Where it is not mapped, formats find it beside the response.
    values["reasoning"] = parts.values("reasoning", len(candidates)) if columns.reasoning else [None] * len(candidates)
    common = _Common(
        turns=turns,
        own_turns=columns.prompt is None,
        source=optional_text(parts.single("source"), "source"),
        domain=optional_text(parts.single("domain"), "domain"),
        images=parts.images(),
        left=_labelled(parts.left(), parts.label),
        corpus=corpus,
    )
    plain = to_json(common.left)
    drafts: list[Draft | Refused] = []
    for index, candidate in enumerate(candidates):
        try:
            own = {name: each[index] for name, each in values.items()}
            drafts.append(_draft(candidate, own, common, plain))
        except Refused as refusal:
            drafts.append(refusal)
    return drafts


@dataclass(frozen=True)
class _Common:
    """Values shared by a row's candidates; with `own_turns`, a candidate's own prompt replaces the shared one."""

    turns: tuple[Turn, ...]
    own_turns: bool
    source: str | None
    domain: str | None
    images: tuple[str | bytes, ...]
    left: Row
    corpus: Corpus


def _draft(candidate: Candidate, values: dict[str, object], common: _Common, extra: str) -> Draft:
    own = candidate.turns if common.own_turns else None
    turns = common.turns if own is None else own
    if own is not None and not candidate.whole_prompt and own[: len(common.turns)] != common.turns:
        turns = common.turns + own
    # A candidate's own prompt may contain images if the row itself names none.
    images = common.images or tuple(image_sources(candidate.images if own is not None else ()))
    if not images and not any(turn.content.strip() for turn in turns):
        raise Refused("missing_prompt", "the prompt is missing or blank. Map it with corpus.columns.prompt.")
    steps = step_list(_or(candidate.steps, values["steps"]), "steps")
    reasoning = _or(candidate.reasoning, values["reasoning"])
    return Draft(
        turns=turns,
        response=_response(candidate, reasoning, steps, common.corpus),
        answer=optional_text(_or(candidate.answer, values["answer"]), "answer"),
        steps=steps,
        source=common.source,
        domain=common.domain,
        generator=optional_text(_or(candidate.generator, values["generator"]), "generator"),
        correct=boolean(values["correct"], "correct"),
        reward=number(values["reward"], "reward"),
        images=images,
        extra=to_json(_labelled(common.left, candidate.label)) if candidate.label else extra,
    )


@dataclass
class _Parts:
    """Takes a row apart and records which of its fields were used."""

    reading: Reading
    row: Row
    columns: Columns
    claimed: frozenset[str]
    used: set[str] = field(default_factory=set)
    label: Row = field(default_factory=dict)
    found_images: list[object] = field(default_factory=list)

    def prompt(self) -> tuple[Turn, ...]:
        path = self.columns.prompt
        if path is None:
            self.used |= self.reading.prompt_fields
            self.found_images.extend(self.reading.images)
            self.label.update(self.reading.label)
            return self.reading.turns
        self.used |= {path, *SYSTEM_NAMES}
        talk = prompt_turns(lookup(self.row, path), self.row, path)
        self.found_images.extend(talk.images)
        self.label.update(talk.label())
        return talk.turns

    def candidates(self) -> list[Candidate]:
        paths = self.columns.response
        if paths is None:
            if self.columns.steps is not None and self.reading.response_fields == {"answer"}:
                # The response consists of the mapped steps, so `answer` may be the explicit answer.
                return [Candidate()]
            self.used |= self.reading.response_fields
            return list(self.reading.candidates)
        if isinstance(paths, str):
            self.used.add(paths)
            return list(candidates_in(lookup(self.row, paths), paths))
        self.used.update(paths)
        return [Candidate(lookup(self.row, path)) for path in paths]

    def values(self, name: str, count: int) -> list[object]:
        """Return the attribute of each candidate, from its mapped column or its shared name."""
        spec: Spec = getattr(self.columns, name)
        if isinstance(spec, list):
            return [self._entry(entry) for entry in spec]
        if isinstance(spec, str):
            value = self._entry(spec)
            return self._spread(value, name, count) or [value] * count
        paths = self.columns.response
        if name == "generator" and isinstance(paths, list):
            return [path.split(".")[0] for path in paths]
        for own in SHARED_NAMES[name]:
            value = self.row.get(own)
            if value is None or own in self.used or own in self.claimed:
                continue
            spread = self._spread(value, name, count)
            if spread is not None and all(item is None or _fits(name, item) for item in spread):
                self.used.add(own)
                return spread
            # A single verdict next to several responses does not tell which response it refers to.
            if _fits(name, value) and (count == 1 or name in ("generator", "answer")):
                self.used.add(own)
                return [value] * count
        return [None] * count

    def single(self, name: str) -> object:
        """Return a value shared by all candidates, from its mapped column or its shared name."""
        path: str | None = getattr(self.columns, name)
        if path is not None:
            self.used.add(path)
            return lookup(self.row, path)
        for own in SHARED_NAMES[name]:
            value = self.row.get(own)
            if own not in self.used and own not in self.claimed and isinstance(value, str) and value.strip():
                self.used.add(own)
                return value
        return None

    def images(self) -> tuple[str | bytes, ...]:
        """Return the mapped column's images, else those inside the turns, else those of a shared name.

        Turns that only mark the position of images (`{"type": "image"}`) have them in a separate field.
        """
        if self.columns.images is not None:
            self.used.add(self.columns.images)
            mapped = tuple(image_sources([lookup(self.row, self.columns.images)]))
            return mapped or tuple(image_sources(self.found_images))
        inside = tuple(image_sources(self.found_images))
        if inside:
            return inside
        for own in SHARED_NAMES["images"]:
            if own not in self.used and own not in self.claimed and not absent(self.row.get(own)):
                self.used.add(own)
                return tuple(image_sources([self.row[own]]))
        return ()

    def left(self) -> Row:
        return remainder(self.row, sorted(self.used))

    def _entry(self, entry: str | bool | None) -> object:
        if not isinstance(entry, str):
            return entry
        self.used.add(entry)
        return lookup(self.row, entry)

    def _spread(self, value: object, name: str, count: int) -> list[object] | None:
        """Return the value as one entry per candidate, or None if it is not such a list."""
        if not isinstance(value, list) or len(value) != count:
            return None
        # A list of texts is the steps of one candidate; only a list of lists has the steps of several.
        if name == "steps" and not all(item is None or isinstance(item, list) for item in value):
            return None
        return list(value)


def _labelled(left: Row, label: Mapping[str, object]) -> Row:
    """Add labels to a row's other fields; where a field has the name of a label, the label gets an underscore."""
    found = dict(left)
    for name, value in label.items():
        while name in found:
            name = f"_{name}"  # noqa: PLW2901 - the name that is free
        found[name] = value
    return found


def _or(value: object, other: object) -> object:
    return other if value is MISSING else value


def _response(candidate: Candidate, reasoning: object, steps: tuple[str, ...] | None, corpus: Corpus) -> str:
    value = candidate.response
    if isinstance(value, Refused):
        raise value
    if candidate.calls:
        said = "" if absent(value) else text(value, "response")
        value = "\n".join([*([said] if said.strip() else []), *map(corpus.call_text, candidate.calls)])
    if not absent(reasoning):
        value = _with_reasoning(value, reasoning, corpus.reasoning)
    if candidate.odd_calls and (absent(value) or not str(value).strip()):
        raise Refused(
            "wrong_type", "the response has only tool calls, of an unknown shape: each needs a name and arguments."
        )
    if absent(value) or (isinstance(value, str) and not value.strip() and steps):
        if steps is None:
            raise Refused("missing_response", candidate.missing)
        return "\n".join(steps)
    response = text(value, "response")
    if not response.strip():
        raise Refused("empty_response", "the response is blank. Remove the row or map another field.")
    if steps is not None and locate_steps(response, steps) is None:
        raise Refused(
            "steps_not_in_response",
            "the steps must occur in the response verbatim and in order. Correct them, or omit them.",
        )
    return response


def _with_reasoning(value: object, reasoning: object, template: str) -> object:
    """Return reasoning and response as one text; the response alone if it holds the reasoning already."""
    texts = reasoning if isinstance(reasoning, list) else [reasoning]
    thought = "\n\n".join(text(one, "reasoning").strip() for one in texts).strip()
    said = "" if absent(value) else text(value, "response").strip()
    before, _, rest = template.partition("{reasoning}")
    between, _, after = rest.partition("{answer}")
    opening, closing = before.strip(), between.strip()
    # A short thought may occur in the answer by chance.
    held = thought in said and (len(thought) >= LONG_THOUGHT or said.startswith((thought, opening or thought)))
    if not thought or held:
        return value
    if opening and thought.startswith(opening):
        # The tags are there already, but for one that is left open.
        closed = f"{thought}\n{closing}" if closing and closing not in thought else thought
        return f"{closed}\n\n{said}".rstrip()
    return f"{before}{thought}{between}{said}{after}".rstrip()


def _fits(name: str, value: object) -> bool:
    """Return whether a value under a shared name has the type that this name usually holds."""
    if name in ("source", "domain", "generator"):
        return isinstance(value, str) and bool(value.strip())
    if name == "correct":
        return isinstance(value, bool)
    if name == "reward":
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if name == "steps":
        return isinstance(value, list) and bool(value) and all(isinstance(step, str) for step in value)
    return is_short_answer(value)
