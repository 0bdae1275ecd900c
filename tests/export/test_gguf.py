"""Export target `gguf`: read back without llama.cpp it scores like the trainer; what llama.cpp cannot do is refused."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import trained_of

from rankwright.common.errors import UserError
from rankwright.export.card import CardFacts
from rankwright.export.proof.parity import NOT_CHECKED, measure
from rankwright.export.proof.runtimes.gguf import GgufFile, render, template_of, tokenizer_of
from rankwright.export.proof.runtimes.llama_cpp import cut_document
from rankwright.export.publish import export_targets
from rankwright.export.servable import impossible, unservable
from rankwright.export.target import Trained
from rankwright.export.targets import TARGETS
from rankwright.export.targets.gguf import rerank_template, why_no_gguf
from rankwright.model.prompt import PromptEncoder, make_contract

QUERY = "what is a bond?"
TYPES = ["f32", "f16", "bf16", "q8_0"]


@pytest.fixture(scope="module")
def files(trained: dict[str, Trained], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Case -> its folder with a file of every type; do not write into it."""
    root = tmp_path_factory.mktemp("gguf")
    for case in ("qwen3-portable", "qwen3-official"):
        (root / case).mkdir()
        TARGETS["gguf"].bind({"types": TYPES})(trained[case], root / case)
    return {folder.name: folder for folder in root.iterdir()}


@pytest.fixture(scope="module")
def reports(files: dict[str, Path]) -> dict[str, dict[str, Any]]:
    return {case: measure(folder, 1e-4) for case, folder in files.items()}


@pytest.mark.parametrize("case", ["qwen3-portable", "qwen3-official"])
def test_read_back_scores_like_the_trainer(case: str, reports: dict[str, dict[str, Any]]) -> None:
    report = reports[case]
    assert report["failures"] == []
    assert report["gate_rows"] >= 25
    for kind in TYPES:
        figures = report["engines"][f"gguf {kind}"]
        assert figures["ids_differ"] == 0 and figures["rows"] == report["gate_rows"]
        if kind == "f32":
            assert max(figures["max_d_logit"], figures["max_d_logit_batch"]) < 1e-4
        else:
            assert figures["spearman"] > 0.98 and figures["max_d_logit"] > 1e-4, "rounded, and not too far"
    errors = [report["engines"][f"gguf {kind}"]["max_d_logit"] for kind in TYPES]
    assert errors == sorted(errors), "fewer bits, larger errors"


def test_llama_cpp_itself_scores_like_the_trainer(reports: dict[str, dict[str, Any]]) -> None:
    for report in reports.values():
        for kind in TYPES:
            figures = report["engines"][f"llama-server {kind}"]
            assert figures["ids_differ"] == 0 and figures["rows"] == report["gate_rows"]
        assert report["engines"]["llama-server f32"]["max_d_probability"] < 5e-6


def test_an_absent_engine_is_said(files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name == "gguf")
    engines = measure(files["qwen3-portable"], 1e-4)["engines"]
    assert {name for name, figures in engines.items() if figures == NOT_CHECKED} == {
        f"{engine} {kind}" for engine in ("llama.cpp", "llama-server") for kind in TYPES
    }


def test_rows_that_llama_cpp_reads_otherwise_are_no_gate(files: dict[str, Path]) -> None:
    rows = [json.loads(line) for line in (files["qwen3-portable"] / "golden.jsonl").read_text().splitlines()]
    others = {row["kind"] for row in rows if not row["gate"]}
    # It strips, cuts and breaks nothing, and knows no NFC.
    assert {"spaces", "long", "control", "unicode"} <= others
    assert {"real", "benign", "code", "numbers", "empty", "unicode"} <= {row["kind"] for row in rows if row["gate"]}


