"""Sounds from folders and tars: what is read, what is named and left out, how a set is divided."""

import io
import re
import tarfile

import numpy as np
import pytest
import soundfile
import torch

from separable import progress
from separable.data import wav
from separable.errors import InputError

NAMES = "(?P<label>[a-z]+)_(?P<speaker>[a-z]+)_(?P<take>[0-9]+)"


def encode(samples, rate=8000, kind="WAV", subtype="PCM_16"):
    file = io.BytesIO()
    soundfile.write(file, np.asarray(samples), rate, format=kind, subtype=subtype)
    return file.getvalue()


def tone(seconds=0.1, rate=8000, hz=440.0):
    return 0.5 * np.sin(2 * np.pi * hz * np.arange(int(seconds * rate)) / rate)


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "sounds"
    for label in ("yes", "no"):
        for take in range(12):
            file = place / "deep" / f"{label}_{'ann' if take % 2 else 'bob'}_{take}.wav"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(encode(tone(hz=300 + 20 * take)))
    return place


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tar.xz"])
def test_a_tar_gives_what_its_folder_gives(folder, tmp_path, suffix):
    path = tmp_path / f"sounds{suffix}"
    with tarfile.open(path, f"w:{suffix[5:]}") as tar:
        tar.add(folder, "sounds")
    plain, packed = wav.read(folder, NAMES), wav.read(path, NAMES)
    assert [f"sounds/{clip.name}" for clip in plain.clips] == [clip.name for clip in packed.clips]
    assert plain.labels == packed.labels == ["no", "yes"]
    assert plain.rate == packed.rate == 8000
    for a, b in zip(plain.clips, packed.clips, strict=True):
        assert a.parts == b.parts
        assert torch.equal(a.samples, b.samples)
    torch.testing.assert_close(plain.clips[0].samples.double(), torch.tensor(tone(hz=320)), atol=1 / 32768, rtol=0)


def test_class_folders_need_no_pattern(tmp_path):
    for label in ("left", "right"):
        (tmp_path / label).mkdir()
        (tmp_path / label / "0.flac").write_bytes(encode(tone(), kind="FLAC"))
    (tmp_path / "left" / ".hidden.wav").write_bytes(b"")
    (tmp_path / "left" / "readme.txt").write_text("words")
    found = wav.read(tmp_path)
    assert [clip.parts for clip in found.clips] == [{"label": "left"}, {"label": "right"}]
    assert found.skipped == []


