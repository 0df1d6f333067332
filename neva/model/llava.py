"""LLaVA: vision tower, projector and language model as one Megatron module.

Dimensions: B micro batch, S sequence, N tiles, F features at image positions, D hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import TypeAlias

import torch
from megatron.core.tensor_parallel import (
    gather_from_sequence_parallel_region,
    scatter_to_sequence_parallel_region,
)
from megatron.core.transformer.module import MegatronModule
from torch import Tensor, nn

from neva.constants import LANGUAGE_MODEL, PARTS
from neva.families.media_tokens import PictureShape
from neva.model.balance import router_coefficients, token_groups
from neva.model.context import positions
from neva.model.hugging_face import HuggingFaceLanguageModel
from neva.model.language import LanguageModel
from neva.model.merge import in_order, merge, text_ids
from neva.model.of_own_shape import encode_pictures
from neva.model.packed import Rows, packed_samples
from neva.model.seen_together import SeenTogether, whole_images, whole_prompts
from neva.model.vision import VisionTower

AnyLanguageModel: TypeAlias = LanguageModel | HuggingFaceLanguageModel


class NevaModel(MegatronModule):
    """One pipeline stage of a LLaVA model: tower, projector and embeddings live on the first, the head on the last.

    `encode_empty_batches`: tower and projector run for every batch, because all ranks gather their weights together.
    """

    def __init__(
        self,
        language_model: AnyLanguageModel,
        vision_tower: VisionTower | None,
        projector: nn.Module | None,
        second_vision_tower: VisionTower | None = None,
    ) -> None:
        super().__init__(config=language_model.config)
        self.model_type = language_model.model_type
        self.pre_process, self.post_process = language_model.pre_process, language_model.post_process
        self.share_embeddings_and_output_weights = language_model.share_embeddings_and_output_weights
        self.vision_tower = vision_tower
        self.second_vision_tower = second_vision_tower
        self.projector = projector
        self.language_model = language_model
        self.encode_empty_batches = False

    def parts(self) -> Iterator[tuple[str, nn.Module]]:
        """Yields the parts that this stage holds, by name."""
        for name in PARTS:
            if getattr(self, name) is not None:
                yield name, getattr(self, name)

    def forward(
        self,
        input_ids: Tensor,
        pixel_values: Tensor | None,
        labels: Tensor | None = None,
        feature_order: Tensor | None = None,
        sample_lengths: Sequence[Sequence[int]] | None = None,
        pictures: Sequence[PictureShape] = (),
        token_lengths: Sequence[Sequence[int]] = (),
        label_weight: float = 1.0,
        prefix_lengths: Sequence[Sequence[int]] = (),
        first_label: int = 0,
    ) -> Tensor:
        """Runs this stage.

        Args:
            input_ids: [B, S], `IMAGE_TOKEN_ID` at image positions.
            pixel_values: [N, 3, height, width], tiles of all images of the batch in reading order; None: text alone.
                [E] where they differ in shape.
            labels: [B, S], shifted, `IGNORE_INDEX` where there is no loss.
            feature_order: [F, 2] or [F, 4, 3], what stands at each image position (see `neva.data.batch.Batch`); None:
                all features of all tiles in their order.
            sample_lengths: of the samples in each row, which do not see each other; None: a row is one sample.
            pictures: the tiles by their shapes, where they differ in them.
            token_lengths: of the samples in each row, for what balances experts; none: a row is one sample.
            label_weight: of a label token in the loss, for the same.
            prefix_lengths: positions before the first answer of the samples in each row, for a model that sees whole
                prompts, or whose last layer leaves them out of packed rows; none: all are.
            first_label: position before which no row has a label; 0: that is not known.

        Returns:
            What `LanguageModel.forward` returns.

        Raises:
            ValueError: when image positions and image features differ in number.
        """
        decoder_input_SBD = None
        length, context, device = input_ids.size(1), self.language_model.pg_collection.cp, input_ids.device
        shard = positions(length, context, device)
        groups = None
        if labels is not None and self.training and router_coefficients(self.config):
            ranks = self.language_model.pg_collection
            groups = token_groups(labels, token_lengths, label_weight, self.config, ranks)
        together = self._seen_together(input_ids, sample_lengths, prefix_lengths, labels is not None)
        rows = None if groups is None and together is None else Rows(groups=groups, together=together)
        if sample_lengths is not None:
            is_read = self.language_model.post_process and labels is not None
            ends_early = is_read and self.language_model.ends_early
            unread = [[prefix - 1 for prefix in row] for row in prefix_lengths] if ends_early else []
            rows = packed_samples(sample_lengths, length, context, device, groups, together, unread)
            if labels is not None and rows.last_read is not None:
                labels = labels.t().flatten().index_select(0, rows.last_read.hidden_index_N)[None]
        if rows is None and first_label and self.language_model.ends_early:
            rows = Rows(first_read=first_label)
        if labels is not None and shard is not None:
            labels = labels[:, shard]
        if self.pre_process:
            decoder_input_SBD = self.embed(input_ids, pixel_values, shard, feature_order, pictures)
            decoder_input_SBD = decoder_input_SBD.transpose(0, 1).contiguous()
            if self.config.sequence_parallel:
                decoder_input_SBD = scatter_to_sequence_parallel_region(decoder_input_SBD)
        return self.language_model(decoder_input_SBD, labels, rows)

    def _seen_together(
        self,
        input_ids: Tensor,
        sample_lengths: Sequence[Sequence[int]] | None,
        prefix_lengths: Sequence[Sequence[int]],
        has_labels: bool,
    ) -> SeenTogether | None:
        """Returns which positions see others behind them; None: none do."""
        context = self.language_model.pg_collection.cp
        if self.language_model.sees_whole_images:
            return whole_images(input_ids, sample_lengths, context)
        if not self.language_model.sees_whole_prompts:
            return None
        if has_labels and not prefix_lengths:
            raise ValueError(
                "labels without prefix_lengths: positions that see whole prompts would see their labels"
            )
        rows, length = input_ids.shape
        prefixes = prefix_lengths or sample_lengths or [[length]] * rows
        return whole_prompts(input_ids, sample_lengths, prefixes, context)

    def embed(
        self,
        input_ids: Tensor,
        pixel_values: Tensor | None,
        shard: Tensor | None = None,
        feature_order: Tensor | None = None,
        pictures: Sequence[PictureShape] = (),
    ) -> Tensor:
        """Returns embeddings [B, S, D] (of the positions `shard`, if given) with image features at their positions."""
        ids = text_ids(input_ids)
        embeddings_BSD = self.language_model.embed(ids if shard is None else ids[:, shard])
        if pixel_values is None:
            return embeddings_BSD
        if len(pixel_values) > 0:
            features = self.encode_images(pixel_values, feature_order, pictures)
            return merge(embeddings_BSD, input_ids, features, shard)
        if not (self.encode_empty_batches or (self.training and torch.is_grad_enabled())):
            return embeddings_BSD
        # A batch without images still touches tower and projector, weighted by zero: no rank waits for another
        # one's gradient, and gradients are zeros, not missing.
        return embeddings_BSD + 0.0 * self.encode_images(self._zero_image(pixel_values)).sum()

    def encode_images(
        self,
        pixel_values: Tensor,
        feature_order: Tensor | None = None,
        pictures: Sequence[PictureShape] = (),
    ) -> Tensor:
        """Returns projected features [F, D] of tiles [N, 3, height, width], at image positions in reading order.

        Each tensor- and context-parallel rank encodes its shard of the tiles and all gather the features: a tile
        is encoded once. The gradients of tower and projector are therefore partial sums, see `image_parameters`.
        `pictures` are the tiles by their shapes where these differ; `pixel_values` are then [E].
        """
        tensor, context = self.language_model.pg_collection.tp, self.language_model.pg_collection.cp
        number, ranks = context.rank() * tensor.size() + tensor.rank(), tensor.size() * context.size()
        if pictures:
            return encode_pictures(
                pixel_values, pictures, feature_order, self._project, self._gather, number, ranks
            )
        gathered = self._gather(self._project(shard_images(pixel_values, number, ranks)))
        if feature_order is None:
            return gathered[: len(pixel_values)].flatten(0, 1)
        return in_order(gathered, feature_order)

    def _project(self, pixel_values: Tensor) -> Tensor:
        """Returns projected features [N, tokens, D] of pictures [N, 3, height, width], of both towers side by side."""
        assert self.vision_tower is not None and self.projector is not None
        features = []
        for tower in (self.vision_tower, self.second_vision_tower):
            if tower is None:
                continue
            trained = any(parameter.requires_grad for parameter in tower.parameters())
            with nullcontext() if trained else torch.no_grad():
                features.append(tower(pixel_values))
        return self.projector(features[0] if len(features) == 1 else torch.cat(features, dim=-1))

    def _gather(self, features: Tensor) -> Tensor:
        """Returns what all tensor- and context-parallel ranks have, one behind the other."""
        tensor, context = self.language_model.pg_collection.tp, self.language_model.pg_collection.cp
        # tensor-parallel ranks use the same positions and have the same gradients, context-parallel ones their own
        gathered = gather_from_sequence_parallel_region(
            features, tensor_parallel_output_grad=False, group=tensor
        )
        if context.size() > 1:
            gathered = gather_from_sequence_parallel_region(
                gathered, tensor_parallel_output_grad=True, group=context
            )
        return gathered

    def image_parameters(self) -> list[nn.Parameter]:
        """The trained parameters whose gradients must be summed over the tensor-parallel ranks.

        Data parallel sums all gradients over the context-parallel ranks.
        """
        parts = [part for name, part in self.parts() if name != LANGUAGE_MODEL]
        return [parameter for part in parts for parameter in part.parameters() if parameter.requires_grad]

    def _zero_image(self, pixel_values: Tensor) -> Tensor:
        """Returns the smallest picture [1, 3, side, side] that the tower may see: one patch where shapes differ."""
        assert self.vision_tower is not None
        config = self.vision_tower.config
        side = config.patch_size if pixel_values.dim() == 1 else config.image_side
        return pixel_values.new_zeros((1, 3, side, side))

    def set_input_tensor(self, input_tensor: list[Tensor | None]) -> None:
        """Receives the previous stage's output from Megatron's schedule."""
        self.language_model.set_input_tensor(input_tensor)

    def shared_embedding_or_output_weight(self) -> Tensor:
        """Returns the tied weight; Megatron sums its gradient over the first and last stage."""
        return self.language_model.shared_embedding_or_output_weight()


def shard_images(pixel_values: Tensor, rank: int, size: int) -> Tensor:
    """Returns this rank's images [ceil(N / size), 3, height, width]; zero images fill up the last shards."""
    missing = -len(pixel_values) % size
    filler = pixel_values.new_zeros((missing, *pixel_values.shape[1:]))
    return torch.cat([pixel_values, filler]).chunk(size)[rank]
