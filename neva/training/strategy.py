"""The Lightning strategy that leaves gradients, parameters and checkpoints to Megatron."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from nemo.utils.model_utils import ckpt_to_dir

from neva.checkpoint import store
from neva.checkpoint.state import OPTIMIZER, load_state, sharded_state
from neva.distributed import groups
from neva.distributed.session import ProcessSession
from neva.training.start import Start


class MegatronStrategy(DDPStrategy):
    """Starts local processes as Lightning's DDP does; everything behind the process group is Megatron's."""

    def __init__(
        self, layout: groups.ParallelSizes, seed: int, session: ProcessSession, **kwargs: Any
    ) -> None:
        super().__init__(timeout=datetime.timedelta(seconds=session.timeout_s), **kwargs)
        self.layout = layout
        self.seed = seed
        self.session = session
        self.start = Start()
        """What the run takes of which checkpoints."""

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
        """Writes weights, optimizer and Lightning's own state into one folder."""
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
        common[OPTIMIZER] = backend.common_state(module.inner_optimizer)
        store.save(ckpt_to_dir(filepath), state, common)

    def load_checkpoint(self, checkpoint_path: Any) -> dict[str, Any]:
        """Fills model and optimizer from a folder and returns Lightning's own state."""
        module: Any = self.lightning_module
        optimizer = module.inner_optimizer if self.start.load_optim else None
        model = (module.backend, module.models, module.saved_parts, optimizer)
        earlier = groups.gathered(self.start.checkpoints[1:])[0]
        loaded = store.load(ckpt_to_dir(checkpoint_path), sharded_state(*model, is_loading=True), earlier)
        load_state(*model, loaded)
        if optimizer is None:
            module.backend.adopt_weights(module.inner_optimizer)
        return self.start.taken(loaded[store.LIGHTNING_STATE])

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Nothing: `load_checkpoint` filled the model."""

    def remove_checkpoint(self, filepath: Any) -> None:
        """Deletes a checkpoint's folder."""
        if self.is_global_zero:
            store.remove(ckpt_to_dir(Path(filepath)))

    def teardown(self) -> None:
        """Leaves the process groups."""
        super().teardown()
        groups.destroy()
        self.session.close()

    def on_exception(self, exception: BaseException) -> None:
        """Lets the other ranks know."""
        self.session.report_failure(exception)
