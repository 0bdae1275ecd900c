"""The model: two-row head, batches, LoRA and full training, what is refused, and the Reranker API."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import PAIRS, add_random_lora

from rankwright.common.errors import UserError
from rankwright.model.attention import PLAIN
from rankwright.model.loading import load_model, load_tokenizer
from rankwright.model.prompt import EncodedGroup, PromptEncoder, make_contract
from rankwright.model.rank_model import RankModel
from rankwright.model.trainable import add_lora, load_trainable_state, parameter_counts, train_all, trainable_state
from rankwright.rerankers.reranker import Own, Reranker, native_contract, saved_contract

BASES = ["tiny_qwen3", "tiny_llama"]
# fp32 logits of about ten.
CLOSE = {"rtol": 0.0, "atol": 3e-5}


def load(folder: Path) -> Reranker:
    tokenizer = load_tokenizer(str(folder))
    contract = make_contract(tokenizer, mode="portable", max_tokens=160)
    return Reranker(load_model(str(folder), contract, tokenizer).eval(), tokenizer, contract)


def groups_of(reranker: Reranker) -> list[EncodedGroup]:
    """A group a pair."""
    return [reranker.encoder.encode(query, [document]) for query, document in PAIRS]


def scores(model: RankModel, groups: list[EncodedGroup]) -> torch.Tensor:
    with torch.no_grad():
        return model(groups)


@pytest.mark.parametrize("base", BASES)
def test_score_is_the_causal_models_logit_difference(base: str, request: pytest.FixtureRequest) -> None:
    from transformers import AutoModelForCausalLM

    folder = request.getfixturevalue(base)
    reranker = load(folder)
    causal = AutoModelForCausalLM.from_pretrained(folder).eval()
    contract = reranker.contract
    for group, score in zip(groups_of(reranker), scores(reranker.model, groups_of(reranker)), strict=True):
        with torch.no_grad():
            last = causal(torch.tensor([group.head_ids + group.tail_ids[0]])).logits[0, -1]
        torch.testing.assert_close(score, last[contract.yes_id] - last[contract.no_id], **CLOSE)


@pytest.mark.parametrize("attention", ["auto", PLAIN])
@pytest.mark.parametrize("base", BASES)
def test_a_score_does_not_depend_on_its_batch(base: str, attention: str, request: pytest.FixtureRequest) -> None:
    reranker = load(request.getfixturevalue(base))
    reranker.model.attention = attention
    groups = groups_of(reranker)
    alone = torch.stack([scores(reranker.model, [g])[0] for g in groups])
    assert alone.std() > 1, "scores too alike for this test to see anything"
    together = scores(reranker.model, groups)
    torch.testing.assert_close(together, alone, **CLOSE)
    torch.testing.assert_close(scores(reranker.model, groups[::-1]).flip(0), alone, **CLOSE)
    # What fills the padding must not matter.
    model = copy.copy(reranker.model)
    model.pad_id = 5
    torch.testing.assert_close(scores(model, groups), together, rtol=0, atol=0)


def test_missing_weights_are_refused(tiny_qwen3: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(tiny_qwen3, tmp_path / "broken"))
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="up_proj"):
        load(folder)


def test_an_untied_base_without_its_head_is_refused(tiny_llama: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(tiny_llama, tmp_path / "headless"))
    weights = load_file(folder / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="lm_head"):
        load(folder)


def test_a_classifier_with_two_labels_is_refused(tiny_qwen3: Path, tmp_path: Path) -> None:
    from transformers import AutoConfig, Qwen3ForSequenceClassification

    folder = Path(shutil.copytree(tiny_qwen3, tmp_path / "two"))
    Qwen3ForSequenceClassification(AutoConfig.from_pretrained(folder, num_labels=2)).save_pretrained(folder)
    with pytest.raises(UserError, match="2 labels"):
        load(folder)


def test_a_budget_beyond_the_bases_positions_is_refused(tiny_qwen3: Path) -> None:
    tokenizer = load_tokenizer(str(tiny_qwen3))
    contract = make_contract(tokenizer, mode="portable", max_tokens=4096)
    with pytest.raises(UserError, match="2048 positions"):
        load_model(str(tiny_qwen3), contract, tokenizer)


def test_a_folder_that_is_none_is_one_line_for_the_user(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model\.base") as caught:
        Reranker.load(str(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("base", BASES)
def test_lora_is_on_all_linear_layers_and_nothing_else_is_trained(base: str, request: pytest.FixtureRequest) -> None:
    reranker = load(request.getfixturevalue(base))
    before = scores(reranker.model, groups_of(reranker))
    linear = sum(isinstance(m, torch.nn.Linear) for m in reranker.model.decoder.modules())
    model = add_lora(reranker.model, rank=4, alpha=8, dropout=0.0, seed=3)
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert len(trained) == 2 * linear == 2 * 7 * 2
    assert all("lora_" in name for name in trained)
    assert parameter_counts(model)[0] == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert torch.equal(scores(model, groups_of(reranker)), before), "fresh adapters change nothing"


def test_lora_starts_from_its_seed_and_leaves_the_random_state(tiny_qwen3: Path) -> None:
    def first_weights(seed: int) -> dict[str, torch.Tensor]:
        return trainable_state(add_lora(load(tiny_qwen3).model, rank=2, alpha=4, dropout=0.0, seed=seed))

    torch.manual_seed(0)
    state = torch.get_rng_state()
    one, same, other = first_weights(1), first_weights(1), first_weights(2)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(one[k], same[k]) for k in one)
    assert not all(torch.equal(one[k], other[k]) for k in one)


@pytest.mark.parametrize("base", BASES)
def test_full_training_freezes_embeddings_and_head(base: str, request: pytest.FixtureRequest) -> None:
    model = train_all(load(request.getfixturevalue(base)).model)
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {"lm.model.embed_tokens.weight"} | ({"lm.lm_head.weight"} if base == "tiny_llama" else set())


def test_trained_state_comes_back_bit_for_bit(tiny_qwen3: Path) -> None:
    trained, fresh = add_random_lora(load(tiny_qwen3).model), add_lora_of(tiny_qwen3)
    load_trainable_state(fresh, trainable_state(trained))
    groups = groups_of(load(tiny_qwen3))
    assert torch.equal(scores(trained, groups), scores(fresh, groups))
    with pytest.raises(UserError, match="not those of this recipe"):
        load_trainable_state(train_all(load(tiny_qwen3).model), trainable_state(trained))


def add_lora_of(folder: Path) -> RankModel:
    return add_lora(load(folder).model, rank=4, alpha=8, dropout=0.0, seed=9)


def test_reranker_scores_ranks_and_counts(tiny_qwen3: Path) -> None:
    reranker = load(tiny_qwen3)
    documents = [document for _, document in PAIRS]
    found = reranker.score("what is a bond?", documents)
    assert len(found) == len(documents) and reranker.score("what is a bond?", []) == []
    ranked = reranker.rank("what is a bond?", documents, top_k=5)
    assert [r.score for r in ranked] == sorted(found, reverse=True)[:5]
    assert all(r.document == documents[r.index] and r.score == found[r.index] for r in ranked)
    assert all(abs(r.probability - 1 / (1 + 2.718281828459045**-r.score)) < 1e-9 for r in ranked)
    # Ties stay in the order of the input.
    assert [r.index for r in reranker.rank("q", ["same", "same", "same"])] == [0, 1, 2]
    groups = [(query, [document]) for query, document in PAIRS]
    streamed = [s[0] for s in reranker.score_groups(groups)]
    assert streamed == pytest.approx([reranker.score(q, d)[0] for q, d in groups], abs=3e-5)
    assert (reranker.cut_queries, reranker.cut_documents) == (0, 0)
    reranker.score("word " * 100, ["word " * 500, "short"])
    assert (reranker.cut_queries, reranker.cut_documents) == (1, 1)
    with pytest.raises(UserError, match="list of texts"):
        reranker.score("q", "one text")


def test_scoring_leaves_the_mode_of_the_model(tiny_qwen3: Path) -> None:
    reranker = load(tiny_qwen3)
    reranker.model.train()
    reranker.score("q", ["d"])
    assert reranker.model.training


def test_the_contract_of_a_hub_repository_is_read(
    tiny_qwen3: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the hub's own cache, as huggingface_hub lays it out: nothing is fetched."""
    snapshot = tmp_path / "models--me--mine" / "snapshots" / "0123abc"
    shutil.copytree(tiny_qwen3, snapshot)
    refs = tmp_path / "models--me--mine" / "refs"
    refs.mkdir()
    (refs / "main").write_text("0123abc")
    contract = make_contract(load_tokenizer(str(snapshot)), mode="official", instruction="of the repository")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert saved_contract("me/mine") is None
    contract.save(snapshot)
    assert saved_contract("me/mine") == contract


