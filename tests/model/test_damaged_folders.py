"""Folders of bases, exports and adapters that are damaged or odd: one line already in `check`, or the right scores."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import damage
import pytest
import torch
from damage import (
    ADAPTER_WEIGHTS,
    INDEX,
    WEIGHTS,
    adapter_config,
    after_sharding,
    config,
    contract,
    cut,
    index,
    replaced,
    weights,
    without,
    write,
)
from tiny import PAIRS, make_tiny_qwen3

from rankwright.common.errors import UserError
from rankwright.export.target import Trained
from rankwright.export.targets import TARGETS
from rankwright.pipeline.checks import check_targets
from rankwright.recipe.export import Export
from rankwright.recipe.schema import Model, Prompt, Recipe
from rankwright.recipe.sources import Data
from rankwright.rerankers.reranker import Reranker

QUERY, DOCUMENTS = PAIRS[0][0], [document for _, document in PAIRS[:6]]
NAN, INFINITE = damage.one_number(float("nan")), damage.one_number(float("inf"))
# Found when the weights are read, or of no concern to a recipe, which has its own budgets: not by `check`.
LATE = "late: "

Case = tuple[str, damage.Change, str]
QWEN3: list[Case] = [
    ("one layer fewer", config(num_hidden_layers=1, layer_types=None), "have no place in .*layers.1"),
    ("one layer more", config(num_hidden_layers=3, layer_types=None), "missing or of another shape .*layers.2"),
    ("a family's weights under another", config(model_type="llama", architectures=["LlamaForCausalLM"]), "k_norm"),
    ("another family's name alone", config(model_type="qwen2", architectures=["Qwen2ForCausalLM"]), "missing"),
    ("a weight more", damage.extra("model.layers.0.mlp.gate.weight", 4, 4), r"1 weights have no place.*mlp\.gate"),
    ("a head of another task", damage.extra("score.weight", 1, 64), "have no place in Qwen3ForCausalLM"),
    ("a weight fewer", damage.lost("up_proj"), "up_proj"),
    ("a shape", replaced("layers.1.mlp.down_proj", damage.half), r"down_proj\.weight \[32, 128\], by config"),
    ("not a number in a matrix", replaced("up_proj", NAN), f"{LATE}1 weights are not finite.*up_proj"),
    ("infinity in a norm", replaced("norm.weight", INFINITE), f"{LATE}1 weights are not finite.*norm"),
    ("not a number in the embeddings", replaced("embed", NAN), f"{LATE}not finite numbers .*embed_tokens"),
    ("cut weights", cut(WEIGHTS), "model.safetensors: damaged"),
    ("empty weights", cut(WEIGHTS, 0), "model.safetensors: damaged"),
    ("weights without a header", cut(WEIGHTS, 0.001), "model.safetensors: damaged"),
    ("a huge header", damage.huge_header, "model.safetensors: damaged"),
    ("a text for weights", write(WEIGHTS, "version https://git-lfs.github.com/spec/v1\n"), "damaged"),
    ("no weights", without(WEIGHTS), "neither model.safetensors nor"),
    ("only a pickle", lambda f: (f / WEIGHTS).rename(f / "pytorch_model.bin"), "a pickle"),
    ("an index without files", index(weight_map={}), "weight_map must name"),
    ("an index without a map", index(weight_map=None), "weight_map must name"),
    ("an index of numbers", index(weight_map={"model.norm.weight": 3}), "weight_map must name"),
    ("an index that is a list", after_sharding(write(INDEX, "[]")), "must hold an object"),
    ("an index that is no JSON", after_sharding(cut(INDEX)), "is not JSON"),
    ("an index to nowhere", index(weight_map={"model.norm.weight": "gone.safetensors"}), "'gone.safetensors', which"),
    ("an index to above", index(weight_map={"model.norm.weight": "../x.safetensors"}), "'../x.safetensors', which"),
    ("a shard that is gone", after_sharding(without("model-00002-of-00002.safetensors")), "00002.* not there"),
    ("a shard that is cut", after_sharding(cut("model-00001-of-00002.safetensors")), "00001.*damaged"),
    ("an index with too many names", after_sharding(lambda f: _name_more(f)), "names 1 weights that are not in"),
    ("config.json is gone", without("config.json"), "model_type"),
    ("config.json is empty", write("config.json", ""), "config.json is not JSON"),
    ("config.json is a list", write("config.json", "[1]"), "config.json: must hold an object"),
    ("config.json is deep", write("config.json", "[" * 100_000), "config.json is not JSON"),
    ("config.json is cut", cut("config.json"), "config.json is not JSON"),
    ("an architecture that is a number", config(architectures=5), "architectures 5"),
    ("an architecture nobody has", config(architectures=["NoSuchForCausalLM"]), "not a class of transformers"),
    ("a family nobody has", config(model_type="nosuch"), "cannot load"),
    ("a family that is a list", config(model_type=["qwen3"]), "model_type"),
    ("no family", lambda f: _drop(f, "model_type"), "cannot load"),
    ("a hidden size as text", config(hidden_size="64"), "hidden_size"),
    ("a hidden size below zero", config(hidden_size=-64), "hidden_size -64: must be"),
    ("a hidden size of zero", config(hidden_size=0), "hidden_size 0: must be"),
    ("a huge hidden size", config(hidden_size=2**40), "hidden_size 1099511627776"),
    ("another hidden size", config(hidden_size=128), "of another shape"),
    ("layers as text", config(num_hidden_layers="2"), "num_hidden_layers"),
    ("no layers", config(num_hidden_layers=0, layer_types=None), "num_hidden_layers 0"),
    ("layers below zero", config(num_hidden_layers=-1, layer_types=None), "num_hidden_layers.*-1"),
    ("a billion layers", config(num_hidden_layers=10**9), "num_hidden_layers.*1000000000"),
    ("two hundred layers", config(num_hidden_layers=200, layer_types=None), "has 200 layers, and the files 2"),
    ("heads below zero", config(num_attention_heads=-4), "num_attention_heads -4"),
    ("no heads", config(num_attention_heads=0), "num_attention_heads 0"),
    ("no key heads", config(num_key_value_heads=0), "num_key_value_heads 0"),
    ("huge heads", config(head_dim=2**40), "head_dim 1099511627776"),
    ("a vocabulary as text", config(vocab_size="many"), "vocab_size"),
    ("a small vocabulary", config(vocab_size=100), "the embeddings have 100 rows"),
    ("a huge vocabulary", config(vocab_size=2**40), "vocab_size"),
    ("few positions", config(max_position_embeddings=8), "has 8 positions"),
    ("positions below zero", config(max_position_embeddings=-1), "max_position_embeddings -1"),
    ("an epsilon as text", config(rms_norm_eps="small"), "rms_norm_eps"),
    ("an epsilon below zero", config(rms_norm_eps=-1e9), "rms_norm_eps -1000000000.0"),
    ("rotary positions as text", config(rope_parameters="x"), "rope|cannot load"),
    ("an unknown kind of positions", config(rope_parameters={"rope_type": "nosuch", "rope_theta": 1e6}), "nosuch"),
    (
        "positions of no base",
        config(rope_parameters={"rope_type": "default", "rope_theta": 0}),
        "rope_theta 0: must be",
    ),
    ("an unknown activation", config(hidden_act="nosuch"), "nosuch"),
    ("labels as text", config(architectures=["Qwen3ForSequenceClassification"], num_labels="x"), "labels"),
    ("quantised without its library", config(quantization_config={"quant_method": "gptq", "bits": 4}), "quantised"),
    ("quantised by nobody", config(quantization_config={"quant_method": "nosuch"}), "quantised|cannot load"),
    ("tokenizer.json is gone", without("tokenizer.json"), "cannot load|portable needs a tokenizer"),
    ("tokenizer.json is cut", cut("tokenizer.json"), "cannot load"),
    ("tokenizer.json is another object", write("tokenizer.json", '{"model": 3}'), "cannot load"),
    ("tokenizer_config.json is a list", write("tokenizer_config.json", "[]"), "cannot load"),
    ("tokenizer_config.json is cut", cut("tokenizer_config.json"), "cannot load"),
    ("no token for padding", lambda f: _no_padding(f), "no pad token that differs"),
    ("a tokenizer without places", lambda f: _slow_tokenizer(f), "CTRLTokenizer gives no places of tokens"),
    ("a module of another kind", write("modules.json", '{"type": "x"}'), "modules.json: must hold a list"),
    ("capped logits", config(final_logit_softcapping=30.0), "logits are capped"),
]
HF: list[Case] = [
    ("the contract is cut", cut("rankwright.json"), "not a prompt contract"),
    ("the contract is a list", write("rankwright.json", "[]"), "not a prompt contract"),
    ("another version", contract(version="1"), "version '1'"),
    ("a key nobody knows", contract(color="red"), "not a prompt contract"),
    (
        "a mode that is no name",
        contract(mode="no such\nframe"),
        r"mode 'no such\\nframe': must be the name of a prompt",
    ),
    ("an empty mode", contract(mode=""), "mode '': must be the name of a prompt frame"),
    ("a mode that is a number", contract(mode=3), "mode 3: must be a text"),
    ("a prefix that is a number", contract(prefix=1), "prefix 1"),
    ("two places for an instruction", contract(prefix="{instruction}{instruction}"), "one place for an instruction"),
    ("a yes that is a text", contract(yes_id="9693"), "yes_id '9693'"),
    ("a yes below zero", contract(yes_id=-1), "yes_id -1"),
    ("a yes that is true", contract(yes_id=True), "yes_id True"),
    ("yes and no are one", lambda f: _yes_is_no(f), "no_id .*another token than yes_id"),
    ("a no without a word", contract(no_token=None), "no_id .*the number of no_token"),
    ("another yes", contract(yes_id=1), "'yes' is token 1 there"),
    ("a yes beyond the rows", contract(yes_id=10**6), "'yes' is token 1000000 there"),
    ("a yes of two tokens", contract(yes_token="a much longer word"), "must be one"),
    ("no budget", contract(max_tokens=0), "max_tokens 0"),
    ("a budget as text", contract(max_tokens="160"), "max_tokens '160'"),
    ("a budget beyond all", contract(max_tokens=10**12), "max_tokens"),
    ("a budget without room", contract(max_tokens=20, query_tokens=10), f"{LATE}leave no room"),
    ("queries beyond the prompt", contract(query_tokens=10**6), "query_tokens"),
    ("padding on the right", contract(padding_side="right"), "padding_side 'right': must be left"),
    ("a scale of zero", contract(scale=0), "scale 0"),
    ("a scale as text", contract(scale="1"), "scale '1'"),
    ("an endless scale", lambda f: _endless_scale(f), "scale inf"),
    ("a temperature below zero", contract(temperature=-1), "temperature -1"),
    ("two labels", config(num_labels=2, id2label={"0": "a", "1": "b"}), "2 labels"),
    ("no row for the score", damage.lost("score"), "score"),
    ("no number for a score", replaced("score", NAN), f"{LATE}not finite numbers .*score"),
]
ADAPTER: list[Case] = [
    ("no base", adapter_config(base_model_name_or_path=None), "names no base"),
    ("an empty base", adapter_config(base_model_name_or_path=""), "names no base"),
    ("a base that is a number", adapter_config(base_model_name_or_path=3), "names no base"),
    ("a circle", lambda f: damage.edit_json(f / "adapter_config.json", base_model_name_or_path=str(f)), "lie on them"),
    ("a circle of two", lambda f: _circle_of_two(f), "lie on themselves"),
    ("another rank in the settings", adapter_config(r=2), "r 2, and .* the rank 4"),
    ("a rank of zero", adapter_config(r=0), "adapters do not fit|damaged|rank"),
    ("a rank as text", adapter_config(r="4"), "adapters do not fit|damaged|rank"),
    ("settings that are a list", write("adapter_config.json", "[]"), "must hold an object"),
    ("settings that are cut", cut("adapter_config.json"), "not JSON"),
    ("another kind of adapters", adapter_config(peft_type="NOSUCH"), "damaged|kind"),
    ("prompt tuning", lambda f: _prompt_tuning(f), "of the kind PROMPT_TUNING, must be LORA"),
    ("no weights", without(ADAPTER_WEIGHTS), "no adapter_model.safetensors"),
    ("cut weights", cut(ADAPTER_WEIGHTS), "adapter_model.safetensors: damaged"),
    ("keys that hit nothing", weights(lambda t: _renamed(t, "layers.1", "layers.9"), ADAPTER_WEIGHTS), "do not fit"),
    ("a weight fewer", damage.lost("lora_A", ADAPTER_WEIGHTS), "1 adapter weights do not fit"),
    ("a shape", replaced("lora_A", lambda t: t[:, :8].clone(), ADAPTER_WEIGHTS), "shape|do not fit"),
    ("not a number", replaced("lora_B", NAN, ADAPTER_WEIGHTS), f"{LATE}not finite numbers .*lora_B"),
    ("layers nobody has", adapter_config(target_modules=["nosuch"]), "do not fit"),
    ("a pattern without an end", adapter_config(target_modules="(([a-z_.0-9]+)*)*x!"), "a pattern takes too long"),
    ("a broken pattern", adapter_config(target_modules="(q_proj"), "is not a regular expression"),
    ("a pattern of ranks without an end", adapter_config(rank_pattern={"(([a-z_.0-9]+)*)*x!": 8}), "takes too long"),
    ("ranks that are no object", adapter_config(rank_pattern=5), "fit|damaged|read|loaded"),
    ("a scale as text", adapter_config(lora_alpha="x"), "fit|damaged"),
    ("a scale that is no number", adapter_config(lora_alpha=float("nan")), f"{LATE}not finite numbers"),
    ("DoRA without its weights", adapter_config(use_dora=True), "adapter weights do not fit"),
    ("another head", damage.extra_adapter("lm_head"), "change the head"),
]
FOLDERS = {"qwen3": QWEN3, "hf": HF, "adapter": ADAPTER}


def _name_more(folder: Path) -> None:
    named = json.loads((folder / INDEX).read_text())["weight_map"]
    damage.edit_json(folder / INDEX, weight_map={**named, "model.extra.weight": next(iter(named.values()))})


def _drop(folder: Path, key: str) -> None:
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({k: v for k, v in settings.items() if k != key}))


def _yes_is_no(folder: Path) -> None:
    stored = json.loads((folder / "rankwright.json").read_text())
    damage.edit_json(folder / "rankwright.json", no_id=stored["yes_id"])


def _endless_scale(folder: Path) -> None:
    text = (folder / "rankwright.json").read_text()
    (folder / "rankwright.json").write_text(re.sub(r'"scale": [\d.]+', '"scale": Infinity', text))


def _circle_of_two(folder: Path) -> None:
    other = Path(shutil.copytree(folder, folder.with_name("other")))
    replaced("lora_B", lambda t: t * 2, ADAPTER_WEIGHTS)(other)
    damage.edit_json(folder / "adapter_config.json", base_model_name_or_path=str(other))
    damage.edit_json(other / "adapter_config.json", base_model_name_or_path=str(folder))


def _prompt_tuning(folder: Path) -> None:
    base = json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]
    settings = {"peft_type": "PROMPT_TUNING", "task_type": "CAUSAL_LM", "num_virtual_tokens": 2}
    (folder / "adapter_config.json").write_text(json.dumps({**settings, "base_model_name_or_path": base}))


def _no_padding(folder: Path) -> None:
    damage.edit_json(folder / "tokenizer_config.json", pad_token="<|im_end|>", unk_token=None)
    text = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(text.replace("<|endoftext|>", "<|nothing|>"))


def _slow_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text('{"<unk>": 0, "a</w>": 1}')
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "CTRLTokenizer"}')


def _renamed(tensors: dict[str, Any], old: str, new: str) -> None:
    for name in [name for name in tensors if old in name]:
        tensors[name.replace(old, new)] = tensors.pop(name)


@pytest.fixture(scope="module")
def sources(trained: dict[str, Trained], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("whole")
    one = trained["qwen3-portable"]
    for target in ("hf", "adapter"):
        (root / target).mkdir()
        TARGETS[target].write(one, root / target)
    damage.edit_json(root / "adapter" / "adapter_config.json", base_model_name_or_path=one.base_name)
    return {"qwen3": Path(one.base_name), "hf": root / "hf", "adapter": root / "adapter"}


def faults_of(folder: Path) -> list[str]:
    recipe = Recipe(
        name="r",
        model=Model(base=str(folder)),
        data=Data(),
        prompt=Prompt(max_tokens=160),
        export=Export(targets={}),
    )
    return check_targets(recipe)


@pytest.mark.parametrize(
    ("source", "change", "reason"),
    [pytest.param(s, c, r, id=f"{s}: {name}") for s, cases in FOLDERS.items() for name, c, r in cases],
)
def test_a_damaged_folder_is_one_line_in_check_and_when_it_is_loaded(
    source: str, change: damage.Change, reason: str, sources: dict[str, Path], tmp_path: Path, monkeypatch: Any
) -> None:
    folder = Path(shutil.copytree(sources[source], tmp_path / "folder"))
    change(folder)
    if "too long" in reason:
        monkeypatch.setattr("rankwright.model.adapters.PATTERN_SECONDS", 0.5)
    with pytest.raises(UserError, match=reason.removeprefix(LATE)) as caught:
        Reranker.load(str(folder))
    assert str(caught.value).isprintable() and len(str(caught.value)) < 900
    faults = faults_of(folder)
    if reason.startswith(LATE):
        assert faults == []
    else:
        [fault] = faults
        assert fault.isprintable()


def renamed_buffers(folder: Path) -> None:
    """What older versions of transformers wrote for each layer."""
    weights(lambda t: t.update({f"model.layers.{n}.self_attn.rotary_emb.inv_freq": torch.ones(8) for n in (0, 1)}))(
        folder
    )


def _odd_template(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    damage.edit_json(folder / "tokenizer_config.json", chat_template=5)


FINE: list[tuple[str, str, damage.Change]] = [
    ("qwen3", "the tied head is stored twice", damage.same_twice("model.embed_tokens.weight", "lm_head.weight")),
    ("qwen3", "frequencies of positions are stored", renamed_buffers),
    ("qwen3", "several files with an index", damage.sharded),
    ("qwen3", "layers for further tokens", damage.extra("model.mtp.layers.0.weight", 2, 2)),
    ("qwen3", "an index beside one file", write(INDEX, "{}")),
    ("qwen3", "a pickle beside safetensors", write("pytorch_model.bin", "x")),
    ("qwen3", "a README with a date that is none", write("README.md", "---\ndate: 2024-13-45\n---\n# x\n")),
    ("qwen3", "a README of brackets", write("README.md", f"---\nx: {'[' * 50_000}\n---\n# x\n")),
    ("qwen3", "a chat template that is a number", _odd_template),
    ("hf", "several files with an index", damage.sharded),
    ("hf", "as it was written", lambda folder: None),
    ("adapter", "as it was written", lambda folder: None),
    ("adapter", "layers by a pattern", adapter_config(target_modules=r".*\.(mlp|self_attn)\..*_proj")),
]


@pytest.mark.parametrize(("source", "change"), [pytest.param(s, c, id=f"{s}: {n}") for s, n, c in FINE])
def test_what_is_only_odd_gives_the_same_scores(
    source: str, change: Callable[[Path], object], sources: dict[str, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(sources[source], tmp_path / "folder"))
    change(folder)
    wanted = Reranker.load(str(sources[source])).score(QUERY, DOCUMENTS)
    assert faults_of(folder) == []
    assert Reranker.load(str(folder)).score(QUERY, DOCUMENTS) == pytest.approx(wanted, abs=1e-5)


def test_adapters_are_not_put_on_themselves(sources: dict[str, Path], tmp_path: Path) -> None:
    """Nor on a copy of themselves: their effect would be there twice."""
    copy = shutil.copytree(sources["adapter"], tmp_path / "copy")
    for base in (sources["adapter"], copy):
        with pytest.raises(UserError, match="lie on themselves") as caught:
            Reranker.load(str(sources["adapter"]), base=str(base))
        assert str(caught.value).isprintable()


def test_adapters_of_another_base_are_refused(sources: dict[str, Path], tmp_path: Path) -> None:
    wider, deeper = make_tiny_qwen3(tmp_path / "wider", hidden=96), make_tiny_qwen3(tmp_path / "deeper", layers=3)
    for base, reason in ((wider, "shape|do not fit"), (deeper, "adapter weights do not fit")):
        with pytest.raises(UserError, match=reason) as caught:
            Reranker.load(str(sources["adapter"]), base=str(base))
        assert str(caught.value).isprintable()
        folder = shutil.copytree(sources["adapter"], tmp_path / f"on-{base.name}")
        damage.edit_json(folder / "adapter_config.json", base_model_name_or_path=str(base))
        [fault] = faults_of(folder)
        assert re.search(reason, fault)
