"""Where W8A8 begins to be the faster: measured, kept, read again."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

import weft
from weft import cli
from weft.quantization import crossover


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path, threads):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(crossover, "SHAPE", (64, 64))
    return tmp_path / "weft" / "crossover.json"


def test_crossover():
    assert crossover.crossover({1: 0.5, 2: 0.9, 4: 1.1, 8: 2.0}) == 4
    assert crossover.crossover({1: 0.5, 2: 1.2, 4: 0.8, 8: 2.0}) == 8
    assert crossover.crossover({1: 1.5, 2: 1.2}) == 1
    assert crossover.crossover({1: 0.5, 2: 1.04, 4: 1.06}) == 4
    assert crossover.crossover({1: 0.5, 2: 0.7}) == 4


def test_measured_once_and_kept(cache, capsys):
    assert crossover.stored() == crossover.DEFAULT
    assert cli.main(["tune"]) == 0
    assert crossover.machine() in capsys.readouterr().out
    entry = json.loads(cache.read_text())[crossover.machine()]
    assert list(map(int, entry["weight_only_to_w8a8"])) == list(crossover.ROWS)
    entry["crossover"] = 77
    cache.write_text(json.dumps({crossover.machine(): entry, "another machine": {"crossover": 1}}))
    layer = nn.Linear(16, 16)
    weft.quantize_(layer, weft.Hybrid())
    assert layer.crossover == 77 and "crossover=77" in repr(layer)
    torch.set_num_threads(torch.get_num_threads() + 1)  # another machine, as it were
    assert crossover.stored() == crossover.DEFAULT
    crossover.measure(rounds=1)
    assert len(json.loads(cache.read_text())) == 3


@pytest.mark.parametrize("text", ["", "[]", "{", '{"x": 1}'])
def test_a_broken_file_counts_for_none(cache, text):
    cache.parent.mkdir()
    cache.write_text(text)
    assert crossover.stored() == crossover.DEFAULT
    crossover.measure(rounds=1)
    assert crossover.machine() in json.loads(cache.read_text())
