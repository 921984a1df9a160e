"""The demonstration: `weft demo`."""

from __future__ import annotations

import importlib.util
import json

import pytest
import torch

from weft import cli, demo

needed = pytest.mark.skipif(
    any(importlib.util.find_spec(module) is None for module in demo.PACKAGES),
    reason="the packages of the extra `demo`",
)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, threads: None) -> None:
    torch.set_num_threads(1)  # beside other tests, threads that wait for each other cost more
    monkeypatch.setattr(demo, "QUICK", demo.Size(sentences=40, rounds=1))


@needed
def test_demo(tiny: None, tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    figures = tmp_path / "demo.json"
    assert cli.main(["demo", "--quick", "--json", str(figures)]) == 0
    printed = capsys.readouterr().out
    for expected in ("BertSelfOutput", "dropout + add + norm", "smallest cosine", "weft ms"):
        assert expected in printed
    found = json.loads(figures.read_text())
    assert found["sentences"] == 40
    assert len(found["report"]["swapped"]) == 27
    assert [a["dtype"] for a in found["agreement"]] == ["float32", "bfloat16"]
    assert all(a["within_bounds"] for a in found["agreement"])
    assert {(t["dtype"], t["memory"]) for t in found["times"]} >= {
        ("float32", "fresh"), ("bfloat16", "fresh"),
    }  # fmt: skip
    assert any(op["name"].startswith("weft::") and op["weft"] > 0 for op in found["ops"])


@needed
def test_disagreement_is_an_exit_code(tiny: None, monkeypatch, capsys) -> None:
    monkeypatch.setitem(demo.BOUNDS, torch.float32, demo.Bounds(0.0, 2.0, 1.0))
    assert cli.main(["demo", "--quick"]) == 1
    assert "disagree in float32" in capsys.readouterr().out


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
