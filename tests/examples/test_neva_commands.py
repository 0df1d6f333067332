"""The commands of NeVA's page in their order, as its users type them, on stand-ins of a few layers.

What a laptop lacks is appended: no GPU, fewer processes, a step instead of thousands. All else is literal, such as TP4,
336-pixel images and a tower of width 1024. (They run on 2 processes, and are ready to run on 4: starting 4 takes a
minute.)
"""

import json
import os
import shlex
from pathlib import Path

import pytest
from transformers import LlavaForConditionalGeneration
from transformers.models.clip import CLIPVisionConfig, CLIPVisionModel

from neva.formats.hf_folder import write_json
from tests.conftest import image_record, random_image, write_records
from tests.convert.llava import image_processor, write_tokenizer
from tests.convert.tiny import language_model
from tests.megatron import free_ports, launcher_free, run_command

ROOT = Path(__file__).resolve().parents[2]
NEVA = "examples/multimodal/multimodal_llm/neva"

TUNED = "llava_vicuna_7b_clip_finetune_tp4_pp1"
ALIGNED = "llava_vicuna_7b_clip_pretrain_tp4_pp1"
CONVERT = """
scripts/checkpoint_converters/convert_llama_hf_to_nemo.py
    --input_name_or_path checkpoints/vicuna-7b-v1.5
    --output_path checkpoints/vicuna-7b-v1.5-mcore.nemo
"""
PARTS = """
    model.mm_cfg.llm.from_pretrained=checkpoints/vicuna-7b-v1.5-mcore.nemo
    model.mm_cfg.vision_encoder.from_pretrained=checkpoints/clip-vit-large-patch14-336
    model.data.image_token_len=576
    model.data.crop_size=[336,336]
    model.data.image_size=[336,336]
    model.mm_cfg.vision_encoder.hidden_size=1024
    model.mm_cfg.vision_encoder.class_token_length=1
"""
TOKENIZER = """
    model.tokenizer.library=huggingface
    model.tokenizer.model=null
    model.tokenizer.type=checkpoints/llama2_tokenizer
"""
PRETRAIN = f"""
{NEVA}/neva_finetune.py
    {PARTS} {TOKENIZER}
    model.data.data_path=datasets/LLaVA-Pretrain/blip_laion_cc_sbu_558k.json
    model.data.image_folder=datasets/LLaVA-Pretrain/images
    model.micro_batch_size=32
    model.tensor_model_parallel_size=4
    model.encoder_seq_length=4096
    trainer.num_nodes=1
    trainer.max_epochs=-1
    trainer.max_steps=2176
    model.optim.sched.warmup_steps=65
    model.data.conv_template=plain
    model.mm_cfg.vision_encoder.freeze=True
    model.mm_cfg.mm_mlp_adapter_type=mlp2x_gelu
    model.mm_cfg.use_image_tile=False
    model.data.dataloader_type=cyclic
    exp_manager.name={ALIGNED}
"""
FINETUNE = f"""
{NEVA}/neva_finetune.py
    {PARTS}
    model.mm_cfg.pretrain_mm_mlp_adapter=nemo_experiments/{ALIGNED}/checkpoints/{ALIGNED}.nemo
    {TOKENIZER}
    model.data.data_path=datasets/LLaVA-finetune/llava_v1_5_mix665k.json
    model.data.image_folder=datasets/combined_images
    model.micro_batch_size=8
    model.tensor_model_parallel_size=4
    model.encoder_seq_length=4096
    trainer.num_nodes=1
    trainer.max_epochs=-1
    trainer.max_steps=5197
    model.optim.sched.warmup_steps=155
    model.data.conv_template=v1
    model.mm_cfg.vision_encoder.freeze=True
    model.mm_cfg.mm_mlp_adapter_type=mlp2x_gelu
    model.data.dataloader_type=modality
    model.data.sep_image_conv_front=True
    model.mega_batch_mult=50
    model.activations_checkpoint_granularity=full
    model.activations_checkpoint_method=uniform
    model.activations_checkpoint_num_layers=1
    exp_manager.name={TUNED}
"""
FSDP = """
    model.tensor_model_parallel_size=1 model.global_batch_size=4 model.fsdp=True model.fsdp_sharding_strategy=full
    model.fsdp_grad_reduce_dtype=32 model.fsdp_sharded_checkpoint=True model.fsdp_use_orig_params=True
    exp_manager.name=fsdp
"""
PIPELINE = """
    model.tensor_model_parallel_size=2 model.pipeline_model_parallel_size=2 exp_manager.name=tp2_pp2
"""
TRAINED = f"nemo_experiments/{TUNED}/checkpoints/{TUNED}.nemo"
INFERENCE = f"""
{NEVA}/neva_inference.py
    inference.images_base_path=llava_test_examples/images
    neva_model_file={TRAINED}
    prompt_file=llava_test_examples/input_prompts.jsonl
    output_file=llava_test_examples/results.jsonl
"""
EXPORT = f"""
scripts/checkpoint_converters/convert_llava_nemo_to_hf.py
    --input_name_or_path {TRAINED}
    --output_path /tmp
    --input_tokenizer checkpoints/llama2_tokenizer
    --hf_output_path checkpoints/llava_vicuna_7b_clip_finetune_hf
    --processor_type clip
    --vision_tower_type clip
    --vision_encoder_path checkpoints/clip-vit-large-patch14-336
"""
SMALL = """
    trainer.accelerator=cpu trainer.precision=32 trainer.devices=4 trainer.max_steps=1 model.micro_batch_size=1
    model.global_batch_size=2 model.data.num_workers=0 model.optim.sched.warmup_steps=0
"""
SMALL_INFERENCE = "trainer.accelerator=cpu trainer.precision=32 inference.tokens_to_generate=3"


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone's scripts and examples, and the folders that the commands name."""
    folder = tmp_path_factory.mktemp("neva")
    for name in ("scripts", "examples"):
        (folder / name).symlink_to(ROOT / name)
    checkpoints = folder / "checkpoints"
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 4, "num_hidden_layers": 2}
    language_model("llama", changes=sizes).save_pretrained(checkpoints / "vicuna-7b-v1.5")
    for name in ("vicuna-7b-v1.5", "llama2_tokenizer"):
        write_tokenizer(checkpoints / name)
    eye = {"hidden_size": 1024, "intermediate_size": 64, "num_attention_heads": 16, "num_hidden_layers": 2}
    clip = checkpoints / "clip-vit-large-patch14-336"
    CLIPVisionModel(CLIPVisionConfig(image_size=336, patch_size=14, **eye)).save_pretrained(clip)
    write_json(clip / "preprocessor_config.json", image_processor("clip", 336))
    _write_data(folder)
    type_in(folder, CONVERT)
    return folder


