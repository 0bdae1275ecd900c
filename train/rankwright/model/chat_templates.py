"""Chat templates of strangers, rendered in a process of its own: one may loop for years, or fill the memory."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any, cast

from rankwright.common.errors import UserError

SECONDS = 10
# As transformers renders them: sandboxed, with these settings and functions; see its utils/chat_template_utils.py.
# Ends with 3 where the template refuses its input. At most a gigabyte of memory, where the system can bound it.
RENDER = """
import datetime, json, sys
import jinja2, jinja2.ext, jinja2.sandbox
try:
    import resource
    resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))
except (ImportError, ValueError, OSError):
    pass
class Generation(jinja2.ext.Extension):
    tags = {"generation"}
    def parse(self, parser):
        line = next(parser.stream).lineno
        return jinja2.nodes.Scope(parser.parse_statements(["name:endgeneration"], drop_needle=True), lineno=line)
def raise_exception(message):
    raise jinja2.TemplateError(message)
def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
source, values = json.load(sys.stdin)
environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
)
environment.filters["tojson"] = tojson
environment.globals["raise_exception"] = raise_exception
environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
try:
    text = environment.from_string(source).render(**values)
except MemoryError:
    sys.exit(4)
except Exception:
    sys.exit(3)
sys.stdout.write(json.dumps(text))
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
    # -P: nothing of the working directory is imported.
    command = [sys.executable, "-P", "-c", RENDER]
    try:
        done = subprocess.run(command, input=asked, capture_output=True, text=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        done = None
    if done is not None and done.returncode == 3:
        return None
    if done is None or done.returncode:
        raise UserError(
            "model.base: the chat template of its tokenizer cannot be rendered: it takes too long or too much memory: "
            "take another base, or remove chat_template.jinja and chat_template of tokenizer_config.json"
        )
    return cast(str, json.loads(done.stdout))
