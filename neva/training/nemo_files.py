"""The `.nemo` files that a run writes: with its weights, and with their moving average where one is kept."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from neva.checkpoint import nemo_export
from neva.config.parts import trained_parts

if TYPE_CHECKING:  # the module calls these
    from neva.training.module import MegatronNevaModel


def write_nemos(module: MegatronNevaModel, path: str) -> None:
    """Writes a `.nemo`: configuration, tokenizer, image processor and the weights of the saved parts.

    Where an average of the weights is kept, one with that comes first. Called by every rank.
    """
    if module.average is not None:
        with module.average.in_place_of_weights():
            note = f", moving average of decay {module.average.decay}"
            _write(module, nemo_export.averaged(path), note)
    _write(module, path)


def write_missing_nemos(module: MegatronNevaModel) -> None:
    """Writes those of a run that was killed between its last checkpoint and its end.

    Every rank takes part, and none has written before all have looked.
    """
    saved: Any = module.trainer.checkpoint_callback
    if saved is None or not saved.save_nemo_on_train_end:
        return
    path = Path(saved.dirpath) / f"{saved.prefix}{saved.postfix}"
    if not path.exists():
        write_nemos(module, str(path))


def _write(module: MegatronNevaModel, path: str, note: str = "") -> None:
    trained = trained_parts(module.cfg)
    nemo_export.save(
        path,
        module.cfg,
        module.backend,
        module.models,
        module.saved_parts,
        module.tokenizer,
        {name: f"{origin}{note if name in trained else ''}" for name, origin in module.sources.items()},
        trained,
        is_writer=module.trainer.is_global_zero,
        base=module.adapter_base,
    )
