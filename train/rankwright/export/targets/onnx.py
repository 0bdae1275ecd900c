"""Target `onnx`: the graph in fp32, on demand with 8-bit weights too, where ONNX Runtime's users look for it.

    config.json, tokenizer.json, tokenizer_config.json
    onnx/model.onnx[, onnx/model.onnx_data]                      fp32
    onnx/model_quantized.onnx[, onnx/model_quantized.onnx_data]  quantize: [8bit]

ONNX Runtime, FastEmbed and transformers.js read this layout. A row's logit does not depend on the side of the
padding: the graph looks for the last token that is not pad.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from rankwright.common import console
from rankwright.export.golden import make_golden, write_golden
from rankwright.export.target import NEEDS, REFUSALS, TARGETS, Figures, Trained, refuse_unservable
from rankwright.export.tokenizer import write_tokenizer
from rankwright.export.weights import merge, merge_figures, patch_config, why_no_classifier
from rankwright.model.rank_model import RankModel
from rankwright.rerankers.reranker import Reranker

# onnx_ir: for the quantiser of ONNX Runtime.
NEEDS["onnx"] = ("onnx", "onnx_ir", "onnxruntime")
REFUSALS["onnx"] = why_no_classifier
MODEL_FILE = "onnx/model.onnx"
QUANTIZED_FILE = "onnx/model_quantized.onnx"
# ONNX Runtime has it since 1.12.
OPSET = 17
BLOCK = 32
# A protobuf message ends at 2 GiB; what is left is for the graph.
LARGEST_BYTES = 2_000_000_000


@TARGETS.register
def onnx(trained: Trained, folder: Path, *, quantize: tuple[Literal["8bit"], ...] = ()) -> Figures:
    """fp32 graph for ONNX Runtime, FastEmbed and transformers.js, whatever the type of other exports' weights.

    quantize: `8bit` adds a graph whose matrix products have weights of 8 bits; embeddings stay fp32.
    """
    return write_onnx(trained, folder, bits8="8bit" in quantize)


def write_onnx(trained: Trained, folder: Path, *, bits8: bool = False, largest_bytes: int = LARGEST_BYTES) -> Figures:
    """Write the whole folder; weights of more than largest_bytes go into a file beside their graph.

    Raises UserError for a prompt that tokenizer.json cannot hold, or a base without a classifier's form.
    """
    refuse_unservable(trained.contract, ["onnx"])
    merged = merge(trained.model)
    figures = merge_figures(trained, merged)
    files = write_graphs(merged, folder, bits8=bits8, largest_bytes=largest_bytes)
    _write_config(merged, folder)
    write_tokenizer(trained.tokenizer, trained.contract, folder)
    rows = make_golden(Reranker(merged, trained.tokenizer, trained.contract), trained.golden_pairs)
    write_golden(folder, rows)
    return {**figures, "dtype": "float32", "opset": OPSET, "bytes": files}


def write_graphs(merged: RankModel, folder: Path, *, bits8: bool, largest_bytes: int) -> dict[str, int]:
    """Write the graph of what merge() returned, and the one with 8-bit weights; returns file -> bytes."""
    (folder / "onnx").mkdir()
    _save(_trace(merged, folder), folder / MODEL_FILE, largest_bytes)
    if bits8:
        _save(_with_8_bits(folder / MODEL_FILE), folder / QUANTIZED_FILE, largest_bytes)
    written = {f"onnx/{path.name}": path.stat().st_size for path in sorted((folder / "onnx").iterdir())}
    for name, size in written.items():
        console.say(f"  {name}: {size / 1e6:,.1f} MB")
    return written


class _Logits(nn.Module):
    """The classifier with nothing but tensors in and out."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        found = self.classifier(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
        return cast(Tensor, found.logits)


def _trace(merged: RankModel, folder: Path) -> Any:
    """onnx.ModelProto of the classifier, with its weights in memory.

    By tracing: on 28 layers it took 3 s where torch's newer exporter (dynamo=True) took 60, and both graphs were
    equally exact (6e-6) and fast. That one also writes the paths of this machine's Python files into the graph.
    """
    import onnx

    # Padded, so that no part of the mask is found to be needless.
    pad = merged.pad_id
    others = [number for number in range(9) if number != pad][:8]
    ids, mask = torch.tensor([others, [pad, *others[1:]]]), torch.tensor([[1] * 8, [0] + [1] * 7])
    names = {"input_ids": {0: "batch", 1: "sequence"}, "attention_mask": {0: "batch", 1: "sequence"}}
    # Beside the target: weights of more than 2 GB become a file each.
    with TemporaryDirectory(dir=folder) as scratch, warnings.catch_warnings():
        # The tracer tells what it takes for constants; parity tells whether it was right.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            _Logits(merged.lm).eval(),
            (ids, mask),
            f"{scratch}/model.onnx",
            dynamo=False,
            opset_version=OPSET,
            input_names=list(names),
            output_names=["logits"],
            dynamic_axes={**names, "logits": {0: "batch"}},
        )
        return onnx.load(f"{scratch}/model.onnx")


def _with_8_bits(path: Path) -> Any:
    """The written model with 8-bit weights in its matrix products (MatMulNBits).

    Blocks of 32 weights share a scale and a zero point. The activations stay fp32: where they are quantised too, by
    one scale for a whole batch, a pair's score depends on what it is scored together with.
    """
    with _own_logging():
        # Importing it sets up logging for the whole process.
        from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

        quantizer = MatMulNBitsQuantizer(str(path), bits=8, block_size=BLOCK)
        quantizer.process()
    return quantizer.model.model


@contextmanager
def _own_logging() -> Iterator[None]:
    """Quiet inside, and with the process's logging as it was afterwards."""
    root = logging.getLogger()
    handlers, level, disabled = root.handlers[:], root.level, logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        root.handlers[:], root.level = handlers, level
        logging.disable(disabled)


def _save(model: Any, path: Path, largest_bytes: int) -> None:
    import onnx

    size = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    # The name that transformers.js and TEI look for.
    beside = {"save_as_external_data": True, "location": f"{path.name}_data"} if size > largest_bytes else {}
    onnx.save_model(model, str(path), **beside)


def _write_config(merged: RankModel, folder: Path) -> None:
    """config.json as in `hf`, with what transformers.js must know."""
    lm = cast(Any, merged.lm)
    lm.config.architectures = [type(lm).__name__]
    lm.config.dtype = torch.float32
    lm.config.save_pretrained(folder)
    patch_config(folder)
    path = folder / "config.json"
    # Its default in browsers is the 8-bit file.
    settings: dict[str, Any] = {"dtype": "fp32"}
    data = [one.name.removesuffix("_data") for one in sorted((folder / "onnx").glob("*.onnx_data"))]
    if data:
        settings["use_external_data_format"] = dict.fromkeys(data, True)
    written = json.loads(path.read_text(encoding="utf-8")) | {"transformers.js_config": settings}
    path.write_text(json.dumps(written, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
