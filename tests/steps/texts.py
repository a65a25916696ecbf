"""Frames of `raw_corpus` as far as segmentation looks at them, and texts of pieces that its rules are about."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl
from hypothesis import strategies as st

Row = tuple[str, list[str] | None, str | None]

MARKS = ["<think>", "</think>", "<answer>", "</answer>", "<b>", "</b1>", "<|im_end|>", "<|", "|>", "<", "</", ">"]
MARKS += ["<|begin_of_thought|>", "<|end_of_thought|>", "<|begin_of_solution|>", "<|end_of_solution|>", "swap"]
ANSWERS = [
    "Answer: ",
    "ANSWER:",
    "\nAnswer\n\n",
    "A:",
    "\nA:",
    "\nB:",
    "†Answer:",
    "†answer\uff1a",
    "Final Answer",
    "4",
]
ANSWERS += ["final  ANSWER\n", "**Final Answer:** ", "####", "#####", "###", "\n#### ", "\\boxed{4}", "\\boxed{", "4 4"]
ANSWERS += ["\\boxed  {", "}", "{", "\\", "\\\\", "\\{", "\\}", "**", "*", "`", "_", "$", "(", "[", "/", "\uff1a", "42"]
STEPS = ["Step 1:", "\nStep 2:", "\n1. ", "\n2) ", ". Step 3 \u2013", "\n**Step 4**", "## Step 5", "Step 6", "steps 7:"]
STEPS += ["STEP 8)", "\nStep 12345:", "step12:", "    1. x", "   3) y", "**1.** x", "**2.** ", "1234. ", "- ", "1.5"]
SENTENCES = [
    ". ",
    "? ",
    "!",
    "...",
    "..",
    ".",
    "?!",
    "\u3002",
    "\uff01",
    "\uff1f",
    "\u300d",
    "\u201d",
    "\u2019",
    '"',
    "'",
]
SENTENCES += [
    ")",
    "]",
    "Mr.",
    "Dr. ",
    "No. ",
    "nos.",
    "e.g. ",
    "i.e.",
    "J.",
    "U.S. ",
    "a b c d",
    "Word",
    "x",
    "y z",
    "1",
]
SPACES = [
    "\n",
    "\n\n",
    " ",
    "  ",
    "\t",
    "\r\n",
    "\r",
    "\n \n",
    "\n\t\r\n",
    "\xa0",
    "\u2003",
    "\u2028",
    "\x85",
    "\v",
    "\f",
]
SPACES += ["\x1c", "\x1d", "\x1e", "\x1f", "\n", " ", "\n", " "]
SIGNS = ["\0", "\u00b2", "\u0663", "\u2167", "\u00bd", "\u00e9", "\u00c9", "\u01c5", "\u24b6", "\u0345", "\u65e5\u672c"]
SIGNS += ["\U0001f389", "e\u0301", "\u0301", "\u212a", "\u1d00"]
SIGNS += ["\u017ftep 1:", "F\u0131nal Answer:", "an\u017fwer:", "\u0130.e. ", "f\u0130nal answer\n"]
# Runs that are too long for slices, which leave these rows to be cut one by one.
ODD = [sign * 250 for sign in ("x", " ", ".", "=", "{", "\n", "*", "#", "\\", "{}", "\t", "!", "\u3002", "7", "-")]

_PIECES = MARKS + ANSWERS + STEPS + SENTENCES + SPACES + SIGNS
_SOME = st.lists(st.sampled_from(_PIECES), min_size=3, max_size=10, unique=True)
TEXTS = st.one_of(
    st.lists(st.sampled_from(_PIECES), max_size=40).map("".join),
    # Few different pieces make runs of them, and marks inside marks.
    _SOME.flatmap(lambda some: st.lists(st.sampled_from(some), max_size=40)).map("".join),
    st.lists(st.sampled_from(_PIECES + ODD), max_size=20).map("".join),
    st.text(max_size=60),
)
FIELDS = [
    "4",
    "42",
    "Word",
    "x",
    ".",
    " ",
    "**",
    "",
    "a b c d",
    "\\boxed{4}",
    "}",
    "\u65e5\u672c",
    "think",
    "Answer:",
    ">",
]


@st.composite
def rows(draw: st.DrawFn) -> Row:
    """A response; its steps, if any, as pieces of it or as what it is made of; an answer, said or not."""
    field = draw(st.none() | st.sampled_from(FIELDS))
    listed = draw(st.integers(0, 3))
    if listed < 2:
        return draw(TEXTS), None, field
    if listed == 2:
        steps = draw(st.lists(TEXTS, max_size=4))
        return draw(st.sampled_from(["\n", "\n\n", " ", "", "."])).join(steps) + draw(TEXTS), steps, field
    text = draw(TEXTS)
    bounds = sorted(draw(st.lists(st.integers(0, len(text)), max_size=8)))
    return text, [text[low:high] for low, high in zip(bounds[::2], bounds[1::2], strict=False)], field


def frame(given: Sequence[Row]) -> pl.DataFrame:
    """A frame with the columns that `segment_frame` needs."""
    made = [(f"{number:08d}", *row) for number, row in enumerate(given)]
    columns = [
        ("sample_id", pl.String()),
        ("response", pl.String()),
        ("steps", pl.List(pl.String)),
        ("answer", pl.String()),
    ]
    return pl.DataFrame(made, columns, orient="row")