def test_metadata_is_what_llama_cpp_needs(files: dict[str, Path], trained: dict[str, Trained]) -> None:
    one = trained["qwen3-portable"]
    path = files["qwen3-portable"] / "reranker-f16.gguf"
    file = GgufFile(path)
    assert file["general.architecture"] == "qwen3" and file["general.name"] == "Reranker"
    assert file["general.base_model.0.name"] == Path(one.base_name).name
    assert file["qwen3.pooling_type"] == 4 and file["qwen3.classifier.output_labels"] == ["yes", "no"]
    assert file["qwen3.rope.freq_base"] == 1e6 and file["qwen3.attention.key_length"] == 16
    assert file["tokenizer.ggml.pre"] == "qwen2" and file["tokenizer.chat_templates"] == ["rerank"]
    tokens, types = file["tokenizer.ggml.tokens"], file["tokenizer.ggml.token_type"]
    size = one.model.causal_lm.config.vocab_size
    assert len(tokens) == len(types) == size and tokens[-1] == f"[PAD{size - 1}]" and types[-1] == 5
    assert types[tokens.index("<|im_end|>")] == 3 and types[tokens.index("<think>")] == 4
    assert file["tokenizer.ggml.bos_token_id"] == one.model.pad_id and not file["tokenizer.ggml.add_bos_token"]
    assert file["tokenizer.chat_template.rerank"] == rerank_template(one.contract)
    assert file["tokenizer.chat_template.rerank"].endswith("</think>\n\n")
    assert f"{Path(one.base_name).parent}/".encode() not in path.read_bytes()
    weights = file.weights()
    assert weights["cls.output.weight"].shape == (2, 64) and weights["cls.output.weight"][1].abs().max() == 0
    assert "output.weight" not in weights


def test_a_published_folder_has_its_card_and_licence(trained: dict[str, Trained], tmp_path: Path) -> None:
    one = trained["qwen3-portable"]
    licence = {"hub": "apache-2.0", "name": None, "why": [], "attribution": []}
    facts = CardFacts(title="Tiny reranker", name="tiny", ledger={"licence": licence, "inputs": [], "require": None})
    one = dataclasses.replace(one, base_name="org/base", revision="abc")
    figures = export_targets(one, {"gguf": {"types": ["q8_0"]}}, tmp_path, facts)
    assert list(figures["gguf"]["files"]) == ["tiny-q8_0.gguf"]
    file = GgufFile(tmp_path / "gguf" / "tiny-q8_0.gguf")
    assert file["general.license"] == "apache-2.0" and file["general.name"] == "Tiny reranker"
    assert file["general.base_model.0.organization"] == "org" and file["general.base_model.0.version"] == "abc"
    card = (tmp_path / "gguf" / "README.md").read_text()
    assert "llama-server -m FOLDER/tiny-q8_0.gguf --reranking" in card and "| gguf q8_0 |" in card


def rewrite(path: Path, change: Callable[[dict[str, Any], dict[str, np.ndarray[Any, Any]]], None]) -> None:
    """The file again, with metadata or weights changed; those of few bits are raw bytes."""
    from gguf import GGUFReader, GGUFValueType, GGUFWriter

    reader = GGUFReader(path)
    kept = {k: f for k, f in reader.fields.items() if not k.startswith("GGUF.") and k != "general.architecture"}
    values = {key: field.contents() for key, field in kept.items()}
    weights = {t.name: np.array(t.data) for t in reader.tensors}
    raw = {t.name: t.tensor_type for t in reader.tensors if t.data.dtype == np.uint8}
    change(values, weights)
    writer = GGUFWriter(path.with_suffix(".new"), "qwen3")
    for key, value in values.items():
        own = kept[key].types
        writer.add_key_value(key, value, own[0], own[-1] if own[0] == GGUFValueType.ARRAY else None)
    for name, array in weights.items():
        writer.add_tensor(name, array, raw_dtype=raw.get(name))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    path.with_suffix(".new").replace(path)


def one_row(values: dict[str, Any], weights: dict[str, Any]) -> None:
    weights["cls.output.weight"] = weights["cls.output.weight"][:1]
    values["qwen3.classifier.output_labels"] = ["yes"]


def swapped_rows(values: dict[str, Any], weights: dict[str, Any]) -> None:
    weights["cls.output.weight"] = weights["cls.output.weight"][::-1].copy()


def lost_newline(values: dict[str, Any], weights: dict[str, Any]) -> None:
    values["tokenizer.chat_template.rerank"] = values["tokenizer.chat_template.rerank"].removesuffix("\n")


def lost_rope(values: dict[str, Any], weights: dict[str, Any]) -> None:
    values["qwen3.rope.freq_base"] = 1e4


def other_splitting(values: dict[str, Any], weights: dict[str, Any]) -> None:
    values["tokenizer.ggml.pre"] = "gpt-2"


