"""Data sets: files of every kind, files that are wrong, binarisation and dequantisation."""

from __future__ import annotations

import gzip
import re
import struct
import zipfile

import numpy as np
import pytest
import torch

from pyro_nfvi.errors import DataError, FileError, OptionError
from pyro_nfvi.vae import (
    Bernoulli,
    Categorical,
    Gaussian,
    LogitNormal,
    binarize,
    choose_preparation,
    load_data,
)
from pyro_nfvi.vae._idx import read_idx
from pyro_nfvi.vae._pixels import dequantize
from pyro_nfvi.vae.train._command import architecture_of
from pyro_nfvi.vae.train._options import Options

rng = np.random.RandomState(0)
GREY = rng.randint(0, 256, (30, 4, 6)).astype(np.uint8)
LABELS = rng.randint(0, 3, 30)


def idx_bytes(array):
    head = struct.pack(">BBBB", 0, 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    return head + array.astype(np.uint8).tobytes()


def npz(path, **arrays):
    np.savez_compressed(path, **arrays)
    return path


def test_digits_need_no_file():
    data = load_data("digits")
    assert data.shape == (8, 8)
    assert data.levels == 17
    assert (len(data.train), len(data.valid), len(data.test)) == (1297, 250, 250)
    assert data.num_labels == 10
    again = load_data("digits")
    assert torch.equal(data.test, again.test)


def test_npz_with_all_parts_and_labels(tmp_path):
    path = npz(
        tmp_path / "a.npz", x_train=GREY[:20], x_val=GREY[20:25], x_test=GREY[25:],
        y_train=LABELS[:20], y_val=LABELS[20:25], y_test=LABELS[25:], meta="anything",
    )  # fmt: skip
    data = load_data(path)
    assert torch.equal(data.valid, torch.from_numpy(GREY[20:25]))
    assert data.labels is not None
    assert data.labels[2].tolist() == LABELS[25:].tolist()
    assert (data.levels, data.num_labels) == (256, 3)


def test_missing_parts_are_split_off(tmp_path):
    data = load_data(npz(tmp_path / "b.npz", x_train=GREY[:24], x_test=GREY[24:]))
    assert torch.equal(data.valid, torch.from_numpy(GREY[20:24]))  # the last sixth
    assert data.labels is None
    whole = load_data(npz(tmp_path / "c.npz", x=GREY, y=LABELS))
    parts = torch.cat([whole.train, whole.valid, whole.test])
    assert sorted(map(bytes, parts.numpy())) == sorted(map(bytes, GREY))
    assert whole.labels is not None
    assert [len(y) for y in whole.labels] == [24, 3, 3]
    other = load_data(tmp_path / "c.npz", seed=1)
    assert not torch.equal(other.train, whole.train)


def test_shapes_and_types_are_brought_into_one_form(tmp_path):
    channel = load_data(npz(tmp_path / "d.npz", x=GREY[..., None]))
    assert channel.shape == (4, 6)
    flat = load_data(
        npz(tmp_path / "e.npz", x=GREY[:, :2, :2].reshape(30, 4)), shape=(2, 2), levels=256
    )
    assert flat.shape == (2, 2)
    assert load_data(npz(tmp_path / "f.npz", x=(GREY > 99).astype(float))).levels == 2
    assert load_data(npz(tmp_path / "g.npz", x=GREY > 99)).levels == 2
    assert load_data(npz(tmp_path / "h.npz", x=GREY.astype(float))).levels == 256
    real = load_data(npz(tmp_path / "i.npz", x=GREY / 200.3))
    assert real.levels == 0
    assert real.train.dtype == torch.float32


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_idx_files_and_folders(tmp_path, pack):
    suffix = ".gz" if pack is gzip.compress else ""
    names = {
        "train-images-idx3-ubyte": GREY[:24], "train-labels-idx1-ubyte": LABELS[:24],
        "t10k-images-idx3-ubyte": GREY[24:], "t10k-labels-idx1-ubyte": LABELS[24:],
    }  # fmt: skip
    for name, values in names.items():
        (tmp_path / (name + suffix)).write_bytes(pack(idx_bytes(values)))
    data = load_data(tmp_path)
    assert torch.equal(data.test, torch.from_numpy(GREY[24:]))
    assert [len(part) for part in (data.train, data.valid, data.test)] == [20, 4, 6]
    assert data.labels is not None
    one = load_data(tmp_path / f"train-images-idx3-ubyte{suffix}")
    assert len(one.train) + len(one.valid) + len(one.test) == 24
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx_bytes(GREY[:24]))  # packed or not
    assert torch.equal(load_data(tmp_path).train, data.train)
    (tmp_path / "letters-train-images-idx3-ubyte").write_bytes(idx_bytes(GREY))
    with pytest.raises(DataError, match="folder of its own"):
        load_data(tmp_path)


