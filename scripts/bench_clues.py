"""How well emotion clues are found: precision, recall, F1 on the hand-labelled data/clue_gold.jsonl.

    python scripts/bench_clues.py [--model PATH] [--errors dev]

Systems: `parse` (spaCy), `rules` (no model), `tags` (the part-of-speech baseline MD, UH, RB*, JJ* of earlier
work; English only: its tags have no Chinese counterpart without a Chinese tagger). A clue counts as found if
its lower-cased text equals a labelled one; counts are summed over captions (micro-average).

The labels were written before tuning, in halves; 50 more English captions were labelled for `dev` after a
first round. Tuning went by errors on `dev`, but labels and word lists have one author: on captions of other
writers expect less than `test` says. About 10 s on one core.

Labelling: a clue is the words as written, "not" (不, 没有) before negated ones, degree kept ("slightly sad",
"a hint of sadness", "great joy"); a high or low pitch, volume, energy keeps that noun ("high pitch"), in
Chinese a one-character quality keeps its own (语速较快); what is talked about, who speaks and when are left
out.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Callable

from aligncap.text.clue_rules import unique
from aligncap.text.clues import ClueParser, load_spacy
from aligncap.text.lexicon import is_chinese
from aligncap.utils.io import data_path, read_jsonl

System = Callable[[list[str]], list[list[str]]]


def scores(found: list[list[str]], gold: list[list[str]]) -> tuple[float, float, float]:
    """Micro-averaged precision, recall and F1 of clue lists against labelled ones."""
    right = sum((Counter(f) & Counter(g)).total() for f, g in zip(found, gold, strict=True))
    precision = right / max(sum(map(len, found)), 1)
    recall = right / max(sum(map(len, gold)), 1)
    return precision, recall, 2 * right / max(sum(map(len, found)) + sum(map(len, gold)), 1)


def tag_baseline(model: str) -> System:
    """Words tagged MD, UH, RB* or JJ*, the clues of earlier work."""
    nlp = load_spacy(model)
    assert nlp is not None

    def run(captions: list[str]) -> list[list[str]]:
        return [
            unique([t.text.lower() for t in doc if t.tag_ in ("MD", "UH") or t.tag_.startswith(("RB", "JJ"))])
            for doc in nlp.pipe(captions)
        ]

    return run


def main() -> None:
    arguments = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    arguments.add_argument("--model", default="default", help="folder of a spaCy model")
    arguments.add_argument(
        "--errors", choices=["dev", "test"], help="print the captions that a system gets wrong"
    )
    options = arguments.parse_args()
    rows = read_jsonl(data_path("clue_gold.jsonl"))
    systems: dict[str, System] = {
        "parse": ClueParser(options.model).parse,
        "rules": ClueParser(None).parse,
        "tags": tag_baseline(options.model),
    }
    print(f"{'system':8} {'language':8} {'split':5} {'captions':>8} {'P':>6} {'R':>6} {'F1':>6}")
    for name, system in systems.items():
        for language in ("en", "zh"):
            for split in ("dev", "test", "all"):
                part = [r for r in rows if r["language"] == language and split in (r["split"], "all")]
                if name == "tags" and language == "zh":
                    print(f"{name:8} {language:8} {split:5} {len(part):8}    n/a    n/a    n/a")
                    continue
                found = system([r["caption"] for r in part])
                figures = scores(found, [r["clues"] for r in part])
                print(
                    f"{name:8} {language:8} {split:5} {len(part):8} " + " ".join(f"{f:6.3f}" for f in figures)
                )
                if options.errors == split and name != "tags":
                    for row, clues in zip(part, found, strict=True):
                        if clues != row["clues"]:
                            print(f"    {row['id']} {row['caption']}")
                            print(f"        found    {clues}\n        labelled {row['clues']}")
    english = [r["caption"] for r in rows if not is_chinese(r["caption"])]
    captions = [f"{english[i % len(english)]} {i}" for i in range(5000)]
    for name in ("parse", "rules"):
        start = time.process_time()
        systems[name](captions)
        print(f"{name}: 5,000 different English captions in {time.process_time() - start:.1f} s of CPU")


if __name__ == "__main__":
    main()
