"""What the simulator's engine offers to those who add a word to the vocabulary, and its options."""

from __future__ import annotations

import re

import pytest
import torch

from .kernel import run, simulator
from .test_mutants import RACE, run_mutant


@pytest.mark.usefixtures("simulated")
def test_work_of_a_warpgroup():
    x, y = torch.randint(-9, 9, (128,)).float(), torch.empty(128)
    run("group_sum", [x], [y])
    assert torch.equal(y, x.sum().expand(128))


@pytest.mark.usefixtures("simulated")
def test_work_of_a_warpgroup_needs_a_fence():
    with pytest.raises(RuntimeError, match="no fence_async"):
        run("group_sum_no_fence", [torch.randn(128)], [torch.empty(128)])


@pytest.mark.usefixtures("simulated")
def test_work_of_a_warpgroup_is_waited_for():
    with pytest.raises(RuntimeError, match="race: .* not ordered with a (read|write) by"):
        run("group_sum_no_wait", [torch.randn(128)], [torch.empty(128)])


@pytest.mark.parametrize(
    "name, dtype", [("f32", torch.float32), ("bf16", torch.bfloat16), ("f16", torch.float16)]
)
def test_multicast_memory(name: str, dtype: torch.dtype):
    a, b = torch.randn(2, 256).to(dtype)
    want = (a.float() + b.float()).to(dtype)
    y = torch.empty_like(want)
    flags = torch.zeros(2, 1, dtype=torch.int32)
    run(f"multimem_{name}", [], [y], [a, b, flags[0], flags[1]])
    assert torch.equal(y, want) and torch.equal(a, want) and torch.equal(b, want)
    assert flags.tolist() == [[2 * 256 * dtype.itemsize // 16]] * 2


@pytest.mark.usefixtures("simulated")
def test_memory_by_two_addresses():
    x, own, y = torch.randn(128), torch.empty(128), torch.empty(128)
    run("aliases", [x], [own, y])
    assert torch.equal(y, x + 1) and torch.equal(own, y)


@pytest.mark.usefixtures("simulated")
@pytest.mark.parametrize("where", ["before", "after"])
def test_memory_by_two_addresses_needs_a_fence(where: str):
    with pytest.raises(RuntimeError, match=f"{RACE} (.|\n)*: there is no fence_alias between"):
        run(f"aliases_unfenced_{where}", [torch.randn(128)], [torch.empty(128), torch.empty(128)])


def test_same_seed_same_order():
    """The order of threads shows in what an exchange leaves behind; a seed repeats it."""
    x = torch.randperm(640).to(torch.int32)

    def left(seed: int) -> int:
        words = torch.zeros(5, dtype=torch.int32)
        with simulator(seed=seed):
            run("atomics", [x], [], [words, torch.zeros(640)])
        return int(words[3])

    last = [left(seed) for seed in range(8)]
    assert last == [left(seed) for seed in range(8)]
    assert len(set(last)) > 1


def most_at_once(seed: int, multiprocessors: int) -> int:
    words = torch.zeros(2, dtype=torch.int32)
    with simulator(seed=seed, multiprocessors=multiprocessors):
        run("side_by_side", inouts=[words])
    assert words[0] == 0
    return int(words[1])


def test_blocks_side_by_side():
    """As many as the seed says and the GPU holds, where they meet in global memory."""
    assert {most_at_once(seed, 132) for seed in range(1, 20)} == {1, 2, 3, 4}
    assert {most_at_once(seed, 2) for seed in range(1, 10)} == {1, 2}
    assert {most_at_once(seed, 1) for seed in range(1, 5)} == {1}
    assert most_at_once(0, 132) == 1


def test_more_blocks_than_the_gpu_holds():
    """A barrier of the grid is passed by as many blocks as run at once, and by no more."""
    for blocks in (32, 33):
        outputs = [torch.empty(blocks), torch.empty(blocks)]
        arguments = [torch.randn(blocks)], outputs, [torch.zeros(1, dtype=torch.int32)]
        with simulator(seed=5, multiprocessors=1):
            if blocks == 32:
                run("grid_barrier", *arguments)
                continue
            message = r"deadlock\n.*1 of 33 blocks have not begun: there is room for 32 at a time"
            with pytest.raises(RuntimeError, match=message):
                run("grid_barrier", *arguments)


@pytest.mark.parametrize("late", [False, True])
def test_a_wait_for_one_too_few(late: bool):
    """Seen where blocks run side by side, and the one that is not waited for takes its time."""
    seen = 0
    for seed in range(1, 9):
        with simulator(seed=seed, late=late):
            try:
                run_mutant("wrong_phase", "ordered_sum")
            except RuntimeError as error:
                assert re.search(f"{RACE}|not been written", str(error))
                seen += 1
    assert seen >= 4


def test_unchecked_races():
    """Without check_races a race passes, and what it read may be right."""

    def race() -> None:
        x, y, flag = torch.randn(256), torch.empty(256), torch.zeros(1, dtype=torch.int32)
        run("early_reuse", [x], [y, y.clone()], [flag], [1], partly=True)

    with simulator(races=False):
        race()
    with simulator(), pytest.raises(RuntimeError, match="race"):
        race()


def test_memory_that_is_input_and_output():
    """Of tensors that share memory, one may say that it is initialised, another allow writing."""
    x = torch.randn(4100)
    before = x.clone()
    run("copy_f32_8", [x[:4096]], [x[:4096]])
    assert torch.equal(x, before)
    with pytest.raises(RuntimeError, match="race"):
        run("copy_f32_8", [x[:4096]], [x[4:]])  # a thread writes what another reads


def test_an_error_leaves_nothing_behind():
    for _ in range(3):
        with pytest.raises(RuntimeError, match="deadlock"):
            run("divergent_barrier", [], [torch.empty(64)])
        x, y = torch.randn(5, 64), torch.empty(5)
        run("row_sum", [x], [y])
        torch.testing.assert_close(y, x.sum(1))
