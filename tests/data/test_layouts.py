"""Corpora that are not at hand, on synthetic folders with their real naming."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from aligncap.data.corpora import corpora, prepare
from aligncap.data.corpora.prepare import PrepareReport
from aligncap.data.manifest import Utterance, read_manifest
from aligncap.data.validate import validate
from aligncap.utils.errors import UserError, UserErrors
from aligncap.utils.io import load_data


class Corpus:
    """A folder that clips are put into, every clip another tone."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.out = folder.parent / "out" / "m.jsonl"
        self.count = 0

    def clips(self, *names: str) -> None:
        for name in names:
            self.count += 1
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            time = np.arange(4000) / 16_000
            soundfile.write(path, 0.3 * np.sin(2 * np.pi * (100 + 10 * self.count) * time), 16_000)

    def text(self, name: str, content: str, encoding: str = "utf-8") -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding=encoding)

    def prepare(self, corpus: str, **options: Any) -> tuple[dict[str, Utterance], PrepareReport]:
        report = prepare(corpus, self.folder, self.out, **options)
        assert validate(self.out).errors == []
        return {u.id: u for u in read_manifest(self.out)}, report


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    (tmp_path / "corpus").mkdir()
    return Corpus(tmp_path / "corpus")


def test_ravdess_as_unzipped_with_songs_and_hidden_files_beside(corpus: Corpus) -> None:
    top = "Audio_Speech_Actors_01-24/Actor_02/"
    corpus.clips(
        top + "03-01-06-02-01-02-02.wav", top + "03-01-01-01-02-01-02.flac", top + "03-02-01-01-01-01-02.wav"
    )
    corpus.text("__MACOSX/._03-01-06-02-01-02-02.wav", "x")
    found, report = corpus.prepare("ravdess")
    clip = found["ravdess-03-01-06-02-01-02-02"]
    assert (clip.speaker, clip.gender, clip.emotion, clip.intensity) == (
        "ravdess-02",
        "female",
        "fearful",
        "strong",
    )
    assert clip.transcript == "Kids are talking by the door."
    assert clip.duration == 0.25
    assert len(found) == 2
    assert len(report.of_kind("name")) == 1 and "song" in report.of_kind("name")[0]


def test_nemo_rows_without_a_clip_are_counted(corpus: Corpus) -> None:
    corpus.clips("samples/EB0_anger_10.flac", "samples/XX0_anger_1.flac")
    header = "file_id\temotion\traw_text\tnormalized_text\tspeaker_id\tgender\tage\t\r\n"
    rows = [
        f"EB0_anger_{n}.wav\tanger\tKupiłem nową szafę.\tkupiłem\t        EB0\tfemale\t27\t\r\n"
        for n in (10, 11)
    ]
    corpus.text("data.tsv", header + "".join(rows))
    found, report = corpus.prepare("nemo")
    clip = found["nemo-EB0_anger_10"]
    assert (clip.speaker, clip.emotion, clip.language, clip.extra["age"]) == ("nemo-EB0", "angry", "pl", 27)
    assert clip.transcript == "Kupiłem nową szafę."
    assert report.of_kind("missing") == ["EB0_anger_11.wav"]
    assert "left out, listed but not there: 1" in report.summary()
    assert "XX0_anger_1" in report.of_kind("name")[0]


def test_crema_d_takes_genders_from_its_table_or_from_the_list(corpus: Corpus) -> None:
    corpus.clips("AudioWAV/1001_DFA_ANG_XX.wav", "AudioWAV/1002_IEO_SAD_HI.wav", "AudioWAV/notes_by_me.wav")
    found, report = corpus.prepare("crema-d")
    assert found["crema-d-1001_DFA_ANG_XX"].gender == "male"
    second = found["crema-d-1002_IEO_SAD_HI"]
    assert (second.gender, second.emotion, second.intensity) == ("female", "sad", "strong")
    assert second.transcript == "It's eleven o'clock."
    assert report.of_kind("name") == ["AudioWAV/notes_by_me.wav"]
    corpus.text("VideoDemographics.csv", "ActorID,Age,Sex,Race,Ethnicity\n1001,51,Female,X,Y\n")
    assert corpus.prepare("crema-d")[0]["crema-d-1001_DFA_ANG_XX"].gender == "female"


