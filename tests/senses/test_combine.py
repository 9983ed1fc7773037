"""Made moments: the same emotion in all three, no voice and no face in two speakers; CK+48 as moments."""

import json
from collections import Counter

import pytest

from aligncap.cli import main
from aligncap.senses.combine import combine
from aligncap.senses.moments import Moment, read_moments, senses_of
from aligncap.utils.errors import UserError

LABELS = ["happy", "sad", "angry"]


def parts(subjects=6):
    texts = [Moment(f"t{i}", LABELS[i % 3], text=f"words {i}") for i in range(9)]
    voices = [Moment(f"v{i}", LABELS[i % 3], f"A{i // 6}", audio=f"/c/v{i}.wav") for i in range(18)]
    voices.append(Moment("v18", "neutral", "A0", audio="/c/v18.wav"))
    faces = [
        Moment(f"f{s}{k}", LABELS[k], f"S{s}", pictures=[f"/c/{s}{k}.png"])
        for s in range(subjects)
        for k in (0, 1)
    ]
    return texts, voices, faces


def test_a_moment_is_of_one_emotion_and_no_voice_or_face_is_in_two_speakers():
    texts, voices, faces = parts()
    made, left = combine(texts, voices, faces, {"happy", "sad"})
    assert len(made) == 12 and left == 0 and {m.label for m in made} == {"happy", "sad"}
    emotions = {m.text: m.label for m in texts} | {m.audio: m.label for m in voices}
    emotions |= {m.pictures[0]: m.label for m in faces}
    for m in made:
        assert {emotions[m.text], emotions[m.audio], emotions[m.pictures[0]]} == {m.label}
        assert senses_of(m) == {"text", "voice", "face"}
    owner = {m.pictures[0]: m.speaker for m in faces}
    casts = {m.speaker: set(m.speaker.split("+")) for m in made}
    assert len(casts) == 3 and max(Counter(name for cast in casts.values() for name in cast).values()) == 1
    assert all(owner[m.pictures[0]] in casts[m.speaker] for m in made)
    assert all(m.speaker.startswith(v.speaker) for m in made for v in voices if v.audio == m.audio)


def test_a_clip_whose_subjects_lack_its_emotion_is_left_out_and_counted():
    texts, voices, faces = parts()
    made, left = combine(
        texts, voices, [*faces, Moment("f", "angry", "S0", pictures=["/c/x.png"])], set(LABELS)
    )
    assert (
        left == 4 and Counter(m.label for m in made)["angry"] == 2
    )  # one of three speakers has the angry face


def test_the_seed_decides_and_repeats_take_other_comments():
    texts, voices, faces = parts()
    first, again, other = (combine(texts, voices, faces, {"happy"}, 2, seed)[0] for seed in (0, 0, 1))
    assert first == again != other and len(first) == 12
    assert (
        len({m.id for m in first}) == 12
        and first[0].audio == first[1].audio
        and first[0].text != first[1].text
    )
    with pytest.raises(UserError, match="2 subjects for 3 speakers"):
        combine(*parts(subjects=2), {"happy"})


def write(path, moments, **sense):
    rows = [
        {"id": m.id, "emotion": m.label, "speaker": m.speaker} | {k: f(m) for k, f in sense.items()}
        for m in moments
    ]
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_the_command_writes_paths_that_lead_to_the_files(tmp_path, capsys):
    texts, voices, faces = parts()
    files = [
        write(tmp_path / "t" / "t.jsonl", texts, transcript=lambda m: m.text),
        write(tmp_path / "v" / "v.jsonl", voices, audio=lambda m: m.audio[3:]),
        write(tmp_path / "f" / "f.jsonl", faces, pictures=lambda m: [m.pictures[0][3:]]),
    ]
    out = tmp_path / "made" / "m.jsonl"
    words = [x for name, file in zip(("text", "voice", "face"), files) for x in (f"--{name}", file)]
    assert main(["senses", "combine", *words, "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert (
        "12 moments of 3 speakers, of happy, sad" in shown
        and "7 clips of emotions that a corpus lacks" in shown
    )
    for m in read_moments(out):
        assert m.audio.startswith(str(tmp_path / "v")) and str(m.pictures[0]).startswith(str(tmp_path / "f"))
    nameless = write(
        tmp_path / "v" / "n.jsonl", [Moment("x", "sad"), Moment("y", "sad")], audio=lambda m: "x.wav"
    )
    words[3] = nameless
    assert main(["senses", "combine", *words, "--out", str(out)]) == 2
    assert "n.jsonl: x has no speaker" in capsys.readouterr().err
    words[3] = write(tmp_path / "v" / "o.jsonl", [Moment("x", "fearful", "A")], audio=lambda m: "x.wav")
    assert main(["senses", "combine", *words, "--out", str(out)]) == 2
    assert "no emotion is in all three" in capsys.readouterr().err


def ck(folder):
    for k, label in enumerate(("anger", "contempt", "happy", "sadness")):
        (folder / label).mkdir(parents=True)
        for subject in (5, 10, 130):
            for frame in (9, 10, 11):
                (folder / label / f"S{subject:03}_00{k}_000000{frame:02}.png").touch()
    return folder


def test_ck_is_a_moment_a_sequence_without_contempt(tmp_path, capsys):
    out = tmp_path / "ck.jsonl"
    assert main(["senses", "ck", str(ck(tmp_path / "CK")), "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "9 moments of 3 subjects, 27 pictures" in shown and "left out: 9 pictures of contempt" in shown
    moments = read_moments(out)
    assert Counter(m.label for m in moments) == {"angry": 3, "happy": 3, "sad": 3}
    assert [p.name[-6:-4] for p in moments[0].pictures] == ["09", "10", "11"] and moments[
        0
    ].speaker == "ck-S005"
    assert all(p.is_file() for m in moments for p in m.pictures)
    assert main(["senses", "ck", str(tmp_path / "CK"), "--dev", "1", "--test", "1", "--out", str(out)]) == 0
    speakers = [
        {m.speaker for m in read_moments(tmp_path / f"ck{part}.jsonl")} for part in ("", "-dev", "-test")
    ]
    assert speakers == [{"ck-S005"}, {"ck-S010"}, {"ck-S130"}]


def test_another_folder_is_not_ck(tmp_path, capsys):
    (tmp_path / "CK" / "bored").mkdir(parents=True)
    assert main(["senses", "ck", str(tmp_path / "CK"), "--out", str(tmp_path / "m")]) == 2
    assert "so it is not CK+48" in capsys.readouterr().err
    (tmp_path / "CK" / "bored" / "S001_001_00000001.png").touch()
    assert main(["senses", "ck", str(tmp_path / "CK"), "--out", str(tmp_path / "m")]) == 2
    assert "'bored' is no label of CK+48" in capsys.readouterr().err
    assert main(["senses", "ck", str(ck(tmp_path / "b")), "--test", "3", "--out", str(tmp_path / "m")]) == 2
    assert "leave none to train on" in capsys.readouterr().err
