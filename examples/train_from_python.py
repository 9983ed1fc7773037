"""Train a captioner from Python: `python examples/train_from_python.py data/train.jsonl runs/first a.wav`.

The manifest holds captions and acoustic prompts (`aligncap prepare`, `annotate`, `clues`). The student learns
by KL distillation; its teacher is the same language model, which reads the transcript and the acoustic
prompt.
"""

import sys

from aligncap import Captioner, DistillConfig, DistillTrainer, SpeechDataset
from aligncap.models.build import build


def main(
    manifest: str,
    out: str,
    clips: list[str],
    encoder: str = "whisper-base",
    llm: str = "smollm2-135m-instruct",
    steps: int = 150,
) -> None:
    model, processor = build(encoder, llm, encoder_layer="mix", pool_size=16, stack_size=4)
    data = SpeechDataset.from_manifest(
        manifest, processor, model=model, cache_dir=f"{out}/cache", balance=True
    )
    trainer = DistillTrainer(
        model=model,  # gets LoRA adapters on the language model; the projector is trained in full
        args=DistillConfig(output_dir=out, max_steps=steps, per_device_train_batch_size=8),
        train_dataset=data,
        processing_class=processor,
    )
    trainer.train()
    trainer.model.merge_and_unload().save_pretrained(f"{out}/model")
    processor.save_pretrained(f"{out}/model")

    print(Captioner.from_pretrained(f"{out}/model")(clips))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
