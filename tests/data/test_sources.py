"""A recipe's data entries: the names that sets go by."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from rankwright.common.errors import UserErrors
from rankwright.data.sources import locate_all
from rankwright.recipe.sources import Data


def data_of(folder: Path, **entry: str) -> Data:
    (folder / "set").mkdir(exist_ok=True)
    return Data.model_validate({"root": str(folder), "test": ({"path": "set", **entry},)})


@pytest.mark.parametrize("name", ["ours", "our set", "v1.2", "sätze", "a=b", "..."])
def test_names(tmp_path: Path, name: str) -> None:
    (located,) = locate_all(data_of(tmp_path, name=name))["test"]
    assert located.name == name


# eval/NAME is a folder, and ids of several sets are told apart as NAME/ID.
@pytest.mark.parametrize("name", ["../../other", "a/b", "/etc", "..", ".", "a\\b", " a", "x" * 201])
def test_names_that_are_no_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserErrors, match=r"^data\.test\.0: the set is named .*: give it another `name`") as caught:
        locate_all(data_of(tmp_path, name=name))
    assert len(caught.value.messages) == 1


@pytest.mark.parametrize("name", [" ", "a\nb", "a\x00"])
def test_names_that_are_no_line(tmp_path: Path, name: str) -> None:
    """Refused by the recipe's own schema, before a folder is thought of."""
    with pytest.raises(ValidationError, match=r"must (not be empty|be one line without control characters)") as caught:
        data_of(tmp_path, name=name)
    assert caught.value.error_count() == 1


def test_a_path_that_names_nothing_asks_for_a_name(tmp_path: Path) -> None:
    (tmp_path / ".hidden").mkdir()
    with pytest.raises(UserErrors, match=r"data\.test\.0: the set is named ''"):
        locate_all(data_of(tmp_path, path=".hidden"))
    (located,) = locate_all(data_of(tmp_path, path=".hidden", name="shown"))["test"]
    assert located.name == "shown"


def test_two_sets_of_one_name(tmp_path: Path) -> None:
    entries = [{"path": "set", "split": "a"}, {"path": "set", "split": "b"}]
    (tmp_path / "set").mkdir()
    with pytest.raises(UserErrors, match=r"data\.train: two entries are named 'set': give one of them another `name`"):
        locate_all(Data.model_validate({"root": str(tmp_path), "train": tuple(entries)}))
