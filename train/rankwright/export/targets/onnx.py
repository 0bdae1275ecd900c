"""Target `onnx`: the graph in fp32, on demand with 8-bit weights too, where ONNX Runtime's users look for it.

    config.json, tokenizer.json, tokenizer_config.json
    onnx/model.onnx[, onnx/model.onnx_data]                      fp32
    onnx/model_quantized.onnx[, onnx/model_quantized.onnx_data]  quantize: [8bit]

ONNX Runtime, FastEmbed and transformers.js read this layout. A row's logit does not depend on the side of the
padding, since the graph looks for the last token that is not pad.
"""

from __future__ import annotations

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
from rankwright.export.proof.runtimes.onnx import MODEL_FILE, QUANTIZED_FILE, RUNTIMES
from rankwright.export.proof.settings import pad_token
from rankwright.export.target import TARGETS, Card, Figures, Target, Trained
from rankwright.export.tokenizer import write_tokenizer
from rankwright.export.weights import merge, merge_figures, patch_config, why_no_classifier
from rankwright.model.prompt import PromptContract
from rankwright.model.rank_model import RankModel
from rankwright.rerankers.reranker import Reranker

# ONNX Runtime has it since 1.12.
OPSET = 17
# A protobuf message ends at 2 GiB; what is left is for the graph.
LARGEST_BYTES = 2_000_000_000


def onnx(trained: Trained, folder: Path, *, quantize: tuple[Literal["8bit"], ...] = ()) -> Figures:
    """fp32 graph for ONNX Runtime, FastEmbed and transformers.js, whatever the type of other exports' weights.

    quantize: `8bit` adds a graph whose matrix products have weights of 8 bits; embeddings stay fp32.
    """
    return write_onnx(trained, folder, bits8="8bit" in quantize)


def write_onnx(trained: Trained, folder: Path, *, bits8: bool = False, largest_bytes: int = LARGEST_BYTES) -> Figures:
    """Write the whole folder; weights of more than largest_bytes go into a file beside their graph."""
    merged = merge(trained.model)
    figures = merge_figures(trained, merged)
    (folder / "onnx").mkdir()
    _save(_trace(merged, folder), folder / MODEL_FILE, largest_bytes)
    if bits8:
        _save(_with_8_bits(folder / MODEL_FILE), folder / QUANTIZED_FILE, largest_bytes)
    files = {f"onnx/{path.name}": path.stat().st_size for path in sorted((folder / "onnx").iterdir())}
    for name, size in files.items():
        console.say(f"  {name}: {size / 1e6:,.1f} MB")
    _write_config(merged, folder)
    write_tokenizer(trained.tokenizer, trained.contract, folder)
    write_golden(folder, make_golden(Reranker(merged, trained.tokenizer, trained.contract), trained.golden_pairs))
    return {**figures, "dtype": "float32", "opset": OPSET, "bytes": files}


class _Logits(nn.Module):
    """The classifier as a function from tensors to a tensor."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        found = self.classifier(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
        return cast(Tensor, found.logits)


def _trace(merged: RankModel, folder: Path) -> Any:
    """onnx.ModelProto of the classifier, with its weights in memory.

    Made by tracing: 28 layers took 3 s, and 60 s with torch's newer exporter (dynamo=True). Both graphs were equally
    exact (6e-6) and fast, but the newer one holds the paths of this machine's Python files.
    """
    import onnx

    # Padded, so that the tracer does not drop a part of the mask as needless.
    pad = merged.pad_id
    others = [number for number in range(9) if number != pad][:8]
    ids, mask = torch.tensor([others, [pad, *others[1:]]]), torch.tensor([[1] * 8, [0] + [1] * 7])
    names = {"input_ids": {0: "batch", 1: "sequence"}, "attention_mask": {0: "batch", 1: "sequence"}}
    # Beside the target: weights of more than 2 GB become a file each.
    with TemporaryDirectory(dir=folder) as scratch, warnings.catch_warnings():
        # The tracer warns of values that it takes for constants; parity shows whether it was right.
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

    Blocks of 32 weights share a scale and a zero point. The activations stay fp32: quantised by one scale for a whole
    batch, they would make a pair's score depend on its batch.
    """
    with _own_logging():
        # Importing it sets up logging for the whole process.
        from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

        quantizer = MatMulNBitsQuantizer(str(path), bits=8, block_size=32)
        quantizer.process()
    return quantizer.model.model


@contextmanager
def _own_logging() -> Iterator[None]:
    """No logging inside; afterwards the logging of the process is as it was."""
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
    # Its default in browsers is the 8-bit file.
    settings: dict[str, Any] = {"dtype": "fp32"}
    data = [one.name.removesuffix("_data") for one in sorted((folder / "onnx").glob("*.onnx_data"))]
    if data:
        settings["use_external_data_format"] = dict.fromkeys(data, True)
    patch_config(folder, {"transformers.js_config": settings})


def _card_values(folder: Path, contract: PromptContract) -> dict[str, Any]:
    external = (folder / f"{MODEL_FILE}_data").is_file()
    return {
        "quantised": (folder / QUANTIZED_FILE).is_file(),
        "additional": f', additional_files=["{MODEL_FILE}_data"]' if external else "",
    }


TARGETS.add(
    Target(
        "onnx",
        onnx,
        recognises=lambda folder: (folder / "onnx").is_dir(),
        runtimes=RUNTIMES,
        card=Card(
            library="fastembed",
            holds="; this folder holds it as ONNX",
            use="use_onnx.md.j2",
            serve="serve_onnx.md.j2",
            values=_card_values,
        ),
        settings=(pad_token,),
        serves=lambda contract: contract.is_baked,
        why_not=(
            "its runtimes join query and document by themselves and render no chat template, as the frame {mode} needs"
        ),
        refusals=why_no_classifier,
        # onnx_ir: for the quantiser of ONNX Runtime.
        modules=("onnx", "onnx_ir", "onnxruntime"),
        extra="onnx",
    ),
    __name__,
)
