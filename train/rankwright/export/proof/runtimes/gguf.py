"""Reads a GGUF file back without llama.cpp: its tokenizer with tokenizers, its weights with transformers.

llama.cpp's own rules (how it splits texts, softmax over the rows of the classifier) are written here a second time,
from its source and not from our writer.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from rankwright.export.proof.runtimes.base import BATCH, Answer, Exported, cut_to_suffix

RANK = 4
CONTROL, USER_DEFINED, UNUSED = 3, 4, 5
_LETTERS = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+"
_OTHERS = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_GPT_2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# llm_tokenizer_bpe of src/llama-vocab.cpp: each expression splits what the one before left.
SPLITS = {
    "qwen2": (rf"{_LETTERS}|\p{{N}}|{_OTHERS}",),
    "llama-bpe": (rf"{_LETTERS}|\p{{N}}{{1,3}}|{_OTHERS}",),
    "smaug-bpe": (rf"{_LETTERS}|\p{{N}}{{1,3}}|{_OTHERS}",),
    "gpt-2": (_GPT_2,),
    "smollm": (r"\p{N}", _GPT_2),
}
WHOLE_WORDS = {"llama-bpe"}
# GGUF's names of Qwen3's weights.
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
MODEL_NAMES = {"token_embd": "embed_tokens", "output_norm": "norm"}


class GgufFile:
    """One file: metadata by key, weights in fp32 by name."""

    def __init__(self, path: Path) -> None:
        from gguf import GGUFReader

        self._reader = GGUFReader(path)
        self.fields = self._reader.fields

    def __getitem__(self, key: str) -> Any:
        if key not in self.fields:
            raise ValueError(f"the file has no {key}")
        return self.fields[key].contents()

    def of_model(self, key: str, default: Any = None) -> Any:
        """A key of its architecture."""
        whole = f"{self['general.architecture']}.{key}"
        return self.fields[whole].contents() if whole in self.fields else default

    def weights(self) -> dict[str, torch.Tensor]:
        """Dequantised, one after the other."""
        from gguf.quants import dequantize

        return {
            t.name: torch.from_numpy(dequantize(t.data, t.tensor_type).copy()).reshape(*reversed(t.shape.tolist()))
            for t in self._reader.tensors
        }


def template_of(file: GgufFile) -> str:
    """The rerank template. Raises ValueError for one without its two places."""
    template = str(file["tokenizer.chat_template.rerank"])
    for place in ("{query}", "{document}"):
        if place not in template:
            raise ValueError(f"the rerank template has no {place}")
    return template


def render(template: str, query: str, document: str) -> str:
    """As llama-server fills it in: first the query, then the document."""
    return template.replace("{query}", query).replace("{document}", document)


def tokenizer_of(file: GgufFile) -> Any:
    """A byte-level BPE of tokens, merges and types, in the tokenizers library."""
    from tokenizers import AddedToken, Regex, Tokenizer, models
    from tokenizers import pre_tokenizers as pre

    tokens, types, name = file["tokenizer.ggml.tokens"], file["tokenizer.ggml.token_type"], file["tokenizer.ggml.pre"]
    if file["tokenizer.ggml.model"] != "gpt2" or name not in SPLITS:
        raise ValueError(f"tokenizer.ggml.pre: {name!r} is none of {', '.join(SPLITS)}")
    if len(set(tokens)) != len(tokens):
        raise ValueError("two tokens of the vocabulary are equal, which stops llama.cpp")
    kept = {token: i for i, (token, kind) in enumerate(zip(tokens, types, strict=True)) if kind != UNUSED}
    merges = [tuple(merge.split(" ", 1)) for merge in file["tokenizer.ggml.merges"]]
    found = Tokenizer(models.BPE(kept, merges, ignore_merges=name in WHOLE_WORDS))
    splits = [pre.Split(Regex(expression), behavior="isolated") for expression in SPLITS[name]]
    found.pre_tokenizer = pre.Sequence([*splits, pre.ByteLevel(add_prefix_space=False, use_regex=False)])
    for kind, add in ((CONTROL, found.add_special_tokens), (USER_DEFINED, found.add_tokens)):
        add([AddedToken(token, normalized=False) for token, own in zip(tokens, types, strict=True) if own == kind])
    return found


def check_reranker(file: GgufFile) -> None:
    """Raises ValueError naming the first thing that llama.cpp needs for reranking and the file lacks."""
    tensors = {t.name: t.shape.tolist() for t in file._reader.tensors}
    labels = file.of_model("classifier.output_labels", [])
    if "cls.output.weight" not in tensors:
        raise ValueError("there is no cls.output.weight: llama.cpp has no score")
    rows = tensors["cls.output.weight"][1] if len(tensors["cls.output.weight"]) > 1 else 1
    if rows == 1:
        raise ValueError("cls.output.weight has one row: llama.cpp's softmax over the rows is 1.0 for every pair")
    if rows != 2 or labels != ["yes", "no"]:
        raise ValueError(f"cls.output.weight has {rows} rows for the labels {labels}, must have yes and no")
    if file.of_model("pooling_type") != RANK:
        raise ValueError(f"pooling_type is {file.of_model('pooling_type')}, must be {RANK}: llama.cpp gives no score")
    if "tokenizer.ggml.bos_token_id" not in file.fields:
        raise ValueError("there is no tokenizer.ggml.bos_token_id: llama.cpp refuses to rerank")
    if file["tokenizer.ggml.add_bos_token"] or file["tokenizer.ggml.add_eos_token"]:
        raise ValueError("add_bos_token or add_eos_token is on: the template is the whole prompt")
    if len(file["tokenizer.ggml.tokens"]) != tensors["token_embd.weight"][1]:
        raise ValueError("there are other tokens than rows of the embeddings, which stops llama.cpp")


def model_of(file: GgufFile, weights: dict[str, torch.Tensor]) -> Any:
    """A Qwen3 decoder of transformers with the file's settings and weights, in fp32."""
    from transformers import Qwen3Config, Qwen3Model

    rope = {"rope_type": file.of_model("rope.scaling.type", "default"), "rope_theta": file.of_model("rope.freq_base")}
    for key, name in (("factor", "factor"), ("original_context_length", "original_max_position_embeddings")):
        if (value := file.of_model(f"rope.scaling.{key}")) is not None:
            rope[name] = value
    config = Qwen3Config(
        vocab_size=len(file["tokenizer.ggml.tokens"]),
        hidden_size=file.of_model("embedding_length"),
        intermediate_size=file.of_model("feed_forward_length"),
        num_hidden_layers=file.of_model("block_count"),
        num_attention_heads=file.of_model("attention.head_count"),
        num_key_value_heads=file.of_model("attention.head_count_kv"),
        head_dim=file.of_model("attention.key_length"),
        rms_norm_eps=file.of_model("attention.layer_norm_rms_epsilon"),
        max_position_embeddings=file.of_model("context_length"),
        rope_parameters=rope,
    )
    with torch.device("meta"):
        model = Qwen3Model(config)
    named = {_name(name): tensor for name, tensor in weights.items() if name != "cls.output.weight"}
    model.load_state_dict(named, assign=True)
    # Computed and not stored: it must not stay on `meta`.
    model.rotary_emb = type(model.rotary_emb)(config)
    return model.eval()


