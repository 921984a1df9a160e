"""The attention family: what is counted, checking, and runs from the command line."""

from __future__ import annotations

import importlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from bench.__main__ import main
from bench.attention import contenders, onnx, plain
from bench.attention.cases import BF16_CACHE, PRODUCT, AttentionCase, quantised
from bench.peers import COMPILED, EAGER, ONNX, WEFT

from bench import attention, int8

CASES = {c.name: c for c in attention.cases("cpu")}
GPU_CASES = {c.name: replace(c, device="cpu") for c in attention.cases("cuda")}
GPU_KINDS = {c.op: c for c in GPU_CASES.values()}
SWEEP = {c.name: c for c in attention.sweep("cpu")}


def test_names_are_unique() -> None:
    assert len(CASES) == len(attention.cases("cpu"))
    assert len(SWEEP) == len(attention.sweep("cpu"))
    for gpu in (attention.cases("cuda"), attention.sweep("cuda")):
        assert len({c.name for c in gpu}) == len(gpu) > 0
        assert all(c.device == "cuda" for c in gpu)


def test_what_a_gpu_is_measured_by() -> None:
    """Its goals name peers that its cases have; what computes has no roof but the product."""
    for case in attention.cases("cuda"):
        peers = {offer.peer for offer in contenders.offers(case, 1)}
        assert {g.peer for g in case.goals if hasattr(g, "peer")} <= peers
        assert case.roof == ("copy" if case.recipe == "decode" else None)
        assert (PRODUCT in peers) == (case.recipe != "decode")
    lengths = {c.shape[2] for c in GPU_CASES.values() if c.recipe == "backward"}
    assert lengths == {512 << n for n in range(7)}


def test_peers_of_a_gpu_are_called_as_they_are_declared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their ops, replaced by torch's own attention under the declared arguments."""
    case = attention.shrink(GPU_CASES["prefill_causal/1x16x16384x128/bf16/fresh"])
    q, k, v = (attention.inputs(case, 0)[n] for n in "qkv")
    truth = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    for name in ("cudnn", "flash"):
        op = getattr(torch.ops.aten, f"_scaled_dot_product_{name}_attention")
        arguments = [a.name for a in op.default._schema.arguments]

        def stand_in(*given: object, names: list[str] = arguments) -> tuple[torch.Tensor]:
            call = dict(zip(names, given, strict=False))
            assert call["dropout_p"] == 0.0 and call["is_causal"] is True
            return (F.scaled_dot_product_attention(
                call["query"], call["key"], call["value"], is_causal=True),)  # fmt: skip

        monkeypatch.setattr(torch.ops.aten, f"_scaled_dot_product_{name}_attention", stand_in)
        assert torch.equal(getattr(plain, f"by_{name}")(q, k, v, is_causal=True), truth)


def test_the_product_has_as_many_operations() -> None:
    case = attention.shrink(GPU_CASES["prefill/1x16x16384x128/bf16/fresh"])
    small = replace(case, shape=(1, 2, 1024, 128))
    out = plain.product(small, {}).run()
    assert 2 * out.shape[0] ** 3 == pytest.approx(small.flops, rel=0.3)


def test_gradients_alone() -> None:
    name = "backward_causal/1x16x16384x128/bf16/fresh"
    case = GPU_CASES[name]
    assert case.flops == 5 * 16 * 16384**2 * 128
    tensors = attention.inputs(attention.shrink(case), 0)
    traffic = attention.shrink(case).traffic
    assert traffic.read == sum(tensors[n].nbytes for n in ("q", "k", "v", "q", "do"))
    assert traffic.write == sum(tensors[n].nbytes for n in "qkv")
    wide = attention.shrink(GPU_CASES["backward_v128/1x16x16384x192/bf16/fresh"])
    tensors = attention.inputs(wide, 0)
    assert tensors["v"].shape == tensors["do"].shape == (1, 2, 40, 24)
    assert wide.flops == 2 * (3 * 32 + 2 * 24) * 2 * 40 * 40


