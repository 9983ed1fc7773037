"""Pictures and videos as they come, the face that counts, the head, and the command on planted faces."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from aligncap.cli import main
from aligncap.senses import face as module
from aligncap.senses import pictures as opened
from aligncap.senses.face import FaceConfig, FaceSense, head_of, pictures_of, splits_of
from aligncap.senses.face_nets import FaceNets
from aligncap.senses.linear import fit_linear
from aligncap.senses.moments import SEVEN, Moment, read_moments
from aligncap.senses.pictures import evenly, read_frames, read_picture
from aligncap.senses.sense import load_sense, read_scores
from aligncap.utils.errors import UserError, UserErrors


@pytest.fixture(scope="module")
def nets() -> FaceNets:
    torch.manual_seed(0)
    return FaceNets()


@pytest.fixture
def sense(nets, monkeypatch) -> FaceSense:
    """A sense of random nets whose detector finds nothing, unless told where faces are."""
    monkeypatch.setattr(module, "boxes_of", lambda found: np.empty((0, 5)))
    return FaceSense(nets)


def see(monkeypatch, *boxes):
    monkeypatch.setattr(module, "boxes_of", lambda found: np.array(boxes, float).reshape(-1, 5))


# ---- pictures


def save(path, size=(20, 10), mode="RGB", colour=None, **options):
    Image.new(mode, size, colour).save(path, **options)
    return path


@pytest.mark.parametrize("mode", ["RGB", "L", "LA", "P", "RGBA", "1", "CMYK"])
def test_pictures_of_every_kind_become_rgb(mode, tmp_path):
    path = save(tmp_path / ("a.jpg" if mode == "CMYK" else "a.png"), mode=mode)
    pixels = read_picture(path)
    assert pixels.shape == (10, 20, 3) and pixels.dtype == np.uint8


def test_a_picture_that_a_telephone_turned_is_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    assert read_picture(save(tmp_path / "a.jpg", exif=exif)).shape == (20, 10, 3)


def test_a_large_picture_is_reduced(tmp_path):
    assert read_picture(save(tmp_path / "a.png", (3200, 100), "L")).shape == (50, 1600, 3)


def bomb(path):
    """A PNG whose header announces 100,000 x 100,000 pixels."""
    data = bytearray(save(path).read_bytes())
    data[16:24] = (100_000).to_bytes(4, "big") * 2
    import zlib

    data[29:33] = zlib.crc32(bytes(data[12:29])).to_bytes(4, "big")
    path.write_bytes(data)


def test_what_is_no_picture_is_told_and_nothing_large_is_decoded(tmp_path, monkeypatch):
    bomb(tmp_path / "bomb.png")
    save(tmp_path / "wide.png", (9000, 6000), "1")
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:2000])
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("a picture of a cat")
    (tmp_path / "program.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(tmp_path / "deep.png")
    for name, told in {
        "bomb.png": "too many pixels; at most 50 million",
        "wide.png": "9000 x 6000 pixels; at most 50 million",
        "cut.png": "damaged or cut off",
        "empty.png": "empty",
        "text.png": "no picture of a kind that is read",
        "program.eps": "no picture of a kind that is read",
        "deep.png": "pixels of more than 8 bits",
        "gone.png": "cannot be read: No such file",
    }.items():
        with pytest.raises(UserError, match=f"{name}: {told}"):
            read_picture(tmp_path / name)
    monkeypatch.setattr(opened, "MOST_BYTES", 10)
    with pytest.raises(UserError, match="at most 0 are read"):
        read_picture(tmp_path / "cut.png")


def test_a_missing_library_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    for read in (read_picture, lambda path: read_frames(path, 5)):
        with pytest.raises(UserError, match=r"need P.*; install the extra: pip install 'aligncap\[face\]'"):
            read(tmp_path / "a.png")


def test_pictures_are_drawn_evenly():
    assert evenly(5, 5) == [0, 1, 2, 3, 4] and evenly(2, 5) == [0, 1] and evenly(0, 5) == []
    assert evenly(100, 5) == [10, 30, 50, 70, 90]


# ---- videos


def film(path, frames=50, codec="mpeg4", rate=25, video=True):
    av = pytest.importorskip("av", reason="PyAV is not at hand: pip install 'aligncap[face]'")
    with av.open(str(path), "w") as out:
        if video:
            stream = out.add_stream(codec, rate=rate)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            for i in range(frames):
                pixels = np.full((48, 64, 3), 4 * i, np.uint8)
                out.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            out.mux(stream.encode())
        else:
            stream = out.add_stream("aac", rate=16_000)
            sound = av.AudioFrame.from_ndarray(
                np.zeros((1, 16_000), np.float32), format="fltp", layout="mono"
            )
            sound.sample_rate = 16_000
            out.mux(stream.encode(sound))
            out.mux(stream.encode())
    return path


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.avi"])
def test_five_frames_are_drawn_evenly_over_a_video(name, tmp_path):
    frames = read_frames(film(tmp_path / name), 5)
    assert [frame.shape for frame in frames] == [(48, 64, 3)] * 5
    assert [frame.mean() for frame in frames] == pytest.approx([20, 60, 100, 140, 180], abs=8)


def test_a_short_video_gives_what_it_has(tmp_path):
    assert len(read_frames(film(tmp_path / "a.mp4", 3), 5)) == 3


def test_what_is_no_video_is_told(tmp_path):
    film(tmp_path / "sound.mp4", video=False)
    (tmp_path / "text.mp4").write_text("no film at all")
    (tmp_path / "list.m3u8").write_text("#EXTM3U\n#EXTINF:1,\nfile:///etc/hostname\n")
    (tmp_path / "cut.mp4").write_bytes(film(tmp_path / "a.mp4").read_bytes()[:500])
    for name, told in {
        "sound.mp4": "has sound alone, no pictures",
        "text.mp4": "no video that can be read",
        "list.m3u8": "no video that can be read",
        "cut.mp4": "no video that can be read",
    }.items():
        with pytest.raises(UserError, match=f"{name}: {told}"):
            read_frames(tmp_path / name, 5)


# ---- the face that counts


def grey(height, width, value=100):
    return np.full((height, width, 3), value, np.uint8)


def test_the_largest_face_counts_and_several_are_counted(sense, monkeypatch):
    picture = np.random.default_rng(0).integers(0, 255, (100, 200, 3), np.uint8)
    small, large, outside = [0.9, 0.0, 0.0, 0.2, 0.2], [0.6, 0.5, 0.1, 0.9, 0.4], [0.9, 2.0, 2.0, 3.0, 3.0]
    see(monkeypatch, small, large, outside)
    boxes = sense.boxes(picture)
    assert boxes[0].tolist() == [0.6, 100, 20, 180, 80] and len(boxes) == 2  # shares of the longer side
    faces = sense.look([picture])
    assert faces.several == 1
    see(monkeypatch)
    # 80 x 60 pixels: 2.8 in from both sides, 9.9 up, 7.2 up from below
    whole = FaceSense(sense.nets, whole_below=100).look([picture[10:72, 102:177]])
    assert torch.allclose(faces.features, whole.features, atol=1e-5)


def test_a_small_picture_without_a_face_is_one_and_a_large_one_is_dropped(sense):
    faces = sense.look([grey(48, 48), grey(97, 20), grey(96, 20)])
    assert faces.features.shape == (2, 135) and faces.pixels.shape == (2, 48 * 48)
    assert torch.allclose(faces.pixels[0], torch.full((48 * 48,), 100 / 255), atol=1e-3)
    reading = sense.read([Moment("a"), Moment("b")])
    assert np.isnan(reading.scores).all() and [f.shape for f in reading.features] == [(0, 135)] * 2


def test_a_batch_gives_what_single_faces_give(sense):
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 255, (48, 40 + 2 * i, 3), np.uint8) for i in range(4)]
    together = sense.look(pictures).features
    alone = torch.cat([sense.look([picture]).features for picture in pictures])
    assert torch.allclose(together, alone, atol=1e-4)


def test_every_bad_file_is_told(sense, tmp_path):
    moments = [Moment(name, pictures=[tmp_path / f"{name}.png"]) for name in "abc"]
    save(tmp_path / "b.png")
    with pytest.raises(UserErrors) as told:
        sense.read(moments)
    assert [line.split(":")[0] for line in told.value.errors] == ["a", "c"]


def test_a_moment_gives_its_pictures_or_frames_of_its_video(tmp_path):
    paths = [save(tmp_path / f"{i}.png", colour=(i, i, i)) for i in range(20)]
    assert [p[0, 0, 0] for p in pictures_of(Moment("a", pictures=paths))] == [2, 6, 10, 14, 18]
    assert pictures_of(Moment("a", text="no face")) == []
    assert len(pictures_of(Moment("a", video=film(tmp_path / "a.mp4", 10)))) == 5


# ---- the head


@pytest.mark.parametrize("labels", [("happy", "sad"), ("happy", "sad", "angry", "surprised")])
def test_the_head_learns_what_was_planted_and_never_names_what_it_has_not_seen(labels):
    rng = np.random.default_rng(0)
    names = [labels[k] for k in rng.integers(0, len(labels), 200)]
    x = 5 * rng.normal(size=(200, 6)) + 3 + 40 * np.eye(6)[[labels.index(name) for name in names]]
    head = head_of(fit_linear(x, names, 1e-3, balanced=True))
    scores = head(torch.from_numpy(x).float()).softmax(-1)
    assert [SEVEN[k] for k in scores.argmax(1)] == names
    assert (scores[:, [k for k, name in enumerate(SEVEN) if name not in labels]] == 0).all()


def test_rare_labels_count_as_much_as_frequent_ones_if_asked_to():
    x = np.random.default_rng(0).normal(size=(300, 1))
    names = ["happy"] * 270 + ["sad"] * 30
    x[270:] += 1.5
    said = {
        b: head_of(fit_linear(x, names, 1e-3, b))(torch.from_numpy(x).float()).argmax(1)
        for b in (True, False)
    }
    assert (said[True] == 2).sum() > 2 * (said[False] == 2).sum()


# ---- the command


def planted(folder, subjects=6, shuffled=False):
    """48 x 48 faces of three labels, each with a stripe elsewhere, of subjects who differ in brightness."""
    rng = np.random.default_rng(0)
    rows = []
    for s in range(subjects):
        for k, label in enumerate(("happy", "sad", "angry")):
            for i in range(2):
                pixels = rng.normal(60 + 5 * s, 8, (48, 48))
                pixels[6 + 14 * k : 16 + 14 * k] += 90
                name = f"{s}-{k}-{i}.png"
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / name)
                label = ("happy", "sad", "angry")[rng.integers(3)] if shuffled else label
                rows.append({"id": f"{s}{k}{i}", "pictures": [name], "emotion": label, "speaker": f"S{s}"})
    (folder / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "m.jsonl"


@pytest.fixture
def random_nets(sense, nets, monkeypatch):
    monkeypatch.setattr(module, "load_nets", lambda name, device="cpu": nets)
    monkeypatch.setattr(FaceSense, "boxes", lambda self, pixels: np.empty((0, 5)))


@pytest.mark.parametrize("shuffled", [False, True])
def test_planted_faces_are_learnt_across_subjects_and_shuffled_ones_are_not(
    random_nets, tmp_path, capsys, shuffled
):
    manifest, out = planted(tmp_path, shuffled=shuffled), tmp_path / "out"
    assert (
        main(
            [
                "senses",
                "face",
                "--manifest",
                str(manifest),
                "--folds",
                "3",
                "--scores",
                "head",
                "--out",
                str(out),
            ]
        )
        == 0
    )
    systems = json.loads((out / "metrics.json").read_text())["systems"]
    for name in ("head", "pixels"):
        assert (systems[name]["accuracy"]["value"] > 0.9) == (not shuffled), name
    assert "6 speakers" in systems["head"]["units"] and "6 speakers" in capsys.readouterr().out
    if not shuffled:
        rows, _ = read_scores(out / "scores.jsonl")
        assert len(rows) == 36
        kept = load_sense(out)
        reading = kept.read(read_moments(manifest)[:4])
        assert [SEVEN[k] for k in reading.scores.argmax(1)] == ["happy", "happy", "sad", "sad"]
        assert kept.kind == "face" and reading.features[0].shape == (1, kept.width)
        files = {
            "sense.json",
            "head.safetensors",
            "metrics.json",
            "scores.jsonl",
            "confusion.png",
            "run.json",
        }
        assert files == {path.name for path in out.iterdir()}


def test_no_subject_is_in_two_parts_and_each_is_tested_once(tmp_path):
    manifest = planted(tmp_path)
    moments = read_moments(manifest)
    speakers = [m.speaker for m in moments]
    splits = splits_of(FaceConfig(manifest=str(manifest), folds=3, out=""), [moments])
    for split in splits:
        parts = [{speakers[i] for i in part} for part in split]
        assert all(parts) and not (parts[0] & parts[1] or parts[0] & parts[2] or parts[1] & parts[2])
    assert sorted(i for split in splits for i in split[2]) == list(range(36))


def test_parts_of_their_own_and_where_emotions_lack_the_nets_own_scores(random_nets, tmp_path, capsys):
    manifest, out, words = planted(tmp_path, subjects=3), tmp_path / "out", ["--out", str(tmp_path / "out")]
    for k, part in enumerate(("manifest", "dev", "test")):
        own = [line for line in manifest.read_text().splitlines(True) if f'"S{k}"' in line]
        (tmp_path / f"{part}.jsonl").write_text("".join(own))
        words += [f"--{part}", str(tmp_path / f"{part}.jsonl")]
    assert main(["senses", "face", *words]) == 0
    kept = load_sense(out)
    reading = kept.read(read_moments(manifest)[:3])
    logits = torch.stack([faces[0, -7:] for faces in reading.features])
    assert np.allclose(reading.scores, logits.softmax(-1).numpy(), atol=1e-5)
    words[-1] = words[-3]
    assert main(["senses", "face", *words]) == 2
    assert "share 1 speaker(s): S1; split by speaker" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--manifest", "gone", "--folds", "3"], "gone: no such file"),
        (["--manifest", "M"], "give --dev and --test, or --folds of 3 or more"),
        (["--manifest", "M", "--folds", "2"], "give --dev and --test, or --folds of 3 or more"),
        (["--manifest", "M", "--folds", "3", "--dev", "M"], "dev and test are made by it"),
        (["--manifest", "M", "--folds", "7"], "6 speakers are too few for 7 folds"),
    ],
)
def test_mistakes_are_told_before_anything_is_read(random_nets, words, told, tmp_path, capsys):
    manifest = str(planted(tmp_path))
    words = [manifest if word == "M" else word for word in words]
    assert main(["senses", "face", *words, "--out", str(tmp_path / "out")]) == 2
    assert told in capsys.readouterr().err and not (tmp_path / "out").exists()
