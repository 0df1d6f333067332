"""NeMo's checkpoint callback, which finds what earlier runs left by the names of checkpoints alone.

NeMo looks for the first place in a checkpoint's whole path that reads like the monitored value, `step` if nothing else
is said: a folder called `by_step`, or a run called `multistep`, ends its search with a ValueError.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import nemo.utils.exp_manager as nemo_exp_manager
from nemo.utils.callbacks import NeMoModelCheckpoint

LAST = ("-last", "-last.ckpt")


class RankedCheckpoints(NeMoModelCheckpoint):
    """Ranks the checkpoints of a run folder by the monitored value in their names, and keeps the best `save_top_k`."""

    def nemo_topk_check_previous_run(self) -> None:
        """See NeMo's."""
        names = (path for path in self._saved_checkpoint_paths if not path.name.endswith(LAST))
        values = {str(path): ranked_value(path.name, self.monitor) for path in names}
        found = {path: value for path, value in values.items() if value is not None}
        ranked = sorted(found, key=lambda path: found[path], reverse=self.mode != "min")
        kept = ranked if self.save_top_k < 0 else ranked[: self.save_top_k]
        for path in ranked[len(kept) :]:
            self._del_model_without_trainer(path)
        self.best_k_models = {path: found[path] for path in kept}
        self.kth_best_model_path = kept[-1] if kept else ""
        self.best_model_path = kept[0] if kept else ""
        self.best_model_score = found[kept[0]] if kept else None


def ranked_value(name: str, monitor: str) -> float | None:
    """Returns the monitored value in the name of a checkpoint, `…-step=12-…`; None where there is none."""
    found = re.findall(rf"(?:^|-){re.escape(monitor)}=(-?\d+(?:\.\d+)?(?:e[+-]?\d+)?)", name)
    return float(found[-1]) if found else None


@contextmanager
def ranked_by_name() -> Iterator[None]:
    """Has NeMo's `exp_manager` make such a callback."""
    nemo_exp_manager.NeMoModelCheckpoint = RankedCheckpoints
    try:
        yield
    finally:
        nemo_exp_manager.NeMoModelCheckpoint = NeMoModelCheckpoint