@pytest.mark.parametrize(
    ("name", "flops"),
    [
        ("prefill/1x8x2048x128/bf16/fresh", 4 * 8 * 2048**2 * 128),
        ("prefill_causal/1x8x2048x128/fp32/fresh", 2 * 8 * 2048**2 * 128),
        ("prefill_causal_gqa4/1x32x1024x128/bf16/fresh", 2 * 32 * 1024**2 * 128),
        ("prefill_mask/4x12x512x64/bf16/fresh", 4 * 4 * 12 * 512**2 * 64),
        ("decode_gqa4/4x32x4096x128/bf16/fresh", 4 * 4 * 32 * 4096 * 128),
        ("train_causal/2x12x1024x64/bf16/fresh", 7 * 2 * 12 * 1024**2 * 64),
    ],
)
def test_operations(name: str, flops: int) -> None:
    assert CASES[name].flops == flops


def test_packed_sequences_count_their_squares() -> None:
    case = CASES["varlen/16x12x512x64/bf16/fresh"]
    assert (len(case.lengths), min(case.lengths), max(case.lengths)) == (16, 17, 512)
    assert case.flops == sum(4 * 12 * 64 * n * n for n in case.lengths)
    tensors = attention.inputs(case, 0)
    assert tensors["cu_seqlens"].diff().tolist() == case.lengths
    assert case.traffic.total == 4 * tensors["q"].nbytes


@pytest.mark.parametrize(
    ("name", "read", "written"),
    [
        ("prefill/1x8x2048x128/bf16/fresh", ["q", "k", "v"], ["q"]),
        ("prefill_mask/4x12x512x64/bf16/fresh", ["q", "k", "v", "mask"], ["q"]),
        ("decode_gqa4/4x32x4096x128/bf16/fresh", ["q", "k", "v"], ["q"]),
        ("decode_int8_gqa4/4x32x4096x128/bf16/fresh",
         ["q", "k_int8", "v_int8", "k_scale", "v_scale"], ["q"]),
        ("decode_int8_static_gqa4/4x32x4096x128/fp32/fresh", ["q", "k_int8", "v_int8"], ["q"]),
        ("train_causal/2x12x1024x64/fp32/fresh",
         ["q", "k", "v", "q", "k", "v", "q", "do"], ["q", "q", "k", "v"]),
    ],
)  # fmt: skip
def test_traffic(name: str, read: list[str], written: list[str]) -> None:
    """Tensors of these sizes pass once each: o and dq are as large as q, dk as k, dv as v."""
    tensors = attention.inputs(CASES[name], 0)
    assert CASES[name].traffic.read == sum(tensors[n].nbytes for n in read)
    assert CASES[name].traffic.write == sum(tensors[n].nbytes for n in written)


def test_roofs(monkeypatch: pytest.MonkeyPatch) -> None:
    prefill = CASES["prefill/1x8x2048x128/bf16/fresh"]
    level = "avx512_bf16"
    monkeypatch.setattr("weft._C.isa_level", lambda: level)
    assert prefill.roof == "bf16" and prefill.work == prefill.flops
    assert replace(prefill, dtype=torch.float16).roof == "fp32"
    level = "avx512"
    assert prefill.roof == "fp32"
    decode = CASES["decode_gqa4/4x32x4096x128/bf16/fresh"]
    assert decode.roof == "read" and decode.work == decode.traffic.total
    assert CASES["decode/1x12x128x64/fp32/fresh"].roof is None
    assert CASES["prefill/1x1x1x64/fp32/fresh"].roof is None


def test_quantised_rows() -> None:
    x = torch.randn(2, 3, 5, 16)
    for dims, shape in (((-1,), (2, 3, 5, 1)), ((0, 2, 3), (1, 3, 1, 1))):
        values, scale = quantised(x, dims)
        assert scale.shape == shape
        assert (values.abs().amax(dims) == 127).all()
        assert (values * scale - x).abs().amax() <= scale.amax() / 2 + 1e-6


def test_blocks_of_queries_are_one_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("prefill_causal_gqa4/1x32x1024x128/bf16/fresh",
                 "prefill_mask/4x12x512x64/bf16/fresh"):  # fmt: skip
        case = attention.shrink(CASES[name])
        tensors = attention.inputs(case, 0)
        (whole,) = attention.truth(case, tensors)
        monkeypatch.setattr(importlib.import_module("bench.attention.truth"), "ROWS", 7)
        (blocks,) = attention.truth(case, tensors)
        monkeypatch.undo()
        torch.testing.assert_close(blocks, whole, rtol=0, atol=1e-12)


