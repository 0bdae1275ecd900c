"""The parity check: every fault of an exported folder is found, explained, and leaves nothing behind."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from proof import check_folders

from rankwright.common.errors import UserError
from rankwright.export.card import CardFacts
from rankwright.export.proof.comparing import compare
from rankwright.export.proof.parity import NOT_CHECKED, is_as_proven, measure, read_exported
from rankwright.export.proof.runtimes.base import Answer, exact, in_both_orders, sigmoid
from rankwright.export.publish import ExportFailed, publish
from rankwright.export.target import Trained
from rankwright.export.targets import TARGETS


def edit_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def no_post_processor(folder: Path) -> None:
    edit_json(folder / "tokenizer.json", post_processor=None)


def other_pad(folder: Path) -> None:
    edit_json(folder / "config.json", pad_token_id=7)


def swapped_yes_and_no(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    save_file({**weights, "score.weight": -weights["score.weight"]}, folder / "model.safetensors", {"format": "pt"})


def lost_rope(folder: Path) -> None:
    edit_json(folder / "config.json", rope_parameters={"rope_type": "default", "rope_theta": 1e4}, rope_theta=1e4)


def lost_top_rope(folder: Path) -> None:
    """What only a reader like transformers 4 would notice."""
    settings = json.loads((folder / "config.json").read_text())
    del settings["rope_theta"]
    (folder / "config.json").write_text(json.dumps(settings))


def no_limit(folder: Path) -> None:
    edit_json(folder / "tokenizer_config.json", model_max_length=10**6)


def no_activation(folder: Path) -> None:
    edit_json(folder / "config.json", sentence_transformers={"activation_fn": "torch.nn.modules.linear.Identity"})


def template_of_the_base(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")


FAULTS: list[tuple[Callable[[Path], None], str]] = [
    (no_post_processor, "the prompt or its template, not the weights: neither its beginning nor its end is there: no"),
    (other_pad, "equal alone, other in a batch -> pad_token_id"),
    (other_pad, "config.json: pad_token_id is 7, the tokenizer pads with"),
    (swapped_yes_and_no, "every logit is negated -> yes and no are swapped in the score head"),
    (lost_rope, "the rope settings"),
    (lost_top_rope, "config.json: rope_theta is missing, rope_parameters has 1e+06: transformers 4"),
    (no_activation, "the activation function in config.json: none: these are logits"),
    (template_of_the_base, "the prompt or its template"),
    (no_limit, "a long document is not cut to 160 tokens: model_max_length"),
]


@pytest.mark.parametrize("case", ["qwen3-portable", "llama-portable"])
@pytest.mark.parametrize(("fault", "cause"), FAULTS, ids=lambda value: getattr(value, "__name__", ""))
def test_each_fault_fails_parity_and_is_explained(
    fault: Callable[[Path], None], cause: str, case: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(folders[case], tmp_path / "faulty"))
    fault(folder)
    assert any(cause in failure for failure in measure(folder, 1e-4)["failures"])


def test_a_lost_newline_of_the_template_fails_parity(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folders["qwen3-official"], tmp_path / "faulty"))
    template = folder / "chat_template.jinja"
    assert template.read_text().endswith('</think>\\n\\n" }}')
    template.write_text(template.read_text().removesuffix('\\n" }}') + '" }}')
    failures = measure(folder, 1e-4)["failures"]
    assert any("its end differs (a lost line break is enough)" in failure for failure in failures)


def test_a_doubled_sigmoid_and_one_classifier_row_are_named(folders: dict[str, Path]) -> None:
    exported = read_exported(folders["qwen3-portable"])
    logits = [row["logit"] for row in exported.rows]
    once = sigmoid(logits)
    ids = [row["token_ids"] for row in exported.rows]
    for probabilities, cause in (
        (sigmoid(once), "sigmoid is applied twice"),
        ([1.0] * len(once), "softmax over one label, which is 1 for every pair"),
    ):
        for answer in (
            Answer(ids, logits, [logits], probabilities),
            # A runtime that gives probabilities only, as llama.cpp does.
            Answer(None, None, [probabilities], probabilities),
        ):
            _, failure = compare(exported.rows, answer, exact(1e-4))
            assert failure is not None and cause in failure
    negated = sigmoid([-x for x in logits])
    _, failure = compare(exported.rows, Answer(None, None, [negated], negated), exact(1e-4))
    assert failure is not None and "yes and no are swapped" in failure


def test_a_score_that_depends_on_its_place_is_found(folders: dict[str, Path]) -> None:
    exported = read_exported(folders["qwen3-portable"])
    logits = [row["logit"] for row in exported.rows]
    # The first row of every batch is off: which row that is follows from the order.
    first, second = in_both_orders(len(logits), lambda places: [logits[p] + (k % 8 == 0) for k, p in enumerate(places)])
    assert [k for k in range(len(logits)) if first[k] != logits[k]] == list(range(0, len(logits), 8))
    assert [k for k in range(len(logits)) if second[k] != logits[k]] != list(range(0, len(logits), 8))
    _, failure = compare(exported.rows, Answer(None, logits, [second], sigmoid(logits)), exact(1e-4))
    assert failure is not None and "equal alone, other in a batch" in failure


def test_a_target_that_fails_leaves_its_earlier_folder_and_takes_no_other_with_it(
    trained: dict[str, Trained], tmp_path: Path
) -> None:
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "earlier").write_text("good")

    def faulty(one: Trained, folder: Path) -> dict[str, Any]:
        figures = TARGETS["hf"].write(one, folder)
        swapped_yes_and_no(folder)
        return figures

    def refused(one: Trained, folder: Path) -> dict[str, Any]:
        raise RuntimeError("no such operator\nand a second line")

    writers = {"hf": faulty, "adapter": TARGETS["adapter"].write, "onnx": refused}
    with pytest.raises(ExportFailed) as caught:
        publish(tmp_path, trained["qwen3-portable"], writers, CardFacts())
    assert isinstance(caught.value, UserError), "exit code 2"
    *wrong, raised = caught.value.messages
    assert [one for one in wrong if one.startswith("export hf: sentence-transformers: query '")]
    assert all(one.startswith("export hf: ") and "expected the logit" in one for one in wrong)
    assert raised == "export onnx: cannot be written: RuntimeError: no such operator"
    assert caught.value.failed == ("hf", "onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "hf"]
    assert [path.name for path in (tmp_path / "hf").iterdir()] == ["earlier"]
    assert is_as_proven(tmp_path / "adapter") and not is_as_proven(tmp_path / "hf")
    assert caught.value.proven["adapter"] == json.loads((tmp_path / "adapter" / "parity.json").read_text())


def test_a_check_that_cannot_run_is_a_failure(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did not run"):
        check_folders({"hf": tmp_path})


def test_an_absent_library_is_said_and_no_error(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    report = measure(folders["qwen3-portable"], 1e-4)
    assert report["failures"] == [] and report["engines"]["sentence-transformers"] == NOT_CHECKED
