"""Add a corpus reader: `python examples/add_corpus.py corpora/emovo emovo.jsonl`.

EMOVO (Italian, six actors) names its clips `f1/gio-f1-b1.flac`: emotion, speaker, sentence. An installed
package adds its reader to `aligncap prepare` by an entry point of the group `aligncap.corpora`
(docs/corpora.md).
"""

import sys
from collections.abc import Iterator

from aligncap.data.corpora import Corpus, CorpusFolder, prepare
from aligncap.data.manifest import Utterance

LABELS = {
    "dis": "disgusted",
    "gio": "happy",
    "neu": "neutral",
    "pau": "fearful",
    "rab": "angry",
    "sor": "surprised",
    "tri": "sad",
}


@Corpus("emovo", layout="f1/dis-f1-b1.flac", language="it", labels=LABELS)
def read(folder: CorpusFolder) -> Iterator[Utterance]:
    for path, name in folder.match(r"(?P<emotion>[a-z]{3})-(?P<speaker>[fm]\d)-(?P<sentence>\w+)"):
        gender = "female" if name["speaker"].startswith("f") else "male"
        yield folder.clip(path, speaker=name["speaker"], gender=gender, emotion=name["emotion"])


if __name__ == "__main__":
    print(prepare("emovo", sys.argv[1], sys.argv[2]).summary())
