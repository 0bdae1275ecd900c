"""Exports: every runtime scores like the trainer, in a fresh process; faults are found and leave nothing behind."""

from __future__ import annotations

import dataclasses
import json
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from proof import check_folders
from tiny import PAIRS, make_tiny_llama, trained_of

from rankwright.common.errors import UserError
from rankwright.data.licences.derived import ledger_json
from rankwright.data.licences.ledger import Input
from rankwright.data.licences.terms import known, state
from rankwright.export.card import CardFacts
from rankwright.export.golden import make_golden, write_golden
from rankwright.export.proof.sums import read_sums
from rankwright.export.publish import export_targets
from rankwright.export.target import Trained
from rankwright.export.targets import TARGETS
from rankwright.model.prompt import PromptContract
from rankwright.recipe.export import LicenceRule
from rankwright.rerankers.reranker import Reranker

BASE = Input(
    "Qwen/Qwen3-0.6B", "base", "hub Qwen/Qwen3-0.6B", None, ("base",), known([state("Apache-2.0", "its card")])
)
LEDGER = ledger_json([BASE], LicenceRule())
CASES = ["qwen3-portable", "qwen3-official", "llama-portable", "qwen3-full", "qwen3-bf16"]


@pytest.fixture(scope="module")
def published(trained: dict[str, Trained], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """(folder, figures) of export_targets with both targets."""
    one, folder = trained["qwen3-portable"], tmp_path_factory.mktemp("export")
    facts = CardFacts(title="Tiny", ledger=LEDGER, figures={"nDCG@10": 0.5})
    return folder, export_targets(one, {"hf": {}, "adapter": {}}, folder, facts)


def score_trained(trained: Trained, pairs: list[tuple[str, str]]) -> list[float]:
    reranker = Reranker(trained.model, trained.tokenizer, trained.contract)
    return [reranker.score(query, [document])[0] for query, document in pairs]


def test_a_fresh_process_scores_all_forms_like_the_trainer(folders: dict[str, Path]) -> None:
    for case, report in check_folders(folders).items():
        assert report["failures"] == []
        assert report["gate_rows"] >= 30 and report["rows"] > report["gate_rows"] - (case == "qwen3-official")
        for engine in ("rankwright", "transformers", "sentence-transformers"):
            figures = report["engines"][engine]
            assert figures["ids_differ"] == 0 and figures["rows"] >= 30, (case, engine)
            assert max(figures["max_d_logit"], figures["max_d_logit_batch"]) < 1e-4, (case, engine)


@pytest.mark.parametrize("case", ["qwen3-portable", "qwen3-official", "llama-portable", "qwen3-full"])
def test_sentence_transformers_equals_the_model_in_memory(
    case: str, trained: dict[str, Trained], folders: dict[str, Path]
) -> None:
    from sentence_transformers import CrossEncoder

    wanted = torch.tensor(score_trained(trained[case], PAIRS))
    model = CrossEncoder(str(folders[case]), device="cpu")
    raw = torch.tensor(model.predict(PAIRS, activation_fn=torch.nn.Identity()))
    assert len(PAIRS) >= 20 and wanted.std() > 1
    torch.testing.assert_close(raw, wanted, rtol=0, atol=1e-4)
    torch.testing.assert_close(torch.tensor(model.predict(PAIRS)), wanted.sigmoid(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("case", ["qwen3-portable", "qwen3-official"])
def test_a_folder_saved_again_keeps_its_prompt_and_its_limit(
    case: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    from sentence_transformers import CrossEncoder

    CrossEncoder(str(folders[case]), device="cpu").save_pretrained(str(tmp_path))
    assert not (tmp_path / "rankwright.json").exists()
    first, again = Reranker.load(str(folders[case])), Reranker.load(str(tmp_path))
    assert again.contract == first.contract
    documents = ["A bond is a loan.", "a bond is a loan and " * 80]
    assert again.score("what is a bond?", documents) == pytest.approx(first.score("what is a bond?", documents))
    assert again.cut == first.cut == {"documents_cut": 1, "queries_cut": 0}


def test_official_template_takes_another_instruction(folders: dict[str, Path]) -> None:
    from sentence_transformers import CrossEncoder
    from transformers import AutoTokenizer

    folder, other = folders["qwen3-official"], "  Is it about money?<|im_end|>\n"
    reranker = Reranker.load(str(folder), instruction=other)
    wanted = torch.tensor([reranker.score(query, [document])[0] for query, document in PAIRS])
    model = CrossEncoder(str(folder), device="cpu")
    found = torch.tensor(model.predict(PAIRS, prompt=other, activation_fn=torch.nn.Identity()))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)
    messages = [{"role": "query", "content": " q<think>"}, {"role": "document", "content": "\nd\n"}]
    text = AutoTokenizer.from_pretrained(folder).apply_chat_template(messages, tokenize=False, instruction=other)
    assert text == reranker.encoder.render(" q<think>", "\nd\n")


def test_config_can_be_read_by_older_libraries(folders: dict[str, Path]) -> None:
    config = json.loads((folders["qwen3-portable"] / "config.json").read_text())
    assert config["architectures"] == ["Qwen3ForSequenceClassification"]
    assert config["id2label"] == {"0": "LABEL_0"} and config["rope_theta"] == 1e6
    assert config["torch_dtype"] == config["dtype"] == "float32"
    assert config["sentence_transformers"]["activation_fn"].endswith("Sigmoid")
    bf16 = json.loads((folders["qwen3-bf16"] / "config.json").read_text())
    assert bf16["torch_dtype"] == bf16["dtype"] == "bfloat16"
    for case in CASES:
        settings = json.loads((folders[case] / "tokenizer_config.json").read_text())
        assert settings["model_max_length"] == 160 and settings["padding_side"] == "left"
        assert "add_bos_token" not in settings and "chat_template" not in settings
        assert (folders[case] / "chat_template.jinja").exists() == (case == "qwen3-official")
        assert not (folders[case] / "modules.json").exists()


def test_scaled_rope_survives(tmp_path: Path) -> None:
    base = make_tiny_llama(tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    scaled = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0}
    scaled |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 256}
    (base / "config.json").write_text(json.dumps({**config, "rope_parameters": scaled}))
    one = trained_of(base, "portable")
    TARGETS["hf"].write(one, tmp_path / "hf")
    written = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert written["rope_scaling"]["rope_type"] == "llama3" and written["rope_theta"] == 5e5
    again = Reranker.load(str(tmp_path / "hf"))
    assert [again.score(q, [d])[0] for q, d in PAIRS] == pytest.approx(score_trained(one, PAIRS), abs=1e-4)


def test_export_leaves_the_model_usable_and_names_its_figures(
    trained: dict[str, Trained], published: tuple[Path, dict[str, Any]]
) -> None:
    folder, figures = published
    one = trained["qwen3-portable"]
    assert hasattr(one.model.lm, "peft_config")
    assert figures["hf"]["max_d_merged_base"] > 1 and figures["hf"]["max_d_merged_trained"] < 1e-4
    for target in ("hf", "adapter"):
        assert json.loads((folder / target / "parity.json").read_text()) == figures[target]
        assert PromptContract.load(folder / target) == one.contract
        again = Reranker.load(str(folder / target), base=one.base_name)
        scores = [again.score(query, [document])[0] for query, document in PAIRS]
        assert scores == pytest.approx(score_trained(one, PAIRS), abs=1e-4)
    assert figures["adapter"]["engines"]["peft"]["ids_differ"] == 0
    rows = [json.loads(line) for line in (folder / "hf" / "golden.jsonl").read_text().splitlines()]
    keys = ["query", "document", "instruction", "token_ids", "logit", "probability", "gate", "kind"]
    assert all(list(row) == keys for row in rows)
    kinds = {row["kind"] for row in rows}
    assert kinds == {"real", "neutral", "benign", "unicode", "spaces", "code", "numbers", "long", "control", "empty"}
    assert {row["kind"] for row in rows if not row["gate"]} == {"control"}
    assert sum(row["kind"] == "real" for row in rows) >= 20
    cut = [row for row in rows if len(row["token_ids"]) == one.contract.max_tokens]
    assert [row["kind"] for row in cut] == ["long", "long"] and figures["hf"]["cut_rows"] == 2
    assert {"config.json", "model.safetensors", "golden.jsonl", "rankwright.json"} <= set(
        read_sums(folder / "hf") or ()
    )
    assert "README.md" not in (read_sums(folder / "hf") or ()) and figures["hf"]["versions"]["transformers"]
    card = (folder / "hf" / "README.md").read_text()
    assert "library_name: sentence-transformers" in card and "license: apache-2.0" in card
    assert "| nDCG@10 | 0.5 |" in card and "base_model:" not in card


def test_files_are_readable_by_all_and_name_no_machine(
    published: tuple[Path, dict[str, Any]], folders: dict[str, Path], tiny_qwen3: Path
) -> None:
    folder, _ = published
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 12
    for path in files:
        assert stat.S_IMODE(path.stat().st_mode) == 0o644, path
        content = path.read_bytes()
        for place in (tiny_qwen3.parent, folder, Path.cwd(), Path.home()):
            assert f"{place}/".encode() not in content, (path, place)
    assert {path.name for path in folder.iterdir()} == {"hf", "adapter"}


def test_what_cannot_be_exported_is_refused(trained: dict[str, Trained], tmp_path: Path) -> None:
    full = trained["qwen3-full"]
    with pytest.raises(UserError, match="method: lora"):
        export_targets(full, {"hf": {}, "adapter": {}}, tmp_path)
    with pytest.raises(UserError, match="export target"):
        export_targets(full, {"hff": {}}, tmp_path)
    untrained = trained_of(Path(full.base_name), "portable")
    for name, parameter in untrained.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.zeros_(parameter)
    with pytest.raises(UserError, match="changed nothing"):
        TARGETS["hf"].write(untrained, tmp_path)


def test_few_real_pairs_are_combined_and_repeat_nothing(trained: dict[str, Trained], tmp_path: Path) -> None:
    one = trained["qwen3-portable"]
    reranker = Reranker(one.model, one.tokenizer, one.contract)
    rows = make_golden(reranker, [*PAIRS[:5], PAIRS[0], ("word " * 100, "a query beyond its budget")])
    texts = [(row["query"], row["document"]) for row in rows]
    assert len(set(texts)) == len(texts)
    assert sum(row["kind"] == "real" for row in rows) == 20
    assert not any(row["gate"] for row in rows if row["query"].startswith("word word"))
    write_golden(tmp_path, rows)
    assert [json.loads(line) for line in (tmp_path / "golden.jsonl").read_text().splitlines()] == rows


@pytest.mark.slow
def test_documents_of_megabytes_become_short_golden_pairs(
    trained: dict[str, Trained], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = trained["qwen3-portable"]
    book = "Every few years the river floods the fields below the old town. " * 40_000
    long = [("what is a bond?", book), (book[10:], "A bond is a loan."), ("short", "short")]
    figures = export_targets(dataclasses.replace(one, golden_pairs=long), {"adapter": {}}, tmp_path)["adapter"]
    assert (
        len(book) > 2_000_000 and "2 of 3 are longer than 2,560 characters: their beginnings" in capsys.readouterr().out
    )
    rows = [json.loads(line) for line in (tmp_path / "adapter" / "golden.jsonl").read_text().splitlines()]
    texts = {row["document"] for row in rows} | {row["query"] for row in rows}
    assert max(map(len, texts)) <= 16 * one.contract.max_tokens and book[:2560] in texts and book[10:2570] in texts
    assert figures["cut_rows"] > 2 and (tmp_path / "adapter" / "golden.jsonl").stat().st_size < 300_000
    # The beginning scores like the whole.
    [row] = [row for row in rows if (row["query"], row["document"]) == ("what is a bond?", book[:2560])]
    assert row["logit"] == pytest.approx(score_trained(one, [("what is a bond?", book[:100_000])])[0])
