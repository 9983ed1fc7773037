"""Use another language model: `python examples/add_llm.py Qwen/Qwen2.5-0.5B-Instruct "He sounds sad."`.

Any causal language model of transformers whose head is one matrix over attention layers can be named with
`--llm`, as a folder or a hub name (docs/llms.md). This script shows before training what it will read, and
how likely it finds a caption.
"""

import sys

import torch

from aligncap.models.build import build
from aligncap.text.prompts import response_ids, teacher_prompt


def main(llm: str, caption: str, encoder: str = "whisper-base") -> float:
    model, processor = build(encoder, llm)  # raises a UserError in one line where the model cannot be used
    tokenizer = processor.tokenizer
    prompt = teacher_prompt(tokenizer, "Kids are talking by the door.", "Voice: sad, soft.", "male")
    print(f"the teacher reads:\n{prompt}\nthe student reads:\n{processor.prompt}")
    start = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    answer = response_ids(tokenizer, caption, max_tokens=model.config.max_response_tokens)
    labels = torch.tensor([[-100] * len(start) + answer])
    with torch.no_grad():
        loss = model(input_ids=torch.tensor([start + answer]), labels=labels).loss
    print(f"{caption} {loss.exp():.1f} (perplexity a token, before training)")
    return float(loss)


if __name__ == "__main__":
    main(*sys.argv[1:3])
