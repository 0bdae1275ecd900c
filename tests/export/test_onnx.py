"""The target onnx: every runtime scores like the trainer; 8-bit weights keep the order; faults are found."""

from __future__ import annotations

import functools
import json
import logging
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from proof import check_folders
from tiny import PAIRS, trained_of

from rankwright.common.errors import UserError
from rankwright.export.card import EXAMPLE, CardFacts
from rankwright.export.proof.parity import measure
from rankwright.export.proof.runtimes.onnx import MODEL_FILE, QUANTIZED_FILE
from rankwright.export.publish import export_targets, publish
from rankwright.export.target import Trained
from rankwright.export.targets import TARGETS
from rankwright.export.targets.onnx import OPSET, write_onnx
from rankwright.model.prompt import PromptContract
from rankwright.pipeline.checks import check_targets
from rankwright.recipe.export import Export
from rankwright.recipe.schema import Model, Prompt, Recipe
from rankwright.recipe.sources import Data
from rankwright.rerankers.reranker import Reranker

CASES = ["qwen3-portable", "llama-portable", "qwen3-full"]
IN_BF16 = "qwen3-in-bf16"


@pytest.fixture(scope="module")
def exports(trained: dict[str, Trained], tiny_qwen3: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The `onnx` folder of each case, with both files, not yet checked; do not write into it."""
    root = tmp_path_factory.mktemp("onnx")
    bf16 = trained_of(tiny_qwen3, "portable")
    bf16.model.lm.to(torch.bfloat16)
    for case, one in [*((case, trained[case]) for case in CASES), (IN_BF16, bf16)]:
        (root / case).mkdir()
        TARGETS["onnx"].write(one, root / case, quantize=("8bit",))
    return {case: root / case for case in [*CASES, IN_BF16]}


def test_a_fresh_process_scores_all_bases_like_the_trainer(exports: dict[str, Path]) -> None:
    for case, report in check_folders(exports).items():
        assert set(report["engines"]) == {"onnxruntime", "fastembed", "onnxruntime 8bit"}
        for engine in ("onnxruntime", "fastembed"):
            figures = report["engines"][engine]
            assert figures["ids_differ"] == 0 and figures["rows"] >= 30, (case, engine)
            assert max(figures["max_d_logit"], figures["max_d_logit_batch"]) < 1e-4, (case, engine)
        few_bits = report["engines"]["onnxruntime 8bit"]
        assert few_bits["ids_differ"] == 0 and few_bits["spearman"] > 0.99
        # Not the fp32 file under another name, and the same score in every company.
        assert 1e-3 < few_bits["max_d_logit"] < 1 and few_bits["max_d_alone_batch"] < 1e-4


def test_onnx_runtime_equals_the_model_in_memory(trained: dict[str, Trained], exports: dict[str, Path]) -> None:
    from onnxruntime import InferenceSession
    from tokenizers import Tokenizer

    for case in CASES:
        one = trained[case]
        reranker = Reranker(one.model, one.tokenizer, one.contract)
        wanted = [reranker.score(query, [document])[0] for query, document in PAIRS]
        tokenizer = Tokenizer.from_file(str(exports[case] / "tokenizer.json"))
        session = InferenceSession(str(exports[case] / MODEL_FILE))
        found = []
        for pair in PAIRS:
            ids = [tokenizer.encode(*pair).ids]
            [logits] = session.run(None, {"input_ids": ids, "attention_mask": [[1] * len(ids[0])]})
            assert logits.shape == (1, 1)
            found.append(float(logits[0, 0]))
        assert found == pytest.approx(wanted, abs=1e-4)


def test_the_graph_names_what_runtimes_look_for(exports: dict[str, Path]) -> None:
    import onnx

    for file in (MODEL_FILE, QUANTIZED_FILE):
        model = onnx.load(str(exports[IN_BF16] / file))
        sides = [model.graph.input, model.graph.output]
        shapes = [
            {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in s} for s in sides
        ]
        both = {"input_ids": ["batch", "sequence"], "attention_mask": ["batch", "sequence"]}
        assert shapes == [both, {"logits": ["batch", 1]}]
        domains = {one.domain: one.version for one in model.opset_import}
        kinds = [node.op_type for node in model.graph.node]
        # 2 layers with 7 products each, and the head.
        assert kinds.count("MatMulNBits") == (15 if file == QUANTIZED_FILE else 0)
        assert domains[""] == OPSET and domains.get("com.microsoft") == (1 if file == QUANTIZED_FILE else None)
        types = {onnx.TensorProto.DataType.Name(tensor.data_type) for tensor in model.graph.initializer}
        # Weights that were trained in bf16 are merged and written in fp32.
        assert "FLOAT" in types and not types & {"BFLOAT16", "FLOAT16"}


def test_the_config_is_that_of_hf_and_speaks_to_transformers_js(
    exports: dict[str, Path], folders: dict[str, Path]
) -> None:
    for case in CASES:
        config = json.loads((exports[case] / "config.json").read_text())
        assert config.pop("transformers.js_config") == {"dtype": "fp32"}
        wanted = json.loads((folders[case] / "config.json").read_text())
        assert config == wanted and config["dtype"] == "float32"
        assert config["id2label"] == {"0": "LABEL_0"} and config["label2id"] == {"LABEL_0": 0}
        names = {path.relative_to(exports[case]).as_posix() for path in exports[case].rglob("*") if path.is_file()}
        shared = {"config.json", "tokenizer.json", "tokenizer_config.json", "rankwright.json", "golden.jsonl"}
        assert names == shared | {MODEL_FILE, QUANTIZED_FILE}


def test_no_file_names_this_machine(exports: dict[str, Path], tiny_qwen3: Path) -> None:
    places = [tiny_qwen3.parent, exports["qwen3-full"].parent, Path.home(), Path(torch.__file__).parent, Path.cwd()]
    for path in (exports["qwen3-full"] / MODEL_FILE, exports["qwen3-full"] / QUANTIZED_FILE):
        content = path.read_bytes()
        assert not [place for place in places if f"{place}/".encode() in content] and b".py" not in content


@pytest.fixture(scope="module")
def published(trained: dict[str, Trained], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """(folder, figures) of an export whose weights lie beside the graphs; do not write into it."""
    write = functools.partial(write_onnx, bits8=True, largest_bytes=100_000)
    root = tmp_path_factory.mktemp("published")
    figures = publish(root, trained["qwen3-portable"], {"onnx": write}, CardFacts(title="Tiny", name="tiny"))
    return root / "onnx", figures["onnx"]


def test_large_weights_lie_beside_the_graph(published: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, figures = published
    names = {"model.onnx", "model.onnx_data", "model_quantized.onnx", "model_quantized.onnx_data"}
    assert {path.name for path in (folder / "onnx").iterdir()} == names
    assert figures["bytes"] == {f"onnx/{name}": (folder / "onnx" / name).stat().st_size for name in names}
    assert figures["bytes"]["onnx/model.onnx"] < 300_000 < figures["bytes"]["onnx/model.onnx_data"]
    assert all(figures["engines"][engine]["ids_differ"] == 0 for engine in ("onnxruntime", "fastembed"))
    config = json.loads((folder / "config.json").read_text())
    beside = {"model.onnx": True, "model_quantized.onnx": True}
    assert config["transformers.js_config"] == {"dtype": "fp32", "use_external_data_format": beside}
    lost = Path(shutil.copytree(folder, tmp_path / "lost"))
    (lost / "onnx" / "model.onnx_data").unlink()
    assert any("onnxruntime: cannot score" in failure for failure in measure(lost, 1e-4)["failures"])


TITLED = [(" Bonds ", "A bond is a loan that an investor makes to a company.\n"), ("", "what is it?"), (None, "a bond")]


def test_the_snippets_of_the_card_run(
    published: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastembed.rerank.cross_encoder.custom_text_cross_encoder import CustomTextCrossEncoder

    folder, _ = published
    # The example's document, in the parts that the snippet joins.
    rows = [{"_id": f"d{i}", "title": title, "text": text} for i, (title, text) in enumerate(TITLED)]
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)
    [row] = [r for r in map(json.loads, (folder / "golden.jsonl").open()) if (r["query"], r["document"]) == EXAMPLE]
    texts = {name: (folder / name).read_text() for name in ("README.md", "SERVE.md")}
    snippets = [s for text in texts.values() for s in re.findall(r"```python\n(.*?)```", text, re.DOTALL)]
    found = []
    for snippet in snippets:
        # A process registers a model once.
        monkeypatch.setattr(CustomTextCrossEncoder, "SUPPORTED_MODELS", [])
        exec(snippet.replace("PATH", str(folder)).replace("FOLDER", str(folder)), {"print": found.append})
    onnx_runtime, fast_embed, searched = found
    assert float(onnx_runtime[0]) == pytest.approx(row["probability"], abs=1e-5)
    assert float(fast_embed[0]) == pytest.approx(row["probability"], abs=1e-5)
    assert len(searched) == len(TITLED) and searched == sorted(searched, key=lambda one: -one[1])
    assert dict(searched)["d0"] == pytest.approx(row["logit"], abs=1e-4)


def edit_initializer(path: Path, change: Callable[[Any], Any], *, last: bool = False) -> None:
    """Change the first (the embeddings) or the last weight of a graph: the score head."""
    import onnx
    from onnx import numpy_helper

    model = onnx.load(str(path))
    used = [name for node in model.graph.node if node.op_type == "MatMul" for name in node.input]
    weights = [tensor for tensor in model.graph.initializer if not last or tensor.name in used]
    tensor = max(weights, key=lambda one: used.index(one.name)) if last else weights[0]
    tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor)), tensor.name))
    onnx.save(model, str(path))


def swapped_yes_and_no(folder: Path) -> None:
    edit_initializer(folder / MODEL_FILE, lambda head: -head, last=True)


def other_embeddings(folder: Path) -> None:
    edit_initializer(folder / MODEL_FILE, lambda weights: weights[::-1].copy())


def a_graph_cut_short(folder: Path) -> None:
    content = (folder / MODEL_FILE).read_bytes()
    (folder / MODEL_FILE).write_bytes(content[: len(content) // 2])


def no_post_processor(folder: Path) -> None:
    path = folder / "tokenizer.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "post_processor": None}))


def white_space_kept(folder: Path) -> None:
    path = folder / "tokenizer.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "normalizer": None}))


def other_pad_token(folder: Path) -> None:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "pad_token": "<|im_end|>", "padding_side": "right"}))


def eight_bits_of_other_weights(folder: Path) -> None:
    swapped_yes_and_no(folder)
    quantise_again(folder, 8)


def four_bits(folder: Path) -> None:
    quantise_again(folder, 4)


def quantise_again(folder: Path, bits: int) -> None:
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    quantizer = MatMulNBitsQuantizer(str(folder / MODEL_FILE), bits=bits, block_size=128)
    quantizer.process()
    onnx.save(quantizer.model.model, str(folder / QUANTIZED_FILE))


def activations_quantised_together(folder: Path) -> None:
    from onnxruntime.quantization import quantize_dynamic

    quantize_dynamic(folder / MODEL_FILE, folder / QUANTIZED_FILE)


FAULTS: list[tuple[Callable[[Path], None], str, str]] = [
    (swapped_yes_and_no, "onnxruntime", "yes and no are swapped"),
    (swapped_yes_and_no, "fastembed", "yes and no are swapped"),
    (other_embeddings, "onnxruntime", "the weights, the score head"),
    (a_graph_cut_short, "onnxruntime", "cannot score the folder"),
    (a_graph_cut_short, "fastembed", "cannot score the folder"),
    (no_post_processor, "onnxruntime", "the prompt or its template"),
    (no_post_processor, "fastembed", "the prompt or its template"),
    (no_post_processor, "onnxruntime 8bit", "the prompt or its template"),
    (white_space_kept, "fastembed", "the prompt or its template"),
    (other_pad_token, "onnxruntime", "pad_token_id or padding"),
    (eight_bits_of_other_weights, "onnxruntime 8bit", "the weights, the score head"),
    (four_bits, "onnxruntime 8bit", "the weights, the score head"),
    (activations_quantised_together, "onnxruntime 8bit", "apart alone and in a batch"),
]


@pytest.mark.parametrize(("fault", "engine", "cause"), FAULTS, ids=lambda value: getattr(value, "__name__", str(value)))
def test_each_fault_fails_parity_and_is_explained(
    fault: Callable[[Path], None], engine: str, cause: str, exports: dict[str, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(exports["qwen3-portable"], tmp_path / "faulty"))
    fault(folder)
    failures = measure(folder, 1e-4)["failures"]
    assert any(failure.startswith(f"{engine}: ") and cause in failure for failure in failures), failures


def test_a_frame_of_whole_strings_is_refused_with_the_way_out(trained: dict[str, Trained], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"onnx: .*frame official.*prompt\.mode=portable") as caught:
        export_targets(trained["qwen3-official"], {"onnx": {}}, tmp_path)
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


def test_options_are_checked() -> None:
    with pytest.raises(UserError, match="quantize"):
        TARGETS["onnx"].bind({"quantize": ["4bit"]})
    with pytest.raises(UserError, match="did you mean 'quantize'"):
        TARGETS["onnx"].bind({"quantise": ["8bit"]})


def test_quantising_leaves_the_process_its_logging(trained: dict[str, Trained], tmp_path: Path) -> None:
    sys.modules.pop("onnxruntime.quantization.matmul_nbits_quantizer", None)
    root = logging.getLogger()
    before = (root.handlers[:], root.level, logging.root.manager.disable)
    files = write_onnx(trained["qwen3-full"], tmp_path, bits8=True)["bytes"]
    assert (root.handlers, root.level, logging.root.manager.disable) == before
    assert files[QUANTIZED_FILE] < 0.7 * files[MODEL_FILE]


def test_the_folder_keeps_the_contract(trained: dict[str, Trained], exports: dict[str, Path]) -> None:
    for case in CASES:
        assert PromptContract.load(exports[case]) == trained[case].contract


def recipe_on(base: Path, mode: Any, **options: Any) -> Recipe:
    return Recipe(
        name="r",
        model=Model(base=str(base)),
        data=Data(),
        prompt=Prompt(mode=mode, max_tokens=160),
        export=Export(targets={"hf": {}, "onnx": options}),
    )


def test_a_recipe_is_refused_before_training(tiny_qwen3: Path) -> None:
    assert check_targets(recipe_on(tiny_qwen3, "portable", quantize=["8bit"])) == []
    [fault] = check_targets(recipe_on(tiny_qwen3, "official"))
    assert re.fullmatch(r"export\.targets: onnx: .*frame official .*or without it \(export\.targets=\[hf\]\)", fault)


def test_absent_libraries_are_said_before_training(tiny_qwen3: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert check_targets(recipe_on(tiny_qwen3, "portable")) == [
        "export.targets: `onnx` needs the package onnx: pip install 'rankwright[onnx]', or leave the target out"
    ]


def test_the_extra_brings_what_the_target_imports() -> None:
    import tomllib

    from packaging.requirements import Requirement

    text = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    extra = tomllib.loads(text)["project"]["optional-dependencies"]["onnx"]
    assert {Requirement(line).name.replace("-", "_") for line in extra} == set(TARGETS["onnx"].modules)
