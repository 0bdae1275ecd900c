"""The prompt contract inside an export: baked into tokenizer.json, or as a chat template (official)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rankwright.common.errors import UserError
from rankwright.model.prompt import PROBES, PromptContract, PromptEncoder

TEMPLATE_FILE = "chat_template.jinja"
# State of the machine or of the base's own frame, which must not decide anything in a runtime: `add_bos_token`
# makes transformers rebuild the post-processor, and with it drop the baked frame.
NOT_KEPT = {"add_bos_token", "add_eos_token", "backend", "chat_template", "is_local", "local_files_only"}
NOT_KEPT |= {"name_or_path", "tokenizer_file", "processor_class", "auto_map"}


def write_tokenizer(tokenizer: Any, contract: PromptContract, folder: Path) -> None:
    """Tokenizer files and rankwright.json, such that a runtime turns a pair into exactly the contract's ids.

    portable, zerank: `tokenizer(query, document)` is the prompt, truncation cuts the document and keeps the suffix,
    white space around texts is stripped; no chat template is left. official: chat_template.jinja with the roles
    query, document and system (the instruction). Raises UserError when probe texts get other ids, and for a frame
    that is tokenised in pieces.
    """
    if contract.in_pieces:
        raise UserError(f"export: a prompt of the frame {contract.mode} is tokenised in pieces, as no runtime does")
    tokenizer.save_pretrained(folder)
    (folder / TEMPLATE_FILE).unlink(missing_ok=True)
    backend = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    # Left over from the last call of the tokenizer.
    backend["truncation"] = backend["padding"] = None
    if contract.is_baked:
        backend["post_processor"] = _post_processor(tokenizer, contract)
        backend["normalizer"] = _stripping(backend)
    (folder / "tokenizer.json").write_text(json.dumps(backend, ensure_ascii=False) + "\n", encoding="utf-8")
    _write_config(folder, contract)
    if contract.is_templated:
        text = chat_template(contract, PromptEncoder(contract, tokenizer).control_tokens)
        (folder / TEMPLATE_FILE).write_text(text, encoding="utf-8")
    contract.save(folder)
    _prove(tokenizer, contract, folder)


def _write_config(folder: Path, contract: PromptContract) -> None:
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings = {k: v for k, v in settings.items() if k not in NOT_KEPT}
    settings |= {
        # The one class that reads tokenizer.json as it is, known to transformers 4 and 5.
        "tokenizer_class": "PreTrainedTokenizerFast",
        # Its default has token_type_ids, which decoders do not take.
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": contract.max_tokens,
        "padding_side": contract.padding_side,
        "truncation_side": "right",
    }
    path.write_text(json.dumps(settings, indent=2, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")


def _post_processor(tokenizer: Any, contract: PromptContract) -> dict[str, Any]:
    """TemplateProcessing in the JSON of the tokenizers library; one SpecialToken item for each token of the frame.

    The items carry ids, so no text of the frame is tokenised again by the runtime.
    """
    empty = contract.head_text("").removesuffix(contract.middle)
    used: dict[str, dict[str, Any]] = {}

    def items(text: str) -> list[dict[str, Any]]:
        found = []
        for number in tokenizer(text, add_special_tokens=False)["input_ids"]:
            name = tokenizer.convert_ids_to_tokens(number)
            used[name] = {"id": name, "ids": [number], "tokens": [name]}
            found.append({"SpecialToken": {"id": name, "type_id": 0}})
        return found

    before, between, after = items(empty), items(contract.middle + contract.document_prefix), items(contract.suffix)
    query, document = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    return {
        "type": "TemplateProcessing",
        # transformers takes a pair with an empty document for a single text: the same prompt must come out.
        "single": [*before, query, *between, *after],
        "pair": [*before, query, *between, document, *after],
        "special_tokens": used,
    }


def _stripping(backend: dict[str, Any]) -> dict[str, Any] | None:
    """The base's normalizer behind one that strips, as the contract does, for callers who do not strip.

    `load_tokenizer` takes it off again: a frame tokenised as text would lose its line breaks.
    """
    own: dict[str, Any] | None = backend["normalizer"]
    if any(token["normalized"] for token in backend["added_tokens"]):
        # Such tokens are looked for in normalised text, where they would be stripped themselves.
        return own
    strip = {"type": "Strip", "strip_left": True, "strip_right": True}
    return {"type": "Sequence", "normalizers": [strip, *(s for s in steps_of(own, "normalizers") if s != strip)]}


def steps_of(part: dict[str, Any] | None, key: str) -> list[dict[str, Any]]:
    """The steps of a normalizer or pre-tokenizer in tokenizer.json; key: where a sequence of them stands."""
    return [] if part is None else part[key] if part["type"] == "Sequence" else [part]


def chat_template(contract: PromptContract, control_tokens: tuple[str, ...]) -> str:
    """Jinja template of a contract whose frame is rendered, not baked, as is `official`.

    Roles query and document, and system or the variable `instruction` for another instruction where the frame has a
    place for one. All literal text goes through expressions, since Jinja drops a newline at the end of a template.
    """
    before, place, after = contract.prefix.partition("{instruction}")
    pairs = ", ".join(f"({_literal(t)}, {_literal(f'{t[0]} {t[1:]}')})" for t in control_tokens)
    lines = [
        "{#- Prompt of a reranker: roles query and document; system, or the variable `instruction`, replaces the"
        " instruction. Control tokens in these texts are broken by a space. -#}",
        "{%- macro clean(text) -%}",
        "{%- set ns = namespace(text=text | trim) -%}",
        f"{{%- for token, broken in [{pairs}] -%}}",
        "{%- set ns.text = ns.text | replace(token, broken) -%}",
        "{%- endfor -%}",
        "{{- ns.text -}}",
        "{%- endmacro -%}",
        f"{{%- set own = namespace(system='', query='', document='', default={_literal(contract.instruction)}) -%}}",
        "{%- if instruction is defined and instruction -%}{%- set own.default = instruction -%}{%- endif -%}",
        "{%- for message in messages -%}",
        "{%- if message.role == 'system' -%}{%- set own.system = message.content -%}",
        "{%- elif message.role == 'query' -%}{%- set own.query = message.content -%}",
        "{%- elif message.role == 'document' -%}{%- set own.document = message.content -%}",
        "{%- endif -%}",
        "{%- endfor -%}",
        f"{{{{- {_literal(before)} }}}}",
        *(("{{- clean(own.system or own.default) }}", f"{{{{- {_literal(after)} }}}}") if place else ()),
        "{{- clean(own.query) }}",
        f"{{{{- {_literal(contract.middle + contract.document_prefix)} }}}}",
        "{{- clean(own.document) }}",
        f"{{{{- {_literal(contract.suffix)} }}}}",
    ]
    return "\n".join(lines)


def _literal(text: str) -> str:
    """A Jinja string; JSON's escapes are among Jinja's as long as non-ASCII stays itself."""
    return json.dumps(text, ensure_ascii=False)


def _prove(tokenizer: Any, contract: PromptContract, folder: Path) -> None:
    from transformers import AutoTokenizer

    written = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    encoder = PromptEncoder(contract, tokenizer)
    for query, document in PROBES:
        encoded = encoder.encode(query, [document], cut=False)
        wanted = encoded.head_ids + encoded.tail_ids[0]
        if contract.is_baked:
            # Without the baked strip (see _stripping) texts must come stripped.
            got = written(query.strip(), document.strip())["input_ids"]
        else:
            messages = [{"role": "query", "content": query}, {"role": "document", "content": document}]
            text = written.apply_chat_template(messages, tokenize=False)
            got = written(text, add_special_tokens=False)["input_ids"]
        if got != wanted:
            raise UserError(
                f"export: the written tokenizer gives {len(got)} ids, not the {len(wanted)} of the contract, on "
                f"{query!r}, {document!r}: this base's tokenizer cannot hold a {contract.mode} prompt"
            )
