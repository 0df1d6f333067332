"""Orders that put samples of similar length, and of one modality, into the same global batches.

The rule is that of LLaVA's `group_by_modality_length` as NeVA and xtuner have it; G is the samples in a group
(`Epoch.group_size`):

1. the samples of each modality are permuted and cut into groups of G; what does not fill one is left for the end;
2. each group is sorted, the longest first, so that its global batches are of similar length;
3. the groups of all modalities are permuted;
4. what was left of each modality is sorted as one last, mixed group.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from neva.data.samplers.epoch import Epoch, EpochOrder
from neva.registry import SAMPLERS

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor


def by_modality(epoch: Epoch) -> Tensor:
    """Returns groups of samples with images and groups of text alone, by number of words."""
    lengths = epoch.lengths()
    return _grouped(epoch, lengths.words, lengths.images > 0)


def by_length(epoch: Epoch) -> Tensor:
    """Returns groups of any samples, by words and positions of images."""
    import numpy as np

    return _grouped(epoch, epoch.lengths().positions, np.zeros(epoch.num_samples, dtype=bool))


def _grouped(epoch: Epoch, length_N: NDArray[np.integer], modality_N: NDArray[np.bool_]) -> Tensor:
    """Returns the order of the rule above."""
    import numpy as np
    import torch

    generator, size = epoch.generator(), epoch.group_size

    def permuted(items: NDArray[np.int64]) -> NDArray[np.int64]:
        return items[torch.randperm(len(items), generator=generator).numpy()]

    whole, rest = [], []
    for modality in (True, False):
        indices = permuted(np.flatnonzero(modality_N == modality))
        end = len(indices) - len(indices) % size
        whole.append(indices[:end].reshape(-1, size))
        rest.append(indices[end:])
    groups, last = np.concatenate(whole), np.concatenate(rest)
    groups = np.take_along_axis(groups, np.argsort(-length_N[groups], axis=1, kind="stable"), axis=1)
    last = last[np.argsort(-length_N[last], kind="stable")]
    groups = permuted(groups)
    if epoch.longest_first and len(groups):
        _move_longest_to_front(groups, last, length_N, modality_N)
    return torch.from_numpy(np.concatenate([groups.ravel(), last]))


def _move_longest_to_front(
    groups: NDArray[np.int64],
    last: NDArray[np.int64],
    length_N: NDArray[np.integer],
    modality_N: NDArray[np.bool_],
) -> None:
    """Exchanges, in place, the first group and that of the longest sample among the modalities that fill a group.

    If that sample is in the last group, it changes places with the first one of a group of its modality before. NeVA
    exchanges the samples alone, which puts one of the other modality into the first global batch.
    """
    import numpy as np

    heads = groups[:, 0]
    longest = int(np.argmax(length_N[heads]))
    joinable = np.flatnonzero(np.isin(modality_N[last], modality_N[heads]))
    if len(joinable) and length_N[last[joinable[0]]] > length_N[heads[longest]]:
        place = joinable[0]
        longest = int(np.argmax(modality_N[heads] == modality_N[last[place]]))
        groups[longest, 0], last[place] = last[place], groups[longest, 0]
    groups[[0, longest]] = groups[[longest, 0]]


SAMPLERS.register("length_grouped", EpochOrder(by_length, is_grouped=True))
SAMPLERS.register("modality", EpochOrder(by_modality, is_grouped=True))
