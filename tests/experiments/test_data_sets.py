"""The loaders, against selections and decoders that share no code with them."""

import gzip
import hashlib
import io
import json
import lzma
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from experiments import prepare
from experiments.data import DATASETS, DataError, Dataset, load, make_fashion_mnist_12k
from experiments.data.dataset import CHUNK, channel_moments
from experiments.data.fashion_mnist import SHIPPED, SYSTEM_DIR, load_fashion_mnist_12k, unpack
from experiments.data.idx import encode_idx, read_idx

SHA256 = "c2027a6f426b88a112e1e332d95f992df3acbda8d7bab8923b97585472fdde5b"
FASHION_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte")
FASHION_TEST_FILES = ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")

needs_originals = pytest.mark.skipif(
    not (SYSTEM_DIR / "train-images-idx3-ubyte.gz").is_file(),
    reason="the Debian package dataset-fashion-mnist is not installed",
)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a loader touched the network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


def one_sentence(error: pytest.ExceptionInfo[DataError], *parts: object) -> None:
    """The message is one line that ends in a full stop and holds every part."""
    message = str(error.value)
    assert "\n" not in message
    assert message.endswith(".")
    for part in parts:
        assert str(part) in message


# Fashion-MNIST


@pytest.fixture(scope="module")
def synthetic_originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Plain IDX files of the original sizes; the first two pixels of an image are its row."""
    folder = tmp_path_factory.mktemp("fashion")
    generator = np.random.default_rng(7)
    for names, rows in ((FASHION_FILES, 60_000), (FASHION_TEST_FILES, 10_000)):
        images = np.zeros((rows, 28, 28), np.uint8)
        images[:, 0, 0], images[:, 0, 1] = np.divmod(np.arange(rows), 256)
        labels = generator.permutation(np.repeat(np.arange(10, dtype=np.uint8), rows // 10))
        (folder / names[0]).write_bytes(encode_idx(images))
        (folder / names[1]).write_bytes(encode_idx(labels))
    return folder


@pytest.fixture(scope="module", params=["synthetic", pytest.param("debian", marks=needs_originals)])
def originals(request: pytest.FixtureRequest, synthetic_originals: Path) -> Path:
    return synthetic_originals if request.param == "synthetic" else SYSTEM_DIR


def raw_idx(folder: Path, name: str, header: int) -> np.ndarray:
    """The payload, by its known offset: no header is read."""
    plain = folder / name
    if plain.is_file():
        raw = plain.read_bytes()
    else:
        raw = gzip.decompress(plain.with_name(f"{name}.gz").read_bytes())
    return np.frombuffer(raw, np.uint8, offset=header)


def raw_split(folder: Path, names: tuple[str, str]) -> tuple[np.ndarray, np.ndarray]:
    return raw_idx(folder, names[0], 16).reshape(-1, 28, 28, 1), raw_idx(folder, names[1], 8)


def walk(labels: np.ndarray, *quotas: int) -> list[list[int]]:
    """Go through the rows once and deal each class's first rows to the first quota, and so on."""
    seen = [0] * 10
    piles: list[list[int]] = [[] for _ in quotas]
    for row, label in enumerate(labels.tolist()):
        position = seen[label]
        seen[label] += 1
        for pile, quota in zip(piles, quotas, strict=True):
            if 0 <= position < quota:
                pile.append(row)
            position -= quota
    return piles


def test_shipped_file_is_the_pinned_one() -> None:
    raw = SHIPPED.read_bytes()
    assert hashlib.sha256(raw).hexdigest() == SHA256
    assert len(raw) <= 8_000_000
    assert SHA256 in (SHIPPED.parent / "README.md").read_text()


def test_shipped_set_is_balanced() -> None:
    data = load("fashion_mnist_12k")
    assert data.train_inputs.shape == (10_000, 28, 28, 1)
    assert data.test_inputs.shape == (2_000, 28, 28, 1)
    assert data.train_inputs.dtype == np.uint8
    assert data.train_labels.dtype == data.test_labels.dtype == np.int32
    np.testing.assert_array_equal(np.bincount(data.train_labels), np.full(10, 1_000))
    np.testing.assert_array_equal(np.bincount(data.test_labels), np.full(10, 200))
    assert data.validation_inputs is None
    assert data.validation_labels is None
    assert data.num_classes == len(data.class_names) == 10
    np.testing.assert_allclose(data.mean, [data.train_inputs.mean(dtype=np.float64)], rtol=1e-12)
    np.testing.assert_allclose(data.std, [data.train_inputs.std(dtype=np.float64)], rtol=1e-9)
    assert not data.augment


