"""Tiny random Qwen3 and Llama models with real-looking tokenizers, built into a folder in under a second.

    make_tiny_qwen3(folder)                    ChatML, object_ref/box, <think>; tied embeddings; pad <|endoftext|>
    make_tiny_llama(folder)                    Llama 3 turn tokens; untied; begin-of-text added by the tokenizer
    make_tiny_llama(folder, pad_is_eos=True)   the same with pad_token = eos_token, as many Llama files have it
    make_tiny_gemma(folder)                    pieces as of SentencePiece, <bos>; tied; prepend=True: "▁" before texts
    add_random_lora(model)                     LoRA whose adapters change the scores (a fresh one changes nothing)
    trained_of(base, mode)                     what an export takes, weights moved away from the base's
    PAIRS                                      (query, document) texts for tests

Weights have a large random init and norms that are not one, so that a wrong prompt shows in the logits (they
spread over several units); nothing is learnt, scores mean nothing. Same seed, same weights.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

QWEN_REGEX = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA_REGEX = QWEN_REGEX.replace(r"\p{N}| ?", r"\p{N}{1,3}| ?")
QWEN_SPECIAL = [
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>"),
    *("<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>"),
    *("<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
]
# In Qwen3 these are added tokens that are not marked special.
QWEN_ADDED = ["<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>"]
LLAMA_SPECIAL = [
    *("<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>", "<|finetune_right_pad_id|>"),
    *("<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|eot_id|>", "<|python_tag|>"),
]
TEXTS = [
    "Judge whether the Document meets the requirements based on the Query and the Instruct provided. "
    'Note that the answer can only be "yes" or "no".',
    'Judge whether the document answers the query. Answer "yes" or "no".',
    "Given a web search query, retrieve relevant passages that answer the query",
    "system user assistant query document instruction <Instruct>: <Query>: <Document>:",
    "A bond is a loan that an investor makes to a company or a government; it pays interest until it matures.",
    "The court held that the contract was void because the seller had not disclosed the defect of the goods.",
    "def add(first, second):\n    return first + second\n\nfor item in range(10):\n    print(item)\n",
    "The river rises in the mountains in spring and floods the fields below the old town every few years.",
    "Où est la bibliothèque de l'été ? Die Katze schläft auf dem Sofa. 東京は日本の首都です。 Привет, мир!",
]
PAIRS = [
    ("what is a bond?", "A bond is a loan that an investor makes to a company."),
    ("what is a bond?", "The river rises in the mountains in spring."),
    ("who pays interest", "It pays interest until it matures."),
    ("void contract", "The court held that the contract was void."),
    ("void contract", "The seller had not disclosed the defect."),
    ("python add two numbers", "def add(first, second):\n    return first + second\n"),
    ("loop over items", "for item in range(10):\n    print(item)"),
    ("spring floods", "The river floods the fields below the old town every few years."),
    ("capital of Japan", "東京は日本の首都です。"),
    ("cat", "Die Katze schläft auf dem Sofa."),
    ("où est la bibliothèque", "La bibliothèque est dans la vieille ville."),
    ("interest rate 2024", "Rates rose by 0.25 % in 2024, to 5.5 %."),
    ("government loan", "A government bond is a loan to a government."),
    ("mountains", "The old town is far below the mountains."),
    ("disclosed defect of goods", "The goods had a defect that the seller knew of."),
    ("return value", "A function returns first + second."),
    ("old town", "Every few years the fields are under water."),
    ("greeting in Russian", "Привет, мир!"),
    ("matures", "Until then it pays interest."),
    ("company", "An investor makes a loan to a company or a government."),
    ("print", "print(item)"),
]


def make_tiny_qwen3(folder: Path, *, layers: int = 2, hidden: int = 64, seed: int = 0, head: int = 16) -> Path:
    """Write a tiny Qwen3ForCausalLM (GQA 4/2, tied embeddings; head: size of one) with its tokenizer into `folder`."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    tokenizer = _save_tokenizer(
        folder, QWEN_REGEX, QWEN_SPECIAL, QWEN_ADDED, eos="<|im_end|>", pad="<|endoftext|>", bos=None
    )
    # Rows beyond the tokenizer, as in Qwen3.
    shape = _shape(tokenizer.get_vocab_size(), layers, hidden) | {"head_dim": head}
    config = Qwen3Config(**shape, tie_word_embeddings=True)
    config.eos_token_id = tokenizer.token_to_id("<|im_end|>")
    return _save_model(folder, Qwen3ForCausalLM, config, seed)


def make_tiny_llama(folder: Path, *, pad_is_eos: bool = False, layers: int = 2, seed: int = 0) -> Path:
    """Write a tiny LlamaForCausalLM (GQA 4/2, untied) whose tokenizer puts <|begin_of_text|> in front."""
    from transformers import LlamaConfig, LlamaForCausalLM

    pad = "<|eot_id|>" if pad_is_eos else "<|finetune_right_pad_id|>"
    tokenizer = _save_tokenizer(
        folder, LLAMA_REGEX, LLAMA_SPECIAL, [], eos="<|eot_id|>", pad=pad, bos="<|begin_of_text|>"
    )
    config = LlamaConfig(**_shape(tokenizer.get_vocab_size(), layers, 64), tie_word_embeddings=False)
    config.bos_token_id = tokenizer.token_to_id("<|begin_of_text|>")
    config.eos_token_id = tokenizer.token_to_id("<|eot_id|>")
    return _save_model(folder, LlamaForCausalLM, config, seed)