def test_wrong_and_truncated_files_say_so(tmp_path):
    good = npz(tmp_path / "good.npz", x=GREY)
    cut = tmp_path / "cut.npz"
    cut.write_bytes(good.read_bytes()[:-200])
    harmed = bytearray(good.read_bytes())
    harmed[200:400] = bytes(200)
    (tmp_path / "harmed.npz").write_bytes(bytes(harmed))
    (tmp_path / "text.npz").write_text("hello")
    packed = gzip.compress(idx_bytes(GREY))
    (tmp_path / "a-idx3-ubyte.gz").write_bytes(packed[:-30])
    (tmp_path / "b-idx3-ubyte").write_bytes(idx_bytes(GREY)[:-5])
    (tmp_path / "c-idx3-ubyte").write_bytes(b"GIF8")
    (tmp_path / "d-idx3-ubyte").write_bytes(idx_bytes(GREY) + b"x")
    (tmp_path / "e-idx3-ubyte").write_bytes(idx_bytes(GREY)[:9])
    npz(tmp_path / "objects.npz", x=np.array([{"a": 1}], dtype=object))
    cases = {
        "missing.npz": "no file", "cut.npz": "truncated", "harmed.npz": "damaged",
        "text.npz": "no npz", "a-idx3-ubyte.gz": "truncated", "b-idx3-ubyte": "truncated",
        "c-idx3-ubyte": "no idx file", "d-idx3-ubyte": "longer", "e-idx3-ubyte": "header",
        "objects.npz": "objects",
    }  # fmt: skip
    for name, hint in cases.items():
        with pytest.raises(FileError, match=hint):
            load_data(tmp_path / name)
    with pytest.raises(FileError, match="no file"):
        read_idx(tmp_path / "nothing-idx")


@pytest.mark.parametrize(
    ("arrays", "hint"),
    [
        ({"foo": GREY, "bar": GREY}, r"foo \(30, 4, 6\) uint8, bar .* Understood are x_train"),
        ({"X_train": GREY, "x_train": GREY[:9]}, r"several .* x_train \(9, 4, 6\)"),
        ({"x_train": GREY, "train_images": GREY}, "several .* train images"),
        ({"images": GREY, "data": GREY}, "several arrays that can be the images: images"),
        ({"x": GREY, "x_test": GREY}, "Call the training images x_train"),
        ({"x": GREY[:0]}, "at least 3"),
        ({"x_train": GREY[:0], "x_val": GREY, "x_test": GREY}, "empty"),
        ({"x": np.full((9, 2, 2), np.nan)}, "not finite"),
        ({"x": GREY.astype(np.int64) - 5}, "0 to 255"),
        ({"x": np.full((9, 2, 2), "a")}, "not numbers"),
        ({"x_train": GREY, "x_val": GREY[:, :2], "x_test": GREY}, "differ in shape"),
        ({"x_train": GREY, "x_test": GREY / 255}, r"255 \(uint8\), .* test up to 1 \(float64\)"),
        ({"x_train": GREY.astype(float), "x_test": GREY / 255}, "different scales"),
        ({"x_train": GREY % 10, "x_test": GREY / 300}, "different scales"),
        ({"x_train": GREY, "x_test": GREY > 99}, r"different scales.* test up to 1 \(bool\)"),
    ],
)
def test_images_that_cannot_be_used_are_refused(tmp_path, arrays, hint):
    with pytest.raises(DataError, match=hint):
        load_data(npz(tmp_path / "x.npz", **arrays))
    with pytest.raises(DataError, match=hint):
        load_data(tmp_path)  # a folder with one file
    (tmp_path / "x.npz").unlink()
    with pytest.raises(DataError, match="idx"):
        load_data(tmp_path)


@pytest.mark.parametrize(
    ("labels", "hint"),
    [
        (LABELS - 7, "down to -7"),
        (LABELS[:7], r"shape \(7,\) for 30 images"),
        (np.float32(3), r"shape \(\) for 30 images"),
        (np.eye(3)[LABELS], "argmax"),
        (LABELS.astype(str), "np.unique"),
        (LABELS.astype(float), "float64 and not integers"),
        (LABELS + 1_000_000, "below 10000"),
        (np.array([{}] * 30), "objects"),
    ],
)
@pytest.mark.parametrize("part", ["", "_train"])
def test_labels_that_cannot_be_used_are_left_out_with_the_reason(tmp_path, labels, hint, part):
    data = load_data(npz(tmp_path / "x.npz", **{f"x{part}": GREY, f"y{part}": labels}))
    assert data.labels is None
    assert re.search(hint, data.no_labels)
    with pytest.raises(OptionError, match=hint):
        architecture_of(Options(conditional=True), data)
    assert architecture_of(Options(), data).condition_dim == 0


