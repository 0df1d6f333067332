"""The Lightning strategy that leaves gradients, parameters and checkpoints to Megatron."""

from __future__ import annotations

import datetime
import logging
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from nemo.utils.model_utils import ckpt_to_dir

from neva.checkpoint import precisions, store
from neva.checkpoint.average import averaged_names, from_average
from neva.checkpoint.checksums import first_whole
from neva.checkpoint.state import MODEL, OPTIMIZER, load_state, sharded_state
from neva.data.loader import killed_worker
from neva.distributed import groups
from neva.distributed.session import ProcessSession
from neva.optim.average import WeightAverage
from neva.precision import FLOAT32, precision_named
from neva.training.start import Start

logger = logging.getLogger(__name__)

_LAST_SAVE_S = 60.0
"""How long a run that fails goes on writing a checkpoint in the background."""


class MegatronStrategy(DDPStrategy):
    """Starts local processes as Lightning's DDP does; everything behind the process group is Megatron's."""

    def __init__(
        self,
        layout: groups.ParallelSizes,
        seed: int,
        session: ProcessSession,
        async_save: bool,
        **kwargs: Any,
    ) -> None:
        super().__init__(timeout=datetime.timedelta(seconds=session.timeout_s), **kwargs)
        self.layout = layout
        self.seed = seed
        self.session = session
        self.start = Start()
        """What the run takes of which checkpoints."""
        self.async_save = async_save
        self.background: store.BackgroundSaves | None = None

    def setup_distributed(self) -> None:
        """Joins the process group and builds Megatron's groups, before any model exists."""
        self.set_world_ranks()
        environment, launcher = self.cluster_environment, self.launcher
        assert environment is not None
        host, port = ("", 0) if self.world_size == 1 else (environment.main_address, environment.main_port)
        self.session.start(
            self.global_rank,
            self.world_size,
            host,
            port,
            self.local_rank,
            launcher.procs if isinstance(launcher, _SubprocessScriptLauncher) else [],
        )
        groups.init_model_parallel(self.layout, self.seed, self.session.timeout_s)
        self.session.log_ranks()
        if self.async_save:
            self.background = store.BackgroundSaves(self.session.timeout_s)

    def configure_ddp(self) -> None:
        """Nothing: the backend wraps the model."""

    def model_to_device(self) -> None:
        """Nothing: the module builds its model on the device."""

    # Checkpoints: sharded tensors by the backend, the rest as Lightning made it.

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        """Sharded loading needs the optimizer, so it happens after setup."""
        return True

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Lightning has nothing to restore: `load_checkpoint` filled the optimizer."""
        return False

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Empty: the backend saves the weights."""
        return {}

    def optimizer_state(self, optimizer: Any) -> dict[str, torch.Tensor]:
        """Empty: the backend saves the optimizer's state."""
        return {}

    def save_checkpoint(
        self, checkpoint_dict: Mapping[str, Any], filepath: Any, storage_options: Any = None
    ) -> None:
        """Writes weights, optimizer and Lightning's own state into one folder.

        `storage_options`: what `store.save` knows besides, and whether to write `in_background`.
        """
        module: Any = self.lightning_module
        backend = module.backend
        state = sharded_state(
            backend,
            module.models,
            module.saved_parts,
            module.inner_optimizer,
            gather_full=not backend.saves_sharded,
        )
        # the configuration stands in the run folder; as an object it would need pickle to be read
        common = {
            key: value for key, value in checkpoint_dict.items() if not key.startswith(("hyper_", "hparams_"))
        }
        # a stage on which nothing trains has taken no step
        of_ranks = groups.gathered(backend.common_state(module.inner_optimizer))
        common[OPTIMIZER] = max(of_ranks, key=lambda state: state["step"])
        options = dict(storage_options or {})
        in_background = options.pop("in_background", False)
        save = self.background.save if self.background is not None and in_background else store.save
        save(ckpt_to_dir(filepath), state, common, **options)

    def finished_save(self) -> Exception | None:
        """Returns what went wrong with a checkpoint in the background since this was last asked, if anything."""
        return self.background.finished() if self.background is not None else None

    def wait_for_save(self, timeout_s: float | None = None) -> None:
        """Waits for the checkpoint that is written in the background, if any."""
        if self.background is not None:
            self.background.wait(timeout_s)

    def load_checkpoint(self, checkpoint_path: Any) -> dict[str, Any]:
        """Fills model and optimizer from a folder and returns Lightning's own state."""
        module: Any = self.lightning_module
        average: WeightAverage | None = module.average
        optimizer = module.inner_optimizer if self.start.load_optim else None
        model = (module.backend, module.models, module.saved_parts, optimizer)
        earlier = groups.gathered(self.start.checkpoints[1:])[0]
        folder = first_whole(ckpt_to_dir(checkpoint_path), earlier)
        averaged = averaged_names(folder)
        goes_on = optimizer is not None and bool(averaged)
        if average is not None and not goes_on:
            average.forget()
        state = sharded_state(*model, is_loading=True)
        if self.start.takes_average:
            state[MODEL] = from_average(state[MODEL], averaged)
        has_mains = optimizer is not None and precision_named(module.cfg.precision) != FLOAT32
        loaded = precisions.read(folder, state, has_mains)
        load_state(*model, loaded)
        if optimizer is None:
            module.backend.adopt_weights(module.inner_optimizer)
        if average is not None and not goes_on:
            average.begin()
            if not averaged and self.is_global_zero:
                logger.warning(
                    "%s has no moving average of the weights: it begins with those of this step", folder
                )
        return self.start.taken(loaded[store.LIGHTNING_STATE])

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Nothing: `load_checkpoint` filled the model."""

    def teardown(self) -> None:
        """Leaves the process groups."""
        super().teardown()
        groups.destroy()
        self.session.close()

    def on_exception(self, exception: BaseException) -> None:
        """Lets the other ranks know, when the checkpoint that they write together is written."""
        self.wait_for_save(_LAST_SAVE_S)
        self.session.report_failure(killed_worker(exception) or exception)
