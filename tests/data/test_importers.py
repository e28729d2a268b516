import numpy as np
import pytest
from PIL import Image
from shard_helpers import png, real, write_tar

from dgan.data import ShardDataset, pack_source
from dgan.data.arrays import read_idx
from dgan.data.fit import Fit
from dgan.data.importers import Reading, open_source

RNG = np.random.default_rng(0)


def save(path, size=(8, 8), value=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = RNG.integers(0, 256, (*size, 3), dtype=np.uint8) if value is None else value
    Image.fromarray(pixels).save(path, **options)


# --- digits


def test_digits_are_all_there(digits):
    from sklearn.datasets import load_digits

    dataset = ShardDataset(f"{digits}/train-*.tar")
    assert (len(dataset), dataset.num_classes, dataset.resolution) == (1797, 10, 8)
    assert len(dataset.shards) == 3
    expected = np.rint(load_digits().images * 255 / 16)
    assert (dataset[1796]["image"][0].numpy() == expected[1796]).all()
    assert (dataset.labels == load_digits().target).all()


def test_digits_can_be_split_by_a_fixed_rule(tmp_path):
    train = pack_source("digits", tmp_path, holdout=5)
    test = pack_source("digits", tmp_path, split="test", holdout=5)
    assert (train.samples, test.samples) == (1438, 359)
    keys = [ShardDataset(s.shards).table for s in (train, test)]
    assert not {keys[0].key(i) for i in range(1438)} & {keys[1].key(i) for i in range(359)}
    with pytest.raises(ValueError, match="holdout=5"):
        pack_source("digits", tmp_path / "x", split="test")


# --- folders of pictures


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    save(folder / "dog" / "b.png")
    save(folder / "cat" / "deep" / "z.webp", lossless=True)
    save(folder / "cat" / "a.v1.JPG")
    save(folder / "dog" / "a.bmp")
    (folder / "dog" / "notes.txt").write_text("-")
    (folder / ".cache").mkdir()
    save(folder / ".cache" / "x.png")
    return folder


def test_a_folder_becomes_shards_with_its_subfolders_as_classes(tmp_path, photos):
    summary = pack_source(str(photos), tmp_path / "out")
    assert (summary.samples, summary.classes, summary.channels) == (4, 2, 3)
    dataset = ShardDataset(summary.shards)
    table = dataset.table
    keys = ["cat/a_v1-4de06590e0e0", "cat/deep/z", "dog/a", "dog/b"]
    assert [table.key(i) for i in range(4)] == keys
    assert dataset.labels.tolist() == [0, 0, 1, 1]
    assert table.read(0, "image") == (photos / "cat" / "a.v1.JPG").read_bytes()  # not encoded again
    assert (dataset[2]["image"].permute(1, 2, 0).numpy() == Image.open(photos / "dog/a.bmp")).all()
    assert open_source(photos, Reading()).class_names == ("cat", "dog")


def test_labels_can_be_left_out_and_flat_folders_have_none(tmp_path, photos):
    assert pack_source(str(photos), tmp_path / "out", labels=False).classes == 0
    save(photos / "flat.png")
    assert pack_source(str(photos), tmp_path / "flat").classes == 0


def test_split_folders_share_their_classes(tmp_path):
    for name in ("train/cat/0", "train/dog/0", "test/dog/0"):
        save(tmp_path / "in" / f"{name}.png")
    summary = pack_source(str(tmp_path / "in"), tmp_path / "out", split="test")
    assert ShardDataset(summary.shards).labels.tolist() == [1]
    with pytest.raises(ValueError, match="splits test, train, not 'val'"):
        pack_source(str(tmp_path / "in"), tmp_path / "out", split="val")


def test_a_corrupt_picture_is_named_or_skipped_and_counted(tmp_path, photos):
    data = (photos / "dog" / "b.png").read_bytes()
    (photos / "dog" / "b.png").write_bytes(data[:90])
    with pytest.raises(ValueError, match=r"dog/b\.png"):
        pack_source(str(photos), tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())
    summary = pack_source(str(photos), tmp_path / "out", skip_corrupt=True)
    assert summary.samples == 3
    assert len(summary.skipped) == 1
    assert "dog/b.png" in summary.skipped[0]


def test_pictures_of_several_sizes_need_a_resolution(tmp_path, photos):
    save(photos / "dog" / "wide.png", size=(10, 31))
    with pytest.raises(ValueError, match="dgan data pack --resolution"):
        pack_source(str(photos), tmp_path / "out")
    summary = pack_source(str(photos), tmp_path / "out", resolution=16)
    assert (summary.resolution, summary.width, summary.samples) == (16, 16, 5)


def test_pictures_are_turned_as_their_camera_says(tmp_path):
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[:4] = 255
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    save(tmp_path / "in" / "x.png", value=pixels, exif=exif)
    summary = pack_source(str(tmp_path / "in"), tmp_path / "out")
    assert (ShardDataset(summary.shards)[0]["image"][:, :4] == 0).all()


def test_what_cannot_be_packed_lists_what_can(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.bin").write_bytes(b"-")
    for source, error in (
        ("empty", ValueError),
        ("file.bin", ValueError),
        ("no", FileNotFoundError),
    ):
        with pytest.raises(error, match="a folder of images") as caught:
            pack_source(str(tmp_path / source), tmp_path / "out")
        assert source in str(caught.value)


# --- size and channels


@pytest.mark.parametrize("resolution", [0, -8, 2.5, True, "8"])
def test_a_resolution_is_a_positive_integer(resolution):
    with pytest.raises(ValueError, match="positive integer"):
        Fit(resolution=resolution)


@pytest.mark.parametrize("wrong", [{"channels": 2}, {"mode": "stretch"}, {"filter": "cubic"}])
def test_impossible_fits_say_what_is_possible(wrong):
    with pytest.raises(ValueError, match="must be"):
        Fit(**wrong)


def test_crop_takes_the_centre_and_pad_resamples_nothing():
    image = np.zeros((4, 8), np.uint8)
    image[:, 2:6] = np.arange(16).reshape(4, 4)
    wide = Image.fromarray(image)
    assert (np.asarray(Fit(resolution=4)(wide)) == image[:, 2:6]).all()
    padded = np.asarray(Fit(resolution=12, mode="pad")(wide))
    assert (padded[4:8, 2:10] == image).all()
    assert padded.sum() == image.sum()
    halved = np.asarray(Fit(resolution=2, filter="box")(wide))
    assert (
        halved.tolist() == np.rint(image[:, 2:6].reshape(2, 2, 2, 2).mean((1, 3)) + 0.01).tolist()
    )


def test_channels_convert_both_ways():
    grey, colour = (
        Image.fromarray(np.full((4, 4), 9, np.uint8)),
        Image.new("RGBA", (4, 4), (1, 2, 3, 4)),
    )
    assert np.asarray(Fit()(grey)).shape == (4, 4)
    assert np.asarray(Fit()(colour)).tolist()[0][0] == [1, 2, 3]
    assert (np.asarray(Fit(channels=3)(grey)) == 9).all()
    assert np.asarray(Fit(channels=1)(colour)).shape == (4, 4)
    deep = Image.fromarray(np.full((4, 4), 0x1234, np.uint16))
    assert (np.asarray(Fit(channels=1)(deep)) == 0x12).all()
    assert Fit()(grey, b"file") == b"file"
    assert Fit(resolution=2)(grey, b"file") != b"file"


# --- shards


def test_shards_can_be_packed_again_at_another_size(tmp_path):
    for split, value in (("train", 1), ("test", 2)):
        members = []
        for i in range(5):
            members += [(f"{i}.png", png(np.full((9, 6 + i), value))), (f"{i}.cls", b"%d" % i)]
        write_tar(tmp_path / f"in-{split}-000.tar", members)
    summary = pack_source(str(tmp_path), tmp_path / "out", split="test", resolution=4)
    dataset = ShardDataset(summary.shards)
    assert dataset.labels.tolist() == [0, 1, 2, 3, 4]
    assert (dataset[4]["image"] == 2).all()
    with pytest.raises(ValueError, match="splits test, train, not 'val'"):
        pack_source(str(tmp_path), tmp_path / "out", split="val")
    pattern = f"{tmp_path}/in-{{train,test}}-000.tar"
    assert pack_source(pattern, tmp_path / "both", resolution=4).samples == 10


# --- real data


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_mnist_and_its_kin(tmp_path, name):
    summary = pack_source(
        str(real(name)), tmp_path, split="test", resolution=32, fit="pad", limit=500
    )
    dataset = ShardDataset(summary.shards)
    assert (summary.samples, summary.classes, dataset.resolution) == (500, 10, 32)
    raw = read_idx(real(name) / "t10k-images-idx3-ubyte.gz")
    assert (dataset[7]["image"][0, 2:30, 2:30].numpy() == raw[7]).all()
    assert (
        dataset.labels.tolist() == read_idx(real(name) / "t10k-labels-idx1-ubyte.gz")[:500].tolist()
    )


def test_cifar_in_idx_files(tmp_path):
    summary = pack_source(str(real("cifar10")), tmp_path, split="test", limit=200)
    dataset = ShardDataset(summary.shards)
    assert dataset.shapes == {"image": (3, 32, 32)}
    raw = read_idx(real("cifar10") / "cifar10-test-0of5-images-idx4-ubyte.xz")
    assert (dataset[199]["image"].permute(1, 2, 0).numpy() == raw[199]).all()


def test_imagenet_samples_need_one_size(tmp_path):
    folder = real("imagenet-1k-samples")
    summary = pack_source(str(folder), tmp_path, resolution=32, limit=60)
    assert (summary.samples, summary.channels) == (60, 3)
    assert ShardDataset(f"{folder}/*.tar", resolution=32).num_classes == 1000
    with pytest.raises(ValueError, match="dgan data pack --resolution"):
        list(ShardDataset(f"{folder}/*.tar").batches(16, stop=64))


def test_facades_are_read_as_they_are():
    dataset = ShardDataset(real("facades") / "facades-val-000000.tar")
    assert (len(dataset), dataset.has_labels) == (100, False)
    assert dataset[0]["image"].shape == (3, 256, 512)
