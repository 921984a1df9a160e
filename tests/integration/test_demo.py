"""The demonstration: `weft demo`."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from weft import cli, demo

needed = pytest.mark.skipif(
    any(importlib.util.find_spec(module) is None for module in demo.PACKAGES),
    reason="the packages of the extra `demo`",
)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, threads: None) -> None:
    torch.set_num_threads(1)  # beside other tests, threads that wait for each other cost more
    monkeypatch.chdir(tmp_path)
    size = demo.llama.Size(prompt=40, tokens=3, rounds=1, steps=4)
    monkeypatch.setattr(demo, "QUICK", demo.Size(sentences=40, rounds=1, llama=size))
    monkeypatch.setattr(demo.llama, "MODEL", demo.llama.LEARNER)
    monkeypatch.setattr(demo.parallel, "SENTENCES", 8)
    monkeypatch.setattr(demo.int8, "WAYS", demo.int8.WAYS[::5])  # two good ones and the bad one


@needed
def test_demo(tiny: None, tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    figures = tmp_path / "demo.json"
    assert cli.main(["demo", "--quick", "--json", str(figures)]) == 0
    printed = capsys.readouterr().out
    for expected in (
        "BertSelfOutput", "dropout + add + norm", 'attn_implementation="weft"', "smallest cosine",
        "weft ms", "tokens/s", "learns letters", "W8A8, a scale per row", "two, tensor parallel",
    ):  # fmt: skip
        assert expected in printed
    found = json.loads(figures.read_text())
    assert found["sentences"] == 40
    assert len(found["report"]["swapped"]) == 27
    assert [a["dtype"] for a in found["agreement"]] == ["float32", "bfloat16"]
    assert all(a["within_bounds"] for a in found["agreement"])
    assert {(t["dtype"], t["memory"]) for t in found["times"]} >= {
        ("float32", "fresh"), ("bfloat16", "fresh"),
    }  # fmt: skip
    used = {op["name"] for op in found["ops"] if op["weft"] > 0}
    assert used >= {"weft::attention_forward"}
    assert [(g["model"], g["cache"]) for g in found["generation"]] == [
        ("stock, SDPA", "bfloat16"), ("weft", "bfloat16"), ("weft", "int8"),
    ]  # fmt: skip
    assert all(g["within_bounds"] and g["tokens_per_second"] > 0 for g in found["generation"])
    assert found["generation"][2]["cache_bytes"] < found["generation"][0]["cache_bytes"]
    assert len(found["int8"]) == 3
    assert all(q["within_bounds"] for q in found["int8"])
    assert {q["model"] for q in found["int8"] if q["cosine"] < 0.9} == {"outliers"}
    training = found["training"]
    assert len(training["stock"]) == len(training["weft"]) == 4
    assert training["within_bounds"] and training["weft"][-1] < training["weft"][0]
    assert (tmp_path / "weft-demo.png").stat().st_size > 1000
    shared = found["shared"]
    assert shared["within_bounds"] and shared["product"] > 0
    assert (tmp_path / "weft-demo-timeline.png").stat().st_size > 1000
    events = json.loads((tmp_path / "weft-demo-timeline.json").read_text())["traceEvents"]
    assert {event["pid"] for event in events} == {0, 1}


@needed
def test_disagreement_is_an_exit_code(tiny: None, monkeypatch, capsys) -> None:
    monkeypatch.setitem(demo.BOUNDS, torch.float32, demo.Bounds(0.0, 2.0, 1.0))
    far = demo.parallel.Parallel(1, 1, 0, 0, 0, difference=1.0, within_bounds=False)
    monkeypatch.setattr(demo.parallel, "measure", lambda *arguments: far)
    assert cli.main(["demo", "--quick"]) == 1
    printed = capsys.readouterr().out
    assert "disagree in float32" in printed and "embeddings of two processes disagree" in printed


@needed
def test_curves_that_part_are_an_exit_code(tiny: None, monkeypatch, capsys) -> None:
    monkeypatch.setattr(demo.llama, "LOSS_BOUND", -1.0)
    monkeypatch.setitem(demo.llama.BOUNDS, "int8", 2.0)
    same = demo.parallel.Parallel(1, 1, 0, 0, 0, difference=0.0, within_bounds=True)
    monkeypatch.setattr(demo.parallel, "measure", lambda *arguments: same)
    assert cli.main(["demo", "--quick"]) == 1
    printed = capsys.readouterr().out
    assert "loss curves disagree" in printed and "logits disagree in int8" in printed


def test_missing_packages_are_named(monkeypatch, capsys) -> None:
    monkeypatch.setattr(demo, "PACKAGES", {"no_such_module": "no-such-package"})
    assert cli.main(["demo", "--quick"]) == 2
    assert "weft demo needs no-such-package: pip install 'weft[demo]'" in capsys.readouterr().err


def test_corpus() -> None:
    from weft._demo_model import corpus

    sentences = corpus(200)
    assert len(set(sentences)) == 200
    assert sentences == corpus(200)
    assert all(sentence[0].isupper() and sentence[-1] == "." for sentence in sentences)
