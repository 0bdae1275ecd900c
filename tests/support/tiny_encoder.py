"""Tiny random models of sentence-transformers, BERT from a config: a bi-encoder with mean pooling, a cross-encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

WORDS = (
    "bond loan court contract river town seller goods interest spring floods company government print item "
    "range sofa library water bridge garden winter summer paper music engine market a an the of to and is"
).split()
PAIR_WORDS = "a bond is loan court held contract void river town seller goods what who why ? . the in of to".split()


def make_tiny_encoder(folder: Path, *, seed: int = 0, similarity: str = "cosine", **prompts: str) -> Path:
    """Write a model of 32 dimensions that reads 24 tokens into `folder`; prompts: `query`, `document`."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling
    from transformers import BertConfig, BertModel, BertTokenizerFast

    letters = [chr(ord("a") + i) for i in range(26)] + list("0123456789:.,?!")
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{c}" for c in letters), *WORDS]
    bert = folder.with_name(f"{folder.name}-bert")
    bert.mkdir(parents=True)
    (bert / "vocab.txt").write_text("\n".join(dict.fromkeys(vocabulary)) + "\n")
    config = BertConfig(
        vocab_size=len(dict.fromkeys(vocabulary)),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = BertModel(config).eval()
        for parameter in model.parameters():
            if parameter.ndim == 2:
                # Large enough that texts get different vectors.
                torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(bert)
    BertTokenizerFast(vocab=str(bert / "vocab.txt"), vocab_file=str(bert / "vocab.txt")).save_pretrained(bert)
    modules: list[Any] = [Transformer(str(bert), max_seq_length=24), Pooling(32, pooling_mode="mean")]
    whole = SentenceTransformer(modules=modules, prompts=prompts or None, similarity_fn_name=similarity, device="cpu")
    whole.save(str(folder))
    return folder


def make_tiny_cross_encoder(folder: Path, *, labels: int = 1, head: bool = True, max_positions: int = 64) -> Path:
    """A tiny BERT in the layout of sentence-transformers' cross-encoders before there were modules."""
    from transformers import BertConfig, BertForSequenceClassification, BertModel, BertTokenizerFast

    letters = [chr(ord("a") + i) for i in range(26)]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{c}" for c in letters), *PAIR_WORDS]
    vocabulary = list(dict.fromkeys(vocabulary))
    folder.mkdir(parents=True)
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=max_positions,
        num_labels=labels,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = (BertForSequenceClassification if head else BertModel)(config).eval()
        for parameter in model.parameters():
            if parameter.ndim == 2:
                torch.nn.init.normal_(parameter, std=0.4)
    model.save_pretrained(folder)
    BertTokenizerFast(vocab=str(folder / "vocab.txt"), vocab_file=str(folder / "vocab.txt")).save_pretrained(folder)
    return folder
