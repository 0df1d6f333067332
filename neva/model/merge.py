"""Where image features enter the sequence, and in which order.

Dimensions: B micro batch, S sequence, s shard of it, F features, D hidden, T tiles, P features
of a tile.
"""

from __future__ import annotations

import torch
from torch import Tensor

from neva.constants import IMAGE_TOKEN_ID


def text_ids(input_ids_BS: Tensor) -> Tensor:
    """Returns the ids with image positions replaced by id 0, so that an embedding table can be asked."""
    return input_ids_BS.masked_fill(input_ids_BS == IMAGE_TOKEN_ID, 0)


def in_order(features_TPD: Tensor, order: Tensor) -> Tensor:
    """Returns the features [F, D] that an order (see `neva.data.batch.Batch`) puts at the image positions.

    Interpolated ones are summed in float32 at least.
    """
    if not order.is_floating_point():
        tiles, features = order.unbind(1)
        return features_TPD[tiles, features]
    tiles, features = order[..., :2].long().unbind(-1)
    weights = order[..., 2:].to(torch.promote_types(features_TPD.dtype, torch.float32))
    summed = features_TPD[tiles[:, 0], features[:, 0]] * weights[:, 0]
    for number in range(1, order.size(1)):
        summed = summed + features_TPD[tiles[:, number], features[:, number]] * weights[:, number]
    return summed.to(features_TPD.dtype)


def merge(
    embeddings_BsD: Tensor, input_ids_BS: Tensor, features_FD: Tensor, positions_s: Tensor | None = None
) -> Tensor:
    """Puts image features at the image positions, in reading order.

    Args:
        embeddings_BsD: token embeddings; what stands at image positions is replaced.
        input_ids_BS: ids, `IMAGE_TOKEN_ID` at each image position.
        features_FD: a feature for each image position of the batch, in reading order.
        positions_s: positions of the embeddings where they are a shard of the sequence; an image may straddle its ends.

    Returns:
        [B, s, D].

    Raises:
        ValueError: when positions and features differ in number, with both counts.
    """
    is_image_BS = input_ids_BS == IMAGE_TOKEN_ID
    num_positions, num_features = int(is_image_BS.sum()), len(features_FD)
    if num_positions != num_features:
        raise ValueError(
            f"image tokens and image features differ: {num_positions} positions in input_ids, {num_features} "
            "features; the data was made for another tower or cut"
        )
    features = features_FD.to(embeddings_BsD.dtype)
    if positions_s is not None:
        rank_BS = is_image_BS.flatten().cumsum(0).view_as(is_image_BS) - 1  # of each image position
        is_image_BS = is_image_BS[:, positions_s]
        features = features[rank_BS[:, positions_s][is_image_BS]]
    return embeddings_BsD.masked_scatter(is_image_BS[..., None], features)
