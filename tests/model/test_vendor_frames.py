"""Frames of other rerankers: texts and ids byte for byte as their vendors make them, and the scores of their code.

What is compared with stands in this file, written from the vendors' own code (named in rankwright/model/frames.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import PAIRS, make_tiny_gemma

from rankwright.common.errors import UserError
from rankwright.model.frames import known_frame
from rankwright.model.loading import load_model, load_tokenizer
from rankwright.model.prompt import PromptContract, PromptEncoder, make_contract
from rankwright.rerankers.reranker import Reranker

# Of Qwen3's chat template what no tools, no assistant's turn and no thinking leave.
QWEN3_TEMPLATE = """
{%- if messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
OFFICIAL_HEAD = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
)
MXBAI_TASK = (
    "You are a search relevance expert who evaluates how well documents match search queries. For each query-document "
    "pair, carefully analyze the semantic relationship between them, then provide your binary relevance judgment "
    "(0 for not relevant, 1 for relevant).\nRelevance:"
)
BGE_TASK = (
    "Given a query A and a passage B, determine whether the passage contains an answer to the query by providing "
    "a prediction of either 'Yes' or 'No'."
)
# Texts as they are after the contract's own cleaning: stripped, without control tokens.
CLEAN = st.lists(
    st.sampled_from(
        ["?", "...", "!\n", "\n\n", " ", "a", "Yes", "1", "{cut}", "{instruction}", "é", "東京", "'s", "x:"]
    ),
    max_size=8,
).map(lambda parts: "".join(parts).strip())
SLOW_FIXTURES = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
FRAMES = ["official", "zerank", "mxbai", "mxbai-instruction", "bge", "bge-prepend", "bge-qwen"]


