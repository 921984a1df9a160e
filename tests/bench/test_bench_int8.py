"""The INT8 family: what is counted, checking, and a run from the command line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from bench.__main__ import main
from bench.int8.cases import INT_MM
from bench.peers import EAGER

from bench import int8

CASES = {c.name: c for c in int8.cases("cpu")}
GPU_CASES = {c.name: c for c in int8.cases("cuda")}


def test_names_are_unique() -> None:
    assert len(CASES) == len(int8.cases("cpu"))
    assert len({c.name for c in int8.sweep("cpu")}) == len(int8.sweep("cpu"))
    assert len(GPU_CASES) == len(int8.cases("cuda"))
    assert all(c.device == "cuda" for c in (*int8.cases("cuda"), *int8.sweep("cuda")))


@pytest.mark.parametrize(
    ("name", "weight"),
    [
        ("w8a8/1x4096x11008/bf16/fresh", 4096 * 11008 + 4 * 11008),
        ("w8a16/1x4096x11008/bf16/fresh", 4096 * 11008 + 4 * 11008),
        ("w4a16/1x4096x11008/bf16/fresh", 4096 * 11008 // 2 + 4 * 11008 * 32),
    ],
)
def test_operations_and_traffic(name: str, weight: int) -> None:
    case = CASES[name]
    assert case.roof == "read" and case.flops == 2 * 4096 * 11008
    assert case.traffic.total == weight + 2 * (4096 + 11008)


def test_a_gpu_reads_the_weight_for_few_rows() -> None:
    for case in GPU_CASES.values():
        M, K, N = case.shape
        assert case.roof == ("copy" if M <= 64 else None)
        assert K * N * case.bits // 8 > 60e6 or M > 64  # more than caches hold
        int_mm = next((o for o in int8.offers(case, 1) if o.peer == INT_MM), None)
        assert (int_mm is None) == (case.recipe != "w8a8")
        assert int_mm is None or bool(int_mm.reason) == (M <= 16)
    names = [name for name, case in GPU_CASES.items() if not case.goals]
    assert not names


@pytest.mark.parametrize("name", GPU_CASES)
def test_gpu_cases_run(name: str) -> None:
    """As far as they can without one."""
    case = replace(int8.shrink(GPU_CASES[name]), device="cpu")
    tensors = int8.inputs(case, 0)
    bound = int8.offers(case, threads=1)[0].build()(tensors)
    assert not int8.compare(case, bound.outputs(bound.run()), int8.truth(case, tensors))


@pytest.mark.parametrize("name", CASES)
def test_offers_agree_with_the_truth(name: str) -> None:
    case = int8.shrink(CASES[name])
    tensors = int8.inputs(case, 0)
    exact = int8.truth(case, tensors)
    for offer in int8.offers(case, threads=1):
        if offer.build is None:
            continue
        bound = offer.build()(tensors)
        with torch.inference_mode():
            got = bound.outputs(bound.run())
        if offer.competes:
            assert not int8.compare(case, got, exact), offer.peer
    assert int8.compare(case, [exact[0] * 2], exact)


@pytest.mark.parametrize("sweep", [False, True])
def test_command_line(sweep: bool, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    path = tmp_path / "r.json"
    arguments = ["int8", "--quick", "--memory", "fresh", "--rounds", "1", "--threads", "1"]
    arguments += ["--sweep"] if sweep else []
    try:
        code = main([*arguments, "--json", str(path), "--plots", str(tmp_path)])
    finally:
        torch.set_num_threads(threads)
    assert code == 0
    data = json.loads(path.read_text())
    assert all(row["weft"] > 0 and row["times"][EAGER] for row in data["rows"])
    assert any(INT_MM in row["times"] for row in data["rows"])
    assert list(tmp_path.glob("*.png"))
