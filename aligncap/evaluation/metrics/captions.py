"""Caption scores as one `evaluate.Metric` module, which `aligncap evaluate` itself scores with.

It loads by path and offline, wherever the file lies, while aligncap is installed:

    metric = evaluate.load("<folder>/captions.py", "bleu")  # or meteor, rouge_l, cider_d; without a name: all
    metric.compute(predictions=["He sounds sad."], references=[["He seems sad.", "A sad man speaks."]])

METEOR 1.5 and SPICE come from the Java programs that pycocoevalcap carries. It has no licence file, so it is
no dependency but an extra: `pip install "aligncap[coco]"`. Its jars are run from here, since its own wrappers
write into the installed package and download without asking.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import datasets
import evaluate
import numpy as np

from aligncap.evaluation.metrics import ngram
from aligncap.evaluation.metrics.ngram import Tokens
from aligncap.evaluation.metrics.tokens import Chinese, tokenize
from aligncap.utils.errors import UserError
from aligncap.utils.io import Row
from aligncap.utils.statistics import Floats, Statistic, mean

CONFIGS = ("bleu", "meteor", "rouge_l", "cider_d")
COCO_METRICS = ("meteor_1_5", "spice")


def caption_statistics(
    names: Sequence[str],
    captions: Sequence[str],
    references: Sequence[Sequence[str]],
    wordnet: bool,
    chinese: Chinese = "characters",
) -> dict[str, Statistic]:
    """The scores of `names` (of CONFIGS or COCO_METRICS) as sums over clips; BLEU's are bleu_1 to bleu_4.

    Raises:
        UserError: an unknown name; WordNet, pycocoevalcap, Java, CoreNLP or rjieba is asked for and not
            there.
    """
    if unknown := [name for name in names if name not in (*CONFIGS, *COCO_METRICS)]:
        raise UserError(f"no score {unknown[0]!r}; choose among {', '.join((*CONFIGS, *COCO_METRICS))}")
    said = [tokenize(caption, chinese) for caption in captions]
    targets = [[tokenize(text, chinese) for text in texts] for texts in references]
    sets = ngram.count_ngrams(said, targets)
    found: dict[str, Statistic] = {}
    if "bleu" in names:
        counts = ngram.bleu_counts(sets)
        for order in range(1, ngram.ORDERS + 1):
            found[f"bleu_{order}"] = Statistic(counts, partial(_bleu, order=order), 1.0)
    if "meteor" in names:
        found["meteor"] = mean(ngram.meteor(said, targets, wordnet=wordnet))
    if "rouge_l" in names:
        found["rouge_l"] = mean(ngram.rouge_l(said, targets))
    if "cider_d" in names:
        found["cider_d"] = mean(ngram.cider_d(sets))
    if "meteor_1_5" in names:
        found["meteor_1_5"] = Statistic(meteor_counts(said, targets), meteor_scores, 1.0)
    if "spice" in names:
        found["spice"] = mean(spice(said, targets))
    return found


def _bleu(sums: Floats, order: int) -> Floats:
    return ngram.bleu_scores(sums)[..., order - 1]


class CaptionMetric(evaluate.Metric):
    """One score, or all of CONFIGS, of captions with any number of references each.

    BLEU: closest reference length, no smoothing, counts summed over clips before dividing. CIDEr-D: 0 to 10,
    document frequencies of these references, so that a single clip scores 0. METEOR: exact words, Porter
    stems and, where WordNet is found, synonyms; the result's `variant` says which.

    Options of `compute`: `wordnet` insists on synonyms (True) or leaves them out (False); `chinese` cuts
    Chinese into "characters" or "words" (aligncap[zh]); `per_clip` adds the scores of each clip by name,
    `statistics` the `Statistic` of each score.
    """

    def _info(self) -> evaluate.MetricInfo:
        texts = datasets.Value("string")
        return evaluate.MetricInfo(
            description="BLEU-1 to 4, ROUGE-L and CIDEr-D as COCO's caption evaluation computes them; METEOR "
            "as nltk.translate.meteor_score does (not Java's 1.5).",
            citation="Papineni et al. 2002 (BLEU); Lin 2004 (ROUGE); Vedantam et al. 2015 (CIDEr); Lavie and "
            "Agarwal 2007 (METEOR).",
            inputs_description="predictions: captions. references: lists of captions.",
            features=datasets.Features({"predictions": texts, "references": datasets.Sequence(texts)}),
        )

    def _compute(
        self,
        predictions: list[str],
        references: list[list[str]],
        wordnet: bool | None = None,
        chinese: Chinese = "characters",
        per_clip: bool = False,
        statistics: bool = False,
    ) -> Row:
        names = CONFIGS if self.config_name == "default" else [self.config_name]
        if wordnet is None:
            wordnet = "meteor" in names and ngram.find_wordnet() is not None
        found = caption_statistics(names, predictions, references, wordnet, chinese)
        result: Row = {name: statistic.value for name, statistic in found.items()}
        if "meteor" in found:
            result["variant"] = "exact+stem+WordNet" if wordnet else "exact+stem"
        if per_clip:
            result["per_clip"] = {name: np.asarray(s.score(s.sums)).tolist() for name, s in found.items()}
        return result | ({"statistics": found} if statistics else {})


# METEOR 1.5's universal parameters of English: alpha, beta, gamma, delta, and the weights of exact, stem,
# synonym and paraphrase matches (Denkowski & Lavie 2014, table 1)
_ALPHA, _BETA, _GAMMA, _DELTA = 0.85, 0.2, 0.6, 0.75
_WEIGHTS = np.array([1.0, 0.6, 0.8, 0.6])
_COUNTS = 23  # numbers in a line of METEOR's statistics
_CORENLP = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")


def meteor_counts(captions: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> Floats:
    """METEOR 1.5's statistics of each caption with the reference that suits it best: (clips, 23).

    Columns: length of caption and reference, function words of both; for exact, stem, synonym and paraphrase
    matches the content words matched in caption and reference and the function words matched in both; chunks;
    words matched in caption and reference. They add up over clips; a caption that matches its reference whole
    counts no chunk, as in METEOR's own sums.

    Raises:
        UserError: pycocoevalcap or Java is missing, or Java failed.
    """
    folder = _package() / "meteor"
    lines = [
        " ||| ".join(["SCORE", *map(" ".join, [*targets, caption])]) + "\n"
        for caption, targets in zip(captions, references, strict=True)
    ]
    command = ["-Xmx2G", "-jar", "meteor-1.5.jar", "-", "-", "-stdio", "-l", "en", "-norm"]
    out = _java(command, folder, "".join(lines)).split("\n")
    counts = [line.split() for line in out if line.strip()]
    if len(counts) != len(captions) or any(len(row) != _COUNTS for row in counts):
        raise UserError(f"METEOR 1.5 answered {len(counts)} lines to {len(captions)} captions; check Java")
    table = np.array(counts, dtype=np.float64)
    matched = table[:, 4:20].reshape(-1, 4, 2, 2).sum(axis=(1, 2))
    table[(matched == table[:, 0:2]).all(axis=1) & (table[:, 20] == 1), 20] = 0
    return table


def meteor_scores(counts: Floats) -> Floats:
    """METEOR 1.5 (...) of summed statistics (..., 23), as the Java program computes it from them.

    Of the whole set it is COCO's figure, which is not the mean of the clips' scores. A caption that is its
    reference scores 1.
    """
    lengths, function = counts[..., 0:2], counts[..., 2:4]
    matches = counts[..., 4:20].reshape(*counts.shape[:-1], 4, 4)
    content, plain = matches[..., 0:2], matches[..., 2:4]
    hits = (_WEIGHTS[:, None] * (_DELTA * content + (1 - _DELTA) * plain)).sum(axis=-2)
    sizes = _DELTA * (lengths - function) + (1 - _DELTA) * function
    with np.errstate(divide="ignore", invalid="ignore"):
        precision, recall = np.moveaxis(hits / sizes, -1, 0)
        f_mean = 1 / ((1 - _ALPHA) / precision + _ALPHA / recall)
        chunks, words = counts[..., 20], counts[..., 21:23].sum(axis=-1) / 2
        scores = f_mean * (1 - _GAMMA * (chunks / words) ** _BETA)
    result: Floats = np.where(np.isfinite(scores), scores, 0.0)
    return result


def spice(captions: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> Floats:
    """SPICE of each clip (clips,), 0 to 1: F-score of scene-graph tuples (Anderson et al. 2016).

    Raises:
        UserError: pycocoevalcap, Java or CoreNLP 3.6.0 is missing, or Java failed.
    """
    folder = _package() / "spice"
    missing = [name for name in _CORENLP if not (folder / "lib" / name).is_file()]
    if missing:
        raise UserError(
            f"SPICE needs {' and '.join(missing)} in {folder / 'lib'}: no registry carries Stanford CoreNLP "
            "3.6.0 (2015-12-09), so put its two files there, or run "
            "`python -m pycocoevalcap.spice.get_stanford_models` with a connection; or leave SPICE out"
        )
    rows = [
        {"image_id": clip, "test": " ".join(said), "refs": [" ".join(text) for text in targets]}
        for clip, (said, targets) in enumerate(zip(captions, references, strict=True))
    ]
    with tempfile.TemporaryDirectory() as work:
        asked, answer = Path(work) / "in.json", Path(work) / "out.json"
        asked.write_text(json.dumps(rows), encoding="utf-8")
        # no -cache: it would keep a database beside the jar, and a text is parsed once a run as it is
        _java(["-Xmx8G", "-jar", "spice-1.0.jar", str(asked), "-out", str(answer), "-silent"], folder, "")
        found = {row["image_id"]: row["scores"]["All"]["f"] for row in json.loads(answer.read_text())}
    return np.nan_to_num(np.array([float(found[clip]) for clip in range(len(rows))]))


def coco_signature(names: Sequence[str]) -> dict[str, str]:
    """Which variant was counted, for a signature."""
    variants = {
        "meteor_1_5": "Java METEOR 1.5 (en, -norm: exact, stem, synonym, paraphrase), corpus level as COCO's",
        "spice": "Java SPICE 1.0, mean over clips",
    }
    return {name: f"{variants[name]}, of pycocoevalcap {version('pycocoevalcap')}" for name in names}


def _package() -> Path:
    """The folder of pycocoevalcap, which is not imported."""
    spec = find_spec("pycocoevalcap")
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            'METEOR 1.5 and SPICE need Java and pycocoevalcap: pip install "aligncap[coco]", or do without'
        )
    return Path(next(iter(spec.submodule_search_locations)))


def _java(arguments: list[str], folder: Path, given: str) -> str:
    java = shutil.which("java")
    if java is None:
        raise UserError(
            "METEOR 1.5 and SPICE need Java, and there is no `java` on this machine's PATH: install a Java "
            "runtime (such as the package default-jre-headless), or leave them out"
        )
    done = subprocess.run(
        [java, *arguments], cwd=folder, input=given, capture_output=True, text=True, encoding="utf-8"
    )
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["no message"]
        raise UserError(f"Java failed on {arguments[2]} ({said[-1].strip()}); try a Java 8 runtime")
    return done.stdout
