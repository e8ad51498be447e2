"""The user's own images and tables: what is read, what is kept, and every wrong use in a sentence."""

import gzip
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tyro
from PIL import Image

from experiments.config import TrainConfig
from experiments.data import DataError, OwnOptions, images, load
from experiments.data.cache import PART
from experiments.data.dataset import classes_of, held_out, numbered
from experiments.data.idx import encode_idx
from experiments.data.pixels import read_image
from experiments.harness.cli import UserError

ROOT = Path(__file__).parents[2]
RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache folder of the test's own."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("CREST_JAX_CACHE", str(folder))
    return folder


def save(path, pixels, mode=None, **more):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.asarray(pixels, np.uint8))
    (image if mode is None else image.convert(mode)).save(path, **more)


def noise(*shape):
    return RNG.integers(0, 256, shape, dtype=np.uint8)


def colours(folder, counts, size=(6, 5), ending=".png"):
    """Random colour images: folders of classes with so many files; returns pixels by relative path."""
    found = {}
    for name, count in counts.items():
        for number in range(count):
            path = folder / name / f"{number:03d}{ending}"
            found[str(path.relative_to(folder))] = noise(*size, 3)
            save(path, found[str(path.relative_to(folder))])
    return found


def read(folder, name="images", **options):
    return load(name, Path(folder), OwnOptions(**options))


# Images


def test_images_lie_in_folders_of_classes(tmp_path):
    train = colours(tmp_path / "d" / "train", {"dog": 2, "cat": 3})
    test = colours(tmp_path / "d" / "test", {"cat": 1, "dog": 1})
    (tmp_path / "d" / "train" / ".DS_Store").write_text("")
    (tmp_path / "d" / ".hidden").mkdir()
    data = read(tmp_path / "d")
    assert data.class_names == ("cat", "dog")
    assert data.augment
    assert data.feature_names is None
    for pixels, inputs, labels in (
        (train, data.train_inputs, data.train_labels),
        (test, data.test_inputs, data.test_labels),
    ):
        names = sorted(pixels)
        np.testing.assert_array_equal(inputs, [pixels[name] for name in names])
        np.testing.assert_array_equal(labels, [name.startswith("dog") for name in names])
        assert labels.dtype == np.int32
    whole = data.train_inputs.reshape(-1, 3).astype(np.float64)
    np.testing.assert_allclose(data.mean, whole.mean(0), rtol=1e-12)
    np.testing.assert_allclose(data.std, whole.std(0), rtol=1e-12)
    assert data.validation_inputs is None


def test_a_jpeg_is_what_pillow_reads_and_endings_may_be_large(tmp_path):
    for number, ending in enumerate((".jpg", ".JPEG", ".webp", ".PNG")):
        for name in ("0", "10", "9"):
            save(tmp_path / "d" / name / f"{number}{ending}", noise(8, 8, 3))
    data = read(tmp_path / "d")
    assert data.class_names == ("0", "9", "10"), "numbers are ordered by value"
    files = sorted((tmp_path / "d" / "9").iterdir())
    kept = [np.asarray(Image.open(path)).tobytes() for path in files]
    found = [*data.train_inputs[data.train_labels == 1], *data.test_inputs[data.test_labels == 1]]
    assert sorted(image.tobytes() for image in found) == sorted(kept)


def test_rows_are_held_out_by_class_and_always_the_same(tmp_path):
    pixels = colours(tmp_path / "d", {"a": 20, "b": 10, "c": 2}, size=(2, 2))
    data = read(tmp_path / "d")
    assert np.bincount(data.train_labels).tolist() == [16, 8, 1]
    assert np.bincount(data.test_labels).tolist() == [4, 2, 1]
    tuned = read(tmp_path / "d", validation=True)
    assert np.bincount(tuned.validation_labels).tolist() == [1, 1]
    assert np.bincount(tuned.train_labels).tolist() == [15, 7, 1]
    np.testing.assert_array_equal(tuned.test_inputs, data.test_inputs)
    dealt = [*tuned.train_inputs, *tuned.validation_inputs, *tuned.test_inputs]
    assert sorted(map(bytes, dealt)) == sorted(map(bytes, pixels.values())), "each row once"
    whole = tuned.train_inputs.reshape(-1, 3).astype(np.float64)
    np.testing.assert_allclose(tuned.mean, whole.mean(0), rtol=1e-12)
    assert read(tmp_path / "d").sha256 == data.sha256 != tuned.sha256
    colours(tmp_path / "e" / "train", {"a": 3, "b": 3})
    own = colours(tmp_path / "e" / "validation", {"a": 1, "b": 2})
    assert len(read(tmp_path / "e").validation_labels) == len(own), "a folder of its own is taken"


