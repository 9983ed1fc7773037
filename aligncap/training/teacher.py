"""`train teacher`: the text LLM learns transcript + P_act -> caption.

Merged, it is the LLM of teacher and student.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import set_seed

from aligncap.models.checkpoints import load_llm, save_whole
from aligncap.training.collators import TextCollator
from aligncap.training.config import TeacherConfig
from aligncap.training.data import read_captioned, refuse_special_tokens, text_rows, texts_of
from aligncap.training.distill import SpeechSFTTrainer
from aligncap.training.sharding import load_whole
from aligncap.training.trainer import add_adapters, prepare_folder, train
from aligncap.utils.io import workplace


def train_teacher(args: TeacherConfig) -> Path | None:
    """Train, merge and save a plain causal LM with its tokenizer in `output_dir`.

    Returns:
        The folder, or None when the run was interrupted.

    Raises:
        UserError: data or model cannot be had; see `read_captioned`, `load_llm`.
    """
    out = prepare_folder(args)
    manifests = [m for m in (args.train_manifest, args.dev_manifest) if m]
    utterances = [read_captioned(m, need_p_act=True) for m in manifests]
    set_seed(args.seed)
    model, tokenizer = load_llm(args.llm)
    for path, part in zip(manifests, utterances, strict=True):
        refuse_special_tokens(path, texts_of(part), tokenizer)
    rows = [text_rows(u, tokenizer, args.max_response_tokens, args.use_p_act) for u in utterances]
    peft_model = add_adapters(model, args, projector=False)
    trainer = SpeechSFTTrainer(
        model=peft_model,
        args=args,
        train_dataset=rows[0],
        eval_dataset=rows[1] if len(rows) > 1 else None,
        data_collator=TextCollator(tokenizer.pad_token_id),
    )
    if not train(trainer, args, "train teacher", list(manifests)):
        return None
    with workplace(out / "adapter") as adapter:
        trainer.save_model(str(adapter))  # gathers weights that lie in shards
        load_whole(args)
        if trainer.is_world_process_zero():
            whole: Any = load_llm(args.llm)[0]
            tokenizer.save_pretrained(out)
            save_whole(PeftModel.from_pretrained(whole, adapter).merge_and_unload(), out)
    trainer.accelerator.wait_for_everyone()
    return out
