"""`Communicator`: collectives between the processes of one host."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, overload
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.graph import increment_version
from torch.compiler import is_compiling

from ..ops._grad import call
from ._bootstrap import connect
from ._cuda import BLOCKS, Node
from ._work import Work, Worker

_all_reduce = torch.ops.weft.all_reduce.default
_reduce_scatter = torch.ops.weft.reduce_scatter.default
_all_gather = torch.ops.weft.all_gather.default

_OPS: dict[object, str] = {
    "sum": "sum",
    "avg": "avg",
    "max": "max",
    dist.ReduceOp.SUM: "sum",
    dist.ReduceOp.AVG: "avg",
    dist.ReduceOp.MAX: "max",
}

# As csrc/core/dtype.h and csrc/comm/params.h number them.
_DTYPES = {torch.float64: 0, torch.float32: 1, torch.bfloat16: 2, torch.float16: 3}
_INTEGERS = {
    torch.int64: 4, torch.int32: 5, torch.int8: 6, torch.uint8: 7, torch.bool: 8,
}  # fmt: skip
_REDUCTIONS = {op: ("sum", "avg", "max").index(name) for op, name in _OPS.items()}


class Communicator:
    """The ranks of a process group, as a group that reduces through shared memory.

    >>> with Communicator(group) as communicator:
    ...     total = communicator.all_reduce(x)

    Every rank of the group makes one, at the same time, and then calls the same collectives with
    the same shapes, dtypes and operations in the same order. All ranks are processes of one host;
    tensors lie on the CPU or, of up to 8 ranks, on a GPU of the rank's (`connect_cuda`).

    Sums run over the ranks in order, in float32 (float64 for float64), and are rounded once: all
    ranks get the same bits, at every run.

    No call waits for its peers for longer than ``timeout``; behind works with ``async_op=True`` a
    call begins when they are done, each of which has as long. Where a rank has died, stalls, has
    closed its communicator or calls something else, every other rank's call raises RuntimeError,
    with the rank that is to blame and the number of the call; a death shows at once. What a failed
    call leaves in its tensors is undefined. From then on every call raises the same: ``failure`` is
    the reason.
    The ranks that are left may close it and make another, over a group of their own.

    Args:
        group: a process group that this process is in, of at most 64 ranks. Its backend is asked
            to introduce the ranks to each other and then not again.
        timeout: seconds.
        table: which algorithm serves messages of which size, as rows of (bytes, two_shot, piece);
            rank 0's counts. By default what ``python -m bench comm --tune`` has found on this
            machine, or else what weft comes with.

    A communicator is of the process that made it: after a fork the child makes its own. Threads may
    share one, if they call in the same order on every rank.
    """

    def __init__(
        self,
        group: dist.ProcessGroup,
        timeout: float = 30.0,
        *,
        table: list[tuple[int, bool, int]] | None = None,
    ) -> None:
        if not isinstance(group, dist.ProcessGroup):
            raise TypeError(
                "weft.distributed.Communicator: group is "
                f"{'no group that this process is in' if group else group!r}, expected a "
                "ProcessGroup (for all ranks: torch.distributed.group.WORLD)"
            )
        if not timeout > 0:
            raise ValueError(
                f"weft.distributed.Communicator: timeout is {timeout}, expected more than 0 seconds"
            )
        self.timeout = timeout
        self.rank = dist.get_rank(group)
        self.world_size = dist.get_world_size(group)
        self.ranks = dist.get_process_group_ranks(group)
        self._native = connect(group, timeout, table)
        self._all_reduce_at = self._native.all_reduce_at  # bound once
        self._worker = Worker("weft communicator", self._native)
        self._node: Node | None = None
        self._closed = False

    # ---- collectives

    @overload
    def all_reduce(
        self, x: Tensor, op: object = ..., *, compression: str | None = ..., group_size: int = ...,
        async_op: Literal[False] = ...,
    ) -> Tensor: ...  # fmt: skip
    @overload
    def all_reduce(
        self, x: Tensor, op: object = ..., *, compression: str | None = ..., group_size: int = ...,
        async_op: Literal[True],
    ) -> Work: ...  # fmt: skip
    def all_reduce(self, x, op="sum", *, compression=None, group_size=128, async_op=False):
        """The sum of every rank's ``x``, on every rank.

        Differentiable, except for ``"max"`` and where it is compressed: the gradient of ``x`` is
        the sum of the ranks' gradients.

        Args:
            x: float32, bfloat16, float16 or float64.
            op: ``"sum"``, ``"avg"`` or ``"max"``, or torch's ``ReduceOp`` of that name.
            compression: ``"int8"``: ranks exchange int8 values, with a scale
                s = max |x| / 127 for each ``group_size`` elements. An element of the sum is then
                off by at most Σ s / 2 over the ranks, s being those of its group.
            group_size: a power of two from 64 to 32768.
            async_op: return a `Work` at once. ``x`` is left alone until it is done. A callback of
                its future that asks for a collective does so with ``async_op=True`` as well.
        """
        op, x = _op(op), x.contiguous()
        if compression is None:
            return self._run(x, lambda: call(_all_reduce, x, self.handle, op), async_op)
        check_compression(compression)
        _check_no_grad(x, "compressed")
        return self._run(
            x, lambda: torch.ops.weft.all_reduce_int8(x, self.handle, op, group_size), async_op
        )

    @overload
    def all_reduce_(
        self, x: Tensor, op: object = ..., *, compression: str | None = ..., group_size: int = ...,
        async_op: Literal[False] = ...,
    ) -> Tensor: ...  # fmt: skip
    @overload
    def all_reduce_(
        self, x: Tensor, op: object = ..., *, compression: str | None = ..., group_size: int = ...,
        async_op: Literal[True],
    ) -> Work: ...  # fmt: skip
    def all_reduce_(self, x, op="sum", *, compression=None, group_size=128, async_op=False):
        """`all_reduce` into ``x`` itself, which is returned. It has no gradient."""
        dtype, reduction = _DTYPES.get(x.dtype), _REDUCTIONS.get(op)
        if (  # small messages take less time than torch's dispatcher
            dtype is not None
            and reduction is not None
            and type(x) is Tensor
            and not (async_op or compression or self._worker.pending or x.requires_grad)
            and x.is_cpu
            and x.is_contiguous()
            and not x.is_neg()
            and not is_compiling()
        ):
            torch._C._increment_version((x,))
            self._all_reduce_at(x.data_ptr(), x.numel(), dtype, reduction)
            return x
        op = _op(op)
        _check_no_grad(x, "in place")
        if compression is not None:
            check_compression(compression)

        def run() -> Tensor:
            whole = x.resolve_neg().contiguous()
            if compression is None:
                torch.ops.weft.all_reduce_(whole, self.handle, op)
            else:
                torch.ops.weft.all_reduce_int8_(whole, self.handle, op, group_size)
            return x if whole is x else x.copy_(whole)

        if not is_compiling():
            increment_version(x)
        return self._run(x, run, async_op)

    def _add_up(self, product: Tensor, bias: Tensor | None) -> Tensor:
        """linear_all_reduce of a product that is there, a plain one of this host, in place."""
        product = product.contiguous()
        if self._worker.pending:
            self._run(product, lambda: None)
        self._all_reduce_at(
            product.data_ptr(), product.numel(), _DTYPES[product.dtype], 0, product.shape[-1],
            0 if bias is None else bias.data_ptr(),
        )  # fmt: skip
        return product

    @overload
    def reduce_scatter(
        self, x: Tensor, op: object = ..., *, async_op: Literal[False] = ...,
        out: Tensor | None = ...,
    ) -> Tensor: ...  # fmt: skip
    @overload
    def reduce_scatter(
        self, x: Tensor, op: object = ..., *, async_op: Literal[True], out: Tensor | None = ...
    ) -> Work: ...
    def reduce_scatter(self, x, op="sum", *, async_op=False, out=None):
        """This rank's share of the sum of every rank's ``x``: of W equal parts of its first
        dimension the one that the rank's number says. Differentiable, except for ``"max"``.

        Args:
            x, op, async_op: as for `all_reduce`.
            out: written and returned instead of a new tensor, without a gradient."""
        op, x = _op(op), x.contiguous()
        if out is not None:
            run = self._into(out, "reduce_scatter", x, _REDUCTIONS[op], self.world_size, 1)
            return self._run(x, run, async_op)
        return self._run(x, lambda: call(_reduce_scatter, x, self.handle, op), async_op)

    @overload
    def all_gather(
        self, x: Tensor, *, async_op: Literal[False] = ..., out: Tensor | None = ...
    ) -> Tensor: ...
    @overload
    def all_gather(
        self, x: Tensor, *, async_op: Literal[True], out: Tensor | None = ...
    ) -> Work: ...
    def all_gather(self, x, *, async_op=False, out=None):
        """Every rank's ``x``, one after the other along the first dimension. Differentiable.

        Args:
            x: as for `all_reduce`, or int64, int32, int8, uint8 or bool.
            async_op: as for `all_reduce`.
            out: written and returned instead of a new tensor, without a gradient. ``x`` may be the
                rank's own part of it."""
        x = x.contiguous()
        if out is not None:
            run = self._into(out, "all_gather", x, 0, 1, self.world_size)
            return self._run(x, run, async_op)
        return self._run(x, lambda: call(_all_gather, x, self.handle), async_op)

    def _into(
        self, out: Tensor, name: str, x: Tensor, reduction: int, parts: int, times: int
    ) -> Callable[[], Tensor]:
        """A collective whose result, a part of x or as many times x, is written into `out`."""
        dtypes = _DTYPES if name == "reduce_scatter" else _DTYPES | _INTEGERS
        if not (out.dtype == x.dtype and out.dtype in dtypes and out.is_cpu and x.is_cpu):
            raise TypeError(
                f"weft.{name}: out is {out.dtype} on {out.device} and x {x.dtype} on {x.device}, "
                "expected one dtype of those that it takes, on the CPU"
            )
        if out.numel() * parts != x.numel() * times or not out.is_contiguous():
            raise ValueError(
                f"weft.{name}: out has shape {list(out.shape)} and x {list(x.shape)}, of "
                f"{self.world_size} ranks; expected a contiguous out of "
                f"{x.numel() * times // parts} elements"
            )
        _check_no_grad(x, "into out", name)
        increment_version(out)

        def run() -> Tensor:
            self._native.into_at(
                name == "all_gather", x.data_ptr(), out.data_ptr(), x.numel() // parts,
                dtypes[x.dtype], reduction,
            )  # fmt: skip
            return out

        return run

    def _run(self, x: Tensor, run: Callable[[], Any], async_op: bool = False) -> Any:
        if x.is_cuda:
            if self._node is None:
                self.connect_cuda(x.device)
            assert self._node is not None
            return self._node.run(x, run, async_op)
        if not async_op:
            if self._worker.pending and self._worker.is_current():
                raise RuntimeError(
                    "weft: a collective in a callback of a work would wait for those behind it, "
                    "and they for the callback: ask for it with async_op=True"
                )
            return run()  # in the caller's thread, whose order of calls autograd goes by
        grad = torch.is_grad_enabled()  # is of a thread; autograd follows what it is told

        def on_worker() -> Any:
            with torch.set_grad_enabled(grad):
                return run()

        return self._worker.submit(on_worker)

    # ---- GPUs

    def connect_cuda(
        self,
        device: torch.device | str | int | None = None,
        *,
        blocks: int = BLOCKS,
        multicast: bool = False,
        table: list[tuple[int, str]] | None = None,
    ) -> None:
        """Lets the collectives take tensors of a GPU, one for each rank: every rank calls it. The
        first collective with such a tensor does the same; graphs are captured after it.

        A collective is then a kernel in the current stream. What goes wrong in it, the GPU finds:
        the next call raises, and `failure` says it. With ``async_op=True`` it runs in a stream of
        its own behind the current one, and ``wait()`` makes the current one wait for it.

        Args:
            device: by default the current one.
            blocks: thread blocks, of 512 threads, that a collective takes at most. What is left of
                the GPU is its neighbours'. The same on all ranks.
            multicast: let the switch add messages beyond 64 KiB, or as the table says (Hopper with
                NVSwitch, more than two ranks, 'sum' and, but for float16, exact 'avg'). It adds in
                an order of its own: all ranks get the same bits, but not those of a sum in their
                order. The same on all ranks.
            table: which algorithm serves `all_reduce` of messages of which size, as up to 16 rows
                of (bytes, algorithm), bytes growing: ``"one_shot"``, ``"two_shot"``,
                ``"multicast"``. The first row counts that has room for the message and whose
                algorithm can do it; behind them come weft's own. The same on all ranks. By default
                what ``python -m bench comm --tune --device cuda`` has found on such GPUs.

        Raises RuntimeError, on all ranks, where one's GPU does not reach another's, or they do not
        ask for the same.
        """
        if self._node is not None:
            raise RuntimeError(f"weft: the communicator is on {self._node.device} already")
        where = torch.device("cuda", device) if isinstance(device, int) else device
        where = torch.device("cuda" if where is None else where)
        if where == torch.device("cuda"):
            where = torch.device("cuda", torch.cuda.current_device())
        self._node = Node(self, where, blocks, multicast, table)

    # ---- its life

    @property
    def handle(self) -> int:
        """What ``torch.ops.weft.all_reduce`` and its like know it by, in this process."""
        return self._native.handle

    @property
    def failure(self) -> str:
        """Why it has failed, on the CPU or on its GPU; empty if that is not known to have. It stays
        after `close`. What fails on a GPU is known when its kernel has ended."""
        return self._native.failure or (self._node.failure if self._node is not None else "")

    @property
    def closed(self) -> bool:
        return self._closed

    def close(self) -> None:
        """Finishes what has been started, then leaves the group: calls raise from here on, and so
        do those of ranks that still wait for this one. A second close does nothing."""
        if not self._closed:
            if self._worker.is_current():
                raise RuntimeError("weft: close() in a callback of a work would wait for itself")
            self._closed = True
            self._worker.stop()
            if self._node is not None:
                self._node.close()
            self._native.close()

    def __enter__(self) -> Communicator:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def is_here(self) -> bool:
        """Whether this process made it: after a fork, it is the parent's."""
        return self._worker.is_here

    def __repr__(self) -> str:
        state = f", failed: {self.failure}" if self.failure else ", closed" if self.closed else ""
        return f"Communicator(rank {self.rank} of {self.world_size}{state})"

    def __deepcopy__(self, memo: object) -> Communicator:
        return self  # copies of a model reduce over one