@pytest.fixture(scope="module")
def bases(tiny_qwen3: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("vendors")
    return {
        "qwen3": tiny_qwen3,
        "gemma": make_tiny_gemma(root / "gemma"),
        "prepend": make_tiny_gemma(root / "prepend", prepend=True),
    }


@pytest.fixture(scope="module")
def tokenizers(bases: dict[str, Path]) -> dict[str, Any]:
    return {name: load_tokenizer(str(folder)) for name, folder in bases.items()}


def base_of(frame: str) -> str:
    return {"bge": "gemma", "bge-prepend": "prepend"}.get(frame, "qwen3")


def contract_of(frame: str, tokenizer: Any, **options: Any) -> PromptContract:
    mode: Any = frame.partition("-")[0]
    instruction = "Find the clause" if frame == "mxbai-instruction" else None
    return make_contract(tokenizer, mode=mode, **{"instruction": instruction, "max_tokens": 700, **options})


def vendor_ids(frame: str, tokenizer: Any, query: str, document: str) -> list[int]:
    """Token ids of the whole prompt in the way of each vendor's code, nothing cut."""

    def ids(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    if frame == "official":
        instruction = "Given a web search query, retrieve relevant passages that answer the query"
        body = f"<Instruct>: {instruction}\n<Query>: {query}\n<Document>: {document}"
        return ids(f"{OFFICIAL_HEAD}{body}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n")
    if frame == "zerank":
        messages = [{"role": "system", "content": f"\n{query}\n".strip()}]
        messages += [{"role": "user", "content": f"\n{document}\n".strip()}]
        options = {"tokenize": False, "add_generation_prompt": True, "chat_template": QWEN3_TEMPLATE}
        return ids(tokenizer.apply_chat_template(messages, **options))
    if frame.startswith("mxbai"):
        told = "instruction: Find the clause\n" if frame == "mxbai-instruction" else ""
        system = "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
        item = ids(f"{told}query: {query}") + ids("\n") + ids(f"document: {document}")
        before, after = ids(f"{system}<|im_start|>user\n"), ids("<|im_end|>\n<|im_start|>assistant\n")
        return before + item + ids("\n") + ids(MXBAI_TASK) + after
    bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    return bos + ids(f"A: {query}") + ids("\n") + ids(f"B: {document}") + ids("\n") + ids(BGE_TASK)


@pytest.mark.parametrize("frame", FRAMES)
def test_ids_are_those_of_the_vendor(tokenizers: dict[str, Any], frame: str) -> None:
    tokenizer = tokenizers[base_of(frame)]
    encoder = PromptEncoder(contract_of(frame, tokenizer), tokenizer)
    for query, document in PAIRS:
        group = encoder.encode(query, [document])
        assert group.head_ids + group.tail_ids[0] == vendor_ids(
            frame, tokenizer, encoder.clean(query), document.strip()
        )


@pytest.mark.parametrize("frame", FRAMES)
@SLOW_FIXTURES
@given(query=CLEAN, documents=st.lists(CLEAN, min_size=1, max_size=3))
def test_ids_are_those_of_the_vendor_for_any_text(
    tokenizers: dict[str, Any], frame: str, query: str, documents: list[str]
) -> None:
    tokenizer = tokenizers[base_of(frame)]
    encoder = PromptEncoder(contract_of(frame, tokenizer), tokenizer)
    group = encoder.encode(query, documents)
    for document, tail in zip(documents, group.tail_ids, strict=True):
        assert group.head_ids + tail == vendor_ids(frame, tokenizer, query, document)
        assert encoder.encode(query, [document], cut=False) == encoder.encode_whole(query, document)


def test_texts_byte_for_byte(tokenizers: dict[str, Any]) -> None:
    def text(frame: str, **options: Any) -> str:
        tokenizer = tokenizers[base_of(frame)]
        return PromptEncoder(contract_of(frame, tokenizer, **options), tokenizer).render(" what? ", "\nA loan.\n")

    assert text("zerank") == (
        "<|im_start|>system\nwhat?<|im_end|>\n<|im_start|>user\nA loan.<|im_end|>\n<|im_start|>assistant\n"
    )
    before = "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
    before += "<|im_start|>user\n"
    after = f"query: what?\ndocument: A loan.\n{MXBAI_TASK}<|im_end|>\n<|im_start|>assistant\n"
    assert text("mxbai") == before + after
    assert text("mxbai-instruction") == f"{before}instruction: Find the clause\n{after}"
    assert text("bge") == f"<bos>A: what?\nB: A loan.\n{BGE_TASK}"
    assert text("bge-qwen") == f"A: what?\nB: A loan.\n{BGE_TASK}"


def test_pieces_matter_where_the_vendor_cuts(tokenizers: dict[str, Any]) -> None:
    """The negative control of the test above: the whole string has other ids for both of these."""
    for frame, query in (("mxbai", "def add(first, second):"), ("bge-prepend", "what?")):
        tokenizer = tokenizers[base_of(frame)]
        encoder = PromptEncoder(contract_of(frame, tokenizer), tokenizer)
        group = encoder.encode(query, ["A loan."])
        whole = tokenizer(encoder.render(query, "A loan."), add_special_tokens=False)["input_ids"]
        assert group.head_ids + group.tail_ids[0] != whole


@pytest.mark.parametrize("frame", FRAMES)
def test_only_the_document_is_cut(tokenizers: dict[str, Any], frame: str) -> None:
    tokenizer = tokenizers[base_of(frame)]
    contract = contract_of(frame, tokenizer, max_tokens=260, query_tokens=20)
    encoder = PromptEncoder(contract, tokenizer)
    group = encoder.encode("void contract", ["word " * 400, "short"])
    whole = encoder.encode("void contract", ["word " * 400], cut=False)
    assert group.documents_cut == 1 and len(group.head_ids) + len(group.tail_ids[0]) == 260
    end = len(encoder.suffix_ids)
    assert group.head_ids == whole.head_ids and group.tail_ids[0][-end:] == whole.tail_ids[0][-end:]
    assert group.tail_ids[0][:-end] == whole.tail_ids[0][: len(group.tail_ids[0]) - end]


def vendor_score(frame: str, model: Any, tokenizer: Any, query: str, document: str) -> float:
    """Full logits of the causal model, read as each vendor's code reads them."""
    numbers = torch.tensor([vendor_ids(frame, tokenizer, query, document)])
    logits = model(input_ids=numbers, attention_mask=torch.ones_like(numbers)).logits[0, -1]
    word = {w: tokenizer(w, add_special_tokens=False)["input_ids"][0] for w in ("yes", "no", "Yes", "1", "0")}
    if frame == "official":
        pair = torch.stack([logits[word["no"]], logits[word["yes"]]])
        return float(torch.logit(torch.softmax(pair.double(), 0)[1]))
    if frame == "zerank":
        return float(logits[word["Yes"]] / 5.0)
    if frame.startswith("mxbai"):
        return float(logits[word["1"]] - logits[word["0"]])
    return float(logits[word["Yes"]])


@pytest.mark.parametrize("frame", FRAMES)
def test_scores_are_those_of_the_vendors_code(bases: dict[str, Path], tokenizers: dict[str, Any], frame: str) -> None:
    from transformers import AutoModelForCausalLM

    folder, tokenizer = bases[base_of(frame)], tokenizers[base_of(frame)]
    contract = contract_of(frame, tokenizer)
    reranker = Reranker(load_model(str(folder), contract, tokenizer).eval(), tokenizer, contract)
    causal = AutoModelForCausalLM.from_pretrained(folder).eval()
    queries = list(dict.fromkeys(query for query, _ in PAIRS))[:4]
    documents = [document.strip() for _, document in PAIRS[:6]]
    ours = list(reranker.score_groups([(query, documents) for query in queries]))
    with torch.no_grad():
        theirs = [[vendor_score(frame, causal, tokenizer, q, d) for d in documents] for q in queries]
    assert torch.tensor(theirs).std() > 0.2, "scores too alike for this test to see anything"
    torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs), rtol=0, atol=1e-4)
    # Another frame is another model.
    wrong = "zerank" if frame != "zerank" and base_of(frame) == "qwen3" else "bge"
    if not frame.startswith(wrong):
        other = make_contract(tokenizer, mode=wrong, max_tokens=700)
        scores = Reranker(load_model(str(folder), other, tokenizer).eval(), tokenizer, other).score(
            queries[0], documents
        )
        assert (torch.tensor(scores) - torch.tensor(theirs[0])).abs().max() > 0.1


