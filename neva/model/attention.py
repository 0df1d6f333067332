"""Core attention over `scaled_dot_product_attention` for Megatron's layer spec.

Megatron's local attention builds its mask with a literal CUDA device and materialises the scores. On a GPU, SDPA picks
the FlashAttention kernel, so Transformer Engine is not needed. Packed samples attend each to itself alone: in one call
of FlashAttention for all, where it has a kernel, else one by one.

Dimensions: S query positions, K key positions (under context parallel S is a shard of K), B micro batch,
H heads of this rank, G query groups of this rank, D head size.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right

from neva.families.configs import LanguageConfig
from neva.model.capped import attend_capped, capped_attention
from neva.model.context import chunk_ends, gather_sequence
from neva.model.packed import PackedSamples, Rows

LARGEST_FLASH_HEAD, OLDEST_FLASH_GPU = 256, (8, 0)
"""Head size up to which FlashAttention has kernels, and the compute capability from which on."""

flash_attention = torch.ops.aten._flash_attention_forward
"""What SDPA itself calls for samples of several lengths, with a derivative; torch's public name for it came in 2.10."""


class SDPAttention(MegatronModule):
    """Causal attention, with a layer's window and soft cap if there are; the slot `core_attention` of Megatron."""

    cap: float | None = None
    is_last = False

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        softmax_scale: float | None = None,
        pg_collection: ProcessGroupCollection | None = None,
        *,
        language: LanguageConfig,
        **_: Any,  # cp_comm_type: keys and values are gathered
    ) -> None:
        super().__init__(config=config)
        assert pg_collection is not None
        self.context_group = pg_collection.cp
        self.softmax_scale = softmax_scale
        self.dropout = config.attention_dropout
        self.window = language.window_of(layer_number - 1)
        self.cap = language.form.score_cap
        self.has_groups = language.num_query_groups != language.num_heads
        self.is_last = layer_number == language.num_layers

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        attn_mask_type: AttnMaskType | None = None,
        attention_bias: Tensor | None = None,
        packed_seq_params: PackedSeqParams | None = None,
    ) -> Tensor:
        """Attends.

        Args:
            query: [S, B, H, D].
            key, value: [K, B, G, D].
            attention_mask: bool [B, 1, S, K], True where a query may look; None means causal.
            packed_seq_params: `PackedSamples`: causal within each sample; None: a row is one sample. Of `Rows` with
                `together`, that says where queries look; with `first_read`, whose results the last layer is asked for.

        Returns:
            [S, B, H*D], without the positions that are not read; [N, 1, H*D] of samples in packed rows.
        """
        assert attention_bias is None
        rows = packed_seq_params if isinstance(packed_seq_params, Rows) else Rows()
        if isinstance(rows, PackedSamples) or rows.together is not None:
            return self.attend_rows(query, key, value, rows)
        if self.context_group.size() > 1:
            return self._attend_to_whole_sequence(query, key, value)
        if self.is_last and rows.first_read:
            return self._attend_to_last(query[rows.first_read :], key, value)
        if attention_mask is None and self.cap is not None:
            return self._attend_to_last(query, key, value)
        if attention_mask is None and self.window is not None and key.size(0) > self.window:
            attention_mask = sliding_window_mask(query.size(0), key.size(0), self.window, query.device)
        return self._attend(query, key, value, attention_mask)

    def attend_rows(self, query: Tensor, key: Tensor, value: Tensor, rows: Rows) -> Tensor:
        """Attends as rows say that positions see each other."""
        if self.context_group.size() > 1:
            key, value = self._whole(key, value)
        if rows.together is not None:
            return self._attend(query, key, value, rows.together.mask(self.window))
        assert isinstance(rows, PackedSamples)
        is_one_call = takes_flash(query) and self.cap is None
        attend = self._attend_at_once if is_one_call else self._attend_one_by_one
        return attend(query, key, value, rows)

    def _attend_to_whole_sequence(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Gathers keys and values; each of the two chunks of queries looks at what ends with itself."""
        key, value = self._whole(key, value)
        ends = chunk_ends(len(key), self.context_group)
        return torch.cat(
            [
                self._attend_to_last(chunk, key[:end], value[:end])
                for chunk, end in zip(query.chunk(2), ends, strict=True)
            ]
        )

    def _whole(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the keys and values of all context-parallel ranks in reading order."""
        gathered = gather_sequence(torch.cat([key, value], dim=-1), self.context_group)
        whole_key, whole_value = gathered.chunk(2, dim=-1)
        return whole_key, whole_value

    def _attend_to_last(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attends with queries that stand at the last of the keys."""
        if self.cap is not None:
            return capped_attention(query, key, value, self.window, self.softmax_scale, self.cap)
        if self.window is not None and len(key) > self.window:
            return self._attend(
                query, key, value, sliding_window_mask(len(query), len(key), self.window, query.device)
            )
        return self._attend(query, key, value, causal_mask(len(query), len(key), query.device))

    def _attend_one_by_one(self, query: Tensor, key: Tensor, value: Tensor, packed: PackedSamples) -> Tensor:
        """Attends within each sample: no score of two samples is computed, and no mask is made."""
        last_read = packed.last_read if self.is_last else None
        rows: list[list[Tensor]] = [[] for _ in range(query.size(1))]
        for row, first, end, first_key, end_key in (last_read or packed).spans:
            attended = self._attend_to_last(
                query[first:end, row : row + 1],
                key[first_key:end_key, row : row + 1],
                value[first_key:end_key, row : row + 1],
            )
            rows[row].append(attended)
        attended_rows = [torch.cat(row) for row in rows]
        if last_read is not None:
            return torch.cat(attended_rows).index_select(0, last_read.order_N)
        return torch.cat(attended_rows, dim=1)

    def _attend_at_once(self, query: Tensor, key: Tensor, value: Tensor, packed: PackedSamples) -> Tensor:
        """Attends within all samples of all rows in one call of FlashAttention's kernel for several lengths."""
        last_read = packed.last_read if self.is_last else None
        spans, key_index = (last_read or packed).spans, packed.key_index
        query_THD, key_TGD, value_TGD = (whole.transpose(0, 1).flatten(0, 1) for whole in (query, key, value))
        if key_index is not None:
            key_TGD, value_TGD = key_TGD[key_index], value_TGD[key_index]
        if last_read is not None:
            query_THD = query_THD.index_select(0, last_read.query_index_N)
        out_THD, *_ = flash_attention(
            query_THD,
            key_TGD,
            value_TGD,
            (last_read or packed).query_ends,
            packed.key_ends,
            max(span.end - span.first for span in spans),
            max(span.end_key - span.first_key for span in spans),
            self.dropout if self.training else 0.0,
            True,  # causal, the last query at the last key
            False,
            scale=self.softmax_scale,
            window_size_left=None if self.window is None else self.window - 1,
        )
        if last_read is not None:
            return out_THD.index_select(0, last_read.order_N).flatten(1)[:, None]
        return out_THD.view(query.size(1), query.size(0), -1).transpose(0, 1).contiguous()

    def of_last(
        self, query_RGQD: Tensor, key_RGKD: Tensor, value_RGKD: Tensor, mask: Tensor | None
    ) -> Tensor:
        """Attends while text is generated: one token a row, whose queries of a group stand beside one another.

        `mask` [R, 1, 1, K] is added to the scores; None: all keys are seen. Returns [R, G*Q*D].
        """
        if self.cap is None:
            attended = F.scaled_dot_product_attention(
                query_RGQD, key_RGKD, value_RGKD, attn_mask=mask, scale=self.softmax_scale
            )
            return attended.flatten(1)
        scale = query_RGQD.size(-1) ** -0.5 if self.softmax_scale is None else self.softmax_scale
        query_RGQ1D = query_RGQD[:, :, :, None]
        mask = None if mask is None else mask[:, None]
        return attend_capped(query_RGQ1D, key_RGKD, value_RGKD, mask, scale, self.cap).flatten(1)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        is_causal = mask is None
        if query.size(0) == 1:  # a condition, since while layers are compiled a comparison is no bool
            is_causal = False
        out_BHSD = F.scaled_dot_product_attention(
            query.permute(1, 2, 0, 3),
            key.permute(1, 2, 0, 3),
            value.permute(1, 2, 0, 3),
            attn_mask=mask,
            is_causal=is_causal,
            dropout_p=self.dropout if self.training else 0.0,
            scale=self.softmax_scale,
            enable_gqa=self.has_groups,
        )
        return out_BHSD.permute(2, 0, 1, 3).flatten(2)


def takes_flash(query: Tensor) -> bool:
    """Whether FlashAttention has a kernel for queries [..., D] of this device, precision and head size."""
    return (
        query.is_cuda
        and query.dtype in (torch.bfloat16, torch.float16)
        and torch.cuda.get_device_capability(query.device) >= OLDEST_FLASH_GPU
        and query.size(-1) <= LARGEST_FLASH_HEAD
        and query.size(-1) % 8 == 0
    )


def causal_mask(num_queries: int, num_keys: int, device: torch.device) -> Tensor | None:
    """Returns what SDPA takes for queries at the last of the keys; None: there are as many, and it has a switch.

    On a GPU that is a name, for which SDPA has a kernel; elsewhere torch would write the same mask out.
    """
    if num_queries == num_keys:
        return None
    if device.type == "cuda":
        return causal_lower_right(num_queries, num_keys)
    return sliding_window_mask(num_queries, num_keys, num_keys, device)


def sliding_window_mask(num_queries: int, num_keys: int, window: int, device: torch.device) -> Tensor:
    """Returns the bool mask [S, K] in which the last `num_queries` positions see `window` keys, themselves included."""
    query_positions = torch.arange(num_keys - num_queries, num_keys, device=device)[:, None]
    distance = query_positions - torch.arange(num_keys, device=device)[None, :]
    return (distance >= 0) & (distance < window)