@pytest.mark.slow
@needs_originals
def test_shipped_file_is_made_again_to_the_same_bytes(tmp_path: Path) -> None:
    out = tmp_path / "made"
    payload = make_fashion_mnist_12k.payload(SYSTEM_DIR)
    assert payload == lzma.decompress(SHIPPED.read_bytes())  # says whether the data or xz differs
    assert make_fashion_mnist_12k.main(["--data-dir", str(SYSTEM_DIR), "--out", str(out)]) == 0
    assert out.read_bytes() == SHIPPED.read_bytes()
    assert list(tmp_path.iterdir()) == [out]


@needs_originals
def test_shipped_rows_are_the_first_of_every_class() -> None:
    data = load("fashion_mnist_12k")
    for inputs, labels, names, quota in (
        (data.train_inputs, data.train_labels, FASHION_FILES, 1_000),
        (data.test_inputs, data.test_labels, FASHION_TEST_FILES, 200),
    ):
        images, classes = raw_split(SYSTEM_DIR, names)
        (rows,) = walk(classes, quota)
        np.testing.assert_array_equal(inputs, images[rows])
        np.testing.assert_array_equal(labels, classes[rows])


def test_shipped_file_is_not_made_from_other_images(
    synthetic_originals: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(make_fashion_mnist_12k, "compress", bytes)  # xz would take seconds
    out = tmp_path / "made"
    arguments = ["--data-dir", str(synthetic_originals), "--out", str(out)]
    assert make_fashion_mnist_12k.main(arguments) == 1
    assert "not the original ones" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["cut", "changed", "absent"])
