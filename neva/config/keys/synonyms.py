"""What other trainers call neva's keys: transformers, LLaVA, LLaMA-Factory, Megatron-LM, DeepSpeed, older Lightning."""

from __future__ import annotations

SYNONYMS: dict[str, tuple[str, ...]] = {
    "trainer.devices": ("gpus", "num_gpus", "nproc_per_node", "gpus_per_node", "num_processes", "tpu_cores"),
    "trainer.num_nodes": ("nnodes", "nodes", "num_machines"),
    "trainer.precision": ("bf16", "fp16", "dtype", "torch_dtype", "mixed_precision", "compute_type"),
    "trainer.max_epochs": ("num_train_epochs", "num_epochs", "epochs"),
    "trainer.max_steps": ("train_iters", "max_iters", "num_steps", "num_train_steps", "total_steps"),
    "trainer.log_every_n_steps": ("logging_steps", "log_interval"),
    "trainer.val_check_interval": ("eval_steps", "eval_interval"),
    "trainer.limit_val_batches": ("eval_iters",),
    "trainer.gradient_clip_val": ("max_grad_norm", "clip_grad", "gradient_clipping", "max_norm"),
    "exp_manager.exp_dir": ("output_dir", "save_dir", "default_root_dir", "logging_dir"),
    "exp_manager.name": ("run_name", "experiment_name", "exp_name"),
    "exp_manager.create_wandb_logger": ("report_to", "wandb", "use_wandb"),
    "exp_manager.checkpoint_callback_params.every_n_train_steps": ("save_steps", "save_interval"),
    "exp_manager.checkpoint_callback_params.save_top_k": ("save_total_limit",),
    "model.micro_batch_size": (
        "per_device_train_batch_size", "per_gpu_train_batch_size", "train_micro_batch_size_per_gpu", "mbs",
    ),
    "model.global_batch_size": (
        "gradient_accumulation_steps", "grad_accumulation_steps", "train_batch_size", "batch_size", "gbs",
    ),
    "model.encoder_seq_length": (
        "seq_length", "seq_len", "sequence_length", "max_seq_length", "max_seq_len", "max_length", "model_max_length",
        "cutoff_len",
    ),
    "model.tensor_model_parallel_size": ("tp", "tp_size", "tensor_parallel", "tensor_parallel_size"),
    "model.pipeline_model_parallel_size": ("pp", "pp_size", "pipeline_parallel", "pipeline_parallel_size"),
    "model.context_parallel_size": ("cp", "cp_size", "context_parallel"),
    "model.expert_model_parallel_size": ("ep", "ep_size", "expert_parallel", "expert_parallel_size"),
    "model.sequence_parallel": ("sp", "use_sequence_parallel"),
    "model.fsdp": ("deepspeed", "zero_stage", "use_fsdp", "fully_sharded"),
    "model.activations_checkpoint_granularity": (
        "gradient_checkpointing", "activation_checkpointing", "recompute_granularity", "recompute_activations",
    ),
    "model.restore_from_path": ("load", "pretrained_checkpoint", "init_from"),
    "model.torch_compile": ("compile", "use_compile"),
    "model.optim.lr": ("learning_rate", "base_lr"),
    "model.optim.betas": ("adam_beta1", "adam_beta2"),
    "model.optim.sched.name": ("lr_scheduler_type", "lr_decay_style", "scheduler", "lr_scheduler"),
    "model.optim.sched.warmup_steps": ("warmup", "warmup_ratio", "num_warmup_steps", "lr_warmup_iters"),
    "model.mm_cfg.llm.from_pretrained": ("model_name_or_path", "model_path", "base_model", "language_model"),
    "model.mm_cfg.llm.freeze": ("freeze_backbone", "freeze_llm", "freeze_language_model"),
    "model.mm_cfg.vision_encoder.from_pretrained": ("vision_tower", "mm_vision_tower", "vision_model"),
    "model.mm_cfg.vision_encoder.freeze": ("freeze_vision_tower", "freeze_vision_model", "unfreeze_mm_vision_tower"),
    "model.mm_cfg.vision_encoder.vision_select_layer": ("mm_vision_select_layer", "vision_feature_layer"),
    "model.mm_cfg.mm_mlp_adapter_type": ("mm_projector_type", "projector_type"),
    "model.data.data_path": ("train_data", "train_path", "dataset", "dataset_path", "train_file"),
    "model.data.image_folder": ("image_dir", "media_dir", "images"),
    "model.data.conv_template": ("chat_template", "conv_mode"),
    "model.data.num_workers": ("dataloader_num_workers", "preprocessing_num_workers"),
    "model.peft.peft_scheme": ("finetuning_type", "lora_enable", "use_lora"),
    "model.peft.lora_tuning.adapter_dim": ("lora_r", "lora_rank", "rank"),
    "model.peft.lora_tuning.alpha": ("lora_alpha",),
    "model.peft.lora_tuning.adapter_dropout": ("lora_dropout",),
    "model.peft.lora_tuning.target_modules": ("lora_target", "lora_target_modules"),
    "inference.tokens_to_generate": ("max_new_tokens", "max_tokens", "max_gen_len"),
    "inference.greedy": ("do_sample",),
}  # fmt: skip
"""A key of neva's -> the last words of theirs."""

OURS = {word: key for key, words in SYNONYMS.items() for word in words}
