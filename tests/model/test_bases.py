"""Imports: a base's prompt is found in its files or name, or asked for; export -> import -> the same scores."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import PAIRS, add_random_lora, make_tiny_gemma, trained_of

from rankwright.common.errors import UserError
from rankwright.export.target import Trained
from rankwright.export.targets import TARGETS
from rankwright.model.bases import find_file, find_origin
from rankwright.model.loading import load_merged, load_model, load_tokenizer
from rankwright.model.prompt import PromptContract, make_contract
from rankwright.rerankers.reranker import Reranker

QUERY, DOCUMENTS = PAIRS[0][0], [document for _, document in PAIRS]
# What zerank-2's own chat template makes of the roles of sentence-transformers.
ZERANK_TEMPLATE = (
    "{%- for m in messages %}{%- if m.role == 'query' %}{{- '<|im_start|>system\\n' + m.content + '<|im_end|>\\n' }}"
    "{%- elif m.role == 'document' %}{{- '<|im_start|>user\\n' + m.content + '<|im_end|>\\n' }}{%- endif %}"
    "{%- endfor %}"
    "{{- '<|im_start|>assistant\\n' }}"
)


def scores_of(one: Trained) -> list[float]:
    return Reranker(one.model, one.tokenizer, one.contract).score(QUERY, DOCUMENTS)


def edit_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def bare(folder: Path, source: Path, name: str) -> Path:
    """A copy under another name, as another project would have published it: no contract, no golden pairs."""
    copy = Path(shutil.copytree(source, folder / name))
    for file in ("rankwright.json", "golden.jsonl", "README.md"):
        (copy / file).unlink(missing_ok=True)
    return copy


@pytest.fixture(scope="module")
def exported(trained: dict[str, Trained], tiny_qwen3: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """(target, case) -> folder; with what was trained."""
    root = tmp_path_factory.mktemp("exported")
    sources = {
        "portable": trained["qwen3-portable"],
        "official": trained["qwen3-official"],
        "llama": trained["llama-portable"],
        "zerank": trained_of(tiny_qwen3, "zerank"),
    }
    options = {"shard_size": "100KB"}
    found: dict[str, Any] = {"sources": sources}
    for case, one in sources.items():
        for target in ("hf", "causal", "adapter"):
            folder = root / f"{target}-{case}"
            folder.mkdir()
            sharded = options if case == "official" and target != "adapter" else {}
            TARGETS[target].bind(sharded)(one, folder)
            found[f"{target}-{case}"] = folder
    return found


def test_every_export_is_a_base_with_the_same_scores(exported: dict[str, Any], tmp_path: Path) -> None:
    for case, one in exported["sources"].items():
        wanted = scores_of(one)
        assert torch.tensor(wanted).std() > 0.2
        for target in ("hf", "causal", "adapter"):
            folder = exported[f"{target}-{case}"]
            again = Reranker.load(str(folder), base=one.base_name if target == "adapter" else None)
            assert again.score(QUERY, DOCUMENTS) == pytest.approx(wanted, abs=1e-4), (target, case)
            assert again.contract.mode == one.contract.mode and again.contract.instruction == one.contract.instruction


def test_an_imported_export_can_be_trained_and_exported_again(exported: dict[str, Any], tmp_path: Path) -> None:
    """Merged adapters, a one-label base and a yes/no base, each with new adapters on top; in both full forms."""
    one = exported["sources"]["portable"]
    adapters = Path(shutil.copytree(exported["adapter-portable"], tmp_path / "adapters"))
    edit_json(adapters / "adapter_config.json", base_model_name_or_path=one.base_name)
    for number, folder in enumerate((adapters, exported["hf-portable"], exported["causal-portable"])):
        tokenizer = load_tokenizer(str(folder))
        contract = PromptContract.load(folder)
        assert contract == one.contract
        model = load_merged(str(folder), contract, tokenizer, dtype=torch.float32)
        before = Reranker(model.eval(), tokenizer, contract).score(QUERY, DOCUMENTS)
        assert before == pytest.approx(scores_of(one), abs=1e-4)
        tuned = Trained(add_random_lora(model, seed=9).eval(), tokenizer, contract, str(folder), None, PAIRS, 1e-4)
        for target in ("hf", "causal"):
            again = tmp_path / f"{target}-{number}"
            again.mkdir()
            figures = TARGETS[target].write(tuned, again)
            assert figures["max_d_merged_base"] > 0.1
            scores = Reranker.load(str(again)).score(QUERY, DOCUMENTS)
            assert scores == pytest.approx(scores_of(tuned), abs=1e-4) and scores != pytest.approx(before, abs=0.1)


@pytest.mark.parametrize(
    ("folder", "mode"),
    [
        *(("hf-official", "official"), ("causal-official", "official"), ("hf-portable", "portable")),
        *(("causal-portable", "portable"), ("hf-llama", "portable"), ("causal-zerank", "zerank")),
        ("hf-zerank", "zerank"),
    ],
)
def test_the_prompt_is_read_from_what_the_tokenizer_writes(
    folder: str, mode: str, exported: dict[str, Any], tmp_path: Path
) -> None:
    """Without rankwright.json, under a name that says nothing: frame and instruction come from the files."""
    copy = bare(tmp_path, exported[folder], "model")
    again = Reranker.load(str(copy))
    assert again.contract.max_tokens == 160, "tokenizer_config.json states it"
    one = exported["sources"][folder.partition("-")[2]]
    # zerank's scale is in the exported weights, and its own models have none there.
    scale = again.contract.scale if folder == "causal-zerank" else 1.0
    assert again.contract.mode == mode and again.contract.instruction == one.contract.instruction
    wanted = [scale * score for score in scores_of(one)]
    assert again.score(QUERY, DOCUMENTS) == pytest.approx(wanted, abs=1e-4)


def test_zerank_is_known_by_its_own_chat_template(tiny_qwen3: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_qwen3, tmp_path / "renamed"))
    (folder / "chat_template.jinja").write_text(ZERANK_TEMPLATE)
    tokenizer = load_tokenizer(str(folder))
    yes = tokenizer("Yes", add_special_tokens=False)["input_ids"][0]
    write_modules(folder, {"true_token_id": yes, "false_token_id": None})
    assert Reranker.load(str(folder)).contract.mode == "zerank"
    write_modules(folder, {"true_token_id": yes, "false_token_id": 7})
    with pytest.raises(UserError, match="by its LogitScore, the frame zerank scores Yes"):
        Reranker.load(str(folder))


def write_modules(folder: Path, score: dict[str, Any] | None, *, kind: str = "LogitScore", path: str = "") -> None:
    transformer = {"path": path, "type": "sentence_transformers.base.modules.transformer.Transformer"}
    other = {"path": "1_X", "type": f"sentence_transformers.cross_encoder.modules.x.{kind}"}
    (folder / "modules.json").write_text(json.dumps([transformer, other]))
    (folder / "1_X").mkdir(exist_ok=True)
    (folder / "1_X" / "config.json").write_text(json.dumps(score))


def test_a_conversion_is_known_by_its_name_or_by_what_its_files_name(exported: dict[str, Any], tmp_path: Path) -> None:
    """One label, no chat template that renders a pair: Qwen3-Reranker-0.6B-seq-cls and fine-tunes of it."""
    one = exported["sources"]["official"]
    for name, files in {
        "Qwen3-Reranker-0.6B-seq-cls": {},
        "by-card": {"README.md": "---\nbase_model:\n- Qwen/Qwen3-Reranker-0.6B\ntags: [x]\n---\n# Mine\n"},
        "by-title": {"README.md": "---\nlicense: apache-2.0\n---\n\n# Qwen3-Reranker-0.6B\n\ntext\n"},
    }.items():
        folder = bare(tmp_path, exported["hf-official"], name)
        (folder / "chat_template.jinja").unlink()
        for file, text in files.items():
            (folder / file).write_text(text)
        reranker = Reranker.load(str(folder), max_tokens=160, instruction=one.contract.instruction)
        assert reranker.contract.mode == "official"
        assert reranker.score(QUERY, DOCUMENTS) == pytest.approx(scores_of(one), abs=1e-4)
    folder = bare(tmp_path, exported["causal-official"], "by-config")
    (folder / "chat_template.jinja").unlink()
    edit_json(folder / "config.json", _name_or_path="Qwen/Qwen3-Reranker-4B")
    assert Reranker.load(str(folder)).contract.mode == "official"


def test_what_cannot_be_found_is_asked_for(exported: dict[str, Any], tiny_qwen3: Path, tmp_path: Path) -> None:
    one = exported["sources"]["official"]
    for name in ("hf-official", "causal-official"):
        folder = bare(tmp_path, exported[name], name)
        (folder / "chat_template.jinja").unlink()
        with pytest.raises(UserError, match=r"do not show which prompt.*prompt\.mode=official\|portable \(") as caught:
            Reranker.load(str(folder))
        assert "\n" not in str(caught.value) and ("'yes' and 'no'" in str(caught.value)) == (name == "causal-official")
        stated = Reranker.load(str(folder), mode="official", max_tokens=160, instruction=one.contract.instruction)
        assert stated.score(QUERY, DOCUMENTS) == pytest.approx(scores_of(one), abs=1e-4)
    with pytest.raises(UserError, match="carries its own prompt contract, of the frame official"):
        Reranker.load(str(exported["hf-official"]), mode="portable")
    plain = find_origin("tiny", str(tiny_qwen3), load_tokenizer(str(tiny_qwen3)))
    assert plain.mode == "portable"
    tagged = Path(shutil.copytree(tiny_qwen3, tmp_path / "tagged"))
    (tagged / "README.md").write_text("---\npipeline_tag: text-ranking\n---\n")
    with pytest.raises(UserError, match="do not show which prompt"):
        Reranker.load(str(tagged))


def test_a_recipe_states_what_is_not_found(
    exported: dict[str, Any], tmp_path: Path, tiny_qwen3: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rankwright.pipeline.checks import check_targets
    from rankwright.recipe.export import Export
    from rankwright.recipe.schema import Model, Prompt, Recipe
    from rankwright.recipe.sources import Data
    from rankwright.training.setup import base_reranker, recipe_contract

    folder = bare(tmp_path, exported["hf-official"], "unknown")
    (folder / "chat_template.jinja").unlink()
    tokenizer = load_tokenizer(str(folder))

    def recipe(mode: Any, base: Path, **export: Any) -> Recipe:
        prompt = Prompt(max_tokens=320, mode=mode)
        return Recipe(name="r", model=Model(base=str(base)), data=Data(), prompt=prompt, export=Export(**export))

    with pytest.raises(UserError, match=r"prompt\.mode="):
        recipe_contract(recipe("auto", folder), str(folder), tokenizer)
    told = recipe("official", folder)
    assert recipe_contract(told, str(folder), tokenizer).mode == "official"
    assert base_reranker(told).contract.mode == "official"
    adapters = exported["adapter-portable"]
    [fault] = check_targets(recipe("auto", adapters, targets={"hf": {}}))
    assert re.match(r".*adapters of the base 'tiny-qwen3'.*or start where it lies", fault)
    monkeypatch.chdir(tiny_qwen3.parent)
    assert check_targets(recipe("auto", adapters, targets={"hf": {}})) == []
    assert recipe_contract(recipe("auto", adapters), str(adapters), tokenizer).mode == "portable"
    [fault] = check_targets(recipe("auto", adapters))
    assert fault.startswith("export.targets: adapter: model.base is itself a folder of adapters")


def test_exports_for_other_libraries_are_named(tmp_path: Path) -> None:
    (tmp_path / "gguf").mkdir()
    (tmp_path / "gguf" / "r-f16.gguf").write_bytes(b"GGUF")
    (tmp_path / "graph" / "onnx").mkdir(parents=True)
    for folder, kind in (("gguf", "gguf"), ("graph", "onnx")):
        with pytest.raises(UserError, match=rf"other libraries \({kind}\), which is not read here: take the target hf"):
            Reranker.load(str(tmp_path / folder))


def test_adapters_of_others_read_the_prompt_of_their_base(exported: dict[str, Any], tmp_path: Path) -> None:
    folder = bare(tmp_path, exported["adapter-official"], "adapters")
    (folder / "chat_template.jinja").unlink()
    edit_json(folder / "adapter_config.json", base_model_name_or_path="Qwen/Qwen3-Reranker-0.6B")
    one = exported["sources"]["official"]
    options: dict[str, Any] = {"base": one.base_name, "max_tokens": 160, "instruction": one.contract.instruction}
    reranker = Reranker.load(str(folder), **options)
    assert reranker.score(QUERY, DOCUMENTS) == pytest.approx(scores_of(one), abs=1e-4)
    edit_json(folder / "adapter_config.json", base_model_name_or_path="org/own")
    with pytest.raises(UserError, match="do not show which prompt"):
        Reranker.load(str(folder), **options)


def test_bge_by_name_and_by_its_config(tmp_path: Path) -> None:
    make_tiny_gemma(tmp_path / "bge-reranker-v2-gemma")
    assert Reranker.load(str(tmp_path / "bge-reranker-v2-gemma")).contract.mode == "bge"
    folder = make_tiny_gemma(tmp_path / "mine")
    edit_json(folder / "config.json", _name_or_path="BAAI/bge-reranker-v2-gemma")
    assert Reranker.load(str(folder)).contract.mode == "bge"


def encoder(folder: Path) -> None:
    edit_json(folder / "config.json", architectures=["XLMRobertaForSequenceClassification"], model_type="xlm-roberta")


def several_labels(folder: Path) -> None:
    names = {str(i): f"LABEL_{i}" for i in range(3)}
    edit_json(folder / "config.json", architectures=["Qwen3ForSequenceClassification"], id2label=names)


def unstated_labels(folder: Path) -> None:
    edit_json(folder / "config.json", architectures=["Qwen3ForSequenceClassification"])


def own_code(folder: Path) -> None:
    edit_json(folder / "config.json", architectures=["LayerWiseMiniCPMForCausalLM"], auto_map={"AutoModel": "a.B"})


def other_module(folder: Path) -> None:
    write_modules(folder, {}, kind="Dense")


def other_place(folder: Path) -> None:
    write_modules(folder, {"true_token_id": 1, "false_token_id": 2}, path="0_Transformer")


def only_pickles(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


NO_BASES: list[tuple[Callable[[Path], None], str]] = [
    (encoder, "XLMRobertaForSequenceClassification is an encoder, must be a decoder"),
    (several_labels, "has 3 labels, must have 1"),
    (unstated_labels, "has 2 labels, must have 1"),
    (own_code, "code of a repository is never run"),
    (other_module, "a module Dense"),
    (other_place, "its weights lie in 0_Transformer"),
    (only_pickles, "pytorch_model.bin, a pickle"),
]


@pytest.mark.parametrize(("change", "reason"), NO_BASES, ids=lambda value: getattr(value, "__name__", ""))
def test_what_is_no_base_is_refused_in_one_line(
    change: Callable[[Path], None], reason: str, tiny_qwen3: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_qwen3, tmp_path / "base"))
    change(folder)
    with pytest.raises(UserError, match=reason) as caught:
        Reranker.load(str(folder))
    assert "\n" not in str(caught.value) and str(caught.value).startswith("model.base: ")
    # Where the frame is stated as well, or loaded at once.
    tokenizer = load_tokenizer(str(tiny_qwen3))
    contract = make_contract(tokenizer, mode="portable", max_tokens=160)
    with pytest.raises(UserError, match=reason):
        load_model(str(folder), contract, tokenizer)


def test_adapters_in_a_pickle_are_refused(exported: dict[str, Any], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(exported["adapter-portable"], tmp_path / "adapters"))
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(UserError, match=r"adapter_model\.bin, a pickle"):
        Reranker.load(str(folder), base=exported["sources"]["portable"].base_name)


def test_adapters_of_the_hub(exported: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As they lie in the cache of the hub after a push and a download."""
    snapshot = tmp_path / "models--me--mine" / "snapshots" / "0123abc"
    shutil.copytree(exported["adapter-official"], snapshot)
    refs = tmp_path / "models--me--mine" / "refs"
    refs.mkdir()
    (refs / "main").write_text("0123abc")
    # What the hub said is not there, it remembers in this way.
    absent = tmp_path / "models--me--mine" / ".no_exist" / "0123abc"
    absent.mkdir(parents=True)
    (absent / "config.json").touch()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    one = exported["sources"]["official"]
    again = Reranker.load("me/mine", base=one.base_name)
    assert again.contract == one.contract
    assert again.score(QUERY, DOCUMENTS) == pytest.approx(scores_of(one), abs=1e-4)


def test_a_hub_that_does_not_answer_is_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def hang_up() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    asked.append(connection.recv(1 << 12).split(b" ")[0])
                    connection.close()

        threading.Thread(target=hang_up, daemon=True).start()
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        for _ in range(2):
            with pytest.raises(UserError, match=r"^model.base: me/mine is not in .* does not answer: .*--base FOLDER"):
                load_tokenizer("me/mine")
        assert find_file("me/mine", "config.json") is None
    assert asked == [b"HEAD"]