@pytest.mark.parametrize("every", [2, 5, 10])
def test_each_class_gives_its_share(every):
    labels = np.repeat(np.arange(13), np.arange(13))
    for label in range(1, 13):
        own = held_out(labels, every, 0)[labels == label].sum()
        assert own == max(label // every, 1 if label > 1 else 0)


TURNED = {
    1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1), 6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1), 8: lambda a: np.rot90(a), 9: lambda a: a,
}  # fmt: skip


@pytest.mark.parametrize("tag", TURNED)
def test_a_photo_stands_upright(tmp_path, tag):
    pixels, exif = noise(4, 6, 3), Image.Exif()
    exif[0x0112] = tag
    save(tmp_path / "a.png", pixels, exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), TURNED[tag](pixels))


def test_every_kind_of_pixel_becomes_grey_or_colour(tmp_path):
    grey, colour, alpha = noise(4, 6), noise(4, 6, 3), noise(4, 6)

    def back(name, image):
        image.save(tmp_path / name)
        return read_image(tmp_path / name)

    np.testing.assert_array_equal(back("l.png", Image.fromarray(grey))[..., 0], grey)
    one = back("1.png", Image.fromarray(grey > 127))
    np.testing.assert_array_equal(one[..., 0], np.where(grey > 127, 255, 0))
    deep = RNG.integers(0, 2**16, (4, 6)).astype(np.uint16)
    np.testing.assert_array_equal(back("16.png", Image.fromarray(deep))[..., 0], deep // 256)
    few = colour // 128 * 128  # eight colours
    palette = back("p.png", Image.fromarray(few).quantize(8, method=Image.Quantize.MAXCOVERAGE))
    np.testing.assert_allclose(palette.astype(int), few, atol=1)
    over = colour * (alpha / 255)[..., None] + 255 - alpha[..., None].astype(float)
    mixed = back("a.png", Image.fromarray(np.dstack([colour, alpha])))
    np.testing.assert_allclose(mixed.astype(float), over, atol=1)
    with_grey = back("la.png", Image.fromarray(np.dstack([grey, alpha])))
    assert with_grey.shape == (4, 6, 1)
    np.testing.assert_allclose(with_grey[..., 0], grey * (alpha / 255) + 255.0 - alpha, atol=1)
    clear = Image.fromarray(few).quantize(8)
    clear.info["transparency"] = bytes(8)  # each colour of the palette is clear
    assert (back("t.png", clear) == 255).all()
    assert back("c.jpg", Image.fromarray(colour).convert("CMYK")).shape == (4, 6, 3)


def test_grey_stays_grey_until_one_image_has_colour(tmp_path):
    for name in ("a", "b"):
        for number in range(3):
            save(tmp_path / "d" / name / f"{number}.png", noise(4, 4))
    data = read(tmp_path / "d")
    assert data.train_inputs.shape == (4, 4, 4, 1)
    assert len(data.mean) == 1
    assert not data.augment
    save(tmp_path / "d" / "a" / "3.png", noise(4, 4, 3))
    mixed = read(tmp_path / "d")
    assert mixed.train_inputs.shape[1:] == (4, 4, 3)
    kept = mixed.train_inputs[mixed.train_labels == 1]
    assert (kept == kept[..., :1]).all(), "grey in three equal channels"


def test_images_come_to_one_size(tmp_path):
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, 20:40] = 200  # the middle square
    save(tmp_path / "d" / "a" / "0.png", wide)
    save(tmp_path / "d" / "a" / "1.jpg", np.full((400, 800, 3), 90))  # decoded at an eighth
    for number in range(2):
        save(tmp_path / "d" / "b" / f"{number}.png", np.full((10 + number, 30, 3), 50))
    crop = read(tmp_path / "d", image_size=(10, 10))
    both = [*crop.train_inputs, *crop.test_inputs]
    assert {image.shape for image in both} == {(10, 10, 3)}
    means = sorted(round(image.mean()) for image in both)
    assert means == pytest.approx([50, 50, 90, 200], abs=3)
    stretched = read_image(tmp_path / "d" / "a" / "0.png", (10, 30), "stretch")
    assert stretched[:, :8].max() < 20
    assert stretched[:, 12:18].min() > 180
    np.testing.assert_array_equal(read_image(tmp_path / "d" / "a" / "0.png", (20, 60)), wide)
    middle = read_image(tmp_path / "d" / "a" / "0.png", (20, 40))
    np.testing.assert_array_equal(middle, wide[:, 10:50])


# Their cache


