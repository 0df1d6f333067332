"""The Lightning/NeMo module: a LLaVA model, its optimizer, and one global batch a step."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from nemo.core.classes import ModelPT
from omegaconf import DictConfig

from neva.checkpoint.stored_config import config_state, tokenizer_digest
from neva.config.language import language_config_of
from neva.config.parts import trained_parts
from neva.config.tower import vision_config_of
from neva.data.batch import Batch
from neva.data.held_out import source_names
from neva.data.ledger import LEARNT, NOT_FINITE, SKIPPED
from neva.data.loader import train_loader
from neva.data.position import saved_position
from neva.data.tokenizer import load_tokenizer
from neva.distributed import groups
from neva.distributed.backend import backend_for
from neva.model.balance import router_coefficients
from neva.model.build import count_parameters, set_trainable
from neva.model.layers import prepare_layers
from neva.model.llava import NevaModel
from neva.optim.average import WeightAverage, average_of
from neva.optim.lightning_adapter import LightningOptimizerAdapter
from neva.optim.schedule import schedule_of
from neva.training.nemo_files import write_missing_nemos, write_nemos
from neva.training.not_finite import SKIP, NotFiniteSteps, kept_batches
from neva.training.outcome import figures_of, treatment_of
from neva.training.stages import built_stages
from neva.training.step import StepLoss, evaluating, run_global_batch
from neva.training.unsized_loader import UnsizedLoader
from neva.weights.fingerprint import BASE, check_base
from neva.weights.initial import load_initial_weights

logger = logging.getLogger(__name__)


class MegatronNevaModel(ModelPT):
    """Trains a `NevaModel` with Megatron's schedule, data parallel and optimizer inside Lightning's loop.

    Args:
        whole: the resolved tree; `cfg` is its section `model`.
        trainer: the Lightning trainer, with a `MegatronStrategy`.
        run_dir: of the run.
        skip_steps: first and last of steps that are consumed and not learnt.
        replayed: a kept step that is computed, instead of the data.
    """

    def __init__(
        self,
        whole: DictConfig,
        trainer: Trainer,
        run_dir: Path,
        skip_steps: Sequence[Sequence[int]] = (),
        replayed: Path | None = None,
    ) -> None:
        super().__init__(whole.model, trainer)
        self.whole, self.replayed = whole, replayed
        self.skip_steps = skip_steps
        self.not_finite = NotFiniteSteps(
            whole.trainer.on_nan if replayed is None else SKIP,
            whole.trainer.max_nan_steps,
            run_dir if replayed is None else None,
        )
        self.may_skip = bool(skip_steps) or whole.trainer.on_nan == SKIP
        self.automatic_optimization = False
        self.clip_grad: float = whole.trainer.gradient_clip_val
        self.consumed_samples = 0
        self.saved_position: Mapping[str, Any] | None = None
        self.models: list[NevaModel] = []
        self.chunks: list[Any] = []
        self.average: WeightAverage | None = None

    # Building

    def setup(self, stage: str | None = None) -> None:
        """Builds the model on this rank's device, with its initial weights, wrapped for data parallel."""
        self.vision, self.language = vision_config_of(self.cfg), language_config_of(self.cfg)
        self.tokenizer = load_tokenizer(self.cfg.tokenizer)
        # now: whoever uses a tokenizer may leave a setting in it
        self.config_state = config_state(self.whole, tokenizer_digest(self.tokenizer))
        trained = trained_parts(self.cfg)
        for model in built_stages(self.cfg):
            self.sources = load_initial_weights(model, self.cfg)
            set_trainable(model, trained)
            self.models.append(model)
        # a frozen part that can be read again from where it came from is not saved with every checkpoint
        self.saved_parts = [
            name for name, origin in self.sources.items() if name in trained or origin.embedded
        ]
        counts = count_parameters(*self.models)
        prepare_layers(self.models, self.cfg)
        self.backend = backend_for(self.cfg, node_ranks=self.trainer.num_devices)
        self.chunks = self.backend.wrap(self.models, self.trainer.strategy.root_device)
        if self.trainer.is_global_zero:
            for name, (total, num_trained) in counts.items():
                origin = self.sources[name]
                logger.info("%s: %s parameters, %s trained, from %s", name, total, num_trained, origin)

    def configure_optimizers(self) -> LightningOptimizerAdapter:
        """Builds the backend's optimizer; the learning rate follows from the step alone."""
        optim = self.cfg.optim
        self.inner_optimizer = self.backend.build_optimizer(self.chunks, self.cfg, self.clip_grad)
        schedule = schedule_of(optim, self.trainer.max_steps)
        offloaded_from = self.trainer.strategy.root_device if optim.cpu_offload else None
        ema, publish = self.whole.exp_manager.ema, self.backend.publish_weights
        self.average = average_of(ema, self.inner_optimizer, offloaded_from, publish)
        return LightningOptimizerAdapter(self.inner_optimizer, schedule, offloaded_from)

    def validated_weights(self) -> AbstractContextManager[None]:
        """Has the model compute with what is validated, and answers samples: the average, where one is kept.

        Called by every rank.
        """
        if self.average is None or self.whole.exp_manager.ema.validate_original_weights:
            return nullcontext()
        return self.average.in_place_of_weights()

    # Data

    def train_dataloader(self) -> UnsizedLoader:
        """The batches from the next unseen sample to the last step."""
        loader = train_loader(
            self.cfg,
            self.vision,
            self.tokenizer,
            rank=groups.data_parallel_rank(),
            size=groups.data_parallel_size(),
            num_steps=self.trainer.max_steps - self.trainer.global_step,
            seed=self.cfg.seed,
            consumed_samples=self.consumed_samples,
            saved=self.saved_position,
        )
        sampler: Any = loader.sampler
        self.behind_next_step, self.position = sampler.behind, sampler.start
        self.next_step_begin = sampler.begin
        self.data_identity = loader.identity
        self.source_names = source_names(loader.dataset.samples.records)  # type: ignore[attr-defined]
        if self.trainer.global_step >= self.trainer.max_steps:
            # Lightning asks for the data even where no step is left
            write_missing_nemos(self)
        self.loader = UnsizedLoader(loader if self.replayed is None else [self._kept(self.replayed)])
        return self.loader

    def _kept(self, folder: Path) -> list[Batch]:
        return kept_batches(folder, groups.data_parallel_rank(), groups.data_parallel_size())

    def setup_training_data(self, train_data_config: Any) -> None:
        """Nothing: NeMo's hook; `train_dataloader` makes the loader when the position in the data is known."""

    def setup_validation_data(self, val_data_config: Any) -> None:
        """Nothing: NeMo's hook; the callback `Validation` reads the held-out set."""

    @classmethod
    def list_available_models(cls) -> None:
        """NeMo's hook; there are none to download."""

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Leaves the batch where it is: each micro batch moves when its turn comes."""
        return batch

    # One step

    def training_step(self, batch: list[Batch], batch_idx: int) -> None:
        """Consumes one global batch and takes one optimizer step, which changes nothing where it is to be skipped."""
        optimizer: Any = self.optimizers()
        adapter: LightningOptimizerAdapter = optimizer.optimizer
        number = self.trainer.global_step + 1
        self.step_begin = self.next_step_begin(self.position)
        is_skipped = any(first <= number <= last for first, last in self.skip_steps)
        for chunk in self.chunks:
            chunk.zero_grad_buffer()
        optimizer.zero_grad()
        loss = self.last_step = self._run(batch, number, is_skipped)
        lr = optimizer.set_step(self.trainer.global_step)
        adapter.skips_next = is_skipped or not math.isfinite(loss.loss_sum)
        optimizer.step()
        self.treatment = treatment_of(adapter, is_skipped)
        if self.average is not None and self.treatment == LEARNT:
            self.average.update(number)
        if self.treatment == NOT_FINITE:
            norm = math.nan if adapter.skips_next else adapter.grad_norm
            self.not_finite.met(number, loss.mean, norm, batch, self.global_rank)
        elif not is_skipped:
            self.not_finite.passed()
        self.consumed_samples += loss.num_samples
        self.position = self.behind_next_step(self.position)
        self.log_dict(
            {
                **figures_of(
                    loss,
                    adapter,
                    lr,
                    self.step_begin.epoch,
                    self.consumed_samples,
                    self.loader.last_wait_s(),
                ),
                **{name: getattr(loss, name) for name in router_coefficients(self.chunks[0].config)},
                **({"skipped": float(self.treatment in (SKIPPED, NOT_FINITE))} if self.may_skip else {}),
            },
            batch_size=1,
        )

    def _run(self, batch: list[Batch], number: int, is_skipped: bool) -> StepLoss:
        """Returns the loss of a step, whose gradients lie in the chunks behind it unless it is skipped."""
        if self.language.lora is not None and self.language.lora.dropout:
            groups.seed_step(self.cfg.seed, number)
        with evaluating(self.chunks) if is_skipped else nullcontext():
            return run_global_batch(
                self.chunks,
                batch,
                self.trainer.strategy.root_device,
                forward_only=is_skipped,
                loss_average=self.cfg.loss_average,
                num_sources=len(self.source_names),
            )

    # Saving

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the position in the data, the configuration, and what adapters are trained beside."""
        checkpoint.update(self.config_state)
        checkpoint[BASE] = self.adapter_base
        checkpoint["consumed_samples"] = self.consumed_samples
        checkpoint["data_position"] = saved_position(self.position, self.data_identity)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores the position in the data.

        Raises:
            CheckpointError: its adapters were trained beside another base.
        """
        read = {name: base["fingerprint"] for name, base in self.adapter_base.items()}
        check_base(checkpoint, read, self.sources, "the checkpoint")
        self.consumed_samples = checkpoint["consumed_samples"]
        self.saved_position = checkpoint.get("data_position")

    @property
    def adapter_base(self) -> dict[str, dict[str, str]]:
        """Returns path and fingerprint of each part that adapters are trained beside."""
        return {
            name: {"path": str(origin), "fingerprint": origin.fingerprint}
            for name, origin in self.sources.items()
            if origin.fingerprint is not None and name not in self.saved_parts
        }

    def save_to(self, save_path: str) -> None:
        """Writes the `.nemo`, and one with the average beside it; called by every rank."""
        write_nemos(self, save_path)