def _name(name: str) -> str:
    parts = name.removesuffix(".weight").split(".")
    if parts[0] == "blk":
        return f"layers.{parts[1]}.{LAYER_NAMES['.'.join(parts[2:])]}.weight"
    return f"{MODEL_NAMES[parts[0]]}.weight"


def read_back(exported: Exported, kind: str) -> Answer:
    """Scores of the file with one type of weights, by tokenizers and transformers."""
    path = next(exported.path.glob(f"*-{kind}.gguf"))
    file = GgufFile(path)
    check_reranker(file)
    template, tokenizer = template_of(file), tokenizer_of(file)

    def encode(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False).ids)

    suffix_ids = encode(template.rpartition("{document}")[2])
    texts = [render(template, row["query"], row["document"]) for row in exported.rows]
    ids = [cut_to_suffix(encode(text), exported.contract.max_tokens, suffix_ids) for text in texts]
    weights = file.weights()
    model, rows_2H = model_of(file, weights), weights["cls.output.weight"]

    def scores(size: int) -> list[torch.Tensor]:
        return [s for start in range(0, len(ids), size) for s in _score(model, rows_2H, ids[start : start + size])]

    alone, batched = torch.stack(scores(1)), torch.stack(scores(BATCH))
    probabilities = alone.double().softmax(-1)[:, 0].tolist()
    differences = (alone[:, 0] - alone[:, 1]).tolist()
    return Answer(ids, differences, [(batched[:, 0] - batched[:, 1]).tolist()], probabilities)


def _score(model: Any, rows_2H: torch.Tensor, ids: Sequence[list[int]]) -> torch.Tensor:
    """(rows, 2): logits of yes and no at the last token. Padding stands behind it, where no token attends."""
    longest = max(map(len, ids))
    padded = torch.tensor([one + [0] * (longest - len(one)) for one in ids])
    states = model(input_ids=padded, use_cache=False).last_hidden_state
    last = torch.tensor([len(one) - 1 for one in ids])
    found: torch.Tensor = states[torch.arange(len(ids)), last] @ rows_2H.T
    return found