def test_damaged_shipped_file(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "shipped.xz"
    raw = bytearray(SHIPPED.read_bytes())
    raw[1_000_000] ^= 1
    if damage != "absent":
        path.write_bytes(raw if damage == "changed" else SHIPPED.read_bytes()[:-1])
    with pytest.raises(DataError) as error:
        load_fashion_mnist_12k(path)
    one_sentence(error, path, "make_fashion_mnist_12k", "git checkout")


def test_whole_fashion_mnist_is_the_files_pixel_for_pixel(originals: Path) -> None:
    data = load("fashion_mnist", originals)
    images, classes = raw_split(originals, FASHION_FILES)
    assert len(images) == 60_000
    np.testing.assert_array_equal(data.train_inputs, images)
    np.testing.assert_array_equal(data.train_labels, classes)
    images, classes = raw_split(originals, FASHION_TEST_FILES)
    assert len(images) == 10_000
    np.testing.assert_array_equal(data.test_inputs, images)
    np.testing.assert_array_equal(data.test_labels, classes)


def test_fashion_mnist_20k_protocol(originals: Path) -> None:
    data = load("fashion_mnist_20k", originals)
    images, classes = raw_split(originals, FASHION_FILES)
    train, validation = walk(classes, 2_000, 500)
    assert (len(train), len(validation)) == (20_000, 5_000)
    assert not set(train) & set(validation)
    np.testing.assert_array_equal(data.train_inputs, images[train])
    np.testing.assert_array_equal(data.train_labels, classes[train])
    assert data.validation_inputs is not None
    assert data.validation_labels is not None
    assert data.validation_labels.dtype == np.int32
    np.testing.assert_array_equal(data.validation_inputs, images[validation])
    np.testing.assert_array_equal(data.validation_labels, classes[validation])
    np.testing.assert_array_equal(data.test_inputs, raw_split(originals, FASHION_TEST_FILES)[0])


def test_the_redundant_set_repeats_rows_of_the_20k_set_unevenly(originals: Path) -> None:
    data, whole = load("fashion_mnist_20k_imbalanced", originals), load("fashion_mnist_20k", originals)
    assert len(data.train_labels) == 20_000
    counts = np.bincount(data.train_labels)
    np.testing.assert_allclose(counts / counts[0], 50.0 ** (-np.arange(10) / 9), rtol=0.02)
    places: dict[tuple[bytes, int], int] = {}
    for image, label in zip(whole.train_inputs, whole.train_labels, strict=True):
        places.setdefault((image.tobytes(), int(label)), len(places))
    rows = [
        places[image.tobytes(), int(label)]  # KeyError: not of the 20k set
        for image, label in zip(data.train_inputs, data.train_labels, strict=True)
    ]
    often = np.sort(np.bincount(rows))[::-1]
    assert (often > 0).sum() < 0.5 * len(rows), "most rows repeat"
    assert often[:200].sum() > 0.2 * len(rows), "a few rows make up much of it"
    assert abs(np.corrcoef(np.arange(20_000), data.train_labels)[0, 1]) < 0.03, "in random order"
    np.testing.assert_array_equal(data.test_inputs, whole.test_inputs)
    np.testing.assert_array_equal(data.validation_inputs, whole.validation_inputs)
    again = load("fashion_mnist_20k_imbalanced", originals)
    np.testing.assert_array_equal(data.train_inputs, again.train_inputs)


@needs_originals
def test_fashion_mnist_comes_from_the_debian_package_by_default() -> None:
    assert load("fashion_mnist").mean == pytest.approx([72.94035223214286])  # 0.2860 * 255


@pytest.mark.parametrize("name", ["fashion_mnist", "fashion_mnist_20k", "fashion_mnist_20k_imbalanced"])
def test_absent_fashion_mnist(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        load(name, tmp_path)
    one_sentence(
        error, tmp_path, FASHION_FILES[0], "apt-get install dataset-fashion-mnist", "--data.dir"
    )


def test_files_of_another_set_are_refused(synthetic_originals: Path, tmp_path: Path) -> None:
    for path in synthetic_originals.iterdir():
        (tmp_path / path.name).symlink_to(path)
    labels = raw_idx(synthetic_originals, FASHION_FILES[1], 8).copy()
    labels[np.flatnonzero(labels == 3)[0]] = 4
    path = tmp_path / FASHION_FILES[1]
    path.unlink()
    path.write_bytes(encode_idx(labels))
    with pytest.raises(DataError) as error:
        load("fashion_mnist", tmp_path)
    one_sentence(error, path, "5999", "6001", "6,000")
    path = tmp_path / FASHION_FILES[0]
    path.unlink()
    path.write_bytes(encode_idx(np.zeros((60, 28, 28), np.uint8)))
    with pytest.raises(DataError) as error:
        load("fashion_mnist", tmp_path)
    one_sentence(error, path, "(60, 28, 28)", "(60000, 28, 28)")


# IDX

ARRAY = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
RAW = bytes([0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 4, *range(24)])


def test_idx_bytes_by_hand(tmp_path: Path) -> None:
    assert encode_idx(ARRAY) == RAW
    (tmp_path / "a").write_bytes(RAW)
    (tmp_path / "a.gz").write_bytes(gzip.compress(RAW, mtime=0))
    np.testing.assert_array_equal(read_idx(tmp_path / "a", 3, "do so"), ARRAY)
    np.testing.assert_array_equal(read_idx(tmp_path / "a.gz", 3, "do so"), ARRAY)
    train, test = unpack(RAW + RAW + RAW + RAW)
    for array in (*train, *test):
        np.testing.assert_array_equal(array, ARRAY)


@pytest.mark.parametrize(
    ("name", "raw", "part"),
    [
        ("a.gz", gzip.compress(RAW, mtime=0)[:-12], "ended before"),
        ("a.gz", gzip.compress(RAW, mtime=0)[:-8] + bytes(8), "CRC"),
        ("a.gz", gzip.compress(RAW, mtime=0)[:10] + b"\xff" * 30, "invalid"),
        ("a.gz", RAW, "Not a gzipped file"),
        ("a", b"", "0 bytes, inside the header"),
        ("a", RAW[:9], "9 bytes, inside the header"),
        ("a", RAW[:-1], "promises 24 bytes of shape (2, 3, 4), but 23 follow"),
        ("a", RAW + b"x", "1 bytes follow"),
        ("a", b"\x00\x00\x0d\x03" + RAW[4:], "0x00000d03"),
        ("a", b"\x50\x4b\x08\x03" + RAW[4:], "0x504b0803"),
        ("a", bytes([0, 0, 8, 1, 0, 0, 0, 1, 5]), "rank 1, not 3"),
    ],
)
def test_damaged_idx(tmp_path: Path, name: str, raw: bytes, part: str) -> None:
    path = tmp_path / name
    path.write_bytes(raw)
    with pytest.raises(DataError) as error:
        read_idx(path, 3, "fetch it again")
    one_sentence(error, path, part, "; fetch it again.")


# digits and what all sets share


def test_digits_are_split_once_and_evenly() -> None:
    from sklearn.datasets import load_digits

    data, again = load("digits"), load("digits")
    np.testing.assert_array_equal(data.train_inputs, again.train_inputs)
    np.testing.assert_array_equal(data.test_labels, again.test_labels)
    bunch = load_digits()
    everything = [
        (inputs.tobytes(), int(label))
        for inputs, label in zip(bunch.images.astype(np.uint8), bunch.target, strict=True)
    ]
    dealt = [
        (image.tobytes(), int(label))
        for inputs, labels in (
            (data.train_inputs, data.train_labels),
            (data.test_inputs, data.test_labels),
        )
        for image, label in zip(inputs, labels, strict=True)
    ]
    assert len(dealt) == 1797
    assert sorted(dealt) == sorted(everything)
    expected = np.bincount(bunch.target) // 5
    np.testing.assert_array_equal(np.bincount(data.test_labels), expected)
    assert data.train_inputs.max() == 16


def test_moments_are_those_of_numpy_in_float64() -> None:
    inputs = np.random.default_rng(0).integers(0, 256, (CHUNK + 3, 2, 3, 3), dtype=np.uint8)
    inputs[..., 1] //= 3
    mean, std = channel_moments(inputs)
    flat = inputs.reshape(-1, 3).astype(np.float64)
    np.testing.assert_allclose(mean, flat.mean(0), rtol=1e-12)
    np.testing.assert_allclose(std, flat.std(0), rtol=1e-12)


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=f"'mnist'.*{', '.join(DATASETS)}"):
        load("mnist")


# CIFAR through TFDS


def pixels(name: str, split: str, rows: int) -> np.ndarray:
    generator = np.random.default_rng([len(name), len(split)])
    return generator.integers(0, 256, (rows, 32, 32, 3), dtype=np.uint8)


ROWS = {"train": 700, "test": 30}  # the first is more than the loader reads at once
with tfds.core.registered.skip_registration():  # the catalogue has sets of the same names

    class Cifar10(tfds.core.GeneratorBasedBuilder):
        """The features of the catalogue's CIFAR-10, on random images."""

        VERSION = tfds.core.Version("3.0.2")
        LABELS = 10

        def _info(self) -> Any:
            features = {
                "id": tfds.features.Text(),
                "image": tfds.features.Image(shape=(32, 32, 3)),
                "label": tfds.features.ClassLabel(names=[f"kind {i}" for i in range(self.LABELS)]),
            }
            if self.LABELS == 100:
                features["coarse_label"] = tfds.features.ClassLabel(num_classes=20)
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(features),
                supervised_keys=("image", "label"),
            )

        def _split_generators(self, _: Any) -> Any:
            return {split: self._generate_examples(split) for split in ROWS}

        def _generate_examples(self, split: str) -> Iterator[Any]:
            for row, image in enumerate(pixels(self.name, split, ROWS[split])):
                png = io.BytesIO()
                Image.fromarray(image).save(png, "png")
                png.seek(0)
                record = {"id": f"{split}_{row:05d}", "image": png, "label": row % self.LABELS}
                if self.LABELS == 100:
                    record["coarse_label"] = row % 20
                yield row, record

    class Cifar100(Cifar10):
        """The features of the catalogue's CIFAR-100, on random images."""

        LABELS = 100


