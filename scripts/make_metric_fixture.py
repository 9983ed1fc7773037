"""Make tests/fixtures/metrics_200.json: 200 captions, 5 references each, and pycocoevalcap's scores of them.

    pip install --no-deps --target coco pycocoevalcap==1.2
    PYTHONPATH=coco python scripts/make_metric_fixture.py

The texts are generated here from the seed; the values are those of pycocoevalcap 1.2 (Bleu(4), Rouge(),
Cider()) on the very tokens that aligncap counts, so that tokenizers play no part. Needs no Java. Takes a few
seconds.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

from aligncap.evaluation.metrics.ngram import tokenize
from aligncap.utils.io import write_json

OUT = Path(__file__).resolve().parents[1] / "tests" / "fixtures" / "metrics_200.json"

WHO = ["He", "She", "The man", "The woman", "The speaker", "A young voice", "This person"]
FEELING = {
    "angry": ["angry", "furious", "full of rage", "cross", "irritated"],
    "sad": ["sad", "sorrowful", "downcast", "close to tears", "unhappy"],
    "happy": ["happy", "cheerful", "delighted", "in high spirits", "joyful"],
    "fearful": ["afraid", "frightened", "full of fear", "scared", "terrified"],
    "neutral": ["neutral", "matter-of-fact", "without any emotion", "even"],
    "surprised": ["surprised", "astonished", "taken aback", "amazed"],
}
DEGREE = ["", "", "very ", "quite ", "slightly ", "deeply ", "a little "]
VERB = ["sounds", "seems", "comes across as", "isn't hiding it: the voice is", "appears"]
MANNER = [
    "speaking loudly and forcefully",
    "with a soft, breathy voice",
    "in a high-pitched, shaky tone",
    "the pitch is low; the pace is slow",
    "talking fast, with lively pitch",
    "in a flat, steady voice",
    "drawing out each word",
    "with long pauses between the words",
    "the voice's pitch rises and falls",
]
ZH = [
    "声音低沉，语速缓慢，听起来很悲伤。",
    "他说话很快，语气愤怒！",
    "她的声音轻快，心情愉悦。",
    "语气平静，音调平稳。",
    "声音颤抖，显得很害怕。",
]


def sentence(rng: random.Random, label: str) -> str:
    """One made caption of a label; order and length vary."""
    feeling = rng.choice(FEELING[label])
    manners = rng.sample(MANNER, rng.randint(0, 2))
    core = f"{rng.choice(WHO)} {rng.choice(VERB)} {rng.choice(DEGREE)}{feeling}"
    parts = [core, *manners]
    if manners and rng.random() < 0.25:
        parts = [*manners, core.lower()]
    text = ", ".join(parts)
    return text[0].upper() + text[1:] + rng.choice([".", ".", "!", ""])


def texts(seed: int) -> tuple[list[str], list[list[str]]]:
    """200 captions and their references; among them empty, one-word, copied, Chinese and overlong ones."""
    rng = random.Random(seed)
    captions, references = [], []
    for clip in range(200):
        label = rng.choice(sorted(FEELING))
        targets = [sentence(rng, label) for _ in range(5)]
        said = label if rng.random() < 0.7 else rng.choice(sorted(FEELING))
        caption = sentence(rng, said)
        if clip % 40 == 0:
            caption = rng.choice(targets)
        elif clip == 3:
            caption = ""
        elif clip == 7:
            caption = "Sad"
        elif clip == 11:
            caption = "banana keyboard umbrella mountain"
        elif clip == 13:
            caption = " ".join(sentence(rng, said) for _ in range(6))
        elif clip == 17:
            caption = "the the the the the the"
        elif clip in (150, 160, 170):
            targets = [rng.choice(ZH) for _ in range(5)]
            caption = rng.choice(ZH)
        captions.append(caption)
        references.append(targets)
    return captions, references


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=20)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    try:
        from pycocoevalcap.bleu.bleu import Bleu
        from pycocoevalcap.cider.cider import Cider
        from pycocoevalcap.rouge.rouge import Rouge
    except ModuleNotFoundError as error:
        raise SystemExit(f"{error}. Install it as the head of this file says") from None
    captions, references = texts(options.seed)
    said = {clip: [" ".join(tokenize(caption))] for clip, caption in enumerate(captions)}
    targets = {clip: [" ".join(tokenize(text)) for text in group] for clip, group in enumerate(references)}
    bleu, bleu_clips = Bleu(4).compute_score(targets, said, verbose=0)
    rouge, rouge_clips = Rouge().compute_score(targets, said)
    cider, cider_clips = Cider().compute_score(targets, said)
    write_json(
        options.out,
        {
            "made_by": "scripts/make_metric_fixture.py",
            "values_of": "pycocoevalcap 1.2: Bleu(4), Rouge(), Cider()",
            "seed": options.seed,
            "corpus": {
                **{f"bleu_{order}": value for order, value in enumerate(bleu, 1)},
                "rouge_l": float(rouge),
                "cider_d": float(cider),
            },
            "clips": [
                {
                    "caption": caption,
                    "references": group,
                    "tokens": said[clip][0],
                    "bleu": [scores[clip] for scores in bleu_clips],
                    "rouge_l": float(rouge_clips[clip]),
                    "cider_d": float(cider_clips[clip]),
                }
                for clip, (caption, group) in enumerate(zip(captions, references, strict=True))
            ],
        },
    )
    print(
        f"{options.out}: 200 captions, corpus CIDEr-D {cider:.4f}, BLEU-4 {bleu[3]:.4f}, ROUGE-L {rouge:.4f}"
    )


if __name__ == "__main__":
    main()
