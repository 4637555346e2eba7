"""What a run records of its data, and what its header says."""

import msgspec
import numpy as np

from cifar_flax.data import make_dataset, split_dataset
from cifar_flax.data.values import Reading
from cifar_flax.records import DatasetInfo
from cifar_flax.runs.data_record import data_in_words, describe_data

LABELS = np.repeat([0, 1, 2], [30, 20, 10])


def describe(**settings):
    images = np.random.default_rng(0).integers(3, 200, (60, 4, 6, 1), dtype=np.uint8)
    names = ["cat", "dog", "emu"]
    pair = images, LABELS
    dataset = make_dataset("d", *pair, *pair, names, source="a test", **settings)
    return describe_data(dataset, split_dataset(dataset, val_size=6))


def test_the_header_says_what_the_record_has():
    note = "4 left out: hidden files and folders (.a)"
    info = describe(reading=Reading(0.0, 4000.0, 4095.0, (note,)))
    assert info.class_sizes == [27, 18, 9]
    assert (info.values, info.white) == ((0.0, 4000.0), 4095.0)
    assert msgspec.json.decode(msgspec.json.encode(info), type=DatasetInfo) == info
    assert data_in_words(info) == [
        ("data", "d: 54 training, 6 validation and 60 test images (a test)"),
        ("classes", "3 (cat, dog, emu), from 9 training images (emu) to 27 (cat)"),
        ("largest class", "50.00 % of the test images are cat"),
        (
            "images",
            "4 x 6, 1 channel, values from 0 to 4,000 (white is 4,095), "
            "read as 0 to 255",
        ),
        ("note", note),
    ]


def test_bytes_need_no_decision():
    info = describe()
    assert (info.values, info.white, info.notes) == ((3.0, 199.0), None, [])
    assert data_in_words(info)[3:] == [
        ("images", "4 x 6, 1 channel, values from 3 to 199")
    ]


def test_records_of_older_versions_are_read():
    plain = msgspec.to_builtins(describe())
    for name in ("class_sizes", "test_class_sizes", "values", "white", "notes"):
        del plain[name]
    info = msgspec.convert(plain, DatasetInfo)
    assert data_in_words(info)[1:] == [
        ("classes", "3 (cat, dog, emu)"),
        ("images", "4 x 6, 1 channel"),
    ]