def test_contracts_of_all_frames_survive_their_file(tokenizers: dict[str, Any], tmp_path: Path) -> None:
    for frame in FRAMES:
        contract = contract_of(frame, tokenizers[base_of(frame)])
        contract.save(tmp_path)
        assert PromptContract.load(tmp_path) == contract
    # A file from before there were scales.
    import json

    values = json.loads((tmp_path / "rankwright.json").read_text(encoding="utf-8"))
    del values["scale"]
    (tmp_path / "rankwright.json").write_text(json.dumps(values), encoding="utf-8")
    loaded = PromptContract.load(tmp_path)
    assert loaded is not None and loaded.scale == 1.0


def test_frames_without_a_place_for_an_instruction_keep_none(tokenizers: dict[str, Any]) -> None:
    for frame in ("zerank", "bge"):
        contract = contract_of(frame, tokenizers[base_of(frame)], instruction="Find the clause")
        assert not contract.takes_instruction and contract.instruction == ""
        assert "Find the clause" not in contract.head_text("q")


def test_scored_words_must_be_one_token(tokenizers: dict[str, Any], tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate("Yesno")}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(UserError, match="'Yes' is 3 tokens"):
        make_contract(PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<e>"), mode="bge")


@pytest.mark.parametrize(
    ("base", "mode"),
    [
        ("Qwen/Qwen3-Reranker-4B", "official"),
        ("zeroentropy/zerank-1", "zerank"),
        ("zeroentropy/zerank-1-small", "zerank"),
        ("models/zerank-2-reranker/", "zerank"),
        ("mixedbread-ai/mxbai-rerank-large-v2", "mxbai"),
        ("mixedbread-ai/mxbai-rerank-large-v1", "portable"),
        ("BAAI/bge-reranker-v2-gemma", "bge"),
        ("BAAI/bge-reranker-v2-m3", "portable"),
        ("zerank-2/qwen3", "portable"),
    ],
)
def test_bases_are_known_by_their_own_name(base: str, mode: str) -> None:
    frame = known_frame(base)
    assert ("portable" if frame is None else frame.name) == mode


def test_a_base_in_its_vendors_frame_through_the_public_api(tiny_qwen3: Path, tmp_path: Path) -> None:
    import shutil

    folder = Path(shutil.copytree(tiny_qwen3, tmp_path / "zerank-2"))
    reranker = Reranker.load(str(folder), max_tokens=160)
    assert reranker.contract.mode == "zerank" and reranker.contract.no_id is None
    plain = Reranker.load(str(tiny_qwen3), max_tokens=160)
    assert plain.contract.mode == "portable"
    assert reranker.score("what is a bond?", ["A loan."]) != plain.score("what is a bond?", ["A loan."])
    with pytest.raises(UserError, match="no place for one"):
        Reranker.load(str(folder), instruction="Find the clause")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_base_with_one_scored_token_is_exported_as_it_scores(tiny_qwen3: Path, tmp_path: Path) -> None:
    """transformers, sentence-transformers and peft give the golden scores of a tuned zerank base."""
    from tiny import trained_of

    from rankwright.export.publish import export_targets

    trained = trained_of(tiny_qwen3, "zerank")
    figures = export_targets(trained, {"hf": {}, "adapter": {}}, tmp_path)
    assert set(figures) == {"hf", "adapter"}
    texts = PAIRS[0][0], [document for _, document in PAIRS]
    ours = Reranker(trained.model, trained.tokenizer, trained.contract).score(*texts)
    for name, options in (("hf", {}), ("adapter", {"base": str(tiny_qwen3)})):
        assert Reranker.load(str(tmp_path / name), **options).score(*texts) == pytest.approx(ours, abs=1e-4)
        card = (tmp_path / name / "README.md").read_text(encoding="utf-8")
        assert "0.2 * W[Yes] . h" in card and "None" not in card and "no place for an instruction" in card


@pytest.mark.parametrize("mode", ["mxbai", "bge"])
def test_frames_in_pieces_are_not_exported(tiny_qwen3: Path, tmp_path: Path, mode: Any) -> None:
    from rankwright.export.tokenizer import write_tokenizer

    tokenizer = load_tokenizer(str(tiny_qwen3))
    with pytest.raises(UserError, match="in pieces"):
        write_tokenizer(tokenizer, make_contract(tokenizer, mode=mode, max_tokens=320), tmp_path)


def test_recipes_on_other_rerankers_say_before_training_what_they_cannot(tiny_qwen3: Path, tmp_path: Path) -> None:
    import shutil

    from rankwright.pipeline.checks import check_targets
    from rankwright.recipe.schema import Model, Prompt, Recipe
    from rankwright.recipe.sources import Data
    from rankwright.training.setup import base_reranker, recipe_contract

    def recipe_of(name: str, prompt: Prompt) -> Recipe:
        folder = tmp_path / name
        if not folder.exists():
            shutil.copytree(tiny_qwen3, folder)
        return Recipe(name="r", model=Model(base=str(folder)), data=Data(), prompt=prompt)

    def contract(name: str, prompt: Prompt) -> PromptContract:
        recipe, folder = recipe_of(name, prompt), tmp_path / name
        # The base row is in its vendor's frame whatever is trained.
        known = known_frame(name)
        assert known is not None and base_reranker(recipe).contract.mode == known.name
        return recipe_contract(recipe, str(folder), load_tokenizer(str(folder)))

    told = Prompt(max_tokens=320, instruction="Find the clause")
    assert contract("zerank-2", Prompt(max_tokens=320)).mode == "zerank"
    with pytest.raises(UserError, match=r"^prompt\.instruction: .*no place"):
        contract("zerank-2", told)
    assert contract("mxbai-rerank-base-v2", told).mode == "mxbai"
    [fault] = check_targets(recipe_of("mxbai-rerank-base-v2", told))
    assert fault.startswith("export.targets: hf, adapter: ") and "in pieces" in fault
    portable = Prompt(max_tokens=320, instruction="Find the clause", mode="portable")
    assert contract("mxbai-rerank-base-v2", portable).mode == "portable"