def test_emodb(corpus: Corpus) -> None:
    corpus.clips("wav/03a01Fa.wav", "wav/16b10Lb.wav", "wav/99a01Fa.wav")
    found, report = corpus.prepare("emodb")
    assert (found["emodb-03a01Fa"].emotion, found["emodb-03a01Fa"].gender) == ("happy", "male")
    assert found["emodb-03a01Fa"].transcript == "Der Lappen liegt auf dem Eisschrank."
    assert (found["emodb-16b10Lb"].emotion, found["emodb-16b10Lb"].language) == ("bored", "de")
    assert report.of_kind("name") == ["wav/99a01Fa.wav"]


def test_emovo_in_either_format(corpus: Corpus) -> None:
    corpus.clips("f1/gio-f1-d1.wav", "m3/tri-m3-l4.flac", "m3/xxx-m3-l4.wav", "m3/tri-m3-l5.wav")
    found, report = corpus.prepare("emovo")
    clip = found["emovo-gio-f1-d1"]
    assert (clip.speaker, clip.gender, clip.emotion, clip.language) == ("emovo-f1", "female", "happy", "it")
    assert (clip.transcript, clip.extra["sentence"]) == ("Sabato sera cosa farà?", "d1")
    assert (found["emovo-tri-m3-l4"].emotion, found["emovo-tri-m3-l4"].gender) == ("sad", "male")
    assert report.of_kind("label") == ['m3/xxx-m3-l4.wav: unknown emotion "xxx"']
    assert report.of_kind("name") == ["m3/tri-m3-l5.wav"]


def test_esd_with_parts_and_transcripts_in_other_encodings(corpus: Corpus) -> None:
    corpus.clips("0001/Angry/train/0001_000351.wav", "0011/Surprise/0011_001401.wav")
    corpus.text("0001/0001.txt", "0001_000351\t打远一看\t生气\n", encoding="gb18030")
    corpus.text("0011/0011.txt", "0011_001401 The nine the eggs, I keep.    Surprise\n", encoding="utf-16")
    found, _ = corpus.prepare("esd")
    chinese, english = found["esd-0001_000351"], found["esd-0011_001401"]
    assert (chinese.language, chinese.gender, chinese.emotion) == ("zh", "female", "angry")
    assert (chinese.transcript, chinese.extra["part"]) == ("打远一看", "train")
    assert (english.language, english.gender, english.emotion) == ("en", "male", "surprised")
    assert english.transcript == "The nine the eggs, I keep."


def test_jl_corpus_reads_the_words_beside_the_clip(corpus: Corpus) -> None:
    top = "Raw JL corpus (unchecked and unannotated)/JL(wav+txt)/"
    corpus.clips(
        top + "female1_concerned_10a_1.wav", top + "male2_sad_3b_2.wav", top + "male2_sulky_3b_2.wav"
    )
    corpus.text(top + "female1_concerned_10a_1.txt", "Tom beats that farmer.\n")
    found, report = corpus.prepare("jl-corpus")
    clip = found["jl-corpus-female1_concerned_10a_1"]
    assert (clip.emotion, clip.gender, clip.transcript) == ("anxious", "female", "Tom beats that farmer.")
    assert found["jl-corpus-male2_sad_3b_2"].transcript is None
    assert "sulky" in report.of_kind("label")[0]


@pytest.mark.parametrize(
    "names", [("DC_sa01.wav", "KL_s11.wav"), ("AudioData/DC/sa01.wav", "AudioData/Info/sa02.wav")]
)
def test_savee_flat_or_in_folders(corpus: Corpus, names: tuple[str, str]) -> None:
    corpus.clips(*names)
    found, report = corpus.prepare("savee")
    clip = found["savee-DC_sa01"]
    assert (clip.emotion, clip.speaker, clip.gender) == ("sad", "savee-DC", "male")
    assert report.of_kind("name") == [names[1]]


def test_tess_with_the_release_s_odd_name(corpus: Corpus) -> None:
    corpus.clips(
        "OAF_Pleasant_surprise/OAF_back_ps.wav", "YAF_sad/YAF_bite_sad.wav", "OAF_neutral/OA_bite_neutral.wav"
    )
    found, _ = corpus.prepare("tess")
    assert found["tess-OAF_back_ps"].emotion == "surprised"
    assert found["tess-OAF_back_ps"].transcript == "Say the word back."
    assert found["tess-OAF_bite_neutral"].speaker == "tess-OAF"


