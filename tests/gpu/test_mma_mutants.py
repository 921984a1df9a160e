"""Wrong kernels with matrices, each of which the simulator must refuse."""

from __future__ import annotations

import pytest
import torch

from .kernel import run
from .test_mutants import RACE, caught

pytestmark = pytest.mark.usefixtures("simulated")


def words(count: int) -> list[torch.Tensor]:
    return [torch.empty(count, dtype=torch.int32)]


def test_misaligned_row():
    caught("misaligned_row", "read of 16 bytes .* not aligned", outputs=words(32))


def test_early_ldmatrix():
    caught("early_ldmatrix", f"{RACE} a write by thread|not been written", outputs=words(32))


def stages(slip: str) -> tuple[torch.Tensor, torch.Tensor]:
    """What the kernel gives, and what it should."""
    a, b = (torch.randint(-3, 4, (2, 64, 64)).bfloat16() for _ in range(2))
    out = torch.empty(64, 64)
    run(f"wgmma_{slip}", [a, b], [out])
    return out, (a.float() @ b.float().transpose(1, 2)).sum(0)


def test_wgmma_without_a_mistake():
    out, want = stages("none")
    assert torch.equal(out, want)


@pytest.mark.parametrize(
    "slip, message",
    [
        ("short_wait", "names an accumulator with a wgmma that it does not cover"),
        ("touched", "was written to while a wgmma was under way"),
        ("missing_fence", "wgmma without wgmma_fence"),
        ("late_touch", "has changed since the wgmma_fence"),
        ("missing_proxy_fence", f"{RACE} a write .*(\n.*)*no fence_async"),
        ("missing_barrier", f"{RACE} a write by thread|not been written"),
        ("overwritten", "race: (read|write) .*a (read|write) by .*wgmma|race: .* by a wgmma"),
        ("other_descriptor", "the descriptors of thread 64 .* are not those of thread 0"),
        ("left_early", "ends before the asynchronous work"),
        ("half_group", "warpgroup (that )?is not whole"),
    ],
)
def test_slips(slip: str, message: str):
    with pytest.raises(RuntimeError, match=message) as error:
        stages(slip)
    assert "::wgmma_stages_kernel<" in str(error.value)
    assert "mutants.h:" in str(error.value)


# Nothing tells these from what somebody may have meant, but the numbers do.
@pytest.mark.parametrize("slip", ["other_swizzle", "other_direction"])
def test_slips_that_show_in_the_numbers(slip: str):
    out, want = stages(slip)
    assert not torch.equal(out, want)


def test_missing_wait():
    with pytest.raises(RuntimeError, match="ends before the asynchronous work"):
        stages("missing_wait")


def test_early_read(request: pytest.FixtureRequest):
    """Nobody sees that a register is read: it holds NaN where products come late."""
    _, late = request.node.callspec.params["simulated"]
    out, want = stages("early_read")
    if late:
        assert out.isnan().all()
    else:
        assert torch.equal(out, want)


def test_ring():
    a = torch.randint(-3, 4, (2, 64, 64)).bfloat16()
    out = torch.empty(64 * 64)
    run("wgmma_ring", [a], [out])
    with pytest.raises(RuntimeError, match=f"{RACE} a read by a wgmma|being written by a copy"):
        run("wgmma_ring_early", [a], [out])


def test_unfenced_reuse():
    caught(
        "unfenced_reuse",
        "wgmma without wgmma_fence",
        inputs=[torch.randn(64, 64).bfloat16()],
        outputs=[torch.empty(64 * 64)],
    )
