"""The yes/no form, sharded and rounded weights: every runtime reads them as the trainer wrote them."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from proof import check_folders
from tiny import PAIRS, trained_of

from rankwright.common.errors import UserError
from rankwright.export.card import EXAMPLE, CardFacts, write_card
from rankwright.export.target import Trained
from rankwright.export.targets import TARGETS
from rankwright.model.loading import load_model
from rankwright.model.prompt import PromptContract, make_contract
from rankwright.rerankers.reranker import Reranker

ENGINES = ("rankwright", "transformers-causal", "sentence-transformers")
QUERY, DOCUMENTS = PAIRS[0][0], [document for _, document in PAIRS]


def with_moved_embeddings(one: Trained) -> Trained:
    """As if the embeddings, to which the head is tied, had been trained: the score keeps its own rows."""
    model = copy.deepcopy(one.model)
    with torch.no_grad():
        model.causal_lm.get_input_embeddings().weight.mul_(1.1)
    return Trained(model, one.tokenizer, one.contract, one.base_name, None, PAIRS, 1e-4)


def on_a_one_label_base(folder: Path) -> Trained:
    """A base without a language-model head, as another export is."""
    from tiny import add_random_lora

    from rankwright.model.loading import load_tokenizer

    tokenizer = load_tokenizer(str(folder))
    contract = make_contract(tokenizer, mode="portable", max_tokens=160)
    model = add_random_lora(load_model(str(folder), contract, tokenizer), seed=5)
    return Trained(model.eval(), tokenizer, contract, str(folder), None, PAIRS, 1e-4)


@pytest.fixture(scope="module")
def sources(trained: dict[str, Trained], folders: dict[str, Path], tiny_qwen3: Path) -> dict[str, Trained]:
    """What is exported, by name."""
    return {
        **{name: trained[name] for name in ("qwen3-portable", "qwen3-official", "llama-portable", "qwen3-full")},
        "zerank": trained_of(tiny_qwen3, "zerank"),
        "moved": with_moved_embeddings(trained["qwen3-full"]),
        "one-label": on_a_one_label_base(folders["qwen3-portable"]),
        "bf16": trained["qwen3-portable"],
        "sharded": trained["qwen3-portable"],
    }


@pytest.fixture(scope="module")
def causal(sources: dict[str, Trained], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The `causal` folder of each of `sources`, with its figures in figures.json beside it."""
    root = tmp_path_factory.mktemp("causal")
    options = {"bf16": {"dtype": "bf16"}, "sharded": {"shard_size": "100KB"}}
    for name, one in sources.items():
        (root / name).mkdir()
        figures = TARGETS["causal"].bind(options.get(name, {}))(one, root / name)
        (root / f"{name}.json").write_text(json.dumps(figures))
    return {name: root / name for name in sources}


def figures_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(folder.with_name(f"{folder.name}.json").read_text())
    return found


@pytest.mark.slow
def test_every_runtime_reads_the_yes_no_form(sources: dict[str, Trained], causal: dict[str, Path]) -> None:
    for name, report in check_folders(causal).items():
        assert report["failures"] == [], name
        for engine in ENGINES:
            figures = report["engines"][engine]
            assert figures["ids_differ"] == 0 and figures["rows"] >= 30, (name, engine)
            assert max(figures["max_d_logit"], figures["max_d_logit_batch"]) < 1e-4, (name, engine)
        one = sources[name]
        wanted = Reranker(one.model, one.tokenizer, one.contract).score(QUERY, DOCUMENTS)
        again = Reranker.load(str(causal[name]))
        assert again.contract == one.contract.replace(scale=1.0)
        limit = 1.0 if name == "bf16" else 1e-4
        assert again.score(QUERY, DOCUMENTS) == pytest.approx(wanted, abs=limit), name
        assert torch.tensor(wanted).std() > 0.2


def test_the_head_is_untied_only_where_the_score_demands_it(causal: dict[str, Path]) -> None:
    tied = {name: figures_of(folder)["tied"] for name, folder in causal.items()}
    untied = {"llama-portable", "zerank", "moved", "one-label"}
    assert {name for name, value in tied.items() if not value} == untied
    for name, folder in causal.items():
        config = json.loads((folder / "config.json").read_text())
        assert config["tie_word_embeddings"] == tied[name]
        assert config["architectures"][0].endswith("ForCausalLM")


def test_the_files_of_sentence_transformers(causal: dict[str, Path]) -> None:
    for name, folder in causal.items():
        contract = PromptContract.load(folder)
        assert contract is not None
        score = json.loads((folder / "1_LogitScore" / "config.json").read_text())
        assert score["true_token_id"] == contract.yes_id and score["false_token_id"] == contract.no_id
        modalities = json.loads((folder / "sentence_bert_config.json").read_text())["modality_config"]
        assert set(modalities) == ({"text", "message"} if name == "qwen3-official" else {"text"})
        assert json.loads((folder / "config_sentence_transformers.json").read_text())["model_type"] == "CrossEncoder"


@pytest.mark.slow
def test_weights_in_shards_and_rounded(causal: dict[str, Path], trained: dict[str, Trained], tmp_path: Path) -> None:
    TARGETS["hf"].bind({"shard_size": "100KB", "dtype": "auto"})(trained["qwen3-portable"], tmp_path)
    for folder in (causal["sharded"], tmp_path):
        files = sorted(path.name for path in folder.glob("*.safetensors"))
        index = json.loads((folder / "model.safetensors.index.json").read_text())
        assert len(files) > 2 and set(index["weight_map"].values()) == set(files)
        assert max((folder / name).stat().st_size for name in files[1:]) < 150_000
    report = check_folders({"hf": tmp_path})["hf"]
    assert report["failures"] == [] and set(report["engines"]) >= {"transformers", "sentence-transformers"}
    assert figures_of(causal["sharded"])["weight_files"] > 2
    rounded = figures_of(causal["bf16"])
    assert rounded["dtype"] == "bfloat16" and 1e-3 < rounded["max_d_rounded"] < 1
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "float32"


def test_options_that_cannot_be_are_refused() -> None:
    with pytest.raises(UserError, match=r"shard_size.*whole number with KB, MB or GB"):
        TARGETS["hf"].bind({"shard_size": "5 gigabytes"})
    with pytest.raises(UserError, match="dtype"):
        TARGETS["causal"].bind({"dtype": "int8"})


def test_the_snippets_of_the_card_run(causal: dict[str, Path]) -> None:
    for name in ("qwen3-official", "zerank"):
        folder = causal[name]
        contract = PromptContract.load(folder)
        assert contract is not None
        write_card(folder, CardFacts(), contract, {"rows": 0, "engines": {}}, base_name="org/base", revision=None)
        card = (folder / "README.md").read_text()
        wanted = Reranker.load(str(folder)).rank(EXAMPLE[0], [EXAMPLE[1]])[0].probability
        snippets = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
        assert len(snippets) == 3
        for snippet in snippets:
            shown: list[Any] = []
            exec(snippet.replace('"PATH"', repr(str(folder))), {"print": shown.append})
            assert torch.as_tensor(shown[0]).item() == pytest.approx(wanted, abs=1e-4)
        serve = (folder / "SERVE.md").read_text()
        found = re.search(r"--hf-overrides '(.*)'", serve)
        assert found is not None
        overrides = json.loads(found.group(1))
        assert overrides["architectures"] == ["Qwen3ForSequenceClassification"]
        official = name == "qwen3-official"
        assert overrides["classifier_from_token"] == (["no", "yes"] if official else ["Yes"])
        assert ("--chat-template FOLDER/" in serve) == official
