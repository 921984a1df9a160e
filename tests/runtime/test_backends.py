"""The table of backends, on machines that are not here."""

from __future__ import annotations

import pytest
import torch

import backends


@pytest.fixture
def capability(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Of a GPU that this machine is made to have."""
    found = [8, 0]
    monkeypatch.setattr(torch._C, "_dispatch_has_kernel_for_dispatch_key", lambda *_: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: tuple(found))
    return found


def test_hopper_runs_the_kernels_of_both_architectures(capability: list[int]) -> None:
    assert [b.name for b in backends.cuda()] == ["cuda"]
    capability[0] = 9
    found = {b.name: b.families for b in backends.cuda()}
    assert found["cuda-sm80"] == found["cuda"] == backends.FAMILIES
    assert all(name.startswith("cuda") for name in found)  # as the ledger's command asks for them


def test_a_switch_is_turned_back(capability: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    capability[0] = 9
    for backend in backends.cuda():
        if not isinstance(backend, backends.Switched):
            continue
        turned: list[bool] = []
        monkeypatch.setattr(torch.ops.weft, backend.switch, turned.append, raising=False)
        with pytest.raises(KeyError), backend.active():
            assert turned == [True]
            raise KeyError
        assert turned == [True, False]
