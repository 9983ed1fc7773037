"""Options of every verb but `train`, whose options are dataclasses (`aligncap.training`)."""

from __future__ import annotations

import argparse
import os


def _positive(word: str) -> int:
    if not word.isdigit() or int(word) < 1:
        raise argparse.ArgumentTypeError(f"{word!r} is no whole number above 0")
    return int(word)


def _shared(verb: str, example: str) -> str:
    """An example, and how processes share the verb."""
    return (
        f"{example}\n\n"
        "over processes, which write the same file (after a lost one, the same command goes on, with any "
        "number):\n"
        "  accelerate launch --config_file configs/accelerate/cpu2.yaml -m aligncap "
        f"{verb} …"
    )


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="aligncap",
        description="Train a machine to say how a voice sounds, and measure it.",
        epilog="Start with `bash scripts/quickstart.sh`. Each verb has its own --help with an example.",
    )
    verbs = top.add_subparsers(metavar="VERB", required=True)

    def verb(name: str, text: str, example: str) -> argparse.ArgumentParser:
        sub = verbs.add_parser(
            name,
            help=text,
            description=text,
            epilog=f"example:\n  aligncap {name} {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.set_defaults(verb=name)
        return sub

    v = verb("models", "fetch or list pretrained models", "fetch whisper-base")
    v.add_argument("action", choices=["fetch", "list"])
    v.add_argument("names", nargs="*", help="default: the three default models")

    v = verb("prepare", "a corpus folder to a manifest", "ravdess ~/corpora/ravdess --out ravdess.jsonl")
    v.add_argument(
        "corpus", help="ravdess, nemo, crema-d, emodb, esd, …, csv, jsonl, or made (synthetic speech)"
    )
    v.add_argument("folder")
    v.add_argument("--out", required=True, help="manifest to write")
    v.add_argument("--columns", nargs="+", metavar="FIELD=COLUMN", help="for csv and jsonl")

    v = verb("validate", "every fault of a manifest, with file and line", "ravdess.jsonl")
    v.add_argument("manifest")
    v.add_argument("--shallow", action="store_true", help="do not decode the audio")

    v = verb("split", "split by speaker", "ravdess.jsonl --by speaker --dev 2 --test 4 --out runs/data")
    v.add_argument("manifest")
    v.add_argument("--by", choices=["speaker"], default="speaker")
    v.add_argument("--dev", type=int, default=2, help="number of dev speakers")
    v.add_argument("--test", type=int, default=4, help="number of test speakers")
    v.add_argument("--dev-speakers", nargs="+")
    v.add_argument("--test-speakers", nargs="+")
    v.add_argument("--seed", type=int, help="shuffle the speakers; default: the last ones are test")
    v.add_argument("--out", required=True, help="folder for train.jsonl, dev.jsonl, test.jsonl")

    v = verb(
        "annotate",
        "measure cues and write captions",
        "ravdess.jsonl --references 5 --out captioned.jsonl",
    )
    v.add_argument("manifest")
    v.add_argument("--references", type=int, default=5, help="captions a clip")
    v.add_argument("--out", required=True)
    v.add_argument("--seed", type=int, default=0)
    v.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    v.add_argument("--report", metavar="FOLDER", help="pictures of every cue by emotion")
    v.add_argument("--paraphrase", metavar="MODEL", help="reword through an OpenAI-compatible endpoint")
    v.add_argument("--base-url", help="of that endpoint; the key comes from OPENAI_API_KEY")

    v = verb("clues", "emotion clues and acoustic prompts", "captioned.jsonl --out clued.jsonl")
    v.add_argument("manifest")
    v.add_argument("--out", required=True)
    v.add_argument("--parser", default="default", help="default, rules, or a spaCy model folder")

    verb(
        "train",
        "train teacher | sft | distill | prefer",
        "distill --config configs/recipes/distill.yaml",
    )

    v = verb("build", "an untrained model from parts", "--llm smollm2-135m-instruct --out runs/untrained")
    v.add_argument("--encoder", default="whisper-base", help="any Whisper: name, folder or hub id")
    v.add_argument("--llm", default="smollm2-135m-instruct", help="any causal LM: name, folder or hub id")
    v.add_argument("--encoder-layer", default="4", help="last, mix, or a number of layers")
    v.add_argument("--seed", type=int, default=0)
    v.add_argument("--out", required=True)

    v = verb("merge", "fold the adapter in", "runs/distill --out runs/model")
    v.add_argument("checkpoint")
    v.add_argument("--out", required=True)

    v = verb(
        "caption",
        "say how voices sound",
        _shared(
            "caption",
            "--model runs/model clip.wav folder/\n"
            "  aligncap caption --model runs/model --manifest test.jsonl --out captions.jsonl",
        ),
    )
    v.add_argument("files", nargs="*", help="sound files or folders")
    v.add_argument("--model", required=True)
    v.add_argument("--manifest")
    v.add_argument("--out", help="captions.jsonl; without it, a table")
    v.add_argument("--batch-size", type=_positive, default=32)
    v.add_argument("--beams", type=_positive, default=1)
    v.add_argument("--max-new-tokens", type=_positive, default=48)
    v.add_argument("--temperature", type=float, help="sample at this temperature; default: greedy")
    v.add_argument("--top-p", type=float, default=0.9)
    v.add_argument("--seed", type=int, default=0)
    v.add_argument("--dtype", default="float32", choices=["auto", "float32", "bfloat16"])
    v.add_argument("--device", default="auto")
    v.add_argument(
        "--emotions", nargs="+", metavar="LABEL", help="name no other emotions, where the labels are known"
    )
    v.add_argument(
        "--heard",
        default="right",
        choices=["right", "wrong", "silence", "noise", "same-words", "whisper"],
        help="what is heard in place of each clip, to prove listening; drawn by --seed",
    )
    v.add_argument("--wrong-audio", type=int, metavar="SEED", help="--heard wrong, drawn by SEED")
    v.add_argument(
        "--same-speaker",
        action="store_true",
        help="all files (4 or more) are of one speaker, and heard as such",
    )

    v = verb(
        "candidates",
        "several sampled captions a clip",
        _shared("candidates", "--model runs/distill --manifest train.jsonl --num 8 --out candidates.jsonl"),
    )
    v.add_argument("--model", required=True, help="a training run's folder or a merged one")
    v.add_argument("--manifest", required=True)
    v.add_argument("--out", required=True)
    v.add_argument("--num", type=_positive, default=8, help="captions a clip")
    v.add_argument("--temperature", type=float, default=1.0)
    v.add_argument("--top-p", type=float, default=0.95)
    v.add_argument("--seed", type=int, default=0)
    v.add_argument("--max-new-tokens", type=_positive, default=48)
    v.add_argument("--batch-size", type=_positive, default=16)
    v.add_argument("--limit", type=_positive, help="that many clips only, labels as even as they come")
    v.add_argument("--dtype", default="float32", choices=["auto", "float32", "bfloat16"])
    v.add_argument("--device", default="auto")

    v = verb(
        "judge",
        "score candidates, or say how two judges agree",
        _shared("judge", "candidates.jsonl --judge rubric --out scored.jsonl")
        + "\n\nother judges, in one process:\n"
        "  aligncap judge candidates.jsonl --judge openai --model gpt-4.1-mini --dry-run\n"
        "  aligncap judge candidates.jsonl --judge openai --model gpt-4.1-mini --max-cost 5 --out gpt.jsonl\n"
        "  aligncap judge candidates.jsonl --judge human --form sheet.csv\n"
        "  aligncap judge --agree scored.jsonl gpt.jsonl --out agreement.json",
    )
    v.add_argument("candidates", nargs="?")
    v.add_argument("--judge", default="rubric", choices=["rubric", "openai", "human"])
    v.add_argument("--out", help="scored file to write (or JSON of --agree)")
    v.add_argument("--manifest", help="default: the one that the candidates name")
    v.add_argument("--references", type=int, default=1, help="reference captions a clip to judge too")
    v.add_argument("--no-fluency", action="store_true", help="rubric: no language model, rules alone")
    openai = v.add_argument_group("--judge openai (any compatible endpoint; the key is OPENAI_API_KEY)")
    openai.add_argument("--model", help="model that the endpoint knows")
    openai.add_argument("--base-url", help="endpoint; default OPENAI_BASE_URL, else OpenAI's own")
    openai.add_argument("--compare", action="store_true", help="pairs in both orders instead of scores")
    openai.add_argument("--pairs-per-clip", type=_positive, default=1, help="of --compare")
    openai.add_argument("--dry-run", action="store_true", help="say what it would ask and cost; ask nothing")
    openai.add_argument(
        "--max-cost", type=float, metavar="USD", help="never spend more, former runs included"
    )
    openai.add_argument("--price-in", type=float, metavar="USD", help="a million tokens read")
    openai.add_argument("--price-out", type=float, metavar="USD", help="a million tokens written")
    openai.add_argument("--rpm", type=float, help="requests a minute")
    openai.add_argument("--tpm", type=float, help="tokens a minute")
    openai.add_argument("--concurrency", type=_positive, default=8, help="requests at a time")
    openai.add_argument("--retries", type=int, default=6)
    openai.add_argument("--timeout", type=float, default=60.0, help="seconds a request")
    openai.add_argument("--temperature", type=float, default=0.0, help="below 0: leave it to the endpoint")
    openai.add_argument("--max-tokens", type=_positive, default=400, help="of an answer")
    openai.add_argument("--batch", action="store_true", help="the Batch API: half the price, within a day")
    openai.add_argument("--poll", type=float, default=30.0, help="seconds between two looks at a batch")
    openai.add_argument("--cache", metavar="JOURNAL", help="paid verdicts; default OUT.verdicts.jsonl")
    human = v.add_argument_group("--judge human")
    human.add_argument("--form", metavar="CSV", help="write a blank sheet to score")
    human.add_argument("--filled", metavar="CSV", help="read a filled sheet")
    human.add_argument("--rater", default="", help="who filled it")
    agree = v.add_argument_group("agreement")
    agree.add_argument("--agree", nargs=2, metavar=("A", "B"), help="two scored files of the same captions")
    agree.add_argument("--pairwise", metavar="COMPARED", help="rows of --compare: A's consistency")
    agree.add_argument("--resamples", type=int, default=1000)
    v.add_argument("--seed", type=int, default=0)

    v = verb(
        "pairs",
        "preference pairs of scored captions",
        "scored.jsonl --kinds best-worst --out pairs.jsonl",
    )
    v.add_argument("scored")
    v.add_argument("--out", required=True)
    v.add_argument("--manifest", help="default: the one that the rows name")
    v.add_argument(
        "--kinds",
        nargs="+",
        default=["best-worst"],
        metavar="KIND",
        help="best-worst, reference-worst, flipped-emotion, flipped-claim, other-clip",
    )
    v.add_argument(
        "--chosen", choices=["reference", "best"], default="reference", help="of flips and other clips"
    )
    v.add_argument("--min-margin", type=float, default=1.0, help="points between the two, of 10")
    v.add_argument("--max-similarity", type=float, default=0.9, help="share of words in common")
    v.add_argument("--max-length-ratio", type=float, default=2.0)
    v.add_argument("--per-clip", type=_positive, default=1, help="pairs a clip of each kind")
    v.add_argument("--no-balance-lengths", action="store_true")
    v.add_argument("--balance-emotions", action="store_true", help="as many pairs of every label")
    v.add_argument("--seed", type=int, default=0)

    v = verb(
        "evaluate",
        "score captions and write a report",
        "captions.jsonl --references test.jsonl --out report/",
    )
    v.add_argument("captions")
    v.add_argument("--references", required=True, help="manifest with captions")
    v.add_argument("--out", required=True, help="folder of the report")
    v.add_argument("--name", default="model", help="name of the system in the report")
    v.add_argument(
        "--system", nargs="+", metavar="NAME=CAPTIONS", help="more systems; a name again is another seed"
    )
    v.add_argument("--against", metavar="NAME", help="differences are to this system; default: to --name's")
    v.add_argument("--wrong-audio", nargs="+", metavar="CAPTIONS", help="captions of shuffled clips")
    v.add_argument(
        "--similarity", choices=["auto", "require", "none"], default="auto", help="the sentence encoder"
    )
    v.add_argument(
        "--coco",
        nargs="+",
        choices=["meteor_1_5", "spice"],
        default=[],
        help="Java metrics of aligncap[coco]",
    )
    v.add_argument(
        "--protocol",
        choices=["secap", "secap-words"],
        help="captions are 8 candidates a clip: the 5 most like the others are scored (SECap)",
    )
    v.add_argument(
        "--listening",
        nargs="+",
        metavar="HEARD=CAPTIONS",
        help="captions of --name under wrong, silence, noise, same-words, whisper; again: another seed",
    )
    v.add_argument("--probe", metavar="JSON", help="output of `aligncap probe`, as a yardstick")
    v.add_argument(
        "--label-map", nargs="+", metavar="SAID=LABEL", help="count an emotion as another, e.g. calm=neutral"
    )
    v.add_argument("--resamples", type=int, default=1000)
    v.add_argument("--seed", type=int, default=0)
    v.add_argument("--audio", choices=["copy", "link", "embed"], default="copy", help="players in the report")
    v.add_argument("--wordnet", choices=["auto", "require", "none"], default="auto", help="METEOR's synonyms")
    v.add_argument("--allow-missing", action="store_true")
    v.add_argument("--show", type=int, default=3, metavar="N", help="captions printed beside a reference")
    v.add_argument("--title", default="Speech emotion captions")

    v = verb("join", "several manifests in one", "ravdess.jsonl crema-d.jsonl --out train.jsonl")
    v.add_argument("manifests", nargs="+")
    v.add_argument("--out", required=True)

    v = verb(
        "zeroshot",
        "score a model on corpora that share nothing with its training",
        "--model runs/distill --manifest nemo.jsonl --label-map nemo:calm=neutral "
        "--labels angry happy sad neutral --out runs/zeroshot",
    )
    v.add_argument("--model", nargs="+", default=[], metavar="CKPT", help="one checkpoint a training seed")
    v.add_argument("--manifest", nargs="+", required=True, help="a captioned manifest of each corpus")
    v.add_argument("--out", required=True, help="folder of zero_shot.json, zero_shot.md and the reports")
    v.add_argument("--name", default="model", help="name of the system")
    v.add_argument("--captions", nargs="+", metavar="CORPUS=FILE", help="written before; again: another seed")
    v.add_argument("--captions-dir", help="where captions are kept; default OUT/captions")
    v.add_argument("--trained-on", nargs="+", default=[], metavar="M.jsonl", help="where a model tells not")
    v.add_argument("--label-map", nargs="+", metavar="CORPUS:SAID=LABEL", help="count an emotion as another")
    v.add_argument("--labels", nargs="+", default=[], metavar="LABEL", help="score their clips apart too")
    v.add_argument(
        "--only-labels", action="store_true", help="captions name only these, or the corpus's own, emotions"
    )
    v.add_argument(
        "--heard",
        nargs="+",
        default=[],
        choices=["wrong", "silence", "noise", "same-words", "whisper"],
        help="caption these instead of the clips too, to prove that it listens",
    )
    v.add_argument("--probe", nargs="+", default=[], metavar="JSON", help="outputs of `aligncap probe`")
    v.add_argument("--limit", type=_positive, help="that many clips of each corpus only")
    v.add_argument("--batch-size", type=_positive, default=32)
    v.add_argument("--max-new-tokens", type=_positive, default=48)
    v.add_argument("--resamples", type=int, default=1000)
    v.add_argument("--seed", type=int, default=0)
    v.add_argument("--audio", choices=["copy", "link", "embed"], default="copy", help="players in reports")
    v.add_argument("--wordnet", choices=["auto", "require", "none"], default="auto", help="METEOR's synonyms")
    v.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16"])
    v.add_argument("--device", default="auto")

    v = verb(
        "states",
        "where speech and text lie in the LLM's spaces: t-SNE and numbers",
        "--model CL=runs/cl/base distill=runs/distill --manifest test.jsonl --out runs/states",
    )
    v.add_argument(
        "--model", nargs="+", required=True, metavar="[NAME=]CKPT", help="folders of training runs"
    )
    v.add_argument("--manifest", required=True, help="with captions and clues")
    v.add_argument("--limit", type=_positive, default=200, help="clips")
    v.add_argument("--out", required=True, help="folder for states.png, states_centred.png, states.json")
    v.add_argument("--batch-size", type=_positive, default=8)
    v.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    v.add_argument("--device", default="auto")
    v.add_argument("--seed", type=int, default=0)

    v = verb(
        "curves",
        "training curves of runs, seeds under their mean",
        "distill=runs/distill-0 distill=runs/distill-1 prefer=runs/prefer --out curves.png",
    )
    v.add_argument("runs", nargs="+", metavar="[NAME=]RUN", help="a name again is another seed")
    v.add_argument("--out", required=True, help="PNG to write")

    v = verb(
        "probe",
        "linear probe on the encoder, the yardstick",
        "--train train.jsonl --dev dev.jsonl --test test.jsonl",
    )
    v.add_argument("--train", required=True)
    v.add_argument("--dev", required=True)
    v.add_argument("--test", required=True, nargs="+")
    v.add_argument("--encoder", default="whisper-base")
    v.add_argument("--cache-dir", default="runs/cache")
    v.add_argument("--out", help="JSON to write")
    return top