def test_meld_tells_parts_by_folder_and_reports_rows_without_sound(corpus: Corpus) -> None:
    header = "Sr No.,Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID,Season\n"
    line = '1,"Oh, that\x92s fine.",{},{},neutral,0,{},8\n'
    corpus.text("train_sent_emo.csv", header + line.format("Joey", "joy", 0) + line.format("All", "anger", 1))
    corpus.text("test_sent_emo.csv", header + line.format("Monica", "fear", 0))
    corpus.clips("train_splits/dia0_utt0.wav", "output_repeated_splits_test/dia0_utt0.wav")
    found, report = corpus.prepare("meld")
    assert (found["meld-train-dia0_utt0"].emotion, found["meld-train-dia0_utt0"].gender) == ("happy", "male")
    assert found["meld-test-dia0_utt0"].transcript == "Oh, that's fine."
    assert report.of_kind("missing") == ["train/dia0_utt1"]


def test_meld_with_films_only_says_that_sound_is_wanted(corpus: Corpus) -> None:
    corpus.text("train_sent_emo.csv", "Utterance,Speaker,Emotion,Dialogue_ID,Utterance_ID\nHi,Joey,joy,0,0\n")
    corpus.text("train_splits/dia0_utt0.mp4", "film")
    with pytest.raises(UserError, match="1 films: take out their sound"):
        corpus.prepare("meld")


def test_iemocap_leaves_the_emotion_open_where_annotators_did_not_agree(corpus: Corpus) -> None:
    stem = "Ses01F_impro01"
    corpus.clips(
        f"Session1/sentences/wav/{stem}/{stem}_F000.wav",
        f"Session1/sentences/wav/{stem}/{stem}_M000.wav",
        f"Session1/dialog/wav/{stem}.wav",
    )
    corpus.text(
        f"Session1/dialog/EmoEvaluation/{stem}.txt",
        "% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]\n\n"
        f"[6.2901 - 8.2357]\t{stem}_F000\tfru\t[2.5000, 2.0000, 2.5000]\nC-E2:\tNeutral;\t()\n\n"
        f"[9.0 - 9.9]\t{stem}_M000\txxx\t[2.5000, 2.5000, 2.5000]\n"
        f"[9.9 - 11.0]\t{stem}_M001\tneu\t[2.5000, 2.5000, 2.5000]\n",
    )
    corpus.text(
        f"Session1/dialog/transcriptions/{stem}.txt", f"{stem}_F000 [006.2901-008.2357]: Excuse me.\n"
    )
    found, report = corpus.prepare("iemocap")
    woman, man = found[f"iemocap-{stem}_F000"], found[f"iemocap-{stem}_M000"]
    assert (woman.emotion, woman.transcript, woman.speaker) == ("frustrated", "Excuse me.", "iemocap-1F")
    assert woman.extra["activation"] == 2.0
    assert (man.emotion, man.gender, man.extra["code"]) == (None, "male", "xxx")
    assert report.emotions == {"?": 1, "frustrated": 1}
    assert report.of_kind("missing") == [f"{stem}_M001"]


def test_secap_finds_clips_by_name_whatever_machine_its_paths_are_of(corpus: Corpus) -> None:
    named = "tx_emotion_00201000015", "tx_emulate_01_034_0003_000030"
    corpus.clips("wav/tx_1.wav", "wav/tx_2.wav", *(f"wav/{name}.wav" for name in named))
    corpus.text("wav.scp", "tx_1 /elsewhere/wav/tx_1.wav\ntx_2\t../wav/tx_2.wav\n")
    corpus.text("text.txt", "tx_1 你 好\n")
    captions = {"tx_1": "语气平静，带着喜悦", "tx_2": ["悲伤", "难过"], "tx_3": "x"}
    captions |= dict.fromkeys(named, "平静")
    corpus.text("fid2captions.json", json.dumps(captions))
    found, report = corpus.prepare("secap")
    assert found["secap-tx_1"].captions == ["语气平静，带着喜悦"]
    assert (found["secap-tx_1"].transcript, found["secap-tx_1"].language) == ("你 好", "zh")
    assert found["secap-tx_2"].captions == ["悲伤", "难过"]
    groups = [found[f"secap-{name}"].speaker for name in (*named, "tx_1")]
    assert groups == ["secap-tx_emotion_002", "secap-tx_emulate_01", None]
    assert report.of_kind("missing") == ["tx_3: no clip"]


