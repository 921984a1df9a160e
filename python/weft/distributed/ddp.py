"""Gradients of DistributedDataParallel over a communicator, bucket by bucket beside backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

from .communicator import Communicator

Hook = Callable[[object, dist.GradBucket], torch.futures.Future]


def ddp_hook(
    communicator: Communicator,
    compression: Literal["bf16", "int8"] | None = None,
    group_size: int = 128,
) -> Hook:
    """A hook that averages gradients over ``communicator``, each bucket while backward goes on.

    >>> model = DistributedDataParallel(module, process_group=group)
    >>> model.register_comm_hook(None, ddp_hook(Communicator(group)))

    Args:
        communicator: of the group that the model was given.
        compression: None: gradients as they are, summed in float32 in the order of the ranks.
            ``"bf16"``: sent in bfloat16. ``"int8"``: sent as int8 values with a scale for each
            ``group_size`` elements, with error feedback: what rounding takes from a gradient is
            added to the same gradient of the next step, so that it is late but not lost
            (Karimireddy et al., arXiv 1901.09847). It keeps a float32 copy of the gradients.
        group_size: a power of two from 64 to 32768.

    One hook serves one model.
    """
    if compression not in (None, "bf16", "int8"):
        raise ValueError(f"weft: compression is {compression!r}, expected None, 'bf16' or 'int8'")
    # By bucket: what the last step's rounding took, from the gradients of which parameters.
    lost: dict[int, tuple[list[int], Tensor]] = {}

    # Without annotations, which DDP would compare and find to be strings.
    def plain(_, bucket):
        return communicator.all_reduce_(bucket.buffer(), "avg", async_op=True).get_future()

    def bf16(_, bucket):
        gradients = bucket.buffer()
        work = communicator.all_reduce_(gradients.bfloat16(), "avg", async_op=True)
        return work.get_future().then(lambda done: gradients.copy_(done.value()))

    def int8(_, bucket):
        gradients = bucket.buffer()
        whole = gradients.to(torch.promote_types(gradients.dtype, torch.float32), copy=True)
        of = [id(parameter) for parameter in bucket.parameters()]
        before, rest = lost.get(bucket.index(), ([], whole))
        if of == before:  # DDP makes its buckets anew after the first step
            whole += rest
        sent = _on_int8_grid(whole, group_size)
        rest = whole.sub_(sent)
        # Of a step that overflowed, which a GradScaler leaves out, nothing is kept.
        lost[bucket.index()] = of, torch.where(rest.isfinite(), rest, 0)
        work = communicator.all_reduce_(
            sent, "avg", compression="int8", group_size=group_size, async_op=True
        )
        return work.get_future().then(lambda done: gradients.copy_(done.value()))

    return {None: plain, "bf16": bf16, "int8": int8}[compression]


def _on_int8_grid(x: Tensor, group_size: int) -> Tensor:
    """x as the int8 values and scales of its groups give it, which sending leaves as it is."""
    padded = torch.nn.functional.pad(x, (0, -x.numel() % group_size)).view(-1, group_size)
    scale = padded.abs().amax(1, keepdim=True) / 127
    values = (padded / torch.where(scale > 0, scale, 1)).round_() * scale
    return values.view(-1)[: x.numel()].contiguous()
