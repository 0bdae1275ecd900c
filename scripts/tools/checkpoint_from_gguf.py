"""Write the model of a GGUF file as a plain checkpoint folder (safetensors, fp32, tokenizer.json).

    python scripts/tools/checkpoint_from_gguf.py FILE.gguf FOLDER

FOLDER can then be a recipe's `model.base`. Quantised weights come out as what they stand for, so the folder is as good
as the file was. transformers knows Llama, Qwen2, Qwen3 and others in this form. Needs `pip install gguf`.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="the GGUF file")
    parser.add_argument("folder", type=Path, help="where the checkpoint goes; must not exist")
    options = parser.parse_args()
    fault = find_fault(options.file, options.folder)
    if fault:
        sys.stderr.write(f"error: {fault}\n")
        raise SystemExit(2)
    convert(options.file, options.folder)


def find_fault(file: Path, folder: Path) -> str | None:
    """What the user must mend first, or None."""
    try:
        with file.open("rb") as opened:
            magic = opened.read(4)
    except OSError as error:
        return f"{file}: {error.strerror}: give a GGUF file"
    if magic != b"GGUF":
        return f"{file}: no GGUF file (it does not begin with GGUF): give another one"
    if folder.exists():
        return f"{folder}: exists already: give a new folder, or delete it"
    try:
        import gguf  # noqa: F401
    except ImportError:
        return "the package gguf is missing: pip install gguf"
    return None


def convert(file: Path, folder: Path) -> None:
    """Write the checkpoint; `folder` appears when it is whole."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    # It says how the weights were read, and would have them read as GGUF again.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.is_quantized, model.hf_quantizer = False, None
    model.save_pretrained(part)
    tokenizer.save_pretrained(part)
    part.rename(folder)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{folder}: {type(model).__name__}, {parameters:,} parameters, {len(tokenizer):,} tokens")


if __name__ == "__main__":
    main()