def bad_files():
    whole = encode(tone())
    return {
        "yes_ann_90.wav": (b"", "is empty (0 bytes)"),
        "yes_ann_91.wav": (whole[: len(whole) // 2], "is cut short"),
        "yes_ann_92.wav": (b"RIFF" + b"\0" * 4 + b"not a sound" * 9, "cannot be decoded"),
        "yes_ann_93.wav": (encode(np.zeros(0)), "has no samples"),
        "yes_ann_94.wav": (encode([0.0, np.nan], subtype="FLOAT"), "has samples that are no numbers"),
        "what.wav": (whole, "has a path that does not fit"),
    }


@pytest.mark.parametrize("name", bad_files())
def test_a_bad_file_is_named_and_left_out_or_refused(folder, name, capsys):
    content, reason = bad_files()[name]
    (folder / name).write_bytes(content)
    with progress.shown():
        found = wav.read(folder, NAMES)
    assert len(found.clips) == 24
    assert [file for file, _ in found.skipped] == [name]
    assert reason in found.skipped[0][1]
    told = capsys.readouterr().err
    assert f"skipped {name}: " in told
    assert "1 of 25 sounds could not be used" in told
    with pytest.raises(InputError, match=re.escape(name)) as raised:
        wav.read(folder, NAMES, strict=True)
    assert reason in str(raised.value)


def test_a_length_that_the_recorder_did_not_know_is_no_damage(folder):
    content = bytearray(encode(tone()))
    content[4:8] = b"\xff" * 4
    (folder / "yes_ann_90.wav").write_bytes(content)
    assert wav.read(folder, NAMES).skipped == []


def test_other_rates_are_resampled_counted_and_told(folder, capsys):
    (folder / "no_eve_1.wav").write_bytes(encode(tone(rate=16000), 16000))
    with progress.shown():
        found = wav.read(folder, NAMES)
    assert (found.rate, found.resampled) == (8000, {16000: 1})
    assert "resampled to 8000 Hz: 1 of 16000 Hz" in capsys.readouterr().err
    clip = next(clip for clip in found.clips if clip.name == "no_eve_1.wav")
    middle = slice(100, 700)
    torch.testing.assert_close(clip.samples.double()[middle], torch.tensor(tone())[middle], atol=2e-3, rtol=0)
    asked = wav.read(folder, NAMES, rate=16000)
    assert (asked.rate, asked.resampled) == (16000, {8000: 24})
    assert {len(clip.samples) for clip in asked.clips} == {1600}


def test_several_channels_become_their_mean(tmp_path):
    left, right = tone(hz=300), tone(hz=900)
    (tmp_path / "a_b_1.wav").write_bytes(encode(np.stack([left, right], 1), subtype="FLOAT"))
    found = wav.read(tmp_path, NAMES).clips[0].samples
    torch.testing.assert_close(found.double(), torch.tensor((left + right) / 2), atol=1e-6, rtol=0)


def test_conditions_divide_a_set(folder):
    sounds = wav.read(folder, NAMES)
    parts = sounds.divide(test="take=0-3", valid="speaker=ann,eve")
    assert {name: len(clips) for name, clips in parts.items()} == {"test": 8, "valid": 8, "rest": 8}
    assert {int(clip.parts["take"]) for clip in parts["test"]} == {0, 1, 2, 3}
    assert {clip.parts["speaker"] for clip in parts["rest"]} == {"bob"}


def test_a_share_stays_where_it_is_when_others_come(folder):
    before = {clip.name for clip in wav.read(folder, NAMES).divide(valid="40%")["valid"]}
    assert 3 <= len(before) <= 17  # 24 names, 40 of 100 each
    for take in range(20, 40):
        (folder / f"no_eve_{take}.wav").write_bytes(encode(tone()))
    after = {clip.name for clip in wav.read(folder, NAMES).divide(valid="40%")["valid"]}
    assert {name for name in after if "_eve_" not in name} == before


def test_shares_lie_beside_each_other(folder):
    sounds = wav.read(folder, NAMES)
    both = {clip.name for clip in sounds.divide(valid="80%")["valid"]}
    parts = sounds.divide(test="40%", valid="40%")
    test, valid = ({clip.name for clip in parts[name]} for name in ("test", "valid"))
    assert test | valid == both
    assert not test & valid


@pytest.mark.parametrize("text", ["take", "room=1", "", "10 %"])
def test_a_condition_that_is_none_is_refused(folder, text):
    with pytest.raises(InputError, match="one of label, speaker, take"):
        wav.read(folder, NAMES).divide(valid=text)


def test_a_condition_that_nothing_meets_is_refused(folder):
    with pytest.raises(InputError, match="test = take=50-60: no sound of"):
        wav.read(folder, NAMES).divide(test="take=50-60")


def test_what_cannot_be_read_at_all_is_told_in_a_sentence(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        wav.read(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"holds no sound that can be used \(no \.flac, \.ogg, \.wav\)"):
        wav.read(tmp_path)
    (tmp_path / "x_y_1.wav").write_bytes(b"")
    with pytest.raises(InputError, match=r"x_y_1\.wav is empty"):
        wav.read(tmp_path, NAMES)
    (tmp_path / "broken.tar").write_bytes(b"no tar at all")
    with pytest.raises(InputError, match="is no readable tar"):
        wav.read(tmp_path / "broken.tar")
    with pytest.raises(InputError, match="is no regular expression"):
        wav.read(tmp_path, "(?P<label>")
    with pytest.raises(InputError, match="must have a group"):
        wav.read(tmp_path, "[a-z]+")
    (tmp_path / "x_y_1.wav").write_bytes(encode(tone()))
    with pytest.raises(InputError, match="rate = 0: must be at least 1"):
        wav.read(tmp_path, NAMES, rate=0)