def test_the_cache_is_read_until_something_changes(tmp_path, cache, monkeypatch, capsys):
    folder = tmp_path / "d"
    colours(folder / "train", {"a": 3, "b": 3})
    colours(folder / "test", {"a": 1, "b": 1})
    decoded = []

    def counting(paths, options, title):
        decoded.append(len(paths))
        return images_decode(paths, options, title)

    images_decode = images.decode
    monkeypatch.setattr(images, "decode", counting)
    first, second = read(folder), read(folder)
    assert decoded == [8]
    assert first.sha256 == second.sha256
    np.testing.assert_array_equal(first.train_inputs, second.train_inputs)
    assert "made again" not in capsys.readouterr().err

    path = folder / "train" / "a" / "000.png"
    times = path.stat()
    save(path, noise(6, 5, 3))
    changed = read(folder)
    assert changed.sha256 != first.sha256, "other pixels"
    assert "was made of other data or settings; it is made again." in capsys.readouterr().err
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns - 10**9))
    assert read(folder).sha256 == changed.sha256, "another time alone changes no row"
    path.rename(path.with_name("zzz.png"))
    assert read(folder).sha256 != changed.sha256, "another order"
    assert len(decoded) == 4
    read(folder, image_size=(4, 4))
    read(folder, image_size=(4, 4), image_fit="stretch")
    read(folder)
    assert len(decoded) == 6, "options have a file each"
    monkeypatch.setattr(images, "decoder", lambda: "another version")
    read(folder)
    assert len(decoded) == 7
    assert sorted(path.suffix for path in (cache / "images").iterdir()) == [".npz"] * 3