@pytest.mark.parametrize("case", [*CASES.values(), *GPU_KINDS.values()], ids=[*CASES, *GPU_KINDS])
def test_everybody_is_right_on_every_case(case: AttentionCase) -> None:
    """But those that are compiled."""
    small = attention.shrink(case)
    truth = attention.truth(small, attention.inputs(small, 0))
    found = [o for o in contenders.offers(small, threads=1) if o.build and o.peer != COMPILED]
    assert {WEFT, EAGER} <= {o.peer for o in found}
    for offer in found:
        if not offer.competes:
            continue
        with torch.inference_mode(not small.trains):
            bound = offer.build()(attention.inputs(small, 0))
            assert attention.compare(small, bound.outputs(bound.run()), truth) == "", offer


def test_a_wrong_result_is_seen() -> None:
    case = attention.shrink(CASES["train_causal/2x12x1024x64/fp32/fresh"])
    truth = attention.truth(case, attention.inputs(case, 0))
    assert attention.compare(case, truth, truth) == ""
    for i in range(4):
        wrong = [t * 1.01 if j == i else t for j, t in enumerate(truth)]
        assert f"output {i} is wrong" in attention.compare(case, wrong, truth)


def test_int8_is_set_beside_bf16() -> None:
    case = CASES["decode_int8_gqa4/4x32x4096x128/bf16/fresh"]
    (yardstick,) = (o for o in contenders.offers(case, 1) if o.peer == BF16_CACHE)
    assert not yardstick.competes
    assert [goal.peer for goal in case.goals] == [BF16_CACHE]


def test_onnxruntime_says_why_it_has_no_row() -> None:
    reasons = {c.name: onnx.why_not(c) for c in CASES.values()}
    assert reasons["train_causal/2x12x1024x64/fp32/fresh"] == "inference only"
    assert not reasons["decode_gqa4/4x32x4096x128/fp16/fresh"]
    assert not reasons["decode_int8_static_gqa4/4x32x4096x128/fp32/fresh"]
    assert all(reason for name, reason in reasons.items() if "bf16" in name)


@pytest.mark.parametrize("sweep", [False, True])
def test_command_line(sweep: bool, tmp_path: Path, capsys, monkeypatch) -> None:
    """A whole quick run; without torch.compile, which would take minutes."""
    here = contenders.why_not
    monkeypatch.setattr(contenders, "why_not", lambda p: "slow" if p == COMPILED else here(p))
    threads = torch.get_num_threads()
    arguments = ["attention", "--quick", "--memory", "fresh", "--rounds", "2", "--threads", "1"]
    arguments += ["--sweep"] if sweep else []
    try:
        code = main([*arguments, "--json", str(tmp_path / "r.json"), "--plots", str(tmp_path)])
    finally:
        torch.set_num_threads(threads)
    assert code == 0
    data = json.loads((tmp_path / "r.json").read_text())
    expected = {attention.shrink(c).name for c in (SWEEP if sweep else CASES).values()}
    assert {row["case"] for row in data["rows"]} == expected
    assert all(row["weft"] > 0 and row["times"][EAGER] for row in data["rows"])
    assert all(ONNX in row["times"] or row["absent"][ONNX] for row in data["rows"])
    rates = {row["roof"] for row in data["rows"]}
    assert "read" in rates and (sweep or {"fp32", None} < rates)
    assert "GB/s" in capsys.readouterr().out
    plots = {path.name for path in tmp_path.glob("*.png")}
    assert plots == (
        {"attention-sweep.png"} if sweep else {"attention-bars.png", "attention-roofline.png"}
    )


def test_a_family_without_cases_there_is_passed_over(capsys, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(int8, "cases", lambda device: [])
    assert main(["int8", "--device", "cuda"]) == 0
    assert main(["norm", "--sweep"]) == 0
    text = capsys.readouterr().out
    assert "int8 has no cases on cuda" in text and "norm has no sweep on cpu" in text