def test_librittsp_keeps_each_annotator_s_words_and_names_those_who_stand_alone(corpus: Corpus) -> None:
    top = "LibriSpeech/dev-clean"
    corpus.clips(*(f"{top}/{s}/1/{s}-1-0000.flac" for s in (26, 27, 28)), f"{top}/26/1/27-1-0001.flac")
    corpus.text("data/df1_en.csv", "26|masculine,very calm\n\n99|old\n27|old\n")
    corpus.text("data/df3_en.csv", "26|slightly  cool, light\n")
    corpus.text("LibriSpeech/SPEAKERS.TXT", ";ID|SEX| SUBSET\n26   | M | dev-clean | 25.0 | A | B\n")
    corpus.text(f"{top}/26/1/26-1.trans.txt", "26-1-0000 GOOD DAY\n")
    found, report = corpus.prepare("librittsp")
    man, other = found["librittsp-26-1-0000"], found["librittsp-27-1-0000"]
    assert (man.speaker, man.gender, man.transcript, man.emotion) == (
        "librittsp-26",
        "male",
        "Good day",
        None,
    )
    assert man.extra["voice"] == {"df1": ["masculine", "very calm"], "df3": ["slightly  cool", "light"]}
    said = ["masculine and very calm", "slightly  cool and light"]
    assert man.captions == [f"The voice sounds {words}." for words in said]
    assert man.extra["part"] == "dev-clean"
    assert (other.gender, other.transcript, other.extra["voice"]) == (None, None, {"df1": ["old"]})
    assert report.of_kind("missing") == [f"{corpus.folder}/data/df1_en.csv:3: speaker 99 has no clip"]
    assert report.of_kind("name") == [
        f"{top}/26/1/27-1-0001.flac",
        f"{top}/28/1/28-1-0000.flac: speaker 28 is in no table",
    ]


@pytest.mark.parametrize("line", ["27", "27|", "27|old,,calm", "anna|old", "26|calm", "speaker|words"])
def test_librittsp_with_a_bad_line_is_refused(corpus: Corpus, line: str) -> None:
    corpus.clips("LibriSpeech/dev-clean/26/1/26-1-0000.flac")
    corpus.text("data/df2_en.csv", f"26|old\n{line}\n")
    with pytest.raises(UserErrors, match=r"df2_en.csv:2: one line speaker\|word,word a speaker is needed"):
        corpus.prepare("librittsp")
    assert not corpus.out.exists()


@pytest.mark.parametrize(
    "captions",
    [
        {"captions_en": ["glad", "merry"], "captions_zh": ["高兴"]},
        {"captions": {"en": ["glad", "merry"], "zh": ["高兴"]}},
        {"en_1": "glad", "en_2": "merry", "zh_1": "高兴"},
    ],
)
def test_emosec_takes_english_captions_and_keeps_the_chinese(
    corpus: Corpus, captions: dict[str, Any]
) -> None:
    corpus.clips("wavs/a1.wav")
    rows = [{"audio": "wavs/a1.wav", "speaker": 3, "gender": "F", **captions}, {"audio": "b.wav", **captions}]
    corpus.text("data.json", json.dumps(rows))
    found, report = corpus.prepare("emosec")
    clip = found["emosec-a1"]
    assert (clip.captions, clip.extra["captions_zh"]) == (["glad", "merry"], ["高兴"])
    assert (clip.speaker, clip.gender, clip.language) == ("emosec-3", "female", "zh")
    assert report.of_kind("missing") == ["b.wav"]


def test_emosec_with_unknown_keys_names_those_found(corpus: Corpus) -> None:
    corpus.text("data.json", json.dumps([{"audio": "a.wav", "describe": "x"}]))
    with pytest.raises(UserError, match="found audio, describe"):
        corpus.prepare("emosec")


