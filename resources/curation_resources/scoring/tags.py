"""Tags that chat templates write around the reasoning in the assistant's turn. Free of torch."""

from __future__ import annotations

import re

# Possessive matching starts at the beginning of white space, because restarting at each character would make long runs
# quadratic. White space after a previous tag already belongs to that match.
TAGS = re.compile(r"(?<!\s)\s*+</?think>\s*+|</?think>\s*+")
"""Matches the tags that a chat template may write around the reasoning in the assistant's turn."""

OPENED_THOUGHT = re.compile(r"(<think>|<thinking>|<thought>|<seed:think>|\[THINK\])\s*\Z")
"""Matches a tag at the end of a rendered prompt that opens the response's thought."""