def test_labels_of_all_parts_or_none(tmp_path):
    for labels in (LABELS > 1, LABELS[:, None].astype(">i8")):
        whole = load_data(npz(tmp_path / "x.npz", x=GREY, y=labels)).labels
        assert whole is not None
        assert torch.cat(whole).bincount().tolist() == np.bincount(labels.ravel()).tolist()
    data = load_data(npz(tmp_path / "x.npz", x_train=GREY, x_test=GREY, y_train=LABELS))
    assert data.labels is None
    assert "no y_test" in data.no_labels


def test_a_validation_set_is_kept_where_the_test_set_is_missing(tmp_path):
    data = load_data(npz(tmp_path / "x.npz", x_train=GREY[:20], x_val=GREY[20:]))
    assert torch.equal(data.valid, torch.from_numpy(GREY[20:]))
    rest = torch.cat([data.train, data.test]).numpy()
    assert len(data.test) == 2
    assert sorted(map(bytes, rest)) == sorted(map(bytes, GREY[:20]))
    with pytest.raises(DataError, match="1 training images"):
        load_data(npz(tmp_path / "x.npz", x_train=GREY[:1], x_test=GREY))


@pytest.mark.parametrize(
    "more",
    [
        {"y_train": np.array([{}] * 30)},
        {"y_train": LABELS, "Y_train": LABELS},
        {"y_train": LABELS, "data": np.array([{}])},
        {"data": np.array("a note")},
        {"y_train": LABELS, "y_test": LABELS.astype(str), "targets": np.array("a note")},
    ],
)
def test_arrays_that_are_not_needed_stop_nothing(tmp_path, more):
    data = load_data(npz(tmp_path / "x.npz", x_train=GREY, **more))
    assert data.shape == GREY.shape[1:]
    wrong = "Y_train" in more or ("y_train" in more and more["y_train"].dtype == object)
    assert bool(data.no_labels) == wrong
    assert (data.labels is not None) == ("y_train" in more and not wrong)


@pytest.mark.parametrize(
    ("name", "content", "hint"),
    [
        ("x.npy", b"\x93NUMPY\x01\x00\xff\xff" + b"a" * 65535, "damaged"),
        ("x.npy", b"\x93NUMPY garbage", "damaged"),
        ("x.npy", b"garbage", "'x' is no array"),
        ("note.txt", b"hello", "'note.txt' is no array"),
    ],
)
def test_garbage_within_a_zip_file_is_called_so(tmp_path, name, content, hint):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as file:
        file.writestr(name, content)
    with pytest.raises(FileError, match=hint) as caught:
        load_data(tmp_path / "a.npz")
    assert "objects" not in str(caught.value)


def test_names_and_kinds_of_files(tmp_path):
    parts = {"train_images": GREY[:20], "val_images": GREY[20:23], "test_images": GREY[23:]}
    data = load_data(npz(tmp_path / "my_idx_data.npz", **parts))
    assert [len(part) for part in (data.train, data.valid, data.test)] == [20, 3, 7]
    assert len(load_data(npz(tmp_path / "a.npz", Xtrain=GREY[:20], X_TEST=GREY[20:])).test) == 10
    assert load_data(npz(tmp_path / "b.npz", mine=GREY)).shape == GREY.shape[1:]
    (tmp_path / "images.bin").write_bytes(idx_bytes(GREY))
    (tmp_path / "images.gz").write_bytes(gzip.compress(idx_bytes(GREY)))
    for name in ("images.bin", "images.gz"):
        assert load_data(tmp_path / name).shape == GREY.shape[1:]
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    (raw / "train-images-idx3-ubyte").write_bytes(idx_bytes(GREY))
    assert load_data(raw.parent).shape == GREY.shape[1:]
    with zipfile.ZipFile(tmp_path / "plain.npz", "w") as file:
        file.writestr("x", "hello")
    with pytest.raises(FileError, match="no array"):
        load_data(tmp_path / "plain.npz")


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_grey_images_between_0_and_1_are_read_as_the_levels_that_they_are(tmp_path, dtype):
    data = load_data(npz(tmp_path / "x.npz", x_train=GREY.astype(dtype) / 255))
    assert data.levels == 256
    whole = np.concatenate([data.train, data.valid, data.test])
    assert sorted(map(bytes, whole)) == sorted(map(bytes, GREY))