def test_csv_with_usual_names_and_a_column_of_its_own(corpus: Corpus) -> None:
    corpus.clips("clips/a.wav", "clips/b.wav")
    corpus.text(
        "t.csv",
        "Path,label,sex,caption_1,caption_2,room\nclips/a.wav,Joy,F,one,two,7\nclips/c.wav,sad,M,,,8\n",
    )
    found, report = corpus.prepare("csv")
    clip = found["corpus-clips-a"]
    assert (clip.emotion, clip.gender, clip.captions) == ("happy", "female", ["one", "two"])
    assert clip.extra["room"] == "7"
    assert report.of_kind("missing") == ["clips/c.wav"]


def test_jsonl_with_a_map_of_columns(corpus: Corpus) -> None:
    corpus.clips("a.wav")
    corpus.text(
        "t.jsonl", json.dumps({"sound": "a.wav", "who": "Ann", "say": ["x", "y"], "more": "z", "text": "hi"})
    )
    columns = {"audio": "sound", "speaker": "who", "captions": "say+more"}
    found, _ = corpus.prepare("jsonl", columns=columns)
    clip = found["corpus-a"]
    assert (clip.speaker, clip.captions, clip.transcript) == ("corpus-Ann", ["x", "y", "z"], "hi")
    columns["speaker"] = "pre"
    corpus.text("t.jsonl", json.dumps({"sound": "a.wav", "pre": "corpus-7", "say": ["x"], "more": "z"}))
    found, _ = corpus.prepare("jsonl", columns=columns)
    assert found["corpus-a"].speaker == "corpus-7"  # named so already


def test_a_table_in_the_code_page_of_windows_is_refused_and_utf16_read(corpus: Corpus) -> None:
    corpus.clips("a.wav")
    corpus.text("t.csv", "path,transcript\na.wav,Er klingt müde.\n", encoding="cp1252")
    with pytest.raises(UserError, match=r"t\.csv:2: not UTF-8; save the table again as CSV UTF-8"):
        corpus.prepare("csv")
    corpus.text("t.csv", "path,transcript\na.wav,Er klingt müde.\n", encoding="utf-16")
    assert corpus.prepare("csv")[0]["corpus-a"].transcript == "Er klingt müde."


def test_quotes_in_tables_swallow_no_row(corpus: Corpus) -> None:
    corpus.clips("a.wav", "b.wav")
    corpus.text("t.tsv", 'path\ttranscript\na.wav\t"Hello there\nb.wav\tfine\n')
    assert [u.transcript for u in corpus.prepare("csv")[0].values()] == ['"Hello there', "fine"]
    corpus.text("t.tsv", 'path\ttranscript\na.wav\t"said ""no"""\nb.wav\tfine\n')
    assert corpus.prepare("csv")[0]["corpus-a"].transcript == 'said "no"'
    (corpus.folder / "t.tsv").unlink()
    corpus.text("t.csv", 'path,transcript\na.wav,"Hello" there\nb.wav,fine\n' + "x" * 200_000)
    with pytest.raises(UserError, match=r"t\.csv:2: no CSV .*; a text with a quote in it needs quotes"):
        corpus.prepare("csv")


def test_all_columns_of_captions_are_read(corpus: Corpus) -> None:
    corpus.clips("a.wav")
    corpus.text("t.csv", "path,caption_2,Caption,caption3\na.wav,two,one,three\n")
    assert corpus.prepare("csv")[0]["corpus-a"].captions == ["one", "two", "three"]


@pytest.mark.parametrize(
    ("table", "columns", "words"),
    [
        ("path,label\na.wav,joyfull\n", {}, "unknown emotion"),
        ("path,sex\na.wav,x\n", {}, "neither female nor male"),
        ("path\n/etc/passwd\n", {}, "lies outside"),
        ("wavv,label\na.wav,sad\n", {}, "no column names the clips"),
        ("path\na.wav\n", {"speeker": "path"}, 'unknown field "speeker".*nearest is "speaker"'),
        ("path\na.wav\n", {"speaker": "who"}, 'no column "who"'),
        ("path,path\na.wav,b\n", {}, "stands there twice"),
    ],
)
def test_faults_of_a_table_are_named(corpus: Corpus, table: str, columns: dict[str, str], words: str) -> None:
    corpus.clips("a.wav")
    corpus.text("t.csv", table)
    with pytest.raises(UserError, match=words):
        corpus.prepare("csv", columns=columns)


