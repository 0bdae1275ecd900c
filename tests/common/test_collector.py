"""The garbage collector is as it was before, whatever happened meanwhile."""

from __future__ import annotations

import gc

import pytest

from rankwright.common import collector


@pytest.mark.parametrize("on", [True, False])
def test_it_is_paused_inside_and_as_before_outside(on: bool) -> None:
    was_on = gc.isenabled()
    (gc.enable if on else gc.disable)()
    try:
        with pytest.raises(ImportError), collector.paused():
            assert not gc.isenabled()
            raise ImportError
        assert gc.isenabled() is on
    finally:
        (gc.enable if was_on else gc.disable)()
