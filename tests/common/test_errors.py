"""Messages about names that are not known."""

from __future__ import annotations

from rankwright.common.errors import no_such


def test_an_unknown_name_comes_with_the_known_ones() -> None:
    assert no_such("loss", "bec", ["mse", "bce"]) == "unknown loss 'bec', did you mean 'bce'? (known: bce, mse)"
    assert no_such("split", "x", [], "give split: NAME") == "unknown split 'x' (known: none): give split: NAME"