_of_groups: WeakKeyDictionary[dist.ProcessGroup, Communicator] = WeakKeyDictionary()


def communicator_of(group: Communicator | dist.ProcessGroup | None) -> Communicator:
    """A communicator over ``group``: one for each, made when it is first asked for, which all its
    ranks then do together; and again after it was closed."""
    if isinstance(group, Communicator):
        return group
    if group is None:
        raise TypeError(
            "weft: group is None, expected a Communicator or a ProcessGroup (for all ranks: "
            "torch.distributed.group.WORLD)"
        )
    found = _of_groups.get(group) if isinstance(group, dist.ProcessGroup) else None
    if found is None or found.closed or not found.is_here:
        found = Communicator(group)
        _of_groups[group] = found
    return found


def _op(op: object) -> str:
    name = _OPS.get(op)
    if name is None:
        raise ValueError(f"weft: op is {op!r}, expected 'sum', 'avg' or 'max'")
    return name


def check_compression(compression: str) -> None:
    if compression != "int8":
        raise ValueError(f"weft: compression is {compression!r}, expected None or 'int8'")


def _check_no_grad(x: Tensor, how: str, name: str = "all_reduce") -> None:
    if x.requires_grad and torch.is_grad_enabled():
        raise RuntimeError(
            f"weft: {name} {how} has no gradient, and x needs one; detach x, or call it under "
            "torch.no_grad()"
        )
