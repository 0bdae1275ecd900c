"""README.md and SERVE.md of exports: metadata that the hub reads, snippets that run as they stand."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard

from rankwright.data.collection import join_title
from rankwright.data.formats.read import read_collection
from rankwright.export.card import EXAMPLE, CardFacts, SetResult, write_card
from rankwright.export.target import Trained
from rankwright.export.targets import TARGETS
from rankwright.model.prompt import PromptContract
from rankwright.rerankers.reranker import Reranker

# With titles, without one, with white space around them, and with a title alone.
CORPUS = [
    {"_id": "c1", "title": "Late invoices", "text": "Interest runs from the day after the due date."},
    {"_id": "c2", "title": "", "text": "A bond is a loan that an investor makes."},
    {"_id": "c3", "text": "A bond pays interest until it matures."},
    {"_id": "c4", "title": "  Bonds \t", "text": "\n  A government bond is a loan.  "},
    {"_id": "c5", "title": "Bonds and other loans", "text": " "},
    {"_id": "c6", "title": "Zinssätze", "text": "Die Anleihe zahlt Zinsen: what is a bond?"},
]
PARITY = {
    "rows": 30,
    "engines": {
        "transformers": {"rows": 30, "max_d_logit": 1e-6, "max_d_logit_batch": 2e-6, "max_d_probability": 1e-7},
        "llama.cpp": {"rows": 30, "max_d_probability": 1e-4},
        "sentence-transformers": "not installed: not checked",
    },
}
LEDGER = {
    "require": None,
    "licence": {"hub": "other", "name": "cc-by-4.0-and-acme", "why": ["a reason"], "attribution": []},
    "inputs": [],
}
RESULTS = [
    SetResult("tatqa", "acme/tatqa", 150, 0.36789, 0.3, 0.42, "BM25, best 20"),
    SetResult("own | set", None, 1, 0.5, 0.0, 1.0, "fusion, best 100"),
]


@pytest.fixture
def card_of(folders: dict[str, Path], tmp_path: Path) -> Any:
    def write(name: str, **facts: Any) -> Path:
        folder = Path(shutil.copytree(folders[name], tmp_path / name))
        contract = PromptContract.load(folder)
        assert contract is not None
        write_card(
            folder,
            CardFacts(title="Tiny", name="tiny", **facts),
            contract,
            PARITY,
            base_name="org/base",
            revision="abc",
        )
        return folder

    return write


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", path.read_text(), re.DOTALL)


def test_the_hub_reads_licence_base_and_ndcg_with_its_interval(card_of: Any) -> None:
    card = ModelCard.load(
        card_of("qwen3-portable", ledger=LEDGER, results=RESULTS, training=["Trained on x."]) / "README.md"
    )
    data = card.data.to_dict()
    assert data["license"] == "other" and data["license_name"] == "cc-by-4.0-and-acme"
    assert data["base_model"] == "org/base" and data["base_model_relation"] == "finetune"
    assert data["pipeline_tag"] == "text-ranking" and data["library_name"] == "sentence-transformers"
    assert card.data.model_name == "tiny" and card.data.eval_results is not None
    first, second = card.data.eval_results
    assert (first.dataset_type, first.dataset_name, first.metric_type) == ("acme/tatqa", "tatqa", "ndcg_at_10")
    assert first.metric_value == 0.3679
    assert first.metric_args == {"interval_95": [0.3, 0.42], "queries": 150, "reranked": "BM25, best 20"}
    assert second.dataset_type == second.dataset_name == "own | set"
    assert "- Trained on x." in card.text
    # Of llama.cpp there are probabilities alone.
    assert "| llama.cpp | 30 |  |  | 1.0e-04 |" in card.text


# Libraries that are not among the tests' packages.
ELSEWHERE = r"^(from|import) (langchain_community|llama_index|haystack|mteb|rerankers)\b"


def test_a_card_without_facts_says_nothing_that_it_does_not_know(card_of: Any) -> None:
    folder = card_of("qwen3-portable")
    data = ModelCard.load(folder / "README.md").data.to_dict()
    assert not {"license", "model-index", "datasets"} & set(data)
    for name in ("README.md", "SERVE.md"):
        text = (folder / name).read_text()
        assert "{{" not in text and "{%" not in text and "\n\n\n" not in text


@pytest.mark.parametrize("name", ["qwen3-portable", "qwen3-official"])
def test_the_snippets_of_both_files_run(
    card_of: Any, name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = card_of(name)
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in CORPUS))
    # As training reads it.
    (tmp_path / "queries.jsonl").write_text('{"_id": "q", "text": "q"}\n')
    (tmp_path / "qrels").mkdir()
    (tmp_path / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq\tc1\t1\n")
    texts = read_collection(tmp_path, name="titled", split="test").corpus
    assert texts["c4"] == "Bonds\nA government bond is a loan."
    monkeypatch.chdir(tmp_path)
    reranker = Reranker.load(str(folder))
    wanted = reranker.rank(EXAMPLE[0], [EXAMPLE[1]])[0].probability
    snippets = [*blocks(folder / "README.md", "python"), *blocks(folder / "SERVE.md", "python")]
    # Run by scripts/engines/libraries.sh. rerankers renders no chat template.
    elsewhere = [snippet for snippet in snippets if re.search(ELSEWHERE, snippet, re.M)]
    assert len(elsewhere) == (5 if name == "qwen3-portable" else 4)
    assert all(ast.parse(snippet) for snippet in elsewhere)
    snippets = [snippet for snippet in snippets if snippet not in elsewhere]
    assert len(snippets) == 5
    for snippet in snippets:
        shown: list[Any] = []
        exec(snippet.replace('"PATH"', repr(str(folder))), {"print": shown.append})
        (found,) = shown
        if "bm25s" in snippet:
            scores = reranker.score(EXAMPLE[0], [texts[place] for place, _ in found])
            assert [score for _, score in found] == pytest.approx(
                torch.sigmoid(torch.tensor(scores)).tolist(), abs=1e-4
            )
            assert len(found) == len(CORPUS) and scores == sorted(scores, reverse=True)
        elif isinstance(found, list):
            assert found[0]["score"] == pytest.approx(wanted, abs=1e-4)
        else:
            assert torch.as_tensor(found).item() == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize("name", ["qwen3-portable", "qwen3-official"])
def test_the_commands_of_serve_are_whole(card_of: Any, name: str) -> None:
    folder = card_of(name)
    commands = blocks(folder / "SERVE.md", "bash")
    assert any("vllm serve" in command for command in commands)
    # A template that vLLM was not given is what makes an official prompt wrong there.
    assert any("--chat-template FOLDER/chat_template.jinja" in c for c in commands) == (name == "qwen3-official")
    assert any("infinity_emb" in command for command in commands) == (name == "qwen3-portable")
    for command in commands:
        subprocess.run(["bash", "-n"], input=command, text=True, check=True)
        for body in map(json.loads, re.findall(r"-d '(.*?)'", command, re.DOTALL)):
            assert (body["query"], body["documents"]) == (EXAMPLE[0], [EXAMPLE[1]])
    assert all(f"{contract_of(folder).max_tokens}" in command for command in commands if "vllm serve" in command)


def contract_of(folder: Path) -> PromptContract:
    contract = PromptContract.load(folder)
    assert contract is not None
    return contract


def test_llamaindex_is_told_the_limit_that_its_default_replaces(card_of: Any) -> None:
    """Its SentenceTransformerRerank loads CrossEncoder(model, max_length=512, **cross_encoder_kwargs)."""
    from sentence_transformers import CrossEncoder

    folder = card_of("qwen3-portable")
    stated = re.search(r"cross_encoder_kwargs=(\{.*?\})\)", (folder / "SERVE.md").read_text())
    assert stated is not None
    options = ast.literal_eval(stated.group(1))
    assert options == {"max_length": contract_of(folder).max_tokens} == {"max_length": 160}
    pair = (EXAMPLE[0], "a bond is a loan and " * 60)
    wanted = Reranker.load(str(folder)).score(pair[0], [pair[1]])[0]
    for kwargs, right in ((options, True), ({"max_length": 512}, False), ({}, True)):
        model = CrossEncoder(str(folder), device="cpu", **kwargs)
        found = float(model.predict([pair], activation_fn=torch.nn.Identity())[0])
        assert (found == pytest.approx(wanted, abs=1e-4)) == right


def test_the_join_of_titles_is_in_the_contract_and_in_both_files(folders: dict[str, Path], card_of: Any) -> None:
    folder = card_of("qwen3-portable")
    assert json.loads((folder / "rankwright.json").read_text())["title_join"] == "\n"
    assert join_title("Bonds", "A loan.") == f"Bonds{contract_of(folder).title_join}A loan."
    for name in ("README.md", "SERVE.md"):
        text = (folder / name).read_text()
        assert "A document with a title is one text" in text and '"Bonds\\nA bond is' in text
    golden = [json.loads(line) for line in (folder / "golden.jsonl").read_text().splitlines()]
    assert EXAMPLE in [(row["query"], row["document"]) for row in golden if row["gate"]]


KINDS = {
    "hf": ("sentence-transformers", "finetune"),
    "causal": ("sentence-transformers", "finetune"),
    "adapter": ("peft", "adapter"),
    "onnx": ("fastembed", "finetune"),
    "gguf": ("gguf", "quantized"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", ["portable", "official"])
def test_the_files_of_every_kind_are_whole(kind: str, mode: str, trained: dict[str, Trained], tmp_path: Path) -> None:
    one = trained[f"qwen3-{mode}"]
    if kind == "onnx" and mode == "official":
        pytest.skip("refused before training")
    TARGETS[kind].write(one, tmp_path)
    contract = PromptContract.load(tmp_path) or one.contract
    write_card(tmp_path, CardFacts(ledger=LEDGER), contract, PARITY, base_name="org/base", revision=None)
    data = ModelCard.load(tmp_path / "README.md").data.to_dict()
    assert (data["library_name"], data["base_model_relation"]) == KINDS[kind]
    assert data["pipeline_tag"] == "text-ranking" and data["license"] == "other"
    for name in ("README.md", "SERVE.md"):
        text = (tmp_path / name).read_text()
        assert "{{" not in text and "{%" not in text and "\n\n\n" not in text
        # A name on the hub is no folder: what opens a file asks for one.
        assert "PATH/" not in text and "hf download PATH --local-dir FOLDER" in text
        for snippet in blocks(tmp_path / name, "python"):
            compile(snippet, name, "exec")
        for command in blocks(tmp_path / name, "bash"):
            subprocess.run(["bash", "-n"], input=command, text=True, check=True)
            for body in re.findall(r"-d '(.*?)'", command, re.DOTALL):
                assert json.loads(body)["query"] == EXAMPLE[0]


@pytest.mark.parametrize("mode", ["portable", "official"])
def test_the_snippets_of_an_adapter_run(mode: str, trained: dict[str, Trained], tmp_path: Path) -> None:
    one = trained[f"qwen3-{mode}"]
    TARGETS["adapter"].write(one, tmp_path)
    write_card(tmp_path, CardFacts(), one.contract, PARITY, base_name="org/base", revision=None)
    wanted = Reranker(one.model, one.tokenizer, one.contract).rank(EXAMPLE[0], [EXAMPLE[1]])[0].probability
    [snippet], [loads] = (blocks(tmp_path / name, "python") for name in ("README.md", "SERVE.md"))
    place = f'"{tmp_path}", base="{one.base_name}"'
    shown: list[float] = []
    exec(snippet.replace('"PATH"', place), {"print": shown.append})
    assert shown == pytest.approx([wanted], abs=1e-5)
    found: dict[str, Any] = {}
    exec(loads.replace('"PATH"', place), found)
    assert found["reranker"].rank(EXAMPLE[0], [EXAMPLE[1]])[0].probability == pytest.approx(wanted, abs=1e-5)


def test_a_model_with_a_weight_is_served_together_with_the_first_stage(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import bm25s

    folder = Path(shutil.copytree(folders["qwen3-portable"], tmp_path / "model"))
    contract = contract_of(folder).replace(combine_weight=0.3, combine_depth=4)
    contract.save(folder)
    write_card(folder, CardFacts(title="Tiny", name="tiny"), contract, PARITY, base_name="org/base", revision=None)
    for name in ("README.md", "SERVE.md"):
        text = (folder / name).read_text()
        assert "0.3 z(score" in text and "best 4" in text and "{{" not in text and "{%" not in text

    reranker = Reranker.load(str(folder))
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in CORPUS))
    texts = [join_title(row.get("title", ""), row["text"]) for row in CORPUS]
    index = bm25s.BM25()
    index.index(bm25s.tokenize(texts, show_progress=False), show_progress=False)
    words = bm25s.tokenize(EXAMPLE[0], show_progress=False)
    places, first = (row[0].tolist() for row in index.retrieve(words, k=len(texts), show_progress=False))
    ranked = reranker.rank(EXAMPLE[0], [texts[place] for place in places], first_stage_scores=first)
    monkeypatch.chdir(tmp_path)
    function, search = blocks(folder / "SERVE.md", "python")[0], blocks(folder / "SERVE.md", "python")[-1]
    shown: list[Any] = []
    exec(search.replace('"PATH"', repr(str(folder))), {"print": shown.append})
    assert [name for name, _ in shown[0]] == [CORPUS[places[row.index]]["_id"] for row in ranked]
    assert [score for _, score in shown[0]] == pytest.approx([row.combined for row in ranked], abs=1e-4)
    names: dict[str, Any] = {}
    exec(function, names)
    in_order = sorted(ranked, key=lambda row: row.index)
    found = names["combine"]([row.score for row in in_order], first)
    assert found == pytest.approx([row.combined for row in in_order], abs=1e-6)
