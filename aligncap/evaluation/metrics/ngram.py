"""BLEU, ROUGE-L, CIDEr-D and METEOR of tokenised captions, clip by clip, and the WordNet that METEOR reads.

BLEU and CIDEr-D share n-gram counts that are made once, as numpy arrays, for all captions and references. The
counting is our own rather than sacrebleu's, because resampling needs BLEU's counts clip by clip, which
sacrebleu keeps to itself, and because COCO's guard against empty counts differs from sacrebleu's smoothing
where no 4-gram matches. Where both are defined they agree; the tests compare them.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain, count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aligncap.utils.errors import UserError
from aligncap.utils.io import load_data
from aligncap.utils.statistics import Floats, Ints

Tokens = Sequence[str]

ORDERS = 4  # n-grams of one to four words
SIGMA = 6.0  # of CIDEr-D's length penalty, in bigrams
_SMALL, _TINY = 1e-9, 1e-15  # COCO's guards against division by zero and against a product of zero


@dataclass(frozen=True)
class Grams:
    """Counts of the n-grams of one order: `count[i]` times n-gram `gram[i]` in sentence `sentence[i]`.

    Sorted by sentence, then n-gram; `kinds` is the number of different n-grams.
    """

    sentence: Ints
    gram: Ints
    count: Ints
    kinds: int


@dataclass(frozen=True)
class CaptionSet:
    """Captions and references as n-gram counts. Caption i is sentence i of `captions`.

    `clip_of[r]` is the clip that sentence r of `references` belongs to; lengths are in tokens.
    """

    captions: list[Grams]
    references: list[Grams]
    clip_of: Ints
    caption_lengths: Ints
    reference_lengths: Ints

    @property
    def clips(self) -> int:
        return len(self.caption_lengths)


def count_ngrams(captions: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> CaptionSet:
    """Count the n-grams of every caption and of its references (at least one each)."""
    flat = [*captions, *chain.from_iterable(references)]
    lengths = np.fromiter(map(len, flat), np.int64, len(flat))
    vocabulary: dict[str, int] = defaultdict(count().__next__)
    words = np.fromiter(map(vocabulary.__getitem__, chain.from_iterable(flat)), np.int64, lengths.sum())
    sentence = np.repeat(np.arange(len(flat)), lengths)
    end = np.cumsum(lengths)[sentence]
    start, gram = np.arange(len(words)), words
    split, kinds = len(captions), 0
    hypotheses, targets = [], []
    for order in range(1, ORDERS + 1):
        if order > 1:
            longer = start + order - 1 < end[start]
            start = start[longer]
            gram = _ranks(gram[longer] * len(vocabulary) + words[start + order - 1], kinds * len(vocabulary))
        kinds = int(gram.max()) + 1 if len(gram) else 1
        keys, times = _counted(sentence[start] * kinds + gram)
        row, kind = np.divmod(keys, kinds)
        cut = int(np.searchsorted(row, split))
        hypotheses.append(Grams(row[:cut], kind[:cut], times[:cut], kinds))
        targets.append(Grams(row[cut:] - split, kind[cut:], times[cut:], kinds))
    per_clip = np.fromiter(map(len, references), np.int64, len(references))
    clip_of = np.repeat(np.arange(len(references)), per_clip)
    return CaptionSet(hypotheses, targets, clip_of, lengths[:split], lengths[split:])


def _ranks(keys: Ints, limit: int) -> Ints:
    """The place of each key among the different keys in order; keys are below `limit`.

    A table where it is not much longer than the keys, as with the small vocabularies of captions: it takes a
    tenth of the time of sorting.
    """
    if limit > 16 * len(keys):
        _, ranks = np.unique(keys, return_inverse=True)
        return ranks
    seen = np.zeros(limit, np.int64)
    seen[keys] = 1
    return (np.cumsum(seen) - 1)[keys]


def _counted(keys: Ints) -> tuple[Ints, Ints]:
    """The different keys in order, and how often each occurs.

    By sorting, where np.unique uses a hash table that takes ten times as long on such keys (numpy 2.4).
    """
    keys = np.sort(keys)
    first = np.flatnonzero(np.diff(keys, prepend=-1))
    return keys[first], np.diff(first, append=len(keys))


def _find(keys: Ints, sorted_keys: Ints) -> tuple[Ints, NDArray[np.bool_]]:
    """Where each key stands in `sorted_keys`, and whether it is there at all."""
    if not len(sorted_keys):
        return np.zeros(len(keys), np.int64), np.zeros(len(keys), bool)
    place = np.minimum(np.searchsorted(sorted_keys, keys), len(sorted_keys) - 1)
    return place, sorted_keys[place] == keys


def bleu_counts(sets: CaptionSet) -> Floats:
    """BLEU's sufficient statistics, one row a clip: (clips, 10).

    Columns: matched n-grams of order 1-4 (clipped by the most generous reference), n-grams of order 1-4,
    caption length, length of the reference closest in length (of two equally close, the shorter).
    """
    counts = np.zeros((sets.clips, 2 * ORDERS + 2))
    for order in range(ORDERS):
        captions, references = sets.captions[order], sets.references[order]
        keys = sets.clip_of[references.sentence] * references.kinds + references.gram
        by_key = np.argsort(keys, kind="stable")
        keys = keys[by_key]
        first = np.flatnonzero(np.diff(keys, prepend=-1))
        most = np.maximum.reduceat(references.count[by_key], first) if len(first) else keys
        place, found = _find(captions.sentence * captions.kinds + captions.gram, keys[first])
        matched = np.minimum(captions.count[found], most[place[found]])
        counts[:, order] = np.bincount(captions.sentence[found], matched, sets.clips)
        counts[:, ORDERS + order] = np.maximum(sets.caption_lengths - order, 0)
    counts[:, -2] = sets.caption_lengths
    off = np.abs(sets.reference_lengths - sets.caption_lengths[sets.clip_of])
    nearest = np.lexsort((sets.reference_lengths, off, sets.clip_of))
    counts[:, -1] = sets.reference_lengths[nearest[np.flatnonzero(np.diff(sets.clip_of, prepend=-1))]]
    return counts


def bleu_scores(counts: Floats) -> Floats:
    """BLEU-1 to BLEU-4 (..., 4) of summed counts (..., 10), as COCO computes them (Papineni et al. 2002).

    With c the caption length and r the closest reference length: min(1, exp(1 - r/c)) times the geometric
    mean of the n-gram precisions. "the man sounds sad" against "the man sounds very sad" matches 4 of 4 words
    and 2 of 3 pairs: BLEU-2 = exp(1 - 5/4) * sqrt(1 * 2/3) = 0.6359.
    """
    matched, total = counts[..., :ORDERS], counts[..., ORDERS : 2 * ORDERS]
    product = np.cumprod((matched + _TINY) / (total + _SMALL), axis=-1)
    scores = product ** (1.0 / np.arange(1, ORDERS + 1))
    ratio = (counts[..., -2:-1] + _TINY) / (counts[..., -1:] + _SMALL)
    with np.errstate(over="ignore"):
        penalty = np.where(ratio < 1, np.exp(1 - 1 / ratio), 1.0)
    result: Floats = scores * penalty
    return result


def cider_d(sets: CaptionSet) -> Floats:
    """CIDEr-D of each clip (clips,), 0 to 10 (Vedantam et al. 2015, with clipping and length penalty).

    Document frequencies come from the references of these very clips, so a score depends on the company it is
    in, and one clip alone scores 0.
    """
    total = np.zeros(len(sets.clip_of))
    bigrams = (
        np.maximum(sets.reference_lengths - 1, 0) - np.maximum(sets.caption_lengths - 1, 0)[sets.clip_of]
    )
    penalty = np.exp(-(bigrams**2) / (2 * SIGMA**2))
    for captions, references in zip(sets.captions, sets.references, strict=True):
        keys = sets.clip_of[references.sentence] * references.kinds + references.gram
        seen, _ = _counted(keys)
        frequency = np.bincount(seen % references.kinds, minlength=references.kinds)
        rarity = np.log(sets.clips) - np.log(np.maximum(frequency, 1))
        mine, theirs = captions.count * rarity[captions.gram], references.count * rarity[references.gram]
        my_norm = np.sqrt(np.bincount(captions.sentence, mine**2, sets.clips))
        their_norm = np.sqrt(np.bincount(references.sentence, theirs**2, len(sets.clip_of)))
        place, found = _find(keys, captions.sentence * captions.kinds + captions.gram)
        product = np.minimum(mine[place[found]], theirs[found]) * theirs[found]
        # bincount of nothing is whole-numbered even with weights.
        dot = np.bincount(references.sentence[found], product, len(sets.clip_of)).astype(np.float64)
        norms = my_norm[sets.clip_of] * their_norm
        total += np.divide(dot, norms, out=np.zeros_like(dot), where=norms > 0) * penalty
    sums = np.bincount(sets.clip_of, total, sets.clips)
    scores: Floats = 10.0 * sums / (ORDERS * np.bincount(sets.clip_of, minlength=sets.clips))
    return scores


def distinct_share(sets: CaptionSet, order: int, clusters: Ints) -> tuple[float, Floats]:
    """Distinct-n (Li et al. 2016): different n-grams by n-grams, over all captions; and without each cluster.

    It depends on the size of the set, so compare only systems on the same clips.

    "he is sad", "he is calm": words he is sad calm of 6: distinct-1 = 4/6.

    Args:
        clusters: number of the cluster (the speaker) of each clip.

    Returns:
        the share, and (clusters,) the share when one cluster is left out, NaN where nothing is left.
    """
    grams, amount = sets.captions[order - 1], int(clusters.max()) + 1
    cluster = clusters[grams.sentence]
    kind, where = np.divmod(_counted(grams.gram * amount + cluster)[0], amount)
    in_clusters = np.bincount(kind, minlength=grams.kinds)
    kinds = np.count_nonzero(in_clusters)
    alone = np.bincount(where[in_clusters[kind] == 1], minlength=amount)  # said in one cluster only
    sizes = np.bincount(cluster, grams.count, amount)
    left = sizes.sum() - sizes
    without = np.divide(kinds - alone, left, out=np.full(amount, np.nan), where=left > 0)
    return float(kinds / sizes.sum()) if sizes.any() else 0.0, without


BETA = 1.2  # how much recall outweighs precision in COCO's ROUGE-L


def common_subsequence(a: Tokens, b: Tokens) -> int:
    """Length of the longest common subsequence, by one machine-word row a token (Hyyrö 2004).

    >>> common_subsequence("he sounds very sad".split(), "he is sad".split())
    2
    """
    masks: dict[str, int] = {}
    for place, token in enumerate(a):
        masks[token] = masks.get(token, 0) | 1 << place
    row = full = (1 << len(a)) - 1
    for token in b:
        up = row & masks.get(token, 0)
        row = ((row + up) | (row - up)) & full
    return len(a) - row.bit_count()


def rouge_l(captions: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> Floats:
    """ROUGE-L of each clip (clips,): F-measure (beta 1.2) of the best precision and best recall it gets.

    "he sounds sad" against "he is sad": 2 words in common order, precision = recall = 2/3, ROUGE-L 0.6667.
    """
    scores = np.zeros(len(captions))
    for clip, (caption, targets) in enumerate(zip(captions, references, strict=True)):
        if not caption:
            continue
        common = [(common_subsequence(caption, target), len(target)) for target in targets]
        precision = max(length for length, _ in common) / len(caption)
        recall = max(length / max(size, 1) for length, size in common)
        if precision and recall:
            scores[clip] = (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)
    return scores


def meteor(captions: Sequence[Tokens], references: Sequence[Sequence[Tokens]], *, wordnet: bool) -> Floats:
    """METEOR of each clip (clips,), the best of its references, by nltk.translate.meteor_score.

    Matches exact words, then Porter stems, then (with `wordnet`) words of one WordNet synset; the last among
    what stemming left, so that "glad" does not find "happy", whose stem is "happi". The Java METEOR
    1.5 of COCO's tools is another score and not comparable.

    Raises:
        UserError: `wordnet` is asked for and no WordNet is found.
    """
    from nltk.stem.porter import PorterStemmer
    from nltk.translate.meteor_score import meteor_score

    reader = require_wordnet() if wordnet else None
    stem = cache(PorterStemmer().stem)
    # NLTK looks for synonyms among the stems of the references: leaving out one that is no such stem changes
    # no score and halves the time.
    vocabulary = {stem(word) for targets in references for target in targets for word in target}

    @cache
    def synsets(word: str) -> list[SimpleNamespace]:
        """One synset of all synonyms of the word, in the form in which NLTK reads synsets."""
        if reader is None:
            return []
        words = {lemma.name() for synset in reader.synsets(word) for lemma in synset.lemmas()} & vocabulary
        lemmas = [SimpleNamespace(name=lambda text=text: text) for text in sorted(words)]
        return [SimpleNamespace(lemmas=lambda: lemmas)]

    stemmer: Any = SimpleNamespace(stem=stem)
    synonyms: Any = SimpleNamespace(synsets=synsets)
    scores = [
        meteor_score([list(target) for target in targets], list(caption), stemmer=stemmer, wordnet=synonyms)
        for caption, targets in zip(captions, references, strict=True)
    ]
    return np.array(scores, dtype=np.float64)


SYSTEM_FOLDER = Path("/usr/share/wordnet")  # of the Debian packages wordnet-base and wordnet-sense-index

_PARTS = ("noun", "verb", "adj", "adv")  # of speech, as WordNet numbers them from 1
_FILES = (
    *(f"{kind}.{part}" for kind in ("data", "index") for part in _PARTS),
    *(f"{part}.exc" for part in _PARTS),
    "index.sense",
    "cntlist.rev",
)


def nltk_folder() -> Path:
    """The project's own NLTK data: `$ALIGNCAP_HOME/nltk_data`, else `~/.cache/aligncap/nltk_data`."""
    home = os.environ.get("ALIGNCAP_HOME")
    return (Path(home).expanduser() if home else Path.home() / ".cache" / "aligncap") / "nltk_data"


