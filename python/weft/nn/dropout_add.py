"""flash-attn's modules of dropout, residual and norm in one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import init

from ..ops.norm import layer_norm_fn


class DropoutAddLayerNorm(torch.nn.Module):
    r"""``layer_norm(dropout(x0) + residual)``, as flash-attn's.

    Args:
        hidden_size: C.
        prenorm: return the sum too, the residual of the next block. Default: False.
        p: dropout probability, in training mode. Default: 0.
        eps: added to the variance. Default: 1e-5.
        residual_in_fp32: the sum is float32 (where there is no residual; else it has that one's
            dtype).
        device, dtype: of the parameters.
    """

    is_rms_norm = False

    def __init__(
        self,
        hidden_size: int,
        prenorm: bool = False,
        p: float = 0.0,
        eps: float = 1e-5,
        residual_in_fp32: bool = False,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.prenorm = prenorm
        self.p = p
        self.eps = eps
        self.residual_in_fp32 = residual_in_fp32
        self.weight = torch.nn.Parameter(torch.empty(hidden_size, device=device, dtype=dtype))
        if self.is_rms_norm:
            self.register_parameter("bias", None)
        else:
            self.bias = torch.nn.Parameter(torch.empty(hidden_size, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        init.ones_(self.weight)
        if self.bias is not None:
            init.zeros_(self.bias)

    def forward(
        self,
        x0: Tensor,
        residual: Tensor | None = None,
        rowscale: Tensor | None = None,
        layerscale: Tensor | None = None,
    ) -> Any:
        r"""The norm [\*N, C] in x0's dtype; with `prenorm`, the tuple of it and the sum.

        Args:
            x0: [\*N, C].
            residual: [\*N, C], or None.
            rowscale: [\*N], multiplies rows of x0; has no gradient.
            layerscale: [C], multiplies channels of x0.
        """
        return layer_norm_fn(
            x0,
            self.weight,
            self.bias,
            residual=residual,
            eps=self.eps,
            dropout_p=self.p if self.training else 0.0,
            rowscale=rowscale,
            layerscale=layerscale,
            prenorm=self.prenorm,
            residual_in_fp32=self.residual_in_fp32,
            is_rms_norm=self.is_rms_norm,
        )

    def extra_repr(self) -> str:
        return (
            f"{self.weight.shape[0]}, prenorm={self.prenorm}, p={self.p}, eps={self.eps}, "
            f"residual_in_fp32={self.residual_in_fp32}"
        )


class DropoutAddRMSNorm(DropoutAddLayerNorm):
    """``rms_norm(dropout(x0) + residual)``, as flash-attn's: see :class:`DropoutAddLayerNorm`."""

    is_rms_norm = True
