"""Chat templates of strangers, rendered in a process of its own: one may loop for years, or fill the memory."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from typing import Any, cast

from rankwright.common.bounded import OutOfBounds, Refusal, run_bounded
from rankwright.common.errors import UserError

SECONDS = 10
# As transformers renders them: sandboxed, with these settings and functions; see its utils/chat_template_utils.py.
RENDER = """
import datetime, json
import jinja2, jinja2.ext, jinja2.sandbox
class Generation(jinja2.ext.Extension):
    tags = {"generation"}
    def parse(self, parser):
        line = next(parser.stream).lineno
        return jinja2.nodes.Scope(parser.parse_statements(["name:endgeneration"], drop_needle=True), lineno=line)
def raise_exception(message):
    raise jinja2.TemplateError(message)
def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
def ask(asked):
    source, values = json.loads(asked)
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return environment.from_string(source).render(**values)
"""


def rendered(tokenizer: Any, messages: Sequence[dict[str, str]], *, ends_with_answer: bool = False) -> str | None:
    """The text that the tokenizer's chat template makes of messages.

    None without a template, and for one that refuses them: it is for another task, with other roles. Raises UserError
    for a template that takes too long or too much memory.
    """
    if not tokenizer.chat_template:
        return None
    try:
        source = tokenizer.get_chat_template()
    except ValueError:
        # Several, and none is the default.
        return None
    special = {name: text for name, text in tokenizer.special_tokens_map.items() if isinstance(text, str)}
    values = {"messages": list(messages), "add_generation_prompt": ends_with_answer, "tools": None, "documents": None}
    return _rendered(json.dumps([source, {**special, **values}]))


@functools.lru_cache(maxsize=64)
def _rendered(asked: str) -> str | None:
    try:
        return cast(str, run_bounded(RENDER, asked, seconds=SECONDS))
    except Refusal:
        return None
    except OutOfBounds:
        raise UserError(
            "model.base: the chat template of its tokenizer cannot be rendered: it takes too long or too much memory: "
            "take another base, or remove chat_template.jinja and chat_template of tokenizer_config.json"
        ) from None
