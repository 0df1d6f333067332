"""A tower and a language model that nobody trained together: joined, trained in two stages, asked, exported.

python examples/mix.py TOWER LANGUAGE_MODEL RECORDS.json IMAGES OUTPUT   (a SigLIP folder and a Qwen2 one, say)
"""

import sys

from neva import api


def main(tower: str, language_model: str, records: str, images: str, output: str) -> None:
    """Trains 20 steps a stage on records in LLaVA's format; prints an answer and what was exported."""
    whole = f"{output}/fresh.nemo"
    api.convert(language_model, whole, tower_path=tower, select_layer=-2, conv_template="v1")
    groups = {"model/llm": "from_checkpoint", "model/vision_encoder": "from_checkpoint", "trainer": "auto"}
    sizes = {"global_batch_size": 8, "micro_batch_size": 2, "encoder_seq_length": 1024}
    data = {"data_path": records, "image_folder": images, "num_workers": 0}
    steps = {"trainer.max_steps": 20, "trainer.max_epochs": -1, "model.optim.sched.warmup_steps": 2}
    trained = whole
    for stage in ("pretrain", "finetune"):
        parts = {"llm": {"from_pretrained": whole if stage == "pretrain" else language_model}}
        parts |= {"vision_encoder": {"from_pretrained": tower}}
        model = {"mm_cfg": {**parts, "pretrain_mm_mlp_adapter": trained}, "data": data, **sizes}
        run = api.train(
            f"llava_7b_{stage}",
            model=model,
            exp_manager={"exp_dir": output, "name": stage},
            **groups,
            **steps,
        )
        trained = str(next((run / "checkpoints").glob("*.nemo")))
    with api.load(trained, greedy=True, tokens_to_generate=32) as loaded:
        sys.stdout.write(loaded.answer([], "What can you see?") + "\n")
    sys.stdout.write(api.convert(trained, f"{output}/hf") + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
