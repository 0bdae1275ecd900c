"""Chat templates of bases are programs of strangers: what they render is read, what does not end is left alone."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest

from rankwright.model.bases import find_origin
from rankwright.model.loading import load_tokenizer

HOSTILE_TEMPLATES = [
    "{% for a in range(99999) %}{% for b in range(99999) %}{{ a * b }}{% endfor %}{% endfor %}",
    "{{ 9 ** 9 ** 9 }}",
    "{{ 'x' * 10 ** 11 }}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "{% set n = namespace(t='x') %}{% for i in range(99) %}{% set n.t = n.t ~ n.t %}{% endfor %}",
    "{{ '%99999999999d' % 1 }}",
    "{{ 1 / 0 }}",
]


@pytest.mark.parametrize("template", HOSTILE_TEMPLATES)
def test_a_template_that_does_not_end_is_not_that_of_a_reranker(
    template: str, tiny_qwen3: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The base is then read as the same base without a template, soon."""
    monkeypatch.setattr("rankwright.model.bases.RENDER_SECONDS", 1.0)
    folder = shutil.copytree(tiny_qwen3, tmp_path / "base")
    (folder / "chat_template.jinja").write_text(template)
    tokenizer = load_tokenizer(str(folder))
    assert tokenizer.chat_template == template
    start = time.monotonic()
    plain = find_origin("base", str(tiny_qwen3), load_tokenizer(str(tiny_qwen3)))
    assert find_origin("base", str(folder), tokenizer) == plain
    assert time.monotonic() - start < 30


def test_a_template_of_a_reranker_is_rendered(folders: dict[str, Path], tmp_path: Path) -> None:
    """The template of an export of ours, without the contract that also tells its frame."""
    folder = shutil.copytree(folders["qwen3-official"], tmp_path / "base")
    (folder / "rankwright.json").unlink()
    assert find_origin("base", str(folder), load_tokenizer(str(folder))).mode == "official"
