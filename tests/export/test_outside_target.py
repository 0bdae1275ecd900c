"""A target of a module outside the package: one file is enough for check, export, proof, cards, report and verify."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import jobs
import pytest
from outside import outside_module

from rankwright.cli.models import verify
from rankwright.common.errors import UserErrors
from rankwright.export import targets
from rankwright.export.card import CardFacts
from rankwright.export.publish import export_targets
from rankwright.export.push import plan_push
from rankwright.export.target import TARGETS, Trained, target_of
from rankwright.pipeline.stages import Pipeline
from rankwright.recipe.loading import load_recipe
from rankwright.report.gather import read_parity

MODULE = '''
"""Target `noted`: the files of hf with a note beside them."""

from rankwright.export.target import TARGETS, Card, Target
from rankwright.export.targets.hf import hf


def noted(trained, folder, *, note: str = "none"):
    figures = hf(trained, folder)
    (folder / "note.json").write_text(f'{{"note": "{note}"}}')
    return figures


TARGETS.add(
    Target(
        "noted",
        noted,
        recognises=lambda folder: (folder / "note.json").is_file(),
        runtimes=TARGETS["hf"].runtimes[:2],
        card=Card(
            library="notes",
            holds="; with a note",
            use="Read the note of {{ title }} ({{ size }} bytes), then ask {{ query }}\\n",
            serve="## Notes\\n\\nServe {{ name }} with its note.\\n",
            values=lambda folder, contract: {"size": (folder / "note.json").stat().st_size},
        ),
        serves=lambda contract: contract.mode == "portable",
        why_not="notes are not for the frame {mode}",
        modules=("json",),
    ),
    __name__,
)
'''


@pytest.fixture
def noted(tmp_path: Path) -> Iterator[str]:
    """The name of the module, imported."""
    with outside_module(TARGETS, tmp_path, "noted_target", MODULE):
        yield "noted_target"


def test_one_file_of_the_folder_is_one_target() -> None:
    files = {path.stem for path in Path(targets.__path__[0]).glob("*.py")} - {"__init__"}
    assert set(TARGETS) == files and TARGETS.extensions == []


def test_a_recipe_may_name_it(noted: str, tmp_path: Path, tiny_qwen3: Path) -> None:
    path = jobs.job(tmp_path / "job", tiny_qwen3)
    Pipeline(load_recipe(str(path), ["export.targets={noted: {note: hello}}", "prompt.mode=portable"])).check()
    with pytest.raises(UserErrors) as caught:
        overrides = ["export.targets={noted: {nope: hello}}", "prompt.mode=official"]
        Pipeline(load_recipe(str(path), overrides)).check()
    assert caught.value.messages == [
        "export.targets: export target 'noted' has no parameter 'nope', did you mean 'note'? (parameters: note)",
        "export.targets: noted: notes are not for the frame official: train in another frame (prompt.mode=portable) or "
        "without exports (export.targets=[])",
    ]


@pytest.mark.slow
def test_it_is_exported_proven_described_and_verified(
    noted: str, trained: dict[str, Trained], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    facts = CardFacts(title="Tiny", name="tiny")
    figures = export_targets(trained["qwen3-portable"], {"noted": {"note": "hello"}}, run / "export", facts)
    folder = run / "export" / "noted"
    assert TARGETS.extensions == [noted] and target_of(folder).name == "noted"
    # In a fresh process, which has to know the module.
    assert list(figures["noted"]["engines"]) == ["rankwright", "transformers"] and figures["noted"]["failures"] == []
    card, serve = ((folder / name).read_text() for name in ("README.md", "SERVE.md"))
    assert "Read the note of Tiny (17 bytes), then ask what is a bond?" in card and "; with a note." in card
    assert "library_name: notes" in card and "Serve tiny with its note." in serve
    assert read_parity(run, ["noted"])["noted"]["engines"] == figures["noted"]["engines"]
    assert "note.json" in plan_push(run, "noted", "owner/name").files
    capsys.readouterr()
    verify(folder, as_json=True)
    assert json.loads(capsys.readouterr().out)["kind_of_export"] == "noted"
