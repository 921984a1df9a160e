"""PyTorch's attention module on weft's kernels."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import _fallback
from ..ops.attention import attention


class MultiheadAttention(torch.nn.MultiheadAttention):
    r""":class:`torch.nn.MultiheadAttention`, its arguments and state_dict keys, on weft's kernels.

    .. math:: y = \mathrm{concat}_h(\mathrm{attention}(q W^Q_h, k W^K_h, v W^V_h)) \, W^O

    (arXiv 1706.03762.) Where it differs from torch's:

    - Weights (`need_weights=True`, torch's default) are a matrix of S · T that weft does not make:
      torch's own function computes them and the output, at its own speed (`weft.fallbacks` counts
      it). Pass ``need_weights=False``, as torch.nn.TransformerEncoderLayer and its kin do.
    - A row that the masks hide entirely gives zeros, not NaN, where no weights are asked for.
    - `is_causal` needs no `attn_mask` beside it. Where there is one, it is taken to be the causal
      one and is not read.
    - `attn_mask` and `key_padding_mask` may be of different types. Boolean ones are cheaper: they
      stay one byte an element, and what they hide entirely is skipped.
    - The fast path by which torch.nn.TransformerEncoderLayer passes its parts by, in inference, is
      not taken: they are called. Nested tensors, made for that path, are refused: build
      torch.nn.TransformerEncoder with ``enable_nested_tensor=False``. (:func:`weft.optimize` does
      the like to encoders that it finds.)

    Args:
        embed_dim: E, the size of queries and outputs.
        num_heads: H, a divisor of E.
        dropout: probability with which a weight is dropped, in training mode. Default: 0.
        bias: have biases in the projections. Default: True.
        add_bias_kv: append a learned key and value. Default: False.
        add_zero_attn: append a key and a value of zeros. Default: False.
        kdim, vdim: sizes of keys and values. Default: E.
        batch_first: inputs and outputs are [B, S, E], not [S, B, E]. Default: False.
        device, dtype: of the parameters.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = False,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            embed_dim,
            num_heads,
            dropout,
            bias,
            add_bias_kv,
            add_zero_attn,
            kdim,
            vdim,
            batch_first,
            device,
            dtype,
        )
        # What torch.nn.TransformerEncoderLayer takes for a reason to call its parts.
        self._qkv_same_embed_dim = False

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """The output, in the query's layout, and the weights or None.

        Args:
            query: [S, B, E], [B, S, E] with `batch_first`, or [S, E].
            key: [T, B, kdim], [B, T, kdim] or [T, kdim].
            value: [T, B, vdim], [B, T, vdim] or [T, vdim].
            key_padding_mask: [B, T] or [T]: bool, True where a key is not seen, or added to the
                scores.
            need_weights: return the weights too, by torch's own function.
            attn_mask: [S, T] or [B · H, S, T], likewise.
            average_attn_weights: the weights are [B, S, T], the mean over the heads, instead of
                [B, H, S, T].
            is_causal: query i sees the keys 0 to i.
        """
        if query.is_nested or key.is_nested or value.is_nested:
            raise NotImplementedError(
                "weft.nn.MultiheadAttention takes no nested tensors: build "
                "torch.nn.TransformerEncoder with enable_nested_tensor=False"
            )
        if need_weights:
            return self._with_weights(
                query, key, value, key_padding_mask, attn_mask, average_attn_weights
            )
        q, k, v = map(self._heads, self._project(query, key, value))  # [B, S, H, D], [B, T, H, D]
        appended = 0
        if self.bias_k is not None and self.bias_v is not None:
            k = torch.cat([k, self._heads(self.bias_k[0]).expand(len(k), -1, -1, -1)], 1)
            v = torch.cat([v, self._heads(self.bias_v[0]).expand(len(v), -1, -1, -1)], 1)
            appended += 1
        if self.add_zero_attn:
            k, v = F.pad(k, (0, 0, 0, 0, 0, 1)), F.pad(v, (0, 0, 0, 0, 0, 1))
            appended += 1
        if is_causal and appended:  # the appended keys are seen by all
            S, T = q.shape[1], k.shape[1] - appended
            attn_mask = torch.ones(S, T, dtype=torch.bool, device=q.device).triu(1)
            is_causal = False
        bias, mask = self._masks(None if is_causal else attn_mask, key_padding_mask, appended)
        out = attention(
            q,
            k,
            v,
            causal=is_causal,
            top_left=True,
            bias=bias,
            mask=mask,
            dropout_p=self.dropout if self.training else 0.0,
        ).flatten(2)  # [B, S, E]
        if query.dim() == 2:
            out = out[0]
        elif not self.batch_first:
            out = out.transpose(0, 1).contiguous()
        return F.linear(out, self.out_proj.weight, self.out_proj.bias), None

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        """Products with the weights: one where all inputs are one tensor."""
        packed, bias = self.in_proj_weight, self.in_proj_bias
        if packed is not None and query is key and key is value:
            return F.linear(query, packed, bias).chunk(3, -1)
        biases = (None, None, None) if bias is None else bias.chunk(3)
        if packed is None:
            weights = self.q_proj_weight, self.k_proj_weight, self.v_proj_weight
        elif key is value:
            E = self.embed_dim
            kv = F.linear(key, packed[E:], None if bias is None else bias[E:])
            return F.linear(query, packed[:E], biases[0]), *kv.chunk(2, -1)
        else:
            weights = packed.chunk(3)
        return tuple(map(F.linear, (query, key, value), weights, biases))

    def _heads(self, x: Tensor) -> Tensor:
        """[B, S, H, D], a view of [S, B, E], [B, S, E] or [S, E]."""
        if x.dim() == 2:
            x = x.unsqueeze(0)
        elif not self.batch_first:
            x = x.transpose(0, 1)
        return x.unflatten(-1, (self.num_heads, self.head_dim))

    def _masks(
        self, attn_mask: Tensor | None, key_padding_mask: Tensor | None, appended: int
    ) -> tuple[Tensor | None, Tensor | None]:
        """What is added to the scores, and what is seen; appended keys have 0 and are."""
        bias: Tensor | None = None
        hidden: Tensor | None = None
        if attn_mask is not None and attn_mask.dim() == 3:
            attn_mask = attn_mask.unflatten(0, (-1, self.num_heads))  # [B, H, S, T]
        if key_padding_mask is not None:
            key_padding_mask = key_padding_mask.reshape(-1, 1, 1, key_padding_mask.shape[-1])
        for given in (attn_mask, key_padding_mask):
            if given is None:
                continue
            given = F.pad(given, (0, appended)) if appended else given
            if given.dtype == torch.bool:
                hidden = given if hidden is None else hidden | given
            else:
                bias = given if bias is None else bias + given
        return bias, None if hidden is None else ~hidden

    def _with_weights(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None,
        attn_mask: Tensor | None,
        average_attn_weights: bool,
    ) -> tuple[Tensor, Tensor | None]:
        _fallback.note("nn.MultiheadAttention", "need_weights")
        swapped = self.batch_first and query.dim() == 3
        if swapped:  # what is one tensor stays one
            once = {id(x): x.transpose(0, 1) for x in (query, key, value)}
            query, key, value = once[id(query)], once[id(key)], once[id(value)]
        out, weights = F.multi_head_attention_forward(
            query,
            key,
            value,
            self.embed_dim,
            self.num_heads,
            self.in_proj_weight,
            self.in_proj_bias,
            self.bias_k,
            self.bias_v,
            self.add_zero_attn,
            self.dropout,
            self.out_proj.weight,
            self.out_proj.bias,
            training=self.training,
            key_padding_mask=key_padding_mask,
            attn_mask=attn_mask,
            use_separate_proj_weight=self.in_proj_weight is None,
            q_proj_weight=self.q_proj_weight,
            k_proj_weight=self.k_proj_weight,
            v_proj_weight=self.v_proj_weight,
            average_attn_weights=average_attn_weights,
        )
        return out.transpose(0, 1) if swapped else out, weights