def no_pooling(values: dict[str, Any], weights: dict[str, Any]) -> None:
    values["qwen3.pooling_type"] = 0


def added_bos(values: dict[str, Any], weights: dict[str, Any]) -> None:
    values["tokenizer.ggml.add_bos_token"] = True


def unpadded_tokens(values: dict[str, Any], weights: dict[str, Any]) -> None:
    values["tokenizer.ggml.tokens"] = values["tokenizer.ggml.tokens"][:-1]


FAULTS: list[tuple[Callable[..., None], str]] = [
    (one_row, "softmax over the rows is 1.0 for every pair"),
    (swapped_rows, "the score head"),
    (lost_newline, "the prompt or its template"),
    (lost_rope, "the rope settings"),
    (other_splitting, "token ids differ"),
    (no_pooling, "pooling_type"),
    (added_bos, "add_bos_token"),
    (unpadded_tokens, "other tokens than rows of the embeddings"),
]


@pytest.mark.parametrize(("fault", "cause"), FAULTS, ids=lambda value: getattr(value, "__name__", ""))
def test_each_fault_of_a_file_fails_parity_and_is_named(
    fault: Callable[..., None], cause: str, files: dict[str, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(files["qwen3-portable"], tmp_path / "faulty"))
    for path in folder.glob("*.gguf"):
        if not path.name.endswith("-f32.gguf"):
            path.unlink()
    rewrite(folder / "reranker-f32.gguf", fault)
    failures = measure(folder, 1e-4)["failures"]
    assert any(failure.startswith("gguf f32: ") and cause in failure for failure in failures), failures
    if fault in (one_row, swapped_rows, lost_newline, lost_rope):
        # It loads the file all the same.
        assert any(failure.startswith("llama-server f32: ") for failure in failures), failures


@pytest.mark.parametrize(("kind", "factor"), [("f16", 1.1), ("q8_0", 1.3)])
def test_a_stretched_logit_fails_where_probabilities_hardly_show_it(
    kind: str, factor: float, files: dict[str, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(files["qwen3-portable"], tmp_path / "copy"))
    (path,) = folder.glob(f"*-{kind}.gguf")

    def stretch(values: dict[str, Any], weights: dict[str, Any]) -> None:
        weights["cls.output.weight"] = weights["cls.output.weight"] * np.float32(factor)

    rewrite(path, stretch)
    assert any(failure.startswith(f"gguf {kind}: ") for failure in measure(folder, 1e-4)["failures"])


def test_what_llama_cpp_does_not_serve_is_refused_with_a_way_out(
    trained: dict[str, Trained], tmp_path: Path, tiny_qwen3: Path
) -> None:
    llama = trained["llama-portable"]
    with pytest.raises(UserError, match=r"^export\.targets: gguf: .*for Qwen3 only, not for llama: export it as hf or"):
        export_targets(llama, {"hf": {}, "gguf": {}}, tmp_path)
    assert list(tmp_path.iterdir()) == []
    one = trained_of(tiny_qwen3, "portable")
    config = one.model.causal_lm.config
    config.rope_parameters = {"rope_type": "dynamic", "rope_theta": 1e6, "factor": 2.0}
    config.layer_types = ["sliding_attention"] * 2
    faults = unservable(["gguf"], config, one.tokenizer, one.contract)
    assert [("dynamic" in m, "sliding" in m) for m in faults] == [(True, False), (False, True)]
    config.layer_types = None
    for values, named in (({"attention_factor": 3.0}, True), ({"beta_fast": 16.0}, True), ({"beta_fast": 32.0}, False)):
        config.rope_parameters = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 2.0, **values}
        faults = why_no_gguf(config, one.tokenizer, one.contract)
        assert [next(iter(values)) in fault for fault in faults] == [True] * named


def test_tokenizers_that_llama_cpp_has_not_are_refused(trained: dict[str, Trained], tmp_path: Path) -> None:
    from tiny import make_tiny_gemma
    from tokenizers import Regex, normalizers
    from tokenizers import pre_tokenizers as pre

    from rankwright.model.loading import load_tokenizer

    one = trained["qwen3-portable"]
    config = one.model.causal_lm.config
    tokenizer = load_tokenizer(one.base_name)
    assert why_no_gguf(config, tokenizer, one.contract) == []
    tokenizer.backend_tokenizer.pre_tokenizer = pre.Sequence(
        [pre.Split(Regex(r"\d+|\D+"), "isolated"), pre.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    faults = why_no_gguf(config, tokenizer, one.contract)
    assert len(faults) == 2 and "known: qwen2, llama-bpe" in faults[0] and "Lowercase" in faults[1]
    pieces = load_tokenizer(str(make_tiny_gemma(tmp_path / "gemma")))
    assert "not a byte-level BPE" in why_no_gguf(config, pieces, one.contract)[0]
    contract = make_contract(one.tokenizer, mode="portable", instruction="fill in {document}", max_tokens=160)
    assert "the instruction holds {document}" in why_no_gguf(config, one.tokenizer, contract)[0]


def test_zerank_frames_are_one_text(tiny_qwen3: Path, tmp_path: Path) -> None:
    one = trained_of(tiny_qwen3, "zerank")
    TARGETS["gguf"].bind({"types": ["f32"]})(one, tmp_path)
    assert measure(tmp_path, 1e-4)["failures"] == []
    encoder = PromptEncoder(one.contract, one.tokenizer)
    assert render(rerank_template(one.contract), "a query", "a text") == encoder.render("a query", "a text")


def test_a_document_that_just_fits_is_whole_for_llama_server(tiny_qwen3: Path, tmp_path: Path) -> None:
    one = trained_of(tiny_qwen3, "portable")
    encoder = PromptEncoder(one.contract.replace(max_tokens=400), one.tokenizer)
    pairs = [(QUERY, "river " * 40 + "x" * count) for count in range(1, 8)]
    lengths = [encoder.encode(query, [document]).tokens for query, document in pairs]
    limit = max(lengths)
    assert len(set(lengths)) > 4 and min(lengths) > limit - 8, "prompts of the limit, and of a few tokens fewer"
    near = dataclasses.replace(one, contract=one.contract.replace(max_tokens=limit), golden_pairs=pairs)
    TARGETS["gguf"].bind({"types": ["f32"]})(near, tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "golden.jsonl").read_text().splitlines()]
    whole = [row for row in rows if (row["query"], row["document"]) in pairs]
    assert all(row["gate"] for row in whole) and max(len(row["token_ids"]) for row in whole) == limit
    report = measure(tmp_path, 1e-4)
    assert report["failures"] == [] and report["engines"]["llama-server f32"]["ids_differ"] == 0


@pytest.mark.parametrize("document", ["word " * 90, "x" * 300, "🎉東京" * 40, "", "short"])
def test_a_document_is_cut_for_llama_server_only_where_the_prompt_is_too_long(
    document: str, files: dict[str, Path]
) -> None:
    for folder in files.values():
        file = GgufFile(folder / "reranker-f32.gguf")
        template, tokenizer = template_of(file), tokenizer_of(file)

        def tokens(text: str, template: str = template, tokenizer: Any = tokenizer) -> int:
            return len(tokenizer.encode(render(template, QUERY, text), add_special_tokens=False).ids)

        for limit in range(tokens("") + 4, tokens(document) + 3, 7):
            kept = cut_document(tokenizer, template, QUERY, document, limit)
            assert document.startswith(kept) and tokens(kept) <= limit
            assert (kept == document) == (tokens(document) <= limit)


def test_rows_that_q8_0_cannot_hold_stay_f16(trained: dict[str, Trained]) -> None:
    from rankwright.export.targets.gguf import _stored

    assert _stored("blk.0.ffn_up.weight", torch.zeros(4, 48), "q8_0") == "f16"
    assert _stored("blk.0.ffn_up.weight", torch.zeros(4, 64), "q8_0") == "q8_0"
    assert _stored("blk.0.attn_norm.weight", torch.zeros(64), "q8_0") == "f32"


def test_options_and_a_missing_package_are_said_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    [fault] = impossible({"gguf": {"types": ["q2_k"]}}, lora=True)
    assert "types" in fault
    [fault] = impossible({"gguf": {"types": []}}, lora=True)
    assert "types: " in fault and "at least 1" in fault
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    [fault] = impossible({"gguf": {}}, lora=True)
    assert "needs the package gguf: pip install 'rankwright[gguf]'" in fault
