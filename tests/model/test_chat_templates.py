"""Chat templates of bases: rendered as transformers does, in bounded time; the begin-of-sequence token comes once."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from damage import edit_json

from rankwright.common.errors import UserError
from rankwright.model import chat_templates
from rankwright.model.chat_templates import rendered
from rankwright.model.loading import load_tokenizer
from rankwright.model.prompt import PromptEncoder, make_contract
from rankwright.rerankers.reranker import Reranker

MESSAGES = [{"role": "user", "content": "what is a bond? <é> 東京"}, {"role": "assistant", "content": "a loan"}]
CHATML = (
    "{% for m in messages %}\n    {{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}\n{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
WITH_BOS = "{{ bos_token }}" + CHATML
TEMPLATES = [
    CHATML,
    WITH_BOS,
    "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% break %}{% endfor %} \n",
    "{% macro f(x) %}<{{ x | trim }}>{% endmacro %}{{ f(messages[0].content) }}{{ messages | tojson(indent=1) }}",
    "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n, eos_token }}",
]
ENDLESS = {
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "a power": "{{ 10 ** (10 ** 10) }}",
    "memory": "{{ ('x' * 99999999) * 999 }}",
}


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("ends_with_answer", [False, True])
def test_texts_are_those_of_transformers(template: str, ends_with_answer: bool, tiny_llama: Path) -> None:
    tokenizer = load_tokenizer(str(tiny_llama))
    tokenizer.chat_template = template
    wanted = tokenizer.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=ends_with_answer)
    assert rendered(tokenizer, MESSAGES, ends_with_answer=ends_with_answer) == wanted


@pytest.mark.parametrize("template", ["{{ raise_exception('no') }}", "{{ messages[9].x.y }}", "{% for %}", None])
def test_a_template_of_another_task_gives_nothing(template: str | None, tiny_qwen3: Path) -> None:
    tokenizer = load_tokenizer(str(tiny_qwen3))
    tokenizer.chat_template = template
    assert rendered(tokenizer, MESSAGES) is None


def test_a_recursive_macro_gives_nothing(tiny_qwen3: Path) -> None:
    tokenizer = load_tokenizer(str(tiny_qwen3))
    tokenizer.chat_template = "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}"
    assert rendered(tokenizer, MESSAGES) is None


@pytest.mark.parametrize("name", ENDLESS)
def test_a_template_without_an_end_is_one_line(
    name: str, tiny_qwen3: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat_templates, "SECONDS", 1.0)
    folder = Path(shutil.copytree(tiny_qwen3, tmp_path / "base"))
    edit_json(folder / "tokenizer_config.json", chat_template=ENDLESS[name])
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    with pytest.raises(UserError, match="takes too long or too much memory") as caught:
        Reranker.load(str(folder))
    assert str(caught.value).isprintable()


BOS = "<|object_ref_start|>"


def ids_of(folder: Path, source: Path, template: str | None, **settings: Any) -> tuple[list[int], Any]:
    """Token ids of a prompt under a ChatML tokenizer with these settings, and the tokenizer."""
    shutil.copytree(source, folder)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    edit_json(folder / "tokenizer_config.json", chat_template=template, tokenizer_class="PreTrainedTokenizerFast")
    edit_json(folder / "tokenizer_config.json", **settings)
    tokenizer = load_tokenizer(str(folder))
    group = PromptEncoder(make_contract(tokenizer, mode="portable", max_tokens=160), tokenizer).encode("q", ["d"])
    return group.head_ids + group.tail_ids[0], tokenizer


def test_a_begin_of_sequence_token_stands_once_where_the_base_has_it(tiny_qwen3: Path, tmp_path: Path) -> None:
    plain, tokenizer = ids_of(tmp_path / "none", tiny_qwen3, CHATML)
    bos = tokenizer.convert_tokens_to_ids(BOS)
    assert bos not in plain
    found, _ = ids_of(tmp_path / "in the template", tiny_qwen3, WITH_BOS, bos_token=BOS)
    assert found == [bos, *plain]
    found, _ = ids_of(tmp_path / "not in the template", tiny_qwen3, CHATML, bos_token=BOS)
    assert found == plain, "the base's own chat template has none"
    # SmolLM2 names its turn token so.
    found, _ = ids_of(tmp_path / "the turn token", tiny_qwen3, CHATML, bos_token="<|im_start|>")
    assert found == plain
    found, _ = ids_of(tmp_path / "no template", tiny_qwen3, None, bos_token=BOS)
    assert found == plain, "neither template nor tokenizer puts it in front"


def test_an_export_of_such_a_base_repeats_the_prompt(tiny_qwen3: Path, tmp_path: Path) -> None:
    from tiny import PAIRS, trained_of

    from rankwright.export.targets import TARGETS

    ids_of(tmp_path / "base", tiny_qwen3, WITH_BOS, bos_token=BOS)
    one = trained_of(tmp_path / "base", "portable")
    assert one.contract.prefix.startswith(f"{BOS}<|im_start|>system")
    (tmp_path / "hf").mkdir()
    TARGETS["hf"].write(one, tmp_path / "hf")
    query, documents = PAIRS[0][0], [document for _, document in PAIRS]
    wanted = Reranker(one.model, one.tokenizer, one.contract).score(query, documents)
    assert Reranker.load(str(tmp_path / "hf")).score(query, documents) == pytest.approx(wanted, abs=1e-4)
    # As other libraries tokenise a pair.
    written = load_tokenizer(str(tmp_path / "hf"))
    group = PromptEncoder(one.contract, one.tokenizer).encode(query, documents[:1])
    assert written(query, documents[0])["input_ids"] == group.head_ids + group.tail_ids[0]
