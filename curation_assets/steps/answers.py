"""Find the answer that a response states.

Markers are tried in this order (docs/methods.md, "GRACE"); the first that yields an answer wins:
1. `field`: the row's explicit answer. Its last occurrence counts, as a whole word, and only if nothing but
   punctuation, markup and tags follows it. A label, `####` or `\\boxed{` right before it is its marker.
2. `dagger`: the last `†Answer:`.
3. `label`: the last of `Final Answer`, `Answer:` or `A:`. `Final Answer` needs a colon or the end of its line after
   it, the others a colon; `A:` must be at the start of a line ("Plan A: go" is no answer) and must not be followed by
   a line that starts with `B:` (a list of options).
4. `think`: everything after the last `</think>`.
5. `hashes`: the text after the last `####`, if that is the last line with content (a level-four heading is followed by
   text).
6. `boxed`: the content of the last `\\boxed{}`, with balanced braces; one that never closes is no answer.
Markers 2 and 3 are searched for in the final part only: after the last `</think>` and inside the last
`<|begin_of_solution|>` block, if there is one. A solution block is OpenThoughts' counterpart of the text after
`</think>`, but it is a worked solution rather than an answer. Therefore its `####` and `\\boxed{}` are tried after the
labels, and only then the block as a whole (`solution`); all of this comes before marker 4. A label's answer is the rest
of its line or, if that is empty, the next paragraph. The span excludes white space, emphasis (`**`, backticks) and tags
at both ends; if all of it is one `\\boxed{}`, it is the content of the box. A marker without text behind it gives no
answer, and the next one is tried. The span never includes the marker itself; `marker_start` is where the marker begins,
including markup before it, and is where the steps end.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

# Tags that delimit parts of a response. They belong to no step and to no answer.
TAGS = re.compile(r"</?think>|<\|(?:begin|end)_of_(?:thought|solution)\|>|</?answer>")

_THINK_END = "</think>"
_SOLUTION = "<|begin_of_solution|>"
_SOLUTION_END = "<|end_of_solution|>"
_EDGE_TAG_START = re.compile(r"(?:</?[a-zA-Z]\w{0,19}>|<\|\w{1,30}\|>)")
_EDGE_TAG_END = re.compile(r"(?:</?[a-zA-Z]\w{0,19}>|<\|\w{1,30}\|>)\Z")
_LONGEST_TAG = 34
_EMPHASIS = "*`"
_OPENING = " \t*_#>`$([{\\"
# Each pattern begins with a distinctive letter or sign, so that a search takes linear time on any text.
_DAGGER = re.compile(r"†[ \t]*Answer[*_`]*[ \t]*[:\uff1a]", re.IGNORECASE)
_LABEL = re.compile(
    r"\bFinal[ \t]+Answer[*_`]*[ \t]*(?:[:\uff1a]|\r?$)|\bAnswer[*_`]*[ \t]*[:\uff1a]",
    re.IGNORECASE | re.MULTILINE,
)
_LETTER = re.compile(r"^[ \t*_#>`]*A[*_`]*[ \t]*[:\uff1a]", re.MULTILINE)
_OPTION_B = re.compile(r"^[ \t*_#>`]*B[*_`]*[ \t]*[:\uff1a]", re.MULTILINE)
_HASHES = re.compile(r"(?<!#)####(?!#)")
_BOXED = re.compile(r"\\boxed[ \t]*\{")
_BLANK_LINE = re.compile(r"\n[ \t\r]*\n")


class Answer(NamedTuple):
    """The span [start, end) of the answer in characters, the start of its marker, and the marker's name."""

    start: int
    end: int
    marker_start: int
    marker: str


Finder = Callable[[str, int, int], Answer | None]


def find_answer(response: str, answer_field: str | None = None) -> Answer | None:
    """Return the answer of a response, or None if no marker yields one; see the head of this module for the rules."""
    if answer_field is not None:
        answer = _by_field(response, answer_field.strip())
        if answer is not None:
            return answer
    return next((answer for answer in _by_markers(response) if answer is not None), None)


def _by_markers(response: str) -> Iterator[Answer | None]:
    thought_end = response.rfind(_THINK_END)
    final = thought_end + len(_THINK_END) if thought_end >= 0 else 0
    solution = response.find(_SOLUTION, final) if thought_end >= 0 else response.rfind(_SOLUTION)
    end = len(response)
    inside = final
    if solution >= 0:
        inside = solution + len(_SOLUTION)
        closed = response.find(_SOLUTION_END, inside)
        end = closed if closed >= 0 else end
    yield _dagger(response, inside, end)
    yield _label(response, inside, end)
    if solution >= 0:
        yield _hashes(response, inside, end)
        yield _boxed(response, inside, end)
        yield _unboxed(response, _trimmed(response, inside, end, solution, "solution"))
    if thought_end >= 0:
        yield _unboxed(response, _trimmed(response, final, len(response), thought_end, "think"))
    yield _hashes(response, 0, len(response))
    yield _boxed(response, 0, len(response))


