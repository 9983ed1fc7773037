"""Add a corpus reader: `python examples/add_corpus.py corpora/urdu urdu.jsonl`.

The Urdu corpus of Latif et al. 2018 (38 speakers of talk shows) names its clips `Angry/SM1_F12_A012.wav`:
emotion, speaker (SM men, SF women), file, number. An installed package adds its reader to `aligncap prepare`
by an entry point of the group `aligncap.corpora` (docs/corpora.md).
"""

import sys
from collections.abc import Iterator

from aligncap.data.corpora import Corpus, CorpusFolder, prepare
from aligncap.data.manifest import Utterance

LABELS = {"A": "angry", "H": "happy", "N": "neutral", "S": "sad"}


@Corpus("urdu", layout="Angry/SM1_F12_A012.wav", language="ur", labels=LABELS)
def read(folder: CorpusFolder) -> Iterator[Utterance]:
    for path, name in folder.match(r"(?P<speaker>S[MF]\d+)_F\d+_(?P<emotion>[AHNS])\d+"):
        gender = "female" if name["speaker"].startswith("SF") else "male"
        yield folder.clip(path, speaker=name["speaker"], gender=gender, emotion=name["emotion"])


if __name__ == "__main__":
    print(prepare("urdu", sys.argv[1], sys.argv[2]).summary())
