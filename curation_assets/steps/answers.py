"""Find the answer that a response states.

Markers are tried in this order (docs/methods.md, "GRACE"); the first that yields an answer wins:
1. `field`: the row's explicit answer. Its last occurrence counts, as a whole word, and only if nothing but
   punctuation, markup and tags follows it. A label, `####` or `\\boxed{` right before it is its marker.
2. `dagger`: the last `†Answer:`.
3. `label`: the last of `Final Answer`, `Answer:` or `A:`, of their counterparts in other languages, or of a phrase.
   `Final Answer` needs a colon or the end of its line after it, `Answer` a colon or a heading or bold line of its own;
   `A:` must be at the start of a line ("Plan A: go" is no answer) and must not be followed by a line that starts with
   `B:` (a list of options). Other languages: `答案：`, `答え：`, `정답:`, `الجواب:`, `उत्तर:`, `คำตอบ:`, `Réponse :` and
   the like. A phrase is `the answer is`, `the correct option is` and its like (`答案是`, `答えは`), with or without a
   colon; its answer ends with the sentence, or before `because`, `since` or `which`. It does not count if a `####` or
   box follows it. Without a colon it counts only if its answer is short (PHRASE_WORDS words, or FORMULA_WORDS with
   digits or formulas) and does not begin like another statement (`in the next section`), if no digit and at most
   CLOSING_WORDS words follow, and, where it states neither digit nor formula, if no `####` or box precedes it. Labels
   inside a fenced code block that is followed by more text do not count.
4. `think`: everything after the end of the last thought: `</think>`, `</thinking>`, `</thought>`, `</seed:think>`,
   `[/THINK]`, or the start of harmony's channel `final`.
5. `hashes`: the text after the last `####`, if that is the last line with content (a level-four heading is followed by
   text).
6. `boxed`: the content of the last `\\boxed{}` or `\\fbox{}`, with balanced braces (one that never closes is no
   answer), or the word after a `\\boxed` without braces.
Markers 2 and 3 are searched for in the final part only: after the end of the last thought and inside the last
`<|begin_of_solution|>` block, if there is one. A solution block is OpenThoughts' counterpart of the text after
`</think>`, but it is a worked solution rather than an answer. Therefore its `####` and `\\boxed{}` are tried after the
labels, and only then the block as a whole (`solution`); all of this comes before marker 4. A label's answer is the rest
of its line or, if that is empty, the next paragraph. The span excludes white space, emphasis (`**`, backticks) and tags
at both ends; if all of it is one `\\boxed{}`, it is the content of the box. A marker without text behind it gives no
answer, and the next one is tried. The span never includes the marker itself; `marker_start` is where the marker begins,
including markup and words such as `so the final` before it, and is where the steps end.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

from curation_assets.steps.cutting import SENTENCE_END, code_blocks, count_words, ends_sentence, outside_blocks

# Tags that delimit parts of a response. They belong to no step and to no answer.
TAGS = re.compile(
    r"<(?:/?(?:think|thinking|thought|seed:think|answer|output)>"
    r"|\|(?:start\|>assistant<\|)?channel\|>\w{1,20}(?:<\|message\|>)?"
    r"|\|(?:(?:begin|end)_of_(?:thought|solution)|end|return|message|start)\|>)|\[/?THINK\]"
)

_THINK_END = re.compile(r"</(?:think|thinking|thought|seed:think)>|\[/THINK\]|<\|channel\|>final<\|message\|>")
_SOLUTION = "<|begin_of_solution|>"
_SOLUTION_END = "<|end_of_solution|>"
_EDGE_TAG_START = re.compile(r"(?:</?[a-zA-Z][\w:]{0,19}>|<\|\w{1,30}\|>)")
_EDGE_TAG_END = re.compile(r"(?:</?[a-zA-Z][\w:]{0,19}>|<\|\w{1,30}\|>)\Z")
_LONGEST_TAG = 34
_EMPHASIS = "*`"
_OPENING = " \t*_#>`$([{\\"
# Each pattern begins with a distinctive letter or sign, so that a search takes linear time on any text.
_DAGGER = re.compile(r"†[ \t]*Answer[*_`]*[ \t]*[:\uff1a]", re.IGNORECASE)
_LABEL = re.compile(
    r"\bFinal[ \t]+Answer[*_`]*[ \t]*(?:[:\uff1a]|\r?$)"
    r"|\b(?:Answer|Respuesta|Resposta|Risposta|Antwort)[*_`]*[ \t]*[:\uff1a]"
    r"|^[ \t]*(?:#{1,6}[ \t]*+(?:\*\*)?|\*\*|__)Answer[*_]*[ \t]*\r?$",
    re.IGNORECASE | re.MULTILINE,
)
_PHRASE = re.compile(
    r"\b(?:answer|(?<=correct )(?:option|choice)|(?<=best )(?:option|choice))[ \t]+(?:is(?:[ \t]*=)?|=)"
    r"(?:[ \t]+(?:therefore|thus|then|simply|just))?[ \t]*+([:\uff1a]?)",
    re.IGNORECASE,
)
# What precedes a phrase or a label belongs to it. It is searched for at its end, since most texts have no phrase.
_LEAD = re.compile(
    r"(?:\b(?:so|thus|hence|therefore),?[ \t]+)?(?:\b(?:the|my|our)[ \t]+)?(?:\b(?:final|correct|right|best)[ \t]+)?\Z"
    r"|(?:\b(?:la|die|a)[ \t]+)?\Z"
    r"|(?:所以|因此|故|综上|したがって|よって|ดังนั้น|따라서)?[\uff0c,\u3001 \t]*"
    r"(?:(?:正确|正確|最终|最終|最后|最後)(?:的な|的|の)?|최종[ \t]*)?\Z",
    re.IGNORECASE,
)
_LONGEST_LEAD = 40
_EMPHASIS_AND_HEADS = "*_#>`"
_LABEL_ABROAD = re.compile(
    r"(?:答案|答え|回答|정답|الجواب|الإجابة|उत्तर|คำตอบ|Ответ|Réponse)"
    r"[*_`]*[ \t]*[:\uff1a]|^[ \t*_#>`]*(?:答|답)[*_`]*[ \t]*[:\uff1a]",
    re.MULTILINE,
)
_PHRASE_ABROAD = re.compile(
    r"(?:(?:答案|答え|正解|정답)[ \t]*(?:应该|應該|应|應)?(?:是|为|為|は|은)|คำตอบ(?:คือ|เป็น))[ \t]*+([:\uff1a]?)"
)
_COPULA = re.compile(r"(?:です|である|になります|となります|입니다|이다)\Z")
_LAST_SIGNS = re.compile(r"[.!?\u3002\uff01\uff1f\uff61\u0964\u061f]+[*_`\"')\u201d\u2019\s]*\Z")
_REASON = re.compile(r",?[ \t]+(?:because|since|which)\b", re.IGNORECASE)
NO_ANSWERS = frozenset(
    {
        "not",
        "in",
        "on",
        "at",
        "to",
        "that",
        "this",
        "correct",
        "right",
        "wrong",
        "reasonable",
        "exact",
        "clear",
        "obvious",
    }
    | {"unclear", "unknown", "given", "found", "as", "because", "also", "based", "simply", "now"}
)
"""First words of what follows `the answer is` in a sentence that states no answer."""
PHRASE_WORDS, FORMULA_WORDS = 5, 12
"""Words after `the answer is` without a colon: of a text, and of one with digits or formulas."""

CLOSING_WORDS = 40
"""Words that may follow the sentence of such a phrase."""

LAST_PHRASES = 3
"""Number of phrases to try, from the end: more would take a long text quadratic time."""

_NO_TEXT = " \t\r\n`~.*_"
_LETTER = re.compile(r"^[ \t*_#>`]*A[*_`]*[ \t]*[:\uff1a]", re.MULTILINE)
_OPTION_B = re.compile(r"^[ \t*_#>`]*B[*_`]*[ \t]*[:\uff1a]", re.MULTILINE)
_HASHES = re.compile(r"(?<!#)####(?!#)")
# Without braces, only what cannot be the next word of a sentence: a number, or a letter that ends a formula.
_BOXED = re.compile(r"\\(?:boxed|fbox)[ \t]*(?:\{|([-+]?\d+(?:[.,/]\d+)*)|(?<=[ \t])([A-Za-z])(?=[ \t]*[$.,)\\\n]|\Z))")
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
    thought = _last(_THINK_END, response, 0, len(response))
    thought_end, final = thought.span() if thought else (-1, 0)
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
    before, earlier = response[start - 1], response[start - 2 : start - 1]
    inside = before in ".,_/^" and earlier.isalnum()
    # -5 is another number than 5, and the 2 of \\frac{1}{2} is none; 7-5 is a difference.
    negative = before in "-\u2212" and said[0].isdigit() and not earlier.isalnum()
    in_fraction = before == "{" and earlier in ("}", "^", "_")
    return not (before.isalnum() or inside or negative or in_fraction)


def _dagger(response: str, start: int, end: int) -> Answer | None:
    last = _last(_DAGGER, response, start, end)
    return None if last is None else _labelled(response, last, end, "dagger")


def _label(response: str, start: int, end: int) -> Answer | None:
    patterns = (_LABEL, _LETTER, _PHRASE, *(() if response.isascii() else (_LABEL_ABROAD, _PHRASE_ABROAD)))
    text_end = len(response[:end].rstrip(_NO_TEXT))
    blocks = [block for block in code_blocks(response) if block[1] < text_end]
    found: list[re.Match[str]] = []
    for pattern in patterns:
        matches = list(pattern.finditer(response, start, end))
        outside = set(outside_blocks([match.start() for match in matches], blocks))
        matches = [match for match in matches if match.start() in outside]
        if pattern is _LETTER and matches and _OPTION_B.search(response, matches[-1].end(), end):
            continue
        if pattern in (_PHRASE, _PHRASE_ABROAD):
            matches = [match for match in matches[-LAST_PHRASES:] if _phrase(response, match, end) is not None]
        found += matches[-1:]
    last = max(found, key=lambda match: match.end(), default=None)
    if last is None:
        return None
    phrase = last.re in (_PHRASE, _PHRASE_ABROAD)
    answer = _phrase(response, last, end) if phrase else _labelled(response, last, end, "label")
    # MetaMath states the answer twice: `#### 12`, and on the next line `The answer is: 12`.
    hashes = answer and _last(_HASHES, response, start, answer.marker_start)
    if answer is None or hashes is None or "\n" in response[hashes.end() : answer.marker_start].strip():
        return answer
    return answer._replace(marker_start=hashes.start())


def _phrase(response: str, match: re.Match[str], end: int) -> Answer | None:
    """Return the answer of a phrase such as `the answer is`; None if what follows it is none."""
    marker_start = _with_lead(response, match.start())
    line_end = response.find("\n", match.end(), end)
    line_end = end if line_end < 0 else line_end
    colon = any(match.groups())
    if colon and not response[match.end() : line_end].strip():
        below = _labelled(response, match, end, "label")
        return below and below._replace(marker_start=marker_start)
    stop, sentence_end = _end_of_phrase(response, match.end(), line_end)
    answer = _unboxed(response, _trimmed(response, match.end(), stop, marker_start, "label"))
    if answer is None:
        return None
    said, after = response[answer.start : answer.end], response[sentence_end:end]
    box = _BOXED.search(response, match.end(), end)
    if (box and answer.start < box.end()) or _HASHES.search(response, stop, end):
        return None
    if colon:
        return answer
    formal = any(character.isdigit() or character in "$\\" for character in said)
    first = said.split(maxsplit=1)[0].lower() if said else ""
    if count_words(said) > (FORMULA_WORDS if formal else PHRASE_WORDS) or first in NO_ANSWERS:
        return None
    # A thought may go on and correct itself, and a box before the phrase is the answer if the phrase states none.
    goes_on = any(character.isdigit() for character in after) or count_words(after) > CLOSING_WORDS
    stated = not formal and (_BOXED.search(response, 0, match.start()) or _HASHES.search(response, 0, match.start()))
    return None if goes_on or stated else answer


def _end_of_phrase(response: str, start: int, line_end: int) -> tuple[int, int]:
    """Return where the answer of a phrase ends (with its sentence or line, before a reason or a copula) and where the
    sentence does."""
    ends = (sign for sign in SENTENCE_END.finditer(response, start, line_end) if ends_sentence(response, sign, start))
    sentence = next(ends, None)
    stop = sentence.start() if sentence else line_end
    last = _LAST_SIGNS.search(response[start:stop])
    stop = start + last.start() if last else stop
    reason = _REASON.search(response, start, stop)
    stop = reason.start() if reason else stop
    copula = _COPULA.search(response, start, stop)
    return copula.start() if copula else stop, sentence.end() if sentence else line_end


def _labelled(response: str, match: re.Match[str], end: int, name: str) -> Answer | None:
    marker_start = _with_lead(response, match.start())
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
    if last.lastindex is not None:
        # TeX boxes only the next sign; whoever writes so means the whole number.
        return _trimmed(response, *last.span(last.lastindex), _back_over(response, last.start(), _OPENING), "boxed")
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


def _with_lead(response: str, start: int) -> int:
    """Move the start of a marker back over markup, and over words such as `so the final` that belong to it."""
    end = _back_over(response, start, _EMPHASIS_AND_HEADS)
    lead = _LEAD.search(response, max(0, end - _LONGEST_LEAD), end)
    return _back_over(response, lead.start() if lead else end, f" \t{_EMPHASIS_AND_HEADS}")


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