def test_dark_images_in_other_steps_are_no_levels(tmp_path):
    assert load_data(npz(tmp_path / "x.npz", x_train=(GREY % 20) / 256)).levels == 0


@pytest.mark.parametrize(
    ("x", "likelihood"),
    [
        (GREY / 300, LogitNormal()),
        (GREY / 300, Categorical(256)),
        (GREY + 0.4, Bernoulli()),
        (GREY / 127.5 - 1, Bernoulli()),
        (GREY * 17.3 + 5, LogitNormal()),
        (GREY.astype(np.uint16) * 257, None),
        (GREY.astype(int) - 5, None),
        ((GREY.astype(int) - 128).astype(np.int8), None),
    ],
)
def test_the_advice_on_pixels_that_do_not_fit_works(tmp_path, x, likelihood):
    def load(values):
        data = load_data(npz(tmp_path / "x.npz", x=values))
        choose_preparation(data, likelihood or Bernoulli())
        return data

    with pytest.raises((OptionError, DataError)) as caught:
        load(x)
    advice = re.search(r"Save (np\..*?\.astype\(np\.uint8\))", str(caught.value))
    assert advice
    saved = eval(advice[1], {"np": np, "x": x})
    # Order and contrast stay: what was dark is dark.
    assert np.corrcoef(saved.ravel(), GREY.ravel())[0, 1] > 0.9999
    assert load(saved).levels == 256


def test_real_pixels_are_probabilities_of_ink(tmp_path):
    x = np.full((40, 5, 5), 0.3) + 0.001 * GREY[0, 0, 0]
    x[:, 0] = 0.0
    data = load_data(npz(tmp_path / "x.npz", x=x))
    assert data.levels == 0
    made = choose_preparation(data, Bernoulli())
    assert made.kind == "dynamic"
    train, valid, _ = made.images(data)
    drawn = made.draw(train, torch.rand(train.shape, generator=torch.Generator().manual_seed(0)))
    for pixels in (drawn, valid):
        assert set(pixels.unique().tolist()) == {0.0, 1.0}
        assert not pixels[:, 0].any()
    assert not made.log_volume(25)
    for likelihood, hint in ((LogitNormal(), "no density at 0"), (Categorical(256), "uint8")):
        with pytest.raises(OptionError, match=hint):
            choose_preparation(data, likelihood)