@pytest.mark.parametrize("how", ["cut", "flipped", "empty"])
def test_a_damaged_cache_is_made_again(tmp_path, cache, how, capsys):
    colours(tmp_path / "d", {"a": 20, "b": 20})
    expected = read(tmp_path / "d").sha256
    (path,) = (cache / "images").iterdir()
    content = bytearray(path.read_bytes())
    if how == "flipped":
        content[len(content) // 2] ^= 255
    path.write_bytes(
        content if how == "flipped" else content[: len(content) // 2] if how == "cut" else b""
    )
    assert read(tmp_path / "d").sha256 == expected
    assert "cannot be read" in capsys.readouterr().err
    assert read(tmp_path / "d").sha256 == expected
    assert capsys.readouterr().err == ""


def test_a_cache_that_cannot_be_written_costs_a_sentence(tmp_path, monkeypatch, capsys):
    colours(tmp_path / "d", {"a": 2, "b": 2})
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CREST_JAX_CACHE", str(tmp_path / "file"))
    assert len(read(tmp_path / "d").train_labels) == 2
    assert "cannot be written (Not a directory); the data are read anew" in capsys.readouterr().err


HANGING = """
import sys, time, numpy as np
from pathlib import Path
from experiments.data import load

def savez(file, **arrays):
    file.write(b"half")
    file.flush()
    time.sleep(60)

np.savez = savez
load("images", Path(sys.argv[1]))
"""


def test_a_killed_program_leaves_no_cache_and_its_rest_is_swept_up(tmp_path, cache):
    colours(tmp_path / "d", {"a": 2, "b": 2})
    writer = subprocess.Popen([sys.executable, "-c", HANGING, str(tmp_path / "d")], cwd=ROOT)
    deadline = time.monotonic() + 30
    while not list(cache.glob(f"images/*{PART}*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    writer.kill()
    writer.wait()
    (left,) = (cache / "images").iterdir()
    assert PART in left.name
    data = read(tmp_path / "d")
    assert len(data.train_labels) == 2
    assert [path.suffix for path in (cache / "images").iterdir()] == [".npz"]


def test_an_interrupted_reading_writes_nothing(tmp_path, cache, monkeypatch):
    colours(tmp_path / "d", {"a": 3, "b": 3})

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(images, "read_image", interrupt)
    with pytest.raises(KeyboardInterrupt):
        read(tmp_path / "d", image_size=(4, 4))
    assert not list(cache.rglob("*.npz*"))


# Wrong folders of images


def _empty_class(folder):
    (folder / "train" / "c").mkdir()


def _unreadable(folder):
    for number in range(2):
        (folder / "train" / "a" / f"00{number}.png").write_bytes(b"no image")


def _cut(folder):
    path = folder / "train" / "b" / "001.png"
    path.write_bytes(path.read_bytes()[:60])


WRONG_IMAGES = {
    "nowhere": (shutil.rmtree, {}, r"^--data\.dir \S+ cannot be read \(No such file"),
    "a file": (
        lambda d: (shutil.rmtree(d), d.write_text("")), {}, r"cannot be read \(Not a directory\)",
    ),
    "nothing there": (
        lambda d: (shutil.rmtree(d), d.mkdir()), {}, r"holds no folder of a class; put \.jpg",
    ),
    "only test": (lambda d: shutil.rmtree(d / "train"), {}, "holds test but no train folder; put"),
    "another part": (
        lambda d: (d / "val").mkdir(), {}, "holds the folder val beside train but only train, test",
    ),
    "outside": (
        lambda d: save(d / "train" / "x.jpg", noise(6, 5, 3)), {},
        r"x\.jpg lies outside the folders of the classes",
    ),
    "an empty class": (_empty_class, {}, r"train/c holds no \.jpg, .* each folder is a class; add"),
    "one class": (
        lambda d: shutil.rmtree(d / "train" / "b"), {}, "train has the labels a but must have at",
    ),
    "a class of the test alone": (
        lambda d: save(d / "test" / "z" / "0.png", noise(6, 5, 3)), {},
        "test has the label 'z' but the training data only a, b; correct",
    ),
    "no image": (
        _unreadable, {"image_size": (4, 4)},
        r"a/000\.png cannot be read as an image \(cannot identify .*\), and 1 more of 8 files",
    ),
    "none readable first": (_unreadable, {}, r"a/000\.png cannot be read as an image .* 1 more of 8"),
    "a cut image": (_cut, {}, r"b/001\.png cannot be read as an image \(.*\); mend or remove"),
    "two sizes": (
        lambda d: save(d / "train" / "b" / "9.png", noise(7, 5, 3)), {},
        r"b/9\.png has 7 x 5 pixels .*000\.png has 6 x 5, and 1 of 9 images .* --data\.image-size 5,",
    ),
    "too many pixels": (
        lambda d: None, {"image_size": (10**7, 10**7)},
        r"8 images of 10000000 x 10000000 pixels take .* GiB but this machine has .*; pass a smaller",
    ),
    "a link that leads nowhere": (
        lambda d: (d / "train" / "a" / "9.png").symlink_to(d / "gone"), {},
        r"9\.png cannot be read \(No such file or directory\); mend or remove it",
    ),
}  # fmt: skip


def sentence(error):
    """The message, which is one sentence on one line."""
    text = str(error.value)
    assert "\n" not in text
    assert text.endswith(".")
    assert len(text) < 600
    return text


@pytest.mark.parametrize("case", WRONG_IMAGES)
def test_a_wrong_folder_of_images_is_refused(tmp_path, cache, case):
    spoil, options, message = WRONG_IMAGES[case]
    colours(tmp_path / "d" / "train", {"a": 3, "b": 3})
    colours(tmp_path / "d" / "test", {"a": 1, "b": 1})
    spoil(tmp_path / "d")
    with pytest.raises(DataError, match=message) as error:
        read(tmp_path / "d", **options)
    sentence(error)
    assert not list(cache.rglob("*.npz*"))


def test_classes_of_one_image_cannot_be_split(tmp_path):
    colours(tmp_path / "d", {"a": 1, "b": 1})
    with pytest.raises(
        DataError, match="one row of each class for training but test rows are split off"
    ):
        read(tmp_path / "d")


def test_files_that_are_no_images_are_counted(tmp_path, capsys):
    colours(tmp_path / "d", {"a": 2, "b": 2})
    for name in ("a/notes.txt", "b/x.gif", "labels.csv"):
        (tmp_path / "d" / name).write_text("")
    assert len(read(tmp_path / "d").train_labels) == 2
    said = capsys.readouterr().err
    assert "3 files that do not end in .jpg, .jpeg, .png, .webp were left out; the first is" in said


def test_a_machine_without_pillow_is_told_so(tmp_path, monkeypatch):
    colours(tmp_path / "d", {"a": 2, "b": 2})
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(DataError, match=r"images are decoded with pillow, which is not installed; pip"):
        read(tmp_path / "d")


# IDX


def write_idx(folder, name, array, zipped=False):
    folder.mkdir(exist_ok=True)
    raw = encode_idx(np.asarray(array, np.uint8))
    path = folder / (f"{name}.gz" if zipped else name)
    path.write_bytes(gzip.compress(raw) if zipped else raw)


@pytest.mark.parametrize("prefix", ["", "emnist-letters-"])
def test_idx_files_are_found_by_their_names(tmp_path, prefix):
    pixels, labels = noise(12, 5, 4), np.tile([3, 11, 7], 4)
    write_idx(tmp_path / "d", f"{prefix}train-images-idx3-ubyte", pixels, zipped=True)
    write_idx(tmp_path / "d", f"{prefix}train-labels.idx1-ubyte", labels)
    data = read(tmp_path / "d", "idx")
    assert data.class_names == ("3", "7", "11")
    assert data.train_inputs.shape == (9, 5, 4, 1)
    assert len(data.test_labels) == 3
    write_idx(tmp_path / "d", f"{prefix}t10k-images-idx3-ubyte", pixels[:2])
    write_idx(tmp_path / "d", f"{prefix}t10k-labels-idx1-ubyte", labels[:2], zipped=True)
    data = read(tmp_path / "d", "idx", validation=True)
    np.testing.assert_array_equal(data.test_inputs[..., 0], pixels[:2])
    assert data.test_labels.tolist() == [0, 2]
    assert (len(data.train_labels), len(data.validation_labels)) == (9, 3)


def _both(folder, rows, test=0, shape=(5, 4)):
    labels = np.arange(max(rows, test)) % 3
    for part, count in (("train", rows), ("t10k", test)):
        if count:
            write_idx(folder, f"{part}-images-idx3-ubyte", noise(count, *shape))
            write_idx(folder, f"{part}-labels-idx1-ubyte", labels[:count])


WRONG_IDX = {
    "nowhere": (lambda d: None, r"^--data\.dir \S+ cannot be read .* must be a folder of IDX files"),
    "no labels": (
        lambda d: write_idx(d, "train-images-idx3-ubyte", noise(3, 2, 2)),
        "holds no IDX file of the train labels; put",
    ),
    "half a test": (
        lambda d: (_both(d, 9), write_idx(d, "t10k-labels-idx1-ubyte", [0])),
        "holds no IDX file of the test images; put",
    ),
    "two sets": (
        lambda d: (_both(d, 9), write_idx(d, "emnist-train-images-idx3-ubyte", noise(9, 5, 4))),
        "holds emnist-train-images-idx3-ubyte and train-images-idx3-ubyte but must hold one set",
    ),
    "fewer labels": (
        lambda d: (_both(d, 9), write_idx(d, "train-labels-idx1-ubyte", [0, 1])),
        "holds 9 images of 5 x 4 pixels and train-labels-idx1-ubyte 2 labels but there must be as many",
    ),
    "another size": (
        lambda d: (_both(d, 9, 3), write_idx(d, "t10k-images-idx3-ubyte", noise(3, 6, 4))),
        "holds images of 6 x 4 pixels but those for training have 5 x 4",
    ),
    "another class": (
        lambda d: (_both(d, 9, 3), write_idx(d, "t10k-labels-idx1-ubyte", [0, 1, 9])),
        "has the label '9' but the training data only 0, 1, 2",
    ),
    "cut": (
        lambda d: (_both(d, 9), (d / "train-labels-idx1-ubyte").write_bytes(b"\0\0\x08\x01\0\0\0\x09")),
        "cannot be read as an IDX file: its header promises 9 bytes",
    ),
}


@pytest.mark.parametrize("case", WRONG_IDX)
def test_wrong_idx_files_are_refused(tmp_path, case):
    make, message = WRONG_IDX[case]
    make(tmp_path / "d")
    with pytest.raises(DataError, match=message) as error:
        read(tmp_path / "d", "idx")
    sentence(error)


# Tables


def rows(count, seed=0):
    values = np.random.default_rng(seed).normal(5, 3, (count, 3)).round(3)
    return values, np.where(values[:, 0] > 5, "high", "low")


def write_csv(path, header, lines, encoding="utf-8"):
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "\n".join([header, *(",".join(map(str, line)) for line in lines)])
    path.write_text(text + "\n", encoding=encoding)


def test_a_csv_file_is_read_by_its_header(tmp_path):
    values, names = rows(40)
    lines = [[number, *row[:2], name, row[2]] for number, (row, name) in enumerate(zip(values, names))]  # noqa: B905
    write_csv(tmp_path / "a.csv", 'id,"b, c", d ,label,e', lines, "utf-8-sig")
    data = read(tmp_path / "a.csv", "table", ignore=("id",))
    assert data.feature_names == ("b, c", "d", "e")
    assert data.class_names == ("high", "low")
    assert data.train_inputs.dtype == np.float32
    dealt = np.concatenate([data.train_inputs, data.test_inputs])
    order = np.argsort(dealt[:, 0])
    np.testing.assert_allclose(dealt[order], values[np.argsort(values[:, 0])], rtol=1e-6)
    labels = np.concatenate([data.train_labels, data.test_labels])[order]
    np.testing.assert_array_equal(labels, (names == "low")[np.argsort(values[:, 0])])
    expected = np.bincount(names == "low") // 5
    np.testing.assert_array_equal(np.bincount(data.test_labels), expected)
    np.testing.assert_allclose(data.mean, data.train_inputs.mean(0, np.float64), rtol=1e-6)
    np.testing.assert_allclose(data.std, data.train_inputs.std(0, dtype=np.float64), rtol=1e-6)
    assert not data.augment


def test_a_folder_of_csv_files_has_its_own_test_rows_in_any_order_of_columns(tmp_path):
    write_csv(tmp_path / "train.csv", "a,b,kind", [[1, 2, "x"], [3, 2, "y"], [5, 2, "x"], [7, 2, "y"]])
    write_csv(tmp_path / "test.csv", "kind,b,more,a", [["y", 20, "?", 10]])
    write_csv(tmp_path / "validation.csv", "kind,b,a", [["x", 2, 1]])
    data = read(tmp_path, "table", label="kind")
    np.testing.assert_array_equal(data.test_inputs, [[10, 20]])
    assert data.test_labels.tolist() == [1]
    assert len(data.validation_labels) == 1
    assert data.std[1] == 1.0, "a column that never changes is left as it is"


@pytest.mark.parametrize(
    ("names", "parts"),
    [
        (("inputs", "labels"), ("", "test_")),
        (("X", "y"), ("", "test_")),
        (("features", "labels"), ("train_", "validation_")),
        (("x_{}", "y_{}"), ("train", "test")),
    ],
)
def test_an_npz_file_is_read_by_the_names_of_its_arrays(tmp_path, names, parts):
    values, _ = rows(20)
    labels = np.arange(20) % 2 + 4
    arrays = {}
    for part, own in zip(parts, (slice(0, 15), slice(15, 20)), strict=True):
        keys = [name.format(part) if "{}" in name else part + name for name in names]
        arrays |= {keys[0]: values[own], keys[1]: labels[own]}
    np.savez(tmp_path / "a.npz", **arrays)
    data = read(tmp_path / "a.npz", "table")
    assert data.class_names == ("4", "5")
    assert data.feature_names is None
    if "validation_" in parts:
        np.testing.assert_allclose(data.validation_inputs, values[15:], rtol=1e-6)
        assert len(data.test_labels) == 15 // 2 // 5 * 2
    else:
        np.testing.assert_allclose(data.test_inputs, values[15:], rtol=1e-6)
        np.testing.assert_array_equal(data.test_labels, labels[15:] - 4)


def test_names_in_an_npz_file_are_kept(tmp_path):
    values, labels = rows(20)[0], np.arange(20) % 2
    values[:, 1] = labels
    names = {"class_names": ["yes", "no"], "feature_names": ["a", "b", "c"]}
    np.savez(tmp_path / "a.npz", inputs=values, labels=labels, **names)
    data = read(tmp_path / "a.npz", "table")
    assert (data.class_names, data.feature_names) == (("yes", "no"), ("a", "b", "c"))
    np.testing.assert_array_equal(data.train_labels, data.train_inputs[:, 1])
    np.testing.assert_array_equal(data.test_labels, data.test_inputs[:, 1])


GOOD = "a,b,label\n1,2,x\n3,4,y\n5,6,x\n7,8,y\n"
WRONG_CSV = {
    "no file": (None, {}, r"cannot be read \(\[Errno 2\] No such file .* must be a CSV file in UTF-8"),
    "empty": ("", {}, "is empty but must begin with a header"),
    "no header": ("1,2,0\n3,4,1\n", {}, r"begins with numbers \(1, 2, 0\) but must"),
    "semicolons": (GOOD.replace(",", ";"), {}, "has the header 'a;b;label' but must be separated by"),
    "two of a name": (GOOD.replace("b", "a", 1), {}, "has 2 columns named 'a' but each must"),
    "no name": (GOOD.replace("b", "", 1), {}, "has 1 columns named '' but each must have a name"),
    "no label": (GOOD.replace("label", "c"), {}, r"no column 'label' but a, b, c; name"),
    "an unknown column": (GOOD, {"ignore": ("z",)}, "has no column 'z' but a, b, label; correct"),
    "no features": (GOOD, {"ignore": ("a", "b")}, "has no column but the label; add features"),
    "no rows": ("a,b,label\n", {}, "holds a header but no row; add rows"),
    "a short line": (GOOD + "1,2\n", {}, "has 2 values in line 6 but 3 columns; mend the line"),
    "text": (
        GOOD.replace("3,4", "3,Paris"), {},
        r"has 'Paris' in line 3, column 'b', but features must be numbers; encode them",
    ),
    "digits with a dash": (GOOD.replace("3,4", "3,20_1"), {}, "has '20_1' in line 3, column 'b'"),
    "a missing value": (GOOD.replace("3,4", "3,"), {}, "no value in line 3, column 'b', but none"),
    "a NaN": (GOOD.replace("3,4", "3,nan"), {}, "no value in row 2, column 'b', but none"),
    "a word for missing": (GOOD.replace("3,4", "n/a,4"), {}, "no value in line 3, column 'a'"),
    "an infinity": (GOOD.replace("3,4", "3,inf"), {}, "has inf in row 2, column 'b', but values"),
    "too large": (GOOD.replace("3,4", "3,1e39"), {}, r"has 1e\+39 in row 2, .* finite in float32"),
    "a missing label": (GOOD.replace("4,y", "4, "), {}, "has no label in line 3, column 'label'; fill"),
    "one class": (GOOD.replace("y", "x"), {}, "has the labels x but must have at least two; name the"),
    "a measurement for a label": (
        "a,label\n1,0.5\n2,0.7\n3,0.1\n4,0.9\n", {}, "has 4 different labels in 4 rows but a",
    ),
    "seconds since 1970": (
        "a,label\n" + "".join(f"{1.7e9 + n},{'xy'[n % 2]}\n" for n in range(9)), {},
        r"values up to 1\.7e\+09 in column 'a' but they differ by 2\.6 only .* subtract their minimum",
    ),
    "another encoding": (b"a,label\n\xff,x\n", {}, "cannot be read .* must be a CSV file in UTF-8"),
    "a quote without end": (GOOD + '"9,1,x', {}, r"cannot be read \(unexpected end of data\)"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG_CSV)
def test_a_wrong_csv_file_is_refused(tmp_path, case):
    text, options, message = WRONG_CSV[case]
    path = tmp_path / "a.csv"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=message) as error:
        read(path, "table", **options)
    assert str(path) in sentence(error)


WRONG_TABLES = {
    "another ending": (
        lambda d: d / "a.xlsx",
        r"a\.xlsx must be a \.csv file, an \.npz file, or a folder",
    ),
    "no train.csv": (lambda d: d, r"holds no train\.csv; put it there"),
    "a column that is not in the test": (
        lambda d: (
            write_csv(d / "train.csv", "a,b,label", [[1, 2, "x"], [2, 3, "y"]]),
            write_csv(d / "test.csv", "a,label", [[1, "x"]]),
            d,
        )[-1],
        r"test\.csv has no column 'b' but a, label; give it the columns of the training data",
    ),
    "a class that is not in the training": (
        lambda d: (
            write_csv(d / "train.csv", "a,label", [[1, "x"], [2, "y"]]),
            write_csv(d / "test.csv", "a,label", [[1, "z"]]),
            d,
        )[-1],
        r"test\.csv has the label 'z' but the training data only x, y",
    ),
}


@pytest.mark.parametrize("case", WRONG_TABLES)
def test_a_wrong_table_is_refused(tmp_path, case):
    make, message = WRONG_TABLES[case]
    with pytest.raises(DataError, match=message) as error:
        read(make(tmp_path), "table")
    sentence(error)


X, Y = np.arange(12.0).reshape(6, 2), np.array([0, 1] * 3)
WRONG_NPZ = {
    "no zip": (None, "cannot be read .* must be a file that numpy.savez wrote"),
    "objects": ({"inputs": X, "labels": np.array([None] * 6)}, "cannot be read .* numpy.savez"),
    "no labels": ({"inputs": X}, "holds no array 'labels' but inputs; add it"),
    "half a test": ({"inputs": X, "labels": Y, "X_test": X}, "holds no array 'test_labels' but"),
    "an unknown array": ({"inputs": X, "labels": Y, "w": Y}, "holds the array 'w' but must hold"),
    "inputs twice": ({"inputs": X, "X": X, "labels": Y}, "holds the array 'X' but must hold inputs"),
    "images": ({"X": X[..., None], "y": Y}, r"inputs of shape \(6, 2, 1\) and type float64 but"),
    "text": ({"X": X.astype(str), "y": Y}, r"inputs of shape \(6, 2\) and type <U32 but they must be"),
    "fractions": ({"X": X, "y": Y / 2}, r"labels of shape \(6,\) and type float64 but they must be 6"),
    "one-hot": ({"X": X, "y": np.eye(2, dtype=int)[Y]}, r"labels of shape \(6, 2\) and type int64"),
    "NaN": ({"X": np.where(X == 3, np.nan, X), "y": Y}, r"\(train\) has no value in row 2, column '2'"),
    "another width": (
        {"X": X, "y": Y, "X_test": X[:, :1], "y_test": Y}, r"\(test\) holds 1 features but 2 are named",
    ),
    "too few names": ({"X": X, "y": Y, "feature_names": ["a"]}, "holds 2 features but 1 are named"),
    "a name twice": ({"X": X, "y": Y, "class_names": ["a", "a"]}, r"class_names of shape \(2,\) but"),
    "seconds since 1970": ({"X": X + 1.7e9, "y": Y}, r"\(train\) has values up to .* subtract their"),
    "no such class": ({"X": X, "y": Y + 1, "class_names": ["a", "b"]}, r"must be numbers in \[0, 2\)"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG_NPZ)
def test_a_wrong_npz_file_is_refused(tmp_path, case):
    arrays, message = WRONG_NPZ[case]
    if arrays is None:
        (tmp_path / "a.npz").write_bytes(b"x")
    else:
        np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(DataError, match=message) as error:
        read(tmp_path / "a.npz", "table")
    sentence(error)


def test_labels_that_look_like_numbers_are_ordered_by_value_if_all_do():
    assert classes_of("f", ["2", "10", "2", "10"], "mend it") == ("2", "10")
    assert classes_of("f", ["2", "10", "x"] * 3, "mend it") == ("10", "2", "x")
    assert classes_of("f", ["2", "10", "nan"] * 3, "mend it") == ("10", "2", "nan")
    assert numbered("f", ["x", "10"], ("10", "x")).tolist() == [1, 0]


# Options

IMAGES = ["--dataset", "images", "--data.dir", "d"]
TABLE = ["--dataset", "table", "--model", "mlp", "--data.dir", "d.csv"]
WRONG_OPTIONS = {
    "no folder": (["--dataset", "images"], r"^--dataset images needs --data\.dir, which says where"),
    "no file": (["--dataset", "table", "--model", "mlp"], r"^--dataset table needs --data\.dir"),
    "no idx folder": (["--dataset", "idx"], r"^--dataset idx needs --data\.dir"),
    "a size of 0": ([*IMAGES, "--data.image-size", "0"], "^--data.image-size is 0 but must be one"),
    "three sizes": ([*IMAGES, "--data.image-size", "1", "2", "3"], "^--data.image-size is 1 2 3 but"),
    "a negative size": ([*IMAGES, "--data.image-size", "9", "-1"], "^--data.image-size is 9 -1 but"),
    "a fit alone": ([*IMAGES, "--data.image-fit", "crop"], "^--data.image-fit is crop but says how"),
    "a size elsewhere": (
        ["--data.image-size", "9"], "^--data.image-size has no effect here .* for --dataset images",
    ),
    "a size for idx": (
        ["--dataset", "idx", "--data.dir", "d", "--data.image-size", "9"], "^--data.image-size has no",
    ),
    "a label for images": ([*IMAGES, "--data.label", "c"], r"^--data\.label has no effect .* \.csv"),
    "a label for an npz": (
        [*TABLE[:-1], "d.npz", "--data.ignore", "c"], r"^--data\.ignore has no effect .* \.csv files",
    ),
    "the label ignored": ([*TABLE, "--data.ignore", "label"], "^--data.ignore names label, the"),
    "a network for images": (
        ["--dataset", "table", "--data.dir", "d.csv"], "^--dataset is table and --model resnet8 but",
    ),
    "an encoder": ([*TABLE[:3], "minilm"], "images go with"),
    "shifted rows": ([*TABLE, "--data.augment", "True"], "^--data.augment has no effect .* images"),
    "a stem": ([*TABLE, "--network.imagenet-stem"], "^--network.imagenet-stem has no effect here"),
    "tokens": ([*IMAGES, "--text.max-tokens", "64"], "^--text.max-tokens has no effect .* no text"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG_OPTIONS)
def test_options_that_cannot_work_are_refused(case):
    arguments, message = WRONG_OPTIONS[case]
    with pytest.raises(UserError, match=message) as error:
        tyro.cli(TrainConfig, args=arguments)
    sentence(error)


def test_options_of_own_data_come_back_from_json():
    config = tyro.cli(
        TrainConfig, args=[*IMAGES, "--data.image-size", "9", "8", "--data.image-fit", "crop"]
    )
    assert config.data.own().image_size == (9, 8)
    assert TrainConfig.from_json(json.loads(json.dumps(config.as_json()))) == config
    one = tyro.cli(TrainConfig, args=[*IMAGES, "--data.image-size", "9"])
    assert one.data.own().image_size == (9, 9)
    table = tyro.cli(TrainConfig, args=[*TABLE, "--data.ignore", "a", "b", "--data.label", "c"])
    assert table.data.own()[2:4] == ("c", ("a", "b"))
