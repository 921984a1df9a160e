"""Layers that the ranks share out compute what the whole layers do, and learn as they do."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import parallelize_module
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

import weft
from weft.distributed import (
    ColwiseParallel,
    Communicator,
    RowwiseParallel,
    SequenceParallel,
    communicator_of,
    ddp_hook,
    regions,
)
from weft.nn.parallel import whole_state_dict

from .ranks import run


def check_layers(rank: int, world: int) -> None:
    torch.set_default_dtype(torch.float64)
    with Communicator(dist.group.WORLD) as group:
        torch.manual_seed(0)
        up, down = nn.Linear(6, 8), nn.Linear(8, 6)
        torch.manual_seed(0)
        column = weft.nn.ColumnParallelLinear(6, 8, group=group)
        row = weft.nn.RowParallelLinear(8, 6, group=group)
        assert column.weight.shape == (8 // world, 6) and row.weight.shape == (6, 8 // world)
        x = torch.randn(2 * world, 2 * world, 6)
        want = down(up(x).relu())
        assert torch.allclose(row(column(x).relu()), want)

        gathers = weft.nn.ColumnParallelLinear(6, 8, gather_output=True, group=group)
        splits = weft.nn.RowParallelLinear(8, 6, input_is_parallel=False, group=group)
        gathers.load_state_dict(up.state_dict())  # the whole: each takes its part
        splits.load_state_dict(row.state_dict())  # or its own
        assert torch.allclose(gathers(x), up(x))
        assert torch.allclose(splits(gathers(x).relu()), want)

        for dim in (0, 1):
            rows = slice(rank * x.shape[dim] // world, (rank + 1) * x.shape[dim] // world)
            options = {"sequence_parallel": True, "sequence_dim": dim, "group": group}
            first = weft.nn.ColumnParallelLinear(6, 8, **options)
            second = weft.nn.RowParallelLinear(8, 6, **options)
            first.load_state_dict(up.state_dict())
            second.load_state_dict(down.state_dict())
            mine = x[rows] if dim == 0 else x[:, rows]
            got = second(first(mine).relu())
            assert torch.allclose(got, want[rows] if dim == 0 else want[:, rows])

        skips = weft.nn.RowParallelLinear(8, 6, skip_bias_add=True, group=group)
        skips.load_state_dict(down.state_dict())
        y, bias = skips(column(x).relu())
        assert torch.allclose(y + bias, want) and bias is skips.bias
        shares = weft.nn.RowParallelLinear(
            8, 6, skip_bias_add=True, sequence_parallel=True, group=group
        )
        y, bias = shares(column(x).relu())
        (y + bias).sum().backward()
        assert torch.equal(shares.bias.grad, torch.full((6,), float(x[..., 0].numel())))
        leaves = weft.nn.RowParallelLinear(8, 6, bias=False, reduce_results=False, group=group)
        leaves.load_state_dict({"weight": down.weight})
        y, z = weft.all_reduce_rms_norm(leaves(column(x).relu()).detach(), None, x, 1e-6, group)
        assert torch.allclose(z, want - down.bias + x)
        assert torch.allclose(y, F.rms_norm(z, (6,), eps=1e-6))

        ones = weft.nn.ColumnParallelLinear(6, 8, init_method=nn.init.ones_, group=group)
        assert (ones.weight == 1).all()
        model = nn.Sequential(column, nn.ReLU(), row)
        whole = nn.Sequential(up, nn.ReLU(), down).state_dict()
        found = whole_state_dict(model)
        assert found.keys() == whole.keys()
        assert all(torch.equal(found[name], whole[name]) for name in whole)
        twin = copy.deepcopy(model)
        assert twin[0].communicator is group and torch.equal(twin(x), model(x))
        assert "of 6 → 8, rank" in repr(column)

        with pytest.raises(ValueError, match="expected a dimension 0 that the 2 ranks divide"):
            weft.nn.ColumnParallelLinear(6, 7, group=group)
        with pytest.raises(ValueError, match="gather_output with sequence_parallel"):
            weft.nn.ColumnParallelLinear(
                6, 8, gather_output=True, sequence_parallel=True, group=group
            )
        with pytest.raises(ValueError, match="needs input_is_parallel"):
            weft.nn.RowParallelLinear(
                8, 6, input_is_parallel=False, sequence_parallel=True, group=group
            )
        with pytest.raises(ValueError, match="leaves out the sum of which sequence_parallel"):
            weft.nn.RowParallelLinear(
                8, 6, bias=False, reduce_results=False, sequence_parallel=True, group=group
            )
        with pytest.raises(ValueError, match="would add the bias once for each rank"):
            weft.nn.RowParallelLinear(8, 6, reduce_results=False, group=group)
        refused = nn.Linear(8, 6)
        of = weft.nn.RowParallelLinear.of
        with pytest.raises(ValueError, match="would add the bias once for each rank"):
            of(refused, group, reduce_results=False)
        with pytest.raises(TypeError, match="unknown option 'reduce_result', expected one of"):
            of(refused, group, reduce_result=False)
        with pytest.raises(ValueError, match="expected a dimension 1 that the 2 ranks divide"):
            of(nn.Linear(7, 6), group)
        assert type(refused) is nn.Linear and of(refused, group) is refused
        with pytest.raises(TypeError, match="group is None"):
            weft.nn.RowParallelLinear(8, 6)


def test_layers():
    run(check_layers, 2)


def check_autocast(rank: int, world: int) -> None:
    with Communicator(dist.group.WORLD) as group:
        for rows in (False, True):
            options = {"sequence_parallel": rows, "group": group}
            column = weft.nn.ColumnParallelLinear(32, 64, **options)
            row = weft.nn.RowParallelLinear(64, 32, **options)
            x = torch.randn(4, 32, requires_grad=True)
            with torch.autocast("cpu", torch.bfloat16):
                hidden = column(x)
                y = row(hidden)
            assert hidden.dtype == y.dtype == torch.bfloat16
            y.float().sum().backward()
            for t in (x, *column.parameters(), *row.parameters()):
                assert t.grad is not None and t.grad.dtype == torch.float32
            with torch.no_grad():
                column.quantize_(), row.quantize_()
                with torch.autocast("cpu", torch.bfloat16):
                    coded = row(column(x))
            assert coded.dtype == torch.bfloat16
            assert (coded - y).abs().max() < 0.1


def test_autocast():
    run(check_autocast, 2)


@torch.no_grad()
def check_encoder_layer(rank: int, world: int) -> None:
    with Communicator(dist.group.WORLD) as group:
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()
        x = torch.randn(2, 5, 16)
        want = layer(x)  # torch's fast path
        weft.nn.ColumnParallelLinear.of(layer.linear1, group)
        weft.nn.RowParallelLinear.of(layer.linear2, group)
        assert torch.allclose(layer(x), want, atol=1e-5)


def test_an_encoder_layer_calls_its_linear_layers():
    run(check_encoder_layer, 2)


@torch.no_grad()
def check_nested(rank: int, world: int) -> None:
    """As an encoder makes them of a padding mask."""
    with Communicator(dist.group.WORLD) as group:
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        encoder = nn.TransformerEncoder(layer, 2, mask_check=False).eval()
        x = torch.randn(3, 5, 16)
        padding = torch.arange(5) >= torch.tensor([[5], [2], [3]])
        want = encoder(x, src_key_padding_mask=padding)
        for layer in encoder.layers:
            weft.nn.ColumnParallelLinear.of(layer.linear1, group)
            weft.nn.RowParallelLinear.of(layer.linear2, group, skip_bias_add=False)
        seen = []
        layer.linear2.register_forward_pre_hook(lambda module, args: seen.append(args[0].is_nested))
        assert torch.allclose(encoder(x, src_key_padding_mask=padding), want, atol=1e-5)
        assert seen == [True]

        parts = [torch.randn(n, 6) for n in (3, 1)]
        nested, whole = torch.nested.as_nested_tensor(parts), nn.Linear(6, 8)
        column = weft.nn.ColumnParallelLinear(6, 8, gather_output=True, group=group)
        column.load_state_dict(whole.state_dict())
        for part, y in zip(parts, column(nested).unbind(), strict=True):
            assert torch.allclose(y, whole(part), atol=1e-6)
        rows = weft.nn.ColumnParallelLinear(6, 8, sequence_parallel=True, group=group)
        jagged = torch.nested.as_nested_tensor(parts, layout=torch.jagged)
        for layer, x in ((rows, nested), (column, jagged)):
            with pytest.raises(NotImplementedError, match="ParallelLinear: a nested tensor of"):
                layer(x)


def test_nested_tensors():
    run(check_nested, 2)


@torch.no_grad()
def check_int8_layers(rank: int, world: int) -> None:
    with Communicator(dist.group.WORLD) as group:
        for rows in (False, True):
            options = {"sequence_parallel": rows, "group": group}
            torch.manual_seed(0)
            column = weft.nn.ColumnParallelLinear(96, 128, **options)
            row = weft.nn.RowParallelLinear(128, 96, **options)
            x = torch.randn(4 // (world if rows else 1), 96)
            hidden = column(x)
            want = row(hidden)
            assert column.quantize_() is column and row.quantize_() is row
            assert column.weight.dtype == torch.int8
            assert (column(x) - hidden).abs().max() < 0.05
            assert (row(hidden) - want).abs().max() < 0.05
            twin = weft.nn.RowParallelLinear(128, 96, **options).quantize_()
            twin.load_state_dict(row.state_dict())
            assert torch.equal(twin(hidden), row(hidden))
            again = copy.deepcopy(column)
            assert torch.equal(again(x), column(x))
            if not rows:
                total = x.clone().requires_grad_()
                with torch.enable_grad():
                    column(total).sum().backward()
                parts = whole_state_dict(column)
                weight = parts["weight"] * parts["weight_scale"].reshape(-1, 1)
                assert torch.allclose(total.grad, weight.sum(0).expand(4, -1), atol=1e-4)
            state = whole_state_dict(column)
            assert state["weight"].shape == (128, 96)
            again.load_state_dict(state)
            assert torch.equal(again(x), column(x))
            with pytest.raises(NotImplementedError, match="save it before quantize_"):
                whole_state_dict(row)


def test_int8_layers():
    run(check_int8_layers, 2)


# ---- training

CHANNELS, HEAD, SEQUENCE, BATCH, STEPS = 16, 4, 6, 4, 6


class Block(nn.Module):
    """A transformer layer, which asks its projections how many heads it has."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(CHANNELS), nn.LayerNorm(CHANNELS)
        self.q, self.k, self.v = (nn.Linear(CHANNELS, CHANNELS) for _ in range(3))
        self.out = nn.Linear(CHANNELS, CHANNELS)
        self.up, self.down = nn.Linear(CHANNELS, 2 * CHANNELS), nn.Linear(2 * CHANNELS, CHANNELS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm1(x)
        q, k, v = (f(y).unflatten(-1, (-1, HEAD)).transpose(1, 2) for f in (self.q, self.k, self.v))
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Model(nn.Module):
    def __init__(self, group: Communicator | None = None) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, CHANNELS), nn.Linear(CHANNELS, 2)
        self.blocks = nn.Sequential(Block(), Block())
        self.group = group  # between first and last, rows are shared out

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        x = x if self.group is None else regions.scatter(x, self.group, 1)
        x = self.blocks(x)
        x = x if self.group is None else regions.gather(x, self.group, 1)
        return self.last(x)