def _write_data(folder: Path) -> None:
    for images in ("LLaVA-Pretrain/images", "combined_images"):
        (folder / "datasets" / images).mkdir(parents=True)
        for number in range(4):
            random_image(48, 40, number).save(folder / "datasets" / images / f"{number}.png")
    records = [image_record(number, "<image>\nWhat is it?", "A dog.") for number in range(4)]
    text = {
        "id": "text",
        "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "A dog."}],
    }
    write_records(folder / "datasets/LLaVA-Pretrain/blip_laion_cc_sbu_558k.json", records)
    (folder / "datasets/LLaVA-finetune").mkdir()
    write_records(folder / "datasets/LLaVA-finetune/llava_v1_5_mix665k.json", [*records, text, text])
    (folder / "llava_test_examples/images").mkdir(parents=True)
    random_image(48, 40, 7).save(folder / "llava_test_examples/images/cat.png")
    prompts = [{"prompt": "What is it?", "image": "cat.png"}, {"prompt": "Hello"}]
    lines = "".join(json.dumps(prompt) + "\n" for prompt in prompts)
    (folder / "llava_test_examples/input_prompts.jsonl").write_text(lines)


def type_in(workspace: Path, command: str, recipe: str = "", **environment: str) -> str:
    """Runs a command as its page exports and types it; returns what it printed."""
    exports = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_ports(1)[0]), "NODE_RANK": "0"}
    exports |= {"NEMO_CONFIG": recipe, "CUDA_DEVICE_MAX_CONNECTIONS": "1", "OMP_NUM_THREADS": "1"}
    typed = {**launcher_free(os.environ), **exports, **environment}
    done = run_command(shlex.split(command), workspace, typed)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_the_commands_run_in_their_order(workspace: Path) -> None:
    on_two = "trainer.devices=2 model.tensor_model_parallel_size=2"
    type_in(workspace, PRETRAIN + SMALL + on_two, "llava_7b_pretrain", WORLD_SIZE="2")
    type_in(workspace, FINETUNE + SMALL + on_two, "llava_7b_finetune", WORLD_SIZE="2")
    type_in(workspace, INFERENCE + SMALL_INFERENCE, "llava_7b_inference")
    results = (workspace / "llava_test_examples/results.jsonl").read_text().splitlines()
    assert [json.loads(line)["prompt"] for line in results] == ["What is it?", "Hello"]
    type_in(workspace, EXPORT)
    exported = LlavaForConditionalGeneration.from_pretrained(
        workspace / "checkpoints/llava_vicuna_7b_clip_finetune_hf"
    )
    assert exported.config.vision_config.hidden_size == 1024


@pytest.mark.parametrize("layout", [FSDP, PIPELINE])
def test_its_layouts_are_ready_to_run(workspace: Path, layout: str) -> None:
    # that such layouts train is the matter of tests/distributed
    unreal = "model.mm_cfg.pretrain_mm_mlp_adapter=null --dry-run --output resolved.yaml"
    printed = type_in(workspace, f"{FINETUNE} {SMALL} {layout} {unreal}", "llava_7b_finetune", WORLD_SIZE="4")
    assert printed.rstrip().endswith("ready")


def test_two_nodes_are_ready_to_run(workspace: Path) -> None:
    nodes = "trainer.num_nodes=2 trainer.devices=8 model.global_batch_size=4 --dry-run --output resolved.yaml"
    for rank in "01":
        command = f"{PRETRAIN} {SMALL} {nodes}"
        printed = type_in(workspace, command, "llava_7b_pretrain", WORLD_SIZE="16", NODE_RANK=rank)
        assert printed.rstrip().endswith("ready")