@pytest.mark.parametrize("name", [c for c in corpora() if c != "synthetic"])
def test_a_folder_that_is_another_thing_is_refused_and_nothing_written(corpus: Corpus, name: str) -> None:
    corpus.clips("holiday/beach.wav")
    with pytest.raises(UserError) as caught:
        corpus.prepare(name)
    assert "looked for" in str(caught.value) and "holiday/" in str(caught.value)
    assert not corpus.out.exists()


def test_unknown_corpus_suggests_the_nearest_and_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match='nearest is "ravdess"'):
        prepare("ravdes", tmp_path, tmp_path / "m.jsonl")
    with pytest.raises(UserError, match="no such folder"):
        prepare("ravdess", tmp_path / "gone", tmp_path / "m.jsonl")


def test_an_archive_in_place_of_the_folder_is_refused(corpus: Corpus) -> None:
    corpus.text("ravdess.zip", "PK")
    for name in ("ravdess", "synthetic"):
        with pytest.raises(UserError, match="is a file"):
            prepare(name, corpus.folder / "ravdess.zip", corpus.out)


def test_a_symlink_that_leads_back_up_is_not_followed_round(corpus: Corpus) -> None:
    corpus.clips("wav/03a01Fa.wav")
    (corpus.folder / "wav" / "up").symlink_to(corpus.folder)
    assert list(corpus.prepare("emodb")[0]) == ["emodb-03a01Fa"]


def test_texts_with_line_breaks_and_separators_stay_whole(corpus: Corpus) -> None:
    corpus.clips("a.wav")
    corpus.text("t.csv", 'path,text\na.wav,"one\ntwo\u2028three"\n')
    assert corpus.prepare("csv")[0]["corpus-a"].transcript == "one\ntwo\u2028three"


def test_two_clips_with_one_id_are_an_error_that_names_both(corpus: Corpus) -> None:
    corpus.clips("Actor_01/03-01-01-01-01-01-01.wav", "copy/Actor_01/03-01-01-01-01-01-01.wav")
    with pytest.raises(UserErrors, match="Actor_01.*copy/Actor_01.*have this id"):
        corpus.prepare("ravdess")
    assert not corpus.out.exists()


def test_undecodable_clips_are_left_out_and_reported(corpus: Corpus) -> None:
    corpus.clips("03a01Fa.wav")
    corpus.text("03a01Wa.wav", "no sound")
    found, report = corpus.prepare("emodb")
    assert list(found) == ["emodb-03a01Fa"]
    assert "03a01Wa.wav" in report.of_kind("audio")[0]


def test_identical_clips_are_found_across_lossless_formats(corpus: Corpus) -> None:
    corpus.clips("03a01Fa.wav", "03a01Wa.wav")
    samples, rate = soundfile.read(corpus.folder / "03a01Fa.wav", dtype="int16")
    soundfile.write(corpus.folder / "03a01Ta.flac", samples, rate)
    _, report = corpus.prepare("emodb")
    assert report.duplicates == [["emodb-03a01Fa", "emodb-03a01Ta"]]
    assert "identical clips: emodb-03a01Fa, emodb-03a01Ta" in report.summary()


def test_root_is_relative_when_the_manifest_lies_above_the_corpus(corpus: Corpus) -> None:
    corpus.clips("wav/03a01Fa.wav")
    prepare("emodb", corpus.folder, corpus.folder.parent / "m.jsonl")
    assert read_manifest(corpus.folder.parent / "m.jsonl")[0].root == "corpus"


def test_label_maps_lead_to_canonical_labels_only() -> None:
    data = load_data("labels.yaml")
    rows = load_data("corpora.yaml")["by_name"].items()
    for name, codes in [
        *data["corpora"].items(),
        *((n, row["labels"]) for n, row in rows if "labels" in row),
    ]:
        assert name in corpora()
        assert all(isinstance(code, str) for code in codes), name
        assert set(codes.values()) - {None} <= set(data["labels"]), name
    assert set(data["aliases"].values()) <= set(data["labels"])
    assert not set(data["aliases"]) & set(data["labels"])