def train(model: nn.Module, rows: slice = slice(None)) -> list[float]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    losses = []
    for step in range(STEPS):
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(BATCH, SEQUENCE, 3, generator=generator)
        target = torch.randn(BATCH, SEQUENCE, 2, generator=generator)
        optimizer.zero_grad()
        loss = F.mse_loss(model(x[rows]), target[rows])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def fresh(group: Communicator | None = None) -> Model:
    torch.manual_seed(5)
    return Model(group)


def parallel(mesh, sequence: bool) -> Model:
    model = fresh(communicator_of(mesh.get_group()) if sequence else None)
    if dist.get_rank(mesh.get_group()):  # the first rank's count
        for parameter in model.blocks.parameters():
            nn.init.zeros_(parameter) if parameter.dim() > 1 else None
    outer = Shard(1) if sequence else Replicate()
    column, row = ColwiseParallel(input_layouts=outer), RowwiseParallel(output_layouts=outer)
    for block in model.blocks:
        plan = {"q": column, "k": column, "v": column, "up": column, "out": row, "down": row}
        if sequence:
            plan |= {"norm1": SequenceParallel(), "norm2": SequenceParallel()}
        parallelize_module(block, mesh, plan)
    return model


def over_ranks(rank: int, world: int, kind: str) -> list[float]:
    torch.set_default_dtype(torch.float64)
    if kind != "data and tensor":
        mesh = init_device_mesh("cpu", (world,), mesh_dim_names=("tp",))
        return train(parallel(mesh, kind == "sequence"))
    mesh = init_device_mesh("cpu", (2, world // 2), mesh_dim_names=("dp", "tp"))
    data = mesh["dp"].get_group()
    model = DistributedDataParallel(parallel(mesh["tp"], False), process_group=data)
    model.register_comm_hook(None, ddp_hook(communicator_of(data)))
    half = BATCH // 2
    index = dist.get_rank(data)
    return train(model, slice(index * half, (index + 1) * half))


@pytest.mark.parametrize("kind, world", [("tensor", 2), ("sequence", 2), ("data and tensor", 4)])
def test_the_losses_of_one_process(kind: str, world: int):
    torch.set_default_dtype(torch.float64)
    try:
        alone = train(fresh())
    finally:
        torch.set_default_dtype(torch.float32)
    found = run(over_ranks, world, kind)
    if kind == "data and tensor":  # each half of the ranks has half of the batch
        found = [[(a + b) / 2 for a, b in zip(found[0], found[2], strict=True)]]
    for losses in found:
        assert losses == pytest.approx(alone, rel=1e-10)
    assert alone[-1] < alone[0]


def check_styles(rank: int, world: int) -> None:
    mesh = init_device_mesh("cpu", (world,))
    x = torch.randn(2, 4, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(rank)
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 4))
    parallelize_module(
        model,
        mesh,
        {
            "0": ColwiseParallel(output_layouts=Replicate()),
            "1": RowwiseParallel(input_layouts=Replicate()),
        },
    )
    torch.manual_seed(0)
    assert torch.allclose(model(x), nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 4))(x), atol=1e-6)
    with pytest.raises(ValueError, match="use_local_output is False"):
        ColwiseParallel(use_local_output=False)
    with pytest.raises(ValueError, match="input_layouts is .*, expected Replicate"):
        ColwiseParallel(input_layouts=Shard(-1))
    with pytest.raises(ValueError, match="output_layouts is .*, expected Replicate"):
        RowwiseParallel(output_layouts=Shard(-1))
    with pytest.raises(NotImplementedError, match="RowwiseParallel: LayerNorm, expected nn.Linear"):
        parallelize_module(nn.LayerNorm(3), mesh, RowwiseParallel())


def check_rows_of_a_norm(rank: int, world: int) -> None:
    mesh = init_device_mesh("cpu", (world,))
    norm = nn.LayerNorm(4)
    norm.bias.requires_grad_(False)
    parallelize_module(norm, mesh, SequenceParallel())
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(rank))
    loaded = copy.deepcopy(norm)
    loaded.load_state_dict({"weight": torch.ones(4), "bias": torch.zeros(4)}, assign=True)
    for layer in (norm, copy.deepcopy(norm), loaded):
        for _ in range(2):  # hooked once
            layer.weight.grad = None
            layer(x).sum().backward()
        plain = nn.LayerNorm(4)
        plain(x).sum().backward()
        want = plain.weight.grad.clone()
        dist.all_reduce(want)
        assert torch.allclose(layer.weight.grad, want, atol=1e-6)


def test_sequence_parallel_outlives_its_parameters():
    run(check_rows_of_a_norm, 2)


def test_styles():
    run(check_styles, 2)