def test_native_contract_keeps_a_saved_one(tiny_qwen3: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_qwen3, tmp_path / "with-contract"))
    tokenizer: Any = load_tokenizer(str(folder))
    assert native_contract(str(folder), tokenizer).mode == "portable"
    assert native_contract(str(folder), tokenizer, name="Qwen/Qwen3-Reranker-0.6B").mode == "official"
    saved = make_contract(tokenizer, mode="official", instruction="mine", max_tokens=300)
    saved.save(folder)
    assert native_contract(str(folder), tokenizer) == saved
    changed = native_contract(str(folder), tokenizer, own=Own(" other<|im_end|> ", 200))
    assert (changed.mode, changed.instruction) == ("official", "other< |im_end|>")
    assert (changed.max_tokens, changed.query_tokens) == (200, 50)
    assert len(PromptEncoder(changed, tokenizer).encode("q", ["word " * 500]).tail_ids[0]) < 200


def test_an_adapter_that_does_not_fit_is_refused(tiny_qwen3: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    from rankwright.export.target import Trained
    from rankwright.export.targets import TARGETS

    reranker = load(tiny_qwen3)
    model, folder = add_random_lora(reranker.model), tmp_path / "adapter"
    TARGETS["adapter"].write(Trained(model, reranker.tokenizer, reranker.contract, str(tiny_qwen3)), folder)
    again = Reranker.load(str(folder), base=str(tiny_qwen3))
    assert torch.equal(scores(again.model, groups_of(reranker)), scores(model, groups_of(reranker)))
    with pytest.raises(UserError, match="base=FOLDER"):
        Reranker.load(str(folder))
    weights = load_file(folder / "adapter_model.safetensors")
    del weights[sorted(weights)[0]]
    save_file(weights, folder / "adapter_model.safetensors")
    with pytest.raises(UserError, match="1 adapter weights do not fit"):
        Reranker.load(str(folder), base=str(tiny_qwen3))
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == tiny_qwen3.name
