"""Control tokens in texts of users: what a tokenizer would read as one is broken by a space."""

from __future__ import annotations

import functools
import re
from typing import Any


@functools.lru_cache(maxsize=8)
def _control_pattern(tokens: tuple[str, ...]) -> re.Pattern[str] | None:
    return re.compile("|".join(re.escape(t) for t in tokens)) if tokens else None


def control_tokens(tokenizer: Any) -> tuple[str, ...]:
    """Texts that this tokenizer would read as control tokens, longest first.

    Runs of white space that some tokenizers add to their vocabulary are ordinary text and not among them.
    """
    found = {
        token.content
        for token in tokenizer.added_tokens_decoder.values()
        if len(token.content) > 1 and (token.special or re.fullmatch(r"<[^\s<>]+>", token.content))
    }
    return tuple(sorted(found, key=lambda t: (-len(t), t)))


def neutralise(text: str, tokens: tuple[str, ...]) -> str:
    """Break every control token in user text by a space after its first character: `<|im_end|>` -> `< |im_end|>`."""
    pattern = _control_pattern(tokens)
    while pattern is not None and pattern.search(text):
        text = pattern.sub(lambda match: f"{match[0][0]} {match[0][1:]}", text)
    return text