def test_fixed_binarisation_is_that_of_the_peers(tmp_path):
    data = load_data(
        npz(tmp_path / "g.npz", x_train=GREY[:20], x_val=GREY[20:25], x_test=GREY[25:])
    )
    np.random.seed(777)  # noqa: NPY002 (how the public codes do it)
    valid = np.random.binomial(1, GREY[20:25] / 255)  # noqa: NPY002
    test = np.random.binomial(1, GREY[25:] / 255)  # noqa: NPY002
    for kind in ("dynamic", "static"):
        preparation = choose_preparation(data, Bernoulli(), kind)
        train, ours_valid, ours_test = preparation.images(data)
        assert np.array_equal(ours_valid, valid)
        assert np.array_equal(ours_test, test)
        assert preparation.noisy == (kind == "dynamic")
    assert set(train.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(binarize(data.valid), ours_valid)


def test_dynamic_pixels_have_the_right_probability():
    x = torch.tensor([0, 51, 128, 255], dtype=torch.uint8).expand(40_000, 4)
    data = load_data("digits")
    drawn = choose_preparation(data, Bernoulli())
    values = type(drawn)("dynamic", 256).draw(x, torch.rand(x.shape)).mean(0)
    assert values[0] == 0
    assert values[3] == 1
    # sd below 0.0025: 5 sigma on two numbers, false alarm < 2e-6.
    torch.testing.assert_close(values[1:3], torch.tensor([0.2, 128 / 255]), atol=0.0125, rtol=0)


def test_dequantised_pixels_stay_in_their_cell_and_inside():
    x = torch.arange(256).expand(50, 256)
    for margin in (0.0, 1e-4):
        y = dequantize(x, 256, seed=3, margin=margin)
        back = ((y - margin) / (1 - 2 * margin) * 256).floor()
        assert float((back != x).double().mean()) < (1e-9 if margin == 0 else 2e-3)  # rounding
        assert bool(((y >= margin) & (y < 1)).all())
    digits = load_data("digits")
    preparation = choose_preparation(digits, LogitNormal())
    LogitNormal().check(preparation.images(digits)[1])
    drawn = preparation.draw(digits.train, torch.rand(digits.train.shape))
    LogitNormal().check(drawn)
    # A uniform density has exactly the probability 1/17 per pixel.
    uniform = choose_preparation(digits, Gaussian()).log_volume(64)
    assert uniform == pytest.approx(-64 * np.log(17))


def test_preparations_that_do_not_fit_are_refused(tmp_path):
    digits = load_data("digits")
    binary = load_data(npz(tmp_path / "b.npz", x=GREY > 99))
    real = load_data(npz(tmp_path / "r.npz", x=GREY / 200.3))
    assert choose_preparation(binary, Bernoulli()).kind == "as-is"
    assert choose_preparation(digits, Categorical(17)).kind == "as-is"
    assert choose_preparation(real, Gaussian()).kind == "as-is"
    for data, likelihood, kind in (
        (real, Bernoulli(), "auto"), (real, Categorical(17), "auto"),
        (digits, Bernoulli(), "as-is"),
        (binary, Gaussian(), "dynamic"), (digits, Bernoulli(), "sometimes"),
    ):  # fmt: skip
        with pytest.raises(OptionError):
            choose_preparation(data, likelihood, kind)
    with pytest.raises(DataError, match="integers"):
        binarize(torch.rand(3, 2))
    with pytest.raises(DataError, match="integers"):
        dequantize(torch.tensor([[300]]))


@pytest.mark.parametrize(
    ("array", "told"),
    [
        (rng.poisson(3.0, (30, 16)), ("shape (4,4 for square images", "levels (2 for 0/1")),
        (rng.randn(30, 7), ("7 for rows that are no pictures", "real numbers")),
        (rng.randint(0, 2, (30, 64)).astype(bool), ("8,8", "(bool)")),
        (rng.randint(0, 256, (30, 784)).astype(np.uint8), ("28,28", "256 for 8 bits")),
        (rng.rand(30, 1), ("1 for rows", "--levels")),
    ],
)
def test_nothing_is_guessed_from_a_table(tmp_path, array, told):
    path = npz(tmp_path / "x.npz", x=array)
    width = array.shape[1]
    for given, missing in (
        ({}, True), ({"shape": (width,)}, True), ({"levels": 0}, True),
        ({"shape": (width,), "levels": 0}, False),
    ):  # fmt: skip
        if missing:
            with pytest.raises(DataError, match=f"rows of {width} numbers") as caught:
                load_data(path, **given)
            if not given:
                assert all(text in str(caught.value) for text in told)
        else:
            data = load_data(path, **given)
            assert (data.shape, data.levels) == ((width,), 0)
    for more in (array[:, None], array[..., None], array[:, None, :, None]):  # rows still
        with pytest.raises(DataError, match=f"rows of {width} numbers"):
            load_data(npz(tmp_path / "z.npz", x=more))
    (tmp_path / "y-idx2-ubyte").write_bytes(idx_bytes(np.abs(array * 3).astype(np.uint8)))
    with pytest.raises(DataError, match="counts or a table"):
        load_data(tmp_path / "y-idx2-ubyte")


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        ({"shape": (5, 5), "levels": 256}, "not that of"),
        ({"shape": (-4, -6), "levels": 256}, "not that of"),
        ({"levels": 17}, "17 levels are integers from 0 to 16; the pixels go from 0 to"),
        ({"levels": 300}, "2 to 256 levels"),
        ({"levels": 1}, "2 to 256 levels"),
    ],
)
def test_what_is_told_of_images_has_to_be_true(tmp_path, given, hint):
    with pytest.raises(DataError, match=hint):
        load_data(npz(tmp_path / "x.npz", x=GREY), **given)
    with pytest.raises(DataError, match="leave shape and levels out"):
        load_data("digits", levels=16)


@pytest.mark.parametrize("levels", [None, 0])
def test_pixels_beyond_float32_are_refused(tmp_path, levels):
    with pytest.raises(DataError, match="beyond the range of float32"):
        load_data(npz(tmp_path / "x.npz", x=GREY * 1e300), levels=levels)


def test_levels_that_are_told_are_not_guessed(tmp_path):
    dark = GREY % 5  # looks like five levels
    path = npz(tmp_path / "x.npz", x=dark)
    assert load_data(path).levels == 5
    assert load_data(path, levels=256).levels == 256
    assert load_data(path, levels=0).train.dtype == torch.float32
    scaled = npz(tmp_path / "y.npz", x=GREY / 255)
    assert torch.equal(load_data(scaled, levels=256).train, load_data(scaled).train)
    assert parse_shape("4,6") == (4, 6)
    with pytest.raises(OptionError, match="28,28"):
        parse_shape("4x6")


def parse_shape(text):
    return Options(shape=text).image_shape
