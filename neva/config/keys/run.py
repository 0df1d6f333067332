"""Keys of `model` that say how a run goes: its precision, batches, layout over ranks, and where it begins."""

from dataclasses import dataclass

from neva.config.keys.field import ORDER, key


@dataclass
class RunKeys:
    """How a run goes."""

    precision: int | str = key("Follows trainer.precision.", choices=(32, "bf16", 16))
    native_amp_init_scale: float = key("With precision 16: first loss scale.", low=1)
    native_amp_growth_interval: int = key(
        "With precision 16: steps without overflow after which the loss scale doubles.", low=1
    )
    hysteresis: int = key("With precision 16: overflows after which the loss scale halves.", low=1)
    seed: int = key("Seed of initial weights and of the data order.", low=0, common=True, fixed=ORDER)
    micro_batch_size: int = key("Samples in one forward pass of a rank.", low=1, common=True)
    global_batch_size: int = key("Samples in one optimizer step.", low=1, common=True)
    mega_batch_mult: int | None = key(
        "With modality, length_grouped: global batches in a group; null: a quarter of the data, of 1 to 50.",
        low=1,
    )
    drop_last: bool = key(
        "What is left of an epoch and fills no global batch is left out; false: the next epoch fills it."
    )
    tensor_model_parallel_size: int = key("Ranks that share each layer.", low=1)
    pipeline_model_parallel_size: int = key("Ranks that the layers are assigned to.", low=1)
    virtual_pipeline_model_parallel_size: int | None = key("Pieces of layers on each pipeline rank.", low=1)
    num_layers_in_first_pipeline_stage: int | None = key(
        "Layers beside the tower on the first stage; null: as many as elsewhere.", low=1
    )
    num_layers_in_last_pipeline_stage: int | None = key(
        "Layers beside the head on the last stage; null: as many as elsewhere.", low=1
    )
    context_parallel_size: int = key("Ranks that share each sequence.", low=1)
    expert_model_parallel_size: int = key(
        "Data and context parallel ranks that share out the experts of each layer.", low=1
    )
    sequence_parallel: bool = key("Norms and dropout share the sequence over tensor parallel ranks.")
    fsdp: bool = key("Data parallel ranks share out gradients, optimizer state and parameters (torch FSDP).")
    fsdp_sharding_strategy: str = key(
        "full (if not given): all three over all ranks; grad: parameters all-gathered during a step; "
        "hybrid: within a node.",
        choices=("full", "grad", "hybrid"),
        optional=True,
    )
    fsdp_grad_reduce_dtype: int | str = key(
        "Precision in which FSDP sums gradients over ranks; 32 if not given.",
        choices=(32, "32", "bf16"),
        optional=True,
    )
    fsdp_sharded_checkpoint: bool = key(
        "Each rank writes its share (if not given); false: rank 0 writes all.", optional=True
    )
    fsdp_cpu_offload: bool = key(
        "The shards wait, and Adam runs, in CPU memory; false if not given.", optional=True
    )
    restore_from_path: str | None = key("A .nemo whose weights the run starts from.", common=True)
    resume_from_checkpoint: str | None = key("Checkpoint to continue from, instead of the run folder's last.")
    load_optim: bool = key(
        "Of resume_from_checkpoint, take the optimizer's state; false: it begins afresh, on the checkpoint's weights."
    )
    load_data_state: bool = key(
        "Of resume_from_checkpoint, take the position in the data, steps and schedule; false: a run of its own from "
        "step 0, on other data if you like."
    )
