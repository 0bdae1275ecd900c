"""scripts/tools/checkpoint_from_gguf.py: a tiny Llama written as GGUF comes back with the same logits and token ids."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import gguf
import pytest
import torch
from tiny import TEXTS, make_tiny_llama

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "tools" / "checkpoint_from_gguf.py"
NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def run_script(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, arguments)], capture_output=True, text=True, check=False, timeout=120
    )


def write_gguf(folder: Path, file: Path) -> None:
    """The model and tokenizer of a folder in the form that llama.cpp's converter writes for Llama."""
    from safetensors.torch import load_file

    config = json.loads((folder / "config.json").read_text())
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokens = dict(tokenizer["model"]["vocab"]) | {t["content"]: t["id"] for t in tokenizer["added_tokens"]}
    special = {t["id"] for t in tokenizer["added_tokens"]}
    texts = {place: text for text, place in tokens.items()}
    rows = range(config["vocab_size"])
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([texts.get(i, f"[PAD{i}]") for i in rows])
    writer.add_token_types([3 if i in special else 1 if i in texts else 5 for i in rows])
    writer.add_token_merges([" ".join(pair) for pair in tokenizer["model"]["merges"]])
    writer.add_eos_token_id(tokens["<|eot_id|>"])
    writer.add_bos_token_id(tokens["<|begin_of_text|>"])
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    for name, tensor in load_file(folder / "model.safetensors").items():
        writer.add_tensor(gguf_name(name), rotated(name, tensor, heads).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def gguf_name(name: str) -> str:
    whole = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    stem = name.removesuffix(".weight")
    if stem in whole:
        return whole[stem] + ".weight"
    layer, _, part = stem.removeprefix("model.layers.").partition(".")
    return f"blk.{layer}.{NAMES[part]}.weight"


def rotated(name: str, tensor: torch.Tensor, heads: dict[str, int]) -> torch.Tensor:
    """llama.cpp pairs neighbours for rope where transformers pairs the halves of a head."""
    count = next((n for part, n in heads.items() if part in name), None)
    if count is None:
        return tensor.contiguous()
    rows = tensor.shape[0] // count // 2
    return tensor.reshape(count, 2, rows, -1).swapaxes(1, 2).reshape(tensor.shape).contiguous()


def test_the_folder_has_the_weights_and_ids_of_the_file(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = make_tiny_llama(tmp_path / "source")
    write_gguf(source, tmp_path / "tiny.gguf")
    done = run_script(tmp_path / "tiny.gguf", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "LlamaForCausalLM" in done.stdout
    ids = torch.randint(0, 300, (2, 17), generator=torch.Generator().manual_seed(0))
    logits = []
    for folder in (source, tmp_path / "out"):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        with torch.inference_mode():
            logits.append(model(ids).logits)
    assert (logits[0] - logits[1]).abs().max() < 1e-4 * logits[0].abs().max()
    before, after = (AutoTokenizer.from_pretrained(folder) for folder in (source, tmp_path / "out"))
    # Without digits: the file does not say how they are split, and transformers takes GPT-2's way.
    for text in TEXTS[:6]:
        expected = before(text, add_special_tokens=False)["input_ids"]
        assert after(text, add_special_tokens=False)["input_ids"] == expected
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize("case", ["missing", "no gguf", "exists"])
def test_a_mistake_is_one_line_and_leaves_nothing(tmp_path: Path, case: str) -> None:
    file, out = tmp_path / "model.gguf", tmp_path / "out"
    if case != "missing":
        file.write_bytes(b"GGUF" if case == "exists" else b"not one")
    if case == "exists":
        out.mkdir()
    done = run_script(file, out)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert out.exists() == (case == "exists")
    assert not list(out.glob("*"))