def make_tiny_gemma(folder: Path, *, prepend: bool = False, seed: int = 0) -> Path:
    """Write a tiny GemmaForCausalLM (tied, its own attention scaling) whose pieces are those of SentencePiece.

    prepend: every text starts with "▁", as in Llama 2 and MiniCPM; Gemma itself has that off.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, trainers
    from transformers import GemmaConfig, GemmaForCausalLM

    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    steps: list[Any] = [normalizers.Prepend("▁")] if prepend else []
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    special = ["<pad>", "<eos>", "<bos>", "<unk>", *(f"<0x{i:02X}>" for i in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=900, special_tokens=special, show_progress=False, min_frequency=2)
    # Without a pre-tokenizer a whole text is one word: short ones, so that words and line breaks become pieces.
    words = [word for text in TEXTS for word in text.replace(" ", " \x00").split("\x00")]
    tokenizer.train_from_iterator([*words * 3, *["Yes", "No", "\n", "\n\n", "A: ", "B: "] * 50], trainer)
    # Bytes are pieces like others, not control tokens.
    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if not token["content"].startswith("<0x")]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(state), encoding="utf-8")
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "model_max_length": 2048,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    config = GemmaConfig(**_shape(tokenizer.get_vocab_size(), 2, 64), tie_word_embeddings=True)
    config.bos_token_id, config.eos_token_id, config.pad_token_id = 2, 1, 0
    return _save_model(folder, GemmaForCausalLM, config, seed)


def add_random_lora(model: Any, *, rank: int = 4, seed: int = 1, dropout: float = 0.0) -> Any:
    """LoRA on a RankModel with random non-zero adapters; returns the same model."""
    from rankwright.model.trainable import add_lora

    model = add_lora(model, rank=rank, alpha=2 * rank, dropout=dropout, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def trained_of(base: Path, mode: Any, *, full: bool = False) -> Any:
    """What an export takes (rankwright.export.target.Trained): a tiny model whose weights differ from its base's."""
    from rankwright.export.target import Trained
    from rankwright.model.loading import load_model, load_tokenizer
    from rankwright.model.prompt import make_contract
    from rankwright.model.trainable import train_all

    tokenizer = load_tokenizer(str(base))
    contract = make_contract(tokenizer, mode=mode, max_tokens=160, instruction="Find what answers the query")
    model = load_model(str(base), contract, tokenizer)
    if full:
        torch.manual_seed(2)
        model = train_all(model)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.05 * torch.randn_like(parameter))
    else:
        model = add_random_lora(model)
    return Trained(model.eval(), tokenizer, contract, str(base), None, PAIRS, 1e-4)


def _shape(vocabulary: int, layers: int, hidden: int) -> dict[str, Any]:
    return {
        "vocab_size": -(-(vocabulary + 1) // 64) * 64,
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 2048,
        # Not the default of 10000: a runtime that loses it must show.
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
        "bos_token_id": None,
    }


def _save_model(folder: Path, kind: Any, config: Any, seed: int) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = kind(config).float()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.ndim == 1:
                    parameter.uniform_(0.5, 1.5)
                elif "embed" in name or "lm_head" in name:
                    parameter.normal_(0, 0.4)
                else:
                    parameter.normal_(0, 1.2 * parameter.shape[1] ** -0.5)
    model.save_pretrained(folder)
    return folder


def _save_tokenizer(
    folder: Path, regex: str, special: list[str], added: list[str], *, eos: str, pad: str, bos: str | None
) -> Any:
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, processors, trainers
    from tokenizers import pre_tokenizers as pre

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre.Sequence(
        [
            pre.Split(Regex(regex), behavior="isolated"),
            pre.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=800, initial_alphabet=pre.ByteLevel.alphabet(), show_progress=False, min_frequency=2
    )
    tokenizer.train_from_iterator([*TEXTS * 2, *["yes no"] * 50, *["yes", "no", "Yes", "No"] * 50], trainer)
    tokenizer.add_special_tokens(special)
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in added])
    byte_level = processors.ByteLevel(trim_offsets=False)
    if bos is None:
        tokenizer.post_processor = byte_level
    else:
        template = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B:1", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
        tokenizer.post_processor = processors.Sequence([byte_level, template])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "Qwen2Tokenizer" if bos is None else "PreTrainedTokenizerFast",
        "eos_token": eos,
        "pad_token": pad,
        "bos_token": bos,
        "model_max_length": 2048,
        "clean_up_tokenization_spaces": False,
        "add_bos_token": bos is not None,
        "chat_template": "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    return tokenizer