BUILDERS = {"cifar10": Cifar10, "cifar100": Cifar100}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tfds")
    for name, shards in (("cifar10", None), ("cifar100", 2)):
        builder = BUILDERS[name](data_dir=folder, file_format="array_record")
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(num_shards=shards))
    return folder


def check_cifar(data: Dataset, name: str) -> None:
    for split, inputs, labels in (
        ("train", data.train_inputs, data.train_labels),
        ("test", data.test_inputs, data.test_labels),
    ):
        np.testing.assert_array_equal(inputs, pixels(name, split, ROWS[split]))
        np.testing.assert_array_equal(labels, np.arange(ROWS[split]) % data.num_classes)
        assert labels.dtype == np.int32
    assert data.augment
    assert data.class_names[7] == "kind 7"


@pytest.mark.parametrize(("name", "classes"), [("cifar10", 10), ("cifar100", 100)])
def test_cifar_comes_back_in_the_order_of_its_source(prepared: Path, name: str, classes: int) -> None:
    data = load(name, prepared)
    assert data.num_classes == classes
    check_cifar(data, name)


def test_newest_version_is_read_by_number_not_by_text(prepared: Path, tmp_path: Path) -> None:
    shutil.copytree(prepared / "cifar10" / "3.0.2", tmp_path / "cifar10" / "3.0.10")
    (tmp_path / "cifar10" / "3.0.9").mkdir()
    (tmp_path / "cifar10" / "incomplete.ABCDEF_3.0.11").mkdir()
    check_cifar(load("cifar10", tmp_path), "cifar10")


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_absent_cifar_is_told_at_once(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    for data_dir in (None, tmp_path):
        with pytest.raises(DataError) as error:
            load(name, data_dir)
        one_sentence(error, tmp_path / name, f"python -m experiments.prepare {name}", "--data.dir")
    assert list(tmp_path.iterdir()) == []


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def change(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[70_000:70_008] = b"XXXXXXXX"
    path.write_bytes(raw)


def to_tfrecord(path: Path) -> None:
    info = json.loads(path.read_text())
    info["fileFormat"] = "tfrecord"
    path.write_text(json.dumps(info))


TRAIN_SHARD = "cifar10-train.array_record-00000-of-00001"


@pytest.mark.parametrize(
    ("file", "damage", "parts"),
    [
        (TRAIN_SHARD, cut, ("cifar10-train.array_record-*", "prepare cifar10")),
        (TRAIN_SHARD, change, ("cifar10-train.array_record-*", "hash mismatch")),
        (TRAIN_SHARD, Path.unlink, (TRAIN_SHARD, "half-made", "prepare cifar10")),
        ("cifar10-test.array_record-00000-of-00001", cut, ("cifar10-test.array_record-*",)),
        ("dataset_info.json", Path.unlink, ("half-made", "dataset_info.json")),
        ("dataset_info.json", cut, ("dataset_info.json is damaged",)),
        ("dataset_info.json", to_tfrecord, ("tfrecord", "another DIR")),
        ("features.json", cut, ("damaged description",)),
        ("label.labels.txt", lambda path: path.write_text("a\nb\n"), ("2 classes", "has 10")),
    ],
)
def test_damaged_cifar(
    prepared: Path, tmp_path: Path, file: str, damage: Callable[[Path], Any], parts: tuple[str, ...]
) -> None:
    folder = tmp_path / "cifar10" / "3.0.2"
    shutil.copytree(prepared / "cifar10" / "3.0.2", folder)
    damage(folder / file)
    with pytest.raises(DataError) as error:
        load("cifar10", tmp_path)
    one_sentence(error, folder, *parts)


# preparing


@pytest.fixture
def with_tensorflow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "find_spec", lambda _: object())
    monkeypatch.setattr(prepare, "_reach", lambda _: None)
    monkeypatch.setattr(tfds, "builder", lambda name, **options: BUILDERS[name](**options))


@pytest.mark.usefixtures("with_tensorflow")
def test_prepare_leaves_the_finished_folder_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data_dir = tmp_path / "new"
    assert prepare.main(["cifar10", "--data-dir", str(data_dir)]) == 0
    assert str(data_dir / "cifar10" / "3.0.2") in capsys.readouterr().out
    assert [path.name for path in data_dir.iterdir()] == ["cifar10"]
    check_cifar(load("cifar10", data_dir), "cifar10")
    monkeypatch.setattr(prepare, "find_spec", lambda _: None)
    assert prepare.main(["cifar10", "--data-dir", str(data_dir)]) == 0  # no work the second time


@pytest.mark.usefixtures("with_tensorflow")
def test_prepare_that_fails_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def halfway(self: Cifar10, split: str) -> Iterator[Any]:
        raise ConnectionError("the line went dead")
        yield

    monkeypatch.setattr(Cifar10, "_generate_examples", halfway)
    assert prepare.main(["cifar10", "--data-dir", str(tmp_path)]) == 1
    assert "the line went dead" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_prepare_without_tensorflow_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(prepare, "find_spec", lambda name: None if name == "tensorflow" else object())
    data_dir = tmp_path / "new"
    assert prepare.main(["cifar100", "--data-dir", str(data_dir)]) == 1
    message = capsys.readouterr().err
    assert "needs tensorflow, not installed" in message
    assert "pip install 'crest_jax[prepare]'" in message
    assert message.count("\n") == 1
    assert not data_dir.exists()


def test_prepare_without_network_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def offline(*_: Any, **__: Any) -> None:
        raise socket.gaierror("no such host")

    monkeypatch.setattr(prepare, "find_spec", lambda _: object())
    monkeypatch.setattr(socket, "getaddrinfo", offline)
    monkeypatch.setattr(socket.socket, "connect", offline)
    monkeypatch.setattr(prepare, "_download", None)  # TFDS must not begin its minutes of retries
    assert prepare.main(["cifar10", "--data-dir", str(tmp_path)]) == 1
    assert "does not answer" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


# TinyImageNet

WNIDS = ("n03", "n01", "n02")  # in the order of wnids.txt, which is not that of the labels
TRAIN_IMAGES, TEST_IMAGES = 4, 5


def colour(wnid: str, number: int) -> tuple[int, int, int]:
    return 60 * int(wnid[1:]), 30 * number, 200


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A folder laid out like the archive, every image of one colour that tells which it is."""
    folder = tmp_path / "tiny-imagenet-200"
    for wnid in WNIDS:
        images = folder / "train" / wnid / "images"
        images.mkdir(parents=True)
        (images.parent / f"{wnid}_boxes.txt").write_text("")
        for number in range(TRAIN_IMAGES):
            image = Image.new("RGB", (64, 64), colour(wnid, number))
            image.save(images / f"{wnid}_{number}.JPEG")
    Image.new("L", (64, 64), 77).save(folder / "train" / "n02" / "images" / "n02_3.JPEG")
    images = folder / "val" / "images"
    images.mkdir(parents=True)
    lines = []
    for number in range(TEST_IMAGES):
        wnid = WNIDS[number % 3]
        Image.new("RGB", (64, 64), colour(wnid, number)).save(images / f"val_{number}.JPEG")
        lines.append(f"val_{number}.JPEG\t{wnid}\t0\t0\t62\t62\n")
    (folder / "val" / "val_annotations.txt").write_text("".join(lines))
    (folder / "wnids.txt").write_text("\n".join(WNIDS) + "\n")
    (folder / "words.txt").write_text("n00\tentity\nn01\tgoldfish, Carassius\nn02\tbullfrog\n")
    return folder


def test_tiny_imagenet_layout(tiny: Path) -> None:
    data = load("tiny_imagenet", tiny.parent)
    assert data.class_names == ("goldfish", "bullfrog", "n03")
    assert data.augment
    expected = [colour(f"n0{label + 1}", row) for label in range(3) for row in range(4)]
    expected[7] = (77, 77, 77)
    wanted = np.broadcast_to(np.array(expected)[:, None, None], (12, 64, 64, 3))
    np.testing.assert_allclose(data.train_inputs.astype(int), wanted, atol=3)  # JPEG rounds
    np.testing.assert_array_equal(data.train_labels, np.repeat([0, 1, 2], 4))
    tests = [colour(WNIDS[row % 3], row) for row in range(TEST_IMAGES)]
    np.testing.assert_allclose(data.test_inputs[:, 0, 0].astype(int), np.array(tests), atol=3)
    np.testing.assert_array_equal(data.test_labels, [2, 0, 1, 2, 0])


@pytest.mark.parametrize(
    ("file", "damage", "part"),
    [
        ("", shutil.rmtree, "is not there"),
        ("wnids.txt", Path.unlink, "cannot be read"),
        ("wnids.txt", lambda path: path.write_text(""), "is empty"),
        ("train/n01", shutil.rmtree, "holds no JPEG image"),
        ("train/n01/images/n01_2.JPEG", cut, "cannot be read"),
        ("train/n01/images/n01_2.JPEG", lambda path: path.write_bytes(b"x"), "cannot be read"),
        (
            "train/n01/images/n01_2.JPEG",
            lambda path: Image.new("RGB", (32, 64)).save(path),
            "(64, 32, 3)",
        ),
        ("val/images/val_1.JPEG", Path.unlink, "cannot be read"),
        ("val/val_annotations.txt", lambda path: path.write_text("a\tn09\n"), "line 1 of"),
        ("val/val_annotations.txt", lambda path: path.write_text("a\n"), "line 1 of"),
    ],
)
def test_damaged_tiny_imagenet(tiny: Path, file: str, damage: Callable[[Path], Any], part: str) -> None:
    damage(tiny / file)
    with pytest.raises(DataError) as error:
        load("tiny_imagenet", tiny.parent)
    one_sentence(error, tiny / file, part, "--data.dir")


def test_half_extracted_tiny_imagenet(tiny: Path) -> None:
    (tiny / "train" / "n02" / "images" / "n02_1.JPEG").unlink()
    with pytest.raises(DataError) as error:
        load("tiny_imagenet", tiny.parent)
    one_sentence(error, tiny / "train" / "n02", "holds 3 images where other classes hold 4")