def lexnames() -> str:
    """WordNet's table of lexicographer files: number, name and part of speech a line (data/wordnet.yaml)."""
    names = load_data("wordnet.yaml")["lexnames"].split()
    parts = [_PARTS.index(name.partition(".")[0]) + 1 for name in names]
    return "".join(
        f"{i:02d}\t{name}\t{part}\n" for i, (name, part) in enumerate(zip(names, parts, strict=True))
    )


def build_wordnet(source: Path = SYSTEM_FOLDER, out: Path | None = None) -> Path:
    """Copy a WordNet 3.0 database folder into `out`/corpora/wordnet, the form NLTK reads; return `out`.

    Files are copied since NLTK refuses links that lead out of its folder. About 35 MB.

    Raises:
        UserError: files of the database are missing from `source`, or `out` cannot be written.
    """
    out = nltk_folder() if out is None else out
    missing = [name for name in _FILES if not (source / name).is_file()]
    if missing:
        raise UserError(
            f"{source}: not a whole WordNet database, lacks {', '.join(missing)}. "
            "Install the packages wordnet-base and wordnet-sense-index"
        )
    target = out / "corpora" / "wordnet"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as name:
            ready = Path(name) / "wordnet"
            ready.mkdir()
            for file in _FILES:
                shutil.copyfile(source / file, ready / file)
            (ready / "lexnames").write_text(lexnames(), encoding="utf-8")
            if not target.exists():
                os.replace(ready, target)
    except OSError as error:
        raise UserError(
            f"{target}: cannot be written: {error.strerror or error}. Set ALIGNCAP_HOME"
        ) from error
    return out


@cache
def find_wordnet() -> Any | None:
    """NLTK's WordNet reader, or None where there is no WordNet on this machine.

    Looked for in NLTK's own places (NLTK_DATA and the like), then in `nltk_folder()`, which is filled from
    /usr/share/wordnet when that is there.
    """
    import nltk
    from nltk.corpus import wordnet

    folder = nltk_folder()
    if str(folder) not in nltk.data.path:
        nltk.data.path.append(str(folder))
    for attempt in range(2):
        try:
            wordnet.ensure_loaded()
            return wordnet
        except LookupError:
            if attempt:
                return None
        try:
            build_wordnet()
        except UserError:
            return None
    return None


def require_wordnet() -> Any:
    """NLTK's WordNet reader.

    Raises:
        UserError: there is none; the message says how to get one or do without.
    """
    reader = find_wordnet()
    if reader is None:
        raise UserError(
            f"WordNet was not found. Install the packages wordnet-base and wordnet-sense-index, or put it in "
            f"{nltk_folder()}/corpora/wordnet, or ask for METEOR without synonyms"
        )
    return reader
