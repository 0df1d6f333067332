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

from neva.checkpoint import nemo_export
from neva.checkpoint.stored_config import config_state, tokenizer_digest
from neva.config.model_config import language_config_of, vision_config_of
from neva.config.parts import trained_parts
from neva.data.batch import Batch
from neva.data.held_out import source_names
from neva.data.ledger import LEARNT, NOT_FINITE, OVERFLOW, SKIPPED
from neva.data.loader import train_loader
from neva.data.position import saved_position
from neva.data.tokenizer import load_tokenizer
from neva.distributed import groups
from neva.distributed.backend import backend_for
from neva.model.balance import is_balanced
from neva.model.build import build_model, count_parameters, set_trainable
from neva.model.compiled import compile_layers
from neva.model.language import transformer_config
from neva.model.llava import NevaModel
from neva.model.quantised import quantise_base
from neva.optim.average import WeightAverage, average_of
from neva.optim.lightning_adapter import LightningOptimizerAdapter
from neva.optim.schedule import CosineAnnealing
from neva.training.megatron_switches import megatron_switches
from neva.training.not_finite import SKIP, NotFiniteSteps, kept_batches
from neva.training.step import evaluating, run_global_batch
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
        config = transformer_config(self.language, **megatron_switches(self.cfg))
        trained = trained_parts(self.cfg)
        for pipeline_stage in groups.pipeline_stages():
            model = build_model(
                self.vision,
                self.language,
                self.cfg.mm_cfg.mm_mlp_adapter_type,
                config,
                pre_process=pipeline_stage.is_first,
                post_process=pipeline_stage.is_last,
                virtual_stage=pipeline_stage.virtual,
            )
            self.sources = load_initial_weights(model, self.cfg)
            set_trainable(model, trained)
            self.models.append(model)
        # a frozen part that can be read again from where it came from is not saved with every checkpoint
        self.saved_parts = [
            name for name, origin in self.sources.items() if name in trained or origin.embedded
        ]
        counts = count_parameters(*self.models)
        quantise_base(self.models, self.language)
        for model in self.models if self.cfg.torch_compile else ():
            compile_layers(model)
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
        schedule = CosineAnnealing(
            optim.lr,
            optim.sched.min_lr,
            optim.sched.warmup_steps,
            optim.sched.constant_steps,
            self.trainer.max_steps,
        )
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
            self._write_missing_nemo()
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
        number = self.trainer.global_step + 1
        self.step_begin = self.next_step_begin(self.position)
        is_skipped = any(first <= number <= last for first, last in self.skip_steps)
        for chunk in self.chunks:
            chunk.zero_grad_buffer()
        optimizer.zero_grad()
        if self.language.lora is not None and self.language.lora.dropout:
            groups.seed_step(self.cfg.seed, number)
        with evaluating(self.chunks) if is_skipped else nullcontext():
            loss = self.last_step = run_global_batch(
                self.chunks,
                batch,
                self.trainer.strategy.root_device,
                forward_only=is_skipped,
                loss_average=self.cfg.loss_average,
                num_sources=len(self.source_names),
            )
        lr = optimizer.set_step(self.trainer.global_step)
        adapter: LightningOptimizerAdapter = optimizer.optimizer
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
                "loss": loss.mean,
                "lr": lr,
                "grad_norm": optimizer.grad_norm,
                "label_tokens": float(loss.num_label_tokens),
                "consumed_samples": float(self.consumed_samples),
                "pad_share": 1 - loss.num_tokens / loss.num_positions,
                "image_share": loss.num_image_tokens / loss.num_positions,
                "label_share": loss.num_label_tokens / loss.num_positions,
                "loader_wait_s": self.loader.last_wait_s(),
                **optimizer.loss_scale(),
                **({"balance_loss": loss.balance_loss} if is_balanced(self.chunks[0].config) else {}),
                **({"skipped": float(self.treatment in (SKIPPED, NOT_FINITE))} if self.may_skip else {}),
            },
            batch_size=1,
        )

    # Saving

    def _write_missing_nemo(self) -> None:
        """Writes the `.nemo` of a run that was killed between its last checkpoint and its end.

        Lightning asks for the data even where no step is left; every rank takes part, and none has written before all
        have looked.
        """
        saved: Any = self.trainer.checkpoint_callback
        if saved is None or not saved.save_nemo_on_train_end:
            return
        path = Path(saved.dirpath) / f"{saved.prefix}{saved.postfix}"
        if not path.exists():
            self.save_to(str(path))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the position in the data, the configuration, and what adapters are trained beside."""
        checkpoint.update(self.config_state)
        checkpoint[BASE] = self._base()
        checkpoint["consumed_samples"] = self.consumed_samples
        checkpoint["data_position"] = saved_position(self.position, self.data_identity)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores the position in the data.

        Raises:
            CheckpointError: its adapters were trained beside another base.
        """
        read = {name: base["fingerprint"] for name, base in self._base().items()}
        check_base(checkpoint, read, self.sources, "the checkpoint")
        self.consumed_samples = checkpoint["consumed_samples"]
        self.saved_position = checkpoint.get("data_position")

    def _base(self) -> dict[str, dict[str, str]]:
        """Returns path and fingerprint of each part that adapters are trained beside."""
        return {
            name: {"path": str(origin), "fingerprint": origin.fingerprint}
            for name, origin in self.sources.items()
            if origin.fingerprint is not None and name not in self.saved_parts
        }

    def save_to(self, save_path: str) -> None:
        """Writes a `.nemo`: configuration, tokenizer, image processor and the weights of the saved parts.

        Where an average of the weights is kept, one with that comes first.
        """
        if self.average is not None:
            with self.average.in_place_of_weights():
                self._save_to(
                    nemo_export.averaged(save_path), f", moving average of decay {self.average.decay}"
                )
        self._save_to(save_path)

    def _save_to(self, path: str, note: str = "") -> None:
        trained = trained_parts(self.cfg)
        nemo_export.save(
            path,
            self.cfg,
            self.backend,
            self.models,
            self.saved_parts,
            self.tokenizer,
            {name: f"{origin}{note if name in trained else ''}" for name, origin in self.sources.items()},
            trained,
            is_writer=self.trainer.is_global_zero,
            base=self._base(),
        )


def treatment_of(optimizer: LightningOptimizerAdapter, is_skipped: bool) -> int:
    """Returns what a step did with its samples, as the ledger says it."""
    if is_skipped:
        return SKIPPED
    if optimizer.skips_next or not optimizer.is_finite:
        return NOT_FINITE
    return LEARNT if optimizer.has_updated else OVERFLOW