def _by_field(response: str, said: str) -> Answer | None:
    if not said:
        return None
    start = response.rfind(said)
    if start < 0 or not _whole_word(response, start, said):
        return None
    end = start + len(said)
    # Remove tags first: their names are words, which must not follow.
    if any(character.isalnum() for character in _EDGE_TAG_START.sub("", response[end:])):
        return None
    for finder in (_dagger, _label, _hashes, _boxed):
        around = finder(response, 0, len(response))
        if around is None or not around.marker_start < start or not around.start <= start < around.end:
            continue
        # Words between a label and the answer form a step; a marker further up does not belong to this answer.
        if finder is _boxed or not any(character.isalnum() for character in response[around.start : start]):
            return Answer(start, end, around.marker_start, "field")
    marker_start = _back_over(response, start, _OPENING)
    return Answer(start, end, marker_start, "field")


def _whole_word(response: str, start: int, said: str) -> bool:
    """Return whether the answer does not begin inside a word or a number: 7 in 17, 5 in 3.5, 9 in 40_9."""
    if start == 0 or not said[0].isalnum():
        return True
    before = response[start - 1]
    inside = before in ".,_" and start >= 2 and response[start - 2].isalnum()
    return not (before.isalnum() or inside)


def _dagger(response: str, start: int, end: int) -> Answer | None:
    last = _last(_DAGGER, response, start, end)
    return None if last is None else _labelled(response, last, end, "dagger")


def _label(response: str, start: int, end: int) -> Answer | None:
    found = [_last(_LABEL, response, start, end), _last(_LETTER, response, start, end)]
    letter = found[1]
    if letter is not None and _OPTION_B.search(response, letter.end(), end):
        found[1] = None
    last = max((match for match in found if match is not None), key=lambda match: match.end(), default=None)
    return None if last is None else _labelled(response, last, end, "label")


def _labelled(response: str, match: re.Match[str], end: int, name: str) -> Answer | None:
    marker_start = _back_over(response, match.start(), " \t*_#>`")
    line_end = response.find("\n", match.end(), end)
    answer = _trimmed(response, match.end(), end if line_end < 0 else line_end, marker_start, name)
    if answer is not None or line_end < 0:
        return _unboxed(response, answer)
    start = line_end
    while start < end and response[start].isspace():
        start += 1
    blank = _BLANK_LINE.search(response, start, end)
    return _unboxed(response, _trimmed(response, start, blank.start() if blank else end, marker_start, name))


def _hashes(response: str, start: int, end: int) -> Answer | None:
    last = _last(_HASHES, response, start, end)
    if last is None:
        return None
    line_end = response.find("\n", last.end(), end)
    line_end = end if line_end < 0 else line_end
    if any(character.isalnum() for character in _EDGE_TAG_START.sub("", response[line_end:end])):
        return None
    return _trimmed(response, last.end(), line_end, last.start(), "hashes")


def _boxed(response: str, start: int, end: int) -> Answer | None:
    last = _last(_BOXED, response, start, end)
    if last is None:
        return None
    depth = 1
    position = last.end()
    while position < end:
        character = response[position]
        if character == "\\":
            position += 2  # \{ and \} are text, not braces
            continue
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return _trimmed(response, last.end(), position, _back_over(response, last.start(), _OPENING), "boxed")
        position += 1
    return None


def _unboxed(response: str, answer: Answer | None) -> Answer | None:
    """Return the content of the box, if the answer is one box surrounded by signs only, such as `$` and a full stop."""
    if answer is None:
        return None
    box = _boxed(response, answer.start, answer.end)
    if box is None:
        return answer
    around = response[answer.start : box.marker_start] + response[box.end : answer.end]
    if any(character.isalnum() for character in around):
        return answer
    return Answer(box.start, box.end, answer.marker_start, answer.marker)


def _last(pattern: re.Pattern[str], response: str, start: int, end: int) -> re.Match[str] | None:
    last = None
    for last in pattern.finditer(response, start, end):  # noqa: B007 - the last one is what is wanted
        pass
    return last


def _back_over(response: str, start: int, characters: str) -> int:
    """Move the start back over markup, but not into a tag, whose end may look like a quote mark."""
    while start > 0 and response[start - 1] in characters:
        if response[start - 1] == ">" and _tag_before(response, start) < start:
            break
        start -= 1
    return start


def _tag_before(response: str, end: int, start: int = 0) -> int:
    """Return the start of the tag that ends here; `end` itself if there is none."""
    # Searching further back than the longest tag would waste time.
    tag = _EDGE_TAG_END.search(response, max(start, end - _LONGEST_TAG), end)
    return tag.start() if tag else end


def _trimmed(response: str, start: int, end: int, marker_start: int, name: str) -> Answer | None:
    """Return the span without white space, emphasis and tags at its ends; None if nothing is left."""
    while True:
        before = (start, end)
        while start < end and (response[start].isspace() or response[start] in _EMPHASIS):
            start += 1
        while end > start and (response[end - 1].isspace() or response[end - 1] in _EMPHASIS):
            end -= 1
        head = _EDGE_TAG_START.match(response, start, end)
        start = head.end() if head else start
        end = _tag_before(response, end, start)
        if before == (start, end):
            return Answer(start, end, marker_start, name) if start < end else None
