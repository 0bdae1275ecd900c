"""Other rerankers as rows: cross-encoders as sentence-transformers scores them, kinds, inputs, faults of a recipe."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rerank_server import running_server, true_score
from tiny import PAIRS
from tiny_encoder import make_tiny_cross_encoder, make_tiny_encoder

from rankwright.common.errors import UserError, UserErrors
from rankwright.common.registry import parameters
from rankwright.model.loading import load_model, load_tokenizer
from rankwright.model.prompt import make_contract
from rankwright.pipeline.checks import check_names
from rankwright.recipe.schema import Baseline, Dense, Evaluate, Model, Prompt, Recipe
from rankwright.recipe.sources import Data, Source
from rankwright.rerankers.bi_encoder import BiEncoderScorer
from rankwright.rerankers.cross_encoder import CrossEncoderScorer, _cut_lengths
from rankwright.rerankers.kinds import BASELINES, baseline_inputs, check_baselines, load_baseline
from rankwright.rerankers.reranker import Reranker
from rankwright.rerankers.served import ServedReranker
from rankwright.retrieval.dense import DENSE, BiEncoder

PROMPT = Prompt(max_tokens=320)
QUERIES = list(dict.fromkeys(query for query, _ in PAIRS))[:5]
DOCUMENTS = [document for _, document in PAIRS]


@pytest.fixture(scope="module")
def cross_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_cross_encoder(tmp_path_factory.mktemp("cross") / "tiny-bert")


def row(kind: str, model: object, **changes: Any) -> Baseline:
    return Baseline(**{"name": "other", "kind": kind, "model": str(model), **changes})


# Cross-encoders.


def test_scores_are_the_logits_of_sentence_transformers(cross_encoder: Path, tmp_path: Path) -> None:
    from sentence_transformers import CrossEncoder

    scorer = load_baseline(row("cross-encoder", cross_encoder), PROMPT, cache=tmp_path)
    ours = list(scorer.score_groups([(query, DOCUMENTS) for query in QUERIES]))
    model = CrossEncoder(str(cross_encoder), device="cpu")
    for query, scores in zip(QUERIES, ours, strict=True):
        pairs = [(query, document) for document in DOCUMENTS]
        logits = model.predict(pairs, activation_fn=torch.nn.Identity())
        assert logits.std() > 0.1
        torch.testing.assert_close(torch.tensor(scores), torch.tensor(logits), rtol=0, atol=1e-5)
        # Its own default is a sigmoid, which ours must not be.
        assert abs(model.predict(pairs) - scores).max() > 0.1


def test_equal_documents_tie_and_batches_do_not_matter(cross_encoder: Path) -> None:
    scorer = CrossEncoderScorer(str(cross_encoder), max_tokens=64, batch=3)
    alone = [scorer.score(QUERIES[0], [document])[0] for document in DOCUMENTS]
    together = scorer.score(QUERIES[0], [*DOCUMENTS, *DOCUMENTS])
    assert together[: len(DOCUMENTS)] == together[len(DOCUMENTS) :]
    assert together[: len(DOCUMENTS)] == pytest.approx(alone, abs=1e-5)
    assert next(scorer.score_groups([("a", []), ("b", ["c"])])) == []
    assert list(scorer.score_groups([])) == []
    with pytest.raises(UserError, match="list of texts"):
        scorer.score("a", "b")


def test_the_last_layer_of_a_bf16_model_is_in_fp32(cross_encoder: Path) -> None:
    scorer = CrossEncoderScorer(str(cross_encoder), dtype=torch.bfloat16)
    scores = scorer.score(QUERIES[0], DOCUMENTS)
    # A logit of eight bits would tie with many others.
    assert any(float(torch.tensor(s).bfloat16()) != s for s in scores)
    plain = CrossEncoderScorer(str(cross_encoder)).score(QUERIES[0], DOCUMENTS)
    assert scores == pytest.approx(plain, abs=0.1 * max(map(abs, plain)))


def test_cut_texts_are_counted_as_the_tokenizer_cuts(cross_encoder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scorer = CrossEncoderScorer(str(cross_encoder), max_tokens=512)
    # The model has 64 positions.
    assert scorer.max_tokens == 64 and "reads 64 tokens" in capsys.readouterr().out
    scorer.score("a bond", ["the loan " * 40, "short", "the loan " * 40])
    assert scorer.cut == {"documents_cut": 2, "queries_cut": 0}
    scorer.score("a bond " * 60, ["short", "the loan " * 60])
    assert scorer.cut == {"documents_cut": 3, "queries_cut": 1}
    # max_tokens below the model's limit holds, too.
    low = CrossEncoderScorer(str(cross_encoder), max_tokens=16)
    assert low.score("a bond", ["the loan " * 40]) == low.score("a bond", ["the loan " * 20])
    assert low.cut["documents_cut"] == 2


@given(query=st.integers(0, 30), document=st.integers(0, 30), room=st.integers(1, 30))
def test_cut_lengths_are_those_of_the_tokenizers_library(query: int, document: int, room: int) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"q": 0, "d": 1}, unk_token="q"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.enable_truncation(room, strategy="longest_first")
    tokens = tokenizer.encode("q " * query, "d " * document).tokens
    assert _cut_lengths(query, document, room) == (tokens.count("q") < query, tokens.count("d") < document)


def test_what_is_no_one_label_cross_encoder_is_refused(tiny_qwen3: Path, tmp_path: Path) -> None:
    headless = make_tiny_cross_encoder(tmp_path / "headless", head=False)
    with pytest.raises(UserError, match=r"classifier.*random"):
        CrossEncoderScorer(str(headless))
    three = make_tiny_cross_encoder(tmp_path / "three", labels=3)
    with pytest.raises(UserError, match="3 labels"):
        CrossEncoderScorer(str(three))
    with pytest.raises(UserError, match="language model"):
        CrossEncoderScorer(str(tiny_qwen3))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError) as caught:
        load_baseline(row("cross-encoder", tmp_path / "empty"), PROMPT, cache=tmp_path)
    empty = tmp_path / "empty"
    assert str(caught.value).startswith(f"evaluate.baselines: other: {empty}: has no config.json: give a folder")


# Kinds of our own engine.


@pytest.mark.parametrize(("kind", "mode"), [("qwen3-reranker", "official"), ("zerank", "zerank"), ("mxbai", "mxbai")])
def test_vendors_frames_by_kind(tiny_qwen3: Path, tmp_path: Path, kind: str, mode: Any) -> None:
    scorer: Any = load_baseline(row(kind, tiny_qwen3), PROMPT, cache=tmp_path)
    tokenizer = load_tokenizer(str(tiny_qwen3))
    contract = make_contract(tokenizer, mode=mode, max_tokens=320)
    assert scorer.contract == contract
    plain = Reranker(load_model(str(tiny_qwen3), contract, tokenizer).eval(), tokenizer, contract)
    assert scorer.score(QUERIES[0], DOCUMENTS) == plain.score(QUERIES[0], DOCUMENTS)


def test_the_recipes_instruction_is_given_where_there_is_a_place(
    tiny_qwen3: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = Prompt(max_tokens=320, instruction="Find the clause")
    for kind in ("qwen3-reranker", "mxbai"):
        scorer: Any = load_baseline(row(kind, tiny_qwen3), told, cache=tmp_path)
        assert "Find the clause" in scorer.contract.head_text("q")
    capsys.readouterr()
    load_baseline(row("zerank", tiny_qwen3), told, cache=tmp_path)
    assert "no place for prompt.instruction" in capsys.readouterr().out
    # Without one, mxbai's frame has no line for it.
    plain: Any = load_baseline(row("mxbai", tiny_qwen3), PROMPT, cache=tmp_path)
    assert "instruction:" not in plain.contract.head_text("q")


def test_our_own_folders_keep_their_contract(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = folders["qwen3-portable"]
    scorer: Any = load_baseline(row("rankwright", folder), PROMPT, cache=tmp_path)
    assert scorer.contract.max_tokens == 160
    assert scorer.score(QUERIES[0], DOCUMENTS) == Reranker.load(str(folder)).score(QUERIES[0], DOCUMENTS)
    with pytest.raises(UserError, match="kind: rankwright"):
        load_baseline(row("zerank", folder), PROMPT, cache=tmp_path)


def test_a_served_model_is_asked_once_a_pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with running_server() as server:
        server.reset("jina")
        one = row("served", "their-model", options={"url": server.url, "shape": "jina", "batch": 5})
        scorer = load_baseline(one, PROMPT, cache=tmp_path / "cache")
        assert isinstance(scorer, ServedReranker)
        wanted = [[true_score(query, document) for document in DOCUMENTS] for query in QUERIES]
        assert list(scorer.score_groups([(query, DOCUMENTS) for query in QUERIES])) == wanted
        again: Any = load_baseline(one, PROMPT, cache=tmp_path / "cache")
        assert list(again.score_groups([(query, DOCUMENTS) for query in QUERIES])) == wanted
        assert again.requests_sent == 0
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["served-other.jsonl"]


# What scores depend on.


def test_inputs_change_with_what_scores_depend_on_and_with_nothing_else(cross_encoder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(cross_encoder, tmp_path / "tiny-bert"))
    first = baseline_inputs(row("cross-encoder", folder), PROMPT)
    same = [row("cross-encoder", folder, name="another"), row("cross-encoder", folder, options={"batch": 4})]
    assert {baseline_inputs(b, PROMPT) for b in [*same, row("cross-encoder", cross_encoder)]} == {first}
    other = [row("cross-encoder", folder, options={"precision": "bf16"}), row("rankwright", folder)]
    assert first not in {baseline_inputs(b, PROMPT) for b in other}
    (folder / "vocab.txt").write_text("changed")
    assert baseline_inputs(row("cross-encoder", folder), PROMPT) != first
    # Of the hub by id and revision.
    hub = [row("zerank", "zeroentropy/zerank-2", revision=r) for r in (None, "abc", "def")]
    hub.append(row("zerank", "zeroentropy/zerank-1", revision="abc"))
    assert len({baseline_inputs(b, PROMPT) for b in hub}) == 4


def test_inputs_hold_no_key_and_take_no_notice_of_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {"url": "http://127.0.0.1:1", "shape": "tei"}
    first = baseline_inputs(row("served", "m", options=options), PROMPT)
    monkeypatch.setenv("RERANK_KEY", "secret")
    keyed = row("served", "m", options={**options, "key_variable": "RERANK_KEY", "retries": 1, "timeout_seconds": 2.0})
    assert baseline_inputs(keyed, PROMPT) == first
    for changed in (row("served", "n", options=options), row("served", "m", options={**options, "shape": "jina"})):
        assert baseline_inputs(changed, PROMPT) != first


def test_a_change_of_the_prompt_is_one_of_the_rows_that_read_it(folders: dict[str, Path], cross_encoder: Path) -> None:
    served = row("served", "m", options={"url": "http://127.0.0.1:1", "shape": "tei"})
    of = {
        "instruction": Prompt(max_tokens=320, instruction="Find the clause"),
        "mode": Prompt(max_tokens=320, mode="portable"),
        "query_tokens": Prompt(max_tokens=320, query_tokens=40),
        "max_tokens": Prompt(max_tokens=300),
    }
    wanted: list[tuple[Baseline, set[str]]] = [
        (served, set()),
        (row("rankwright", folders["qwen3-portable"]), set()),
        (row("cross-encoder", cross_encoder), {"max_tokens"}),
        (row("bi-encoder", "a/b"), set()),
        (row("zerank", "zeroentropy/zerank-2"), {"max_tokens", "query_tokens"}),
        (row("bge", "BAAI/bge-reranker-v2-gemma"), {"max_tokens", "query_tokens"}),
        (row("mxbai", "mixedbread-ai/mxbai-rerank-base-v2"), {"max_tokens", "query_tokens", "instruction"}),
        (row("qwen3-reranker", "Qwen/Qwen3-Reranker-0.6B"), {"max_tokens", "query_tokens", "instruction"}),
        # Without a contract of its own, and on the hub, where nobody has looked yet.
        (row("rankwright", cross_encoder), {"max_tokens", "query_tokens", "instruction"}),
        (row("rankwright", "a/b"), {"max_tokens", "query_tokens", "instruction"}),
    ]
    for baseline, keys in wanted:
        before = baseline_inputs(baseline, PROMPT)
        assert {k for k, prompt in of.items() if baseline_inputs(baseline, prompt) != before} == keys, baseline


# Bi-encoders.


@pytest.fixture(scope="module")
def bi_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_encoder(tmp_path_factory.mktemp("bi") / "tiny-bi", query="a question : ")


def test_a_bi_encoder_gives_the_cosines_of_sentence_transformers(bi_encoder: Path, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(bi_encoder), device="cpu")
    # Without prompts: the model's own.
    for options, prompts in (
        ({"scale": 2.0}, ("a question : ", "")),
        ({"query_prompt": "what is ", "document_prompt": "the "}, ("what is ", "the ")),
    ):
        scorer = load_baseline(row("bi-encoder", bi_encoder, options=options), PROMPT, cache=tmp_path)
        ours = torch.tensor(list(scorer.score_groups([(query, DOCUMENTS) for query in QUERIES])))
        vectors = [model.encode(texts, prompt=p) for texts, p in zip((QUERIES, DOCUMENTS), prompts, strict=True)]
        one, two = (torch.nn.functional.normalize(torch.tensor(v), dim=1) for v in vectors)
        torch.testing.assert_close(ours, options.get("scale", 20.0) * one @ two.T, rtol=0, atol=1e-4)
        assert ours.std() > 0.1


def test_a_bi_encoder_reads_a_text_once_and_counts_what_it_cuts(bi_encoder: Path) -> None:
    scorer = BiEncoderScorer(str(bi_encoder))
    long = "water and bridge " * 12
    documents = [*DOCUMENTS, long, DOCUMENTS[0]]
    first, empty, second = scorer.score_groups([(QUERIES[0], documents), ("a", []), (QUERIES[1], documents)])
    assert empty == [] and first[0] == first[-1] and second[0] == second[-1] and first != second
    cut = sum(len(scorer._encoder._model.tokenizer(d)["input_ids"]) > 24 for d in documents)
    queries = sum(len(scorer._encoder._model.tokenizer("a question : " + q)["input_ids"]) > 24 for q in QUERIES[:2])
    assert cut >= 1 and scorer.cut == {"documents_cut": 2 * cut, "queries_cut": queries}
    assert scorer.score(QUERIES[0], documents) == pytest.approx(first, abs=1e-6)


def test_what_is_no_bi_encoder_is_refused_by_check(tiny_qwen3: Path, bi_encoder: Path, tmp_path: Path) -> None:
    assert check_baselines(recipe_with(row("bi-encoder", bi_encoder, options={"scale": 5}))) == []
    (fault,) = check_baselines(recipe_with(row("bi-encoder", tiny_qwen3)))
    assert fault == (
        f"evaluate.baselines.0.model: {tiny_qwen3}: has no modules.json: give a folder that sentence-transformers wrote"
    )
    bare = Path(shutil.copytree(bi_encoder, tmp_path / "bare"))
    for path in bare.rglob("*.safetensors"):
        path.unlink()
    (fault,) = check_baselines(recipe_with(row("bi-encoder", bare)))
    assert "has no weights" in fault
    (fault,) = check_baselines(recipe_with(row("bi-encoder", bi_encoder, options={"scale": -1})))
    assert fault.startswith(
        "evaluate.baselines.0.options: baseline 'bi-encoder': scale: Input should be greater than 0"
    )


# Mistakes.


def recipe_with(*baselines: Baseline) -> Recipe:
    data = Data(train=(Source(path="a"),), test=(Source(path="a"),))
    return Recipe(name="r", model=Model(base="b"), data=data, evaluate=Evaluate(baselines=baselines))


def test_good_baselines_have_no_faults(cross_encoder: Path) -> None:
    good = recipe_with(
        row("cross-encoder", cross_encoder, name="minilm", options={"batch": 8}),
        row("cross-encoder", "a/b", name="gte", revision="0123", options={"remote_code": True}),
        row("zerank", "zeroentropy/zerank-2", name="zerank"),
        row("bge", "BAAI/bge-reranker-v2-gemma", name="bge"),
        row("served", "rerank-1", name="api", options={"url": "https://api.example.com", "shape": "cohere"}),
    )
    assert check_baselines(good) == [] and check_names(good) == []


def test_all_faults_of_baselines_are_said_at_once(tiny_qwen3: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    url = {"url": "https://api.example.com", "shape": "cohere"}
    bad = recipe_with(
        row("cross_encoder", "a/b", name="Tuned"),
        row("zerank", "a/b", name="one", options={"temperature": 5}),
        row("served", "m", name="One", options={"shape": "cohere"}),
        row("served", "m", name="two", options={"shape": "coher", "url": "x"}),
        row("served", "m", name="three", options={**url, "key_variable": "NO_SUCH_KEY"}, revision="1"),
        row("cross-encoder", "a/b", name="four", options={"remote_code": True}),
        row("bge", "BAAI/bge-reranker-v2-m3", name="five"),
        row("bge", "BAAI/bge-reranker-v2-minicpm-layerwise", name="six"),
        row("rankwright", "./nowhere", name="seven"),
        row("served", "m", name="eight", options={**url, "batch": 0}),
        row("mxbai", "a/b", name="nine", options={"precision": "fp8"}),
        row("mxbai", tiny_qwen3, name="ten"),
    )
    bad = bad.model_copy(update={"prompt": Prompt(max_tokens=160)})
    faults = check_baselines(bad)
    wanted = [
        ("evaluate.baselines.0.name", "'Tuned' is a row"),
        ("evaluate.baselines.0.kind", "did you mean 'cross-encoder'?"),
        ("evaluate.baselines.1.options", "no parameter 'temperature'"),
        ("evaluate.baselines.2.name", "evaluate.baselines.1"),
        ("evaluate.baselines.2.options", "url"),
        ("evaluate.baselines.3.options", "did you mean 'cohere'?"),
        ("evaluate.baselines.4.revision", "leave it out"),
        ("evaluate.baselines.4.options", "NO_SUCH_KEY is not set"),
        ("evaluate.baselines.5.revision", "runs the code"),
        ("evaluate.baselines.6.model", "kind: cross-encoder"),
        ("evaluate.baselines.7.model", "its own repository"),
        ("evaluate.baselines.8.model", "no such folder"),
        ("evaluate.baselines.9.options", "batch"),
        ("evaluate.baselines.10.options", "precision"),
        ("evaluate.baselines.11.model", "prompt.max_tokens: 160 is too small"),
    ]
    assert len(faults) == len(wanted), faults
    for fault, (key, part) in zip(faults, wanted, strict=True):
        assert fault.startswith(f"{key}: ") and part in fault, fault
        assert "\n" not in fault
    assert set(faults) <= set(check_names(bad))


def copied(source: Path, to: Path, *without: str) -> Path:
    shutil.copytree(source, to, ignore=shutil.ignore_patterns(*without))
    return to


def test_baselines_that_cannot_be_read_are_refused_by_check(
    folders: dict[str, Path], cross_encoder: Path, tiny_qwen3: Path, tmp_path: Path
) -> None:
    hf = folders["qwen3-portable"]
    gguf = copied(hf, tmp_path / "gguf", "*.safetensors")
    (gguf / "model-q8_0.gguf").write_bytes(b"GGUF")
    onnx = copied(hf, tmp_path / "onnx", "*.safetensors")
    (onnx / "onnx").mkdir()
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(tiny_qwen3)}))
    (adapter / "adapter_model.safetensors").write_bytes(b"")
    lost = copied(hf, tmp_path / "lost")
    (lost / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(tmp_path / "gone")}))
    pickled = copied(cross_encoder, tmp_path / "pickled", "*.safetensors")
    (pickled / "pytorch_model.bin").write_bytes(b"")
    three = copied(cross_encoder, tmp_path / "three")
    config = json.loads((three / "config.json").read_text())
    config |= {"id2label": {"0": "a", "1": "b", "2": "c"}, "label2id": {"a": 0, "b": 1, "c": 2}}
    (three / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "num_labels"}))
    cases: list[tuple[str, Path, str]] = [
        ("rankwright", gguf, "an export for other libraries (gguf)"),
        ("rankwright", onnx, "an export for other libraries (onnx)"),
        ("rankwright", Path("/etc"), "has no config.json"),
        ("rankwright", tmp_path / "missing", "no such folder"),
        ("rankwright", copied(hf, tmp_path / "no-weights", "*.safetensors"), "has no weights (*.safetensors)"),
        ("rankwright", lost, "no such folder"),
        ("rankwright", cross_encoder, "is an encoder"),
        ("zerank", Path("/etc"), "has no config.json"),
        ("qwen3-reranker", gguf, "an export for other libraries (gguf)"),
        ("mxbai", hf, "use kind: rankwright"),
        ("cross-encoder", adapter, "holds adapters, not a whole model"),
        ("cross-encoder", gguf, "an export for other libraries (gguf)"),
        ("cross-encoder", onnx, "an export for other libraries (onnx)"),
        ("cross-encoder", Path("/etc"), "has no config.json"),
        ("cross-encoder", tmp_path / "missing", "no such folder"),
        ("cross-encoder", tiny_qwen3, "is a language model, which needs its prompt"),
        ("cross-encoder", copied(cross_encoder, tmp_path / "bare", "*.safetensors"), "has no weights"),
        ("cross-encoder", pickled, "pytorch_model.bin, a pickle"),
        ("cross-encoder", three, "has 3 labels, must have 1"),
        ("rankwright", hf, ""),
        ("rankwright", tiny_qwen3, ""),
        ("cross-encoder", cross_encoder, ""),
    ]
    baselines = [row(kind, folder, name=f"row{number}") for number, (kind, folder, _) in enumerate(cases)]
    faults = check_baselines(recipe_with(*baselines).model_copy(update={"prompt": PROMPT}))
    by_row = {fault.split(".")[2]: fault for fault in faults}
    assert len(by_row) == len(faults)
    for number, (kind, folder, part) in enumerate(cases):
        fault = by_row.get(str(number), "")
        assert bool(part) == bool(fault) and part in fault and "\n" not in fault, (kind, folder, fault)
        assert not fault or fault.startswith(f"evaluate.baselines.{number}.model: ")


CODE = "import pathlib\npathlib.Path({marker!r}).touch()\nfrom sentence_transformers.models import Normalize as Mine\n"


@pytest.mark.parametrize("place", ["modules.json", "router"])
def test_a_module_of_its_own_never_runs(place: str, cross_encoder: Path, tmp_path: Path) -> None:
    """As version 5 of sentence-transformers would import it from a local folder."""
    folder, marker = copied(cross_encoder, tmp_path / "model"), tmp_path / "ran"
    (folder / "mine.py").write_text(CODE.format(marker=str(marker)))
    last = "mine.Mine" if place == "modules.json" else "sentence_transformers.models.Router"
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Last", "type": last},
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Last").mkdir()
    settings = {"types": {"query_0": "mine.Mine"}, "structure": {"query": ["query_0"]}}
    (folder / "1_Last" / "router_config.json").write_text(json.dumps(settings))
    wanted = "names the class 'mine.Mine', which is not one of sentence-transformers"
    with pytest.raises(UserError, match=wanted):
        load_baseline(row("cross-encoder", folder), PROMPT, cache=tmp_path)
    (fault,) = check_baselines(recipe_with(row("cross-encoder", folder)))
    assert fault.startswith("evaluate.baselines.0.model: ") and wanted in fault
    with pytest.raises(UserError, match=wanted):
        BiEncoder(str(folder), None, {"query": "", "document": ""})
    recipe = recipe_with().model_copy(update={"dense": Dense(model=str(folder))})
    assert wanted in DENSE.check(recipe)[0]
    assert not marker.exists()


def test_kinds_are_spelt_as_recipes_spell_them() -> None:
    wanted = "cross-encoder bi-encoder qwen3-reranker zerank mxbai bge rankwright served"
    assert list(BASELINES) == wanted.split()


def test_user_errors_name_the_row(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^evaluate\.baselines: other: baseline 'zerank' has no parameter 'x'"):
        load_baseline(row("zerank", "a/b", options={"x": 1}), PROMPT, cache=tmp_path)
    assert not issubclass(UserErrors, KeyError)


def test_the_recipe_in_the_documentation_is_good(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import yaml

    monkeypatch.setenv("COHERE_KEY", "secret")
    text = (Path(__file__).parents[2] / "recipes" / "README.md").read_text(encoding="utf-8")
    block = next(b.split("```")[0] for b in text.split("```yaml\n")[1:] if "baselines:" in b)
    rows = yaml.safe_load(block)["evaluate"]["baselines"]
    assert {one["kind"] for one in rows} == set(BASELINES)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folders["qwen3-portable"], tmp_path / "runs/finance-old/export/hf")
    assert check_baselines(recipe_with(*(Baseline(**one) for one in rows))) == []
    for kind in BASELINES:
        line = next(x for x in text.splitlines() if x.startswith(f"| `{kind}` |"))
        assert all(f"`{option}`" in line for option in parameters(BASELINES[kind])), kind
