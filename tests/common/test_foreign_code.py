"""Classes of a folder's own: refused wherever a folder of sentence-transformers names them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rankwright.common.errors import UserError
from rankwright.common.foreign_code import refuse_foreign_modules

OWN = "sentence_transformers.base.modules.transformer.Transformer"
ODD: list[tuple[str, Any]] = [
    ("modules.json", [{"type": OWN, "path": ""}, {"type": "evil.Evil", "path": ""}]),
    ("modules.json", [{"type": "os.system"}]),
    ("modules.json", [{"type": "sentence_transformers_evil.Evil"}]),
    ("modules.json", [{"type": ["sentence_transformers.x"]}]),
    ("modules.json", {"type": "evil\n[bold]\u202e.Evil"}),
    ("router_config.json", {"types": {"query": OWN, "document": "evil.Evil"}}),
    ("0_Router/router_config.json", {"types": {"query": "evil.Evil"}}),
]


@pytest.mark.parametrize(("file", "content"), ODD)
def test_a_foreign_class_is_refused_in_one_line(file: str, content: Any, tmp_path: Path) -> None:
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(json.dumps(content))
    with pytest.raises(UserError) as caught:
        refuse_foreign_modules(tmp_path)
    assert file in str(caught.value) and str(caught.value).isprintable()


@pytest.mark.parametrize("inner", ["types", "activation_function"])
def test_a_part_of_a_part_is_looked_at_too(inner: str, tmp_path: Path) -> None:
    router = "sentence_transformers.models.Router"
    (tmp_path / "modules.json").write_text(json.dumps([{"type": router, "path": "1_Last"}]))
    for place, content in [
        ("1_Last", {"types": {"query": router}}),
        ("1_Last/query", {"types": {"deep": OWN}}),
        ("1_Last/query/deep", {inner: {"x": "evil.Evil"} if inner == "types" else "evil.Evil"}),
    ]:
        (tmp_path / place).mkdir()
        file = "router_config.json" if inner == "types" else "config.json"
        (tmp_path / place / file).write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"1_Last/query/deep/\w+\.json names the class 'evil\.Evil'"):
        refuse_foreign_modules(tmp_path)


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    (tmp_path / "router_config.json").write_text(json.dumps({"types": {"again": OWN}}))
    (tmp_path / "again").symlink_to(tmp_path)
    refuse_foreign_modules(tmp_path)


def test_the_librarys_own_classes_pass(tmp_path: Path) -> None:
    refuse_foreign_modules(tmp_path)
    (tmp_path / "modules.json").write_text(json.dumps([{"type": OWN}, {"name": "no type"}, 3]))
    (tmp_path / "router_config.json").write_text(json.dumps({"types": {"query": OWN}, "structure": {"query": ["0"]}}))
    refuse_foreign_modules(tmp_path)
    (tmp_path / "modules.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match="not JSON"):
        refuse_foreign_modules(tmp_path)
