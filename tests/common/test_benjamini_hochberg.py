"""p values for many comparisons: the share of false ones among those called different."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankwright.common.errors import UserError
from rankwright.common.stats import benjamini_hochberg, holm

P_VALUES = st.dictionaries(st.integers(), st.floats(0, 1), max_size=12)


def test_by_hand() -> None:
    found = benjamini_hochberg({"a": 0.04, "b": 0.01, "c": 0.03, "d": 0.5})
    assert found == pytest.approx({"a": 0.16 / 3, "b": 0.04, "c": 0.16 / 3, "d": 0.5})
    assert list(found) == ["a", "b", "c", "d"]


@given(P_VALUES)
def test_between_the_value_itself_and_holm(values: dict[int, float]) -> None:
    found, stricter = benjamini_hochberg(values), holm(values)
    for name, p in values.items():
        assert p <= found[name] + 1e-12 and found[name] <= stricter[name] + 1e-12
    order = sorted(values, key=lambda n: values[n])
    assert [found[n] for n in order] == sorted(found.values())


def test_the_share_of_false_ones_is_bounded() -> None:
    rng, shares = np.random.default_rng(0), []
    for _ in range(1000):
        p = np.concatenate([rng.uniform(size=15), rng.beta(0.05, 5, size=5)])
        called = [n for n, value in benjamini_hochberg(dict(enumerate(p))).items() if value <= 0.1]
        shares.append(sum(n < 15 for n in called) / max(1, len(called)))
    # Three quarters are null, so that the bound is .075.
    assert 0.06 < float(np.mean(shares)) < 0.09


@pytest.mark.parametrize("p", [-0.1, 1.1, float("nan")])
def test_not_a_p_value(p: float) -> None:
    with pytest.raises(UserError, match="is not a p value"):
        benjamini_hochberg({"x": p})
