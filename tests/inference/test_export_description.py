"""export.json as a stranger's file: what is read of it is what was written, or it is refused in one line."""

import json
import math

import pytest

from jaxboost.errors import UserError
from jaxboost.inference import exported
from jaxboost.io import json_sha256
from tests.mutations import mutations

DESCRIBED = {
    "format": 2,
    "dataset": "mine",
    "task": "binary-class",
    "classes": ["healthy", "sick"],
    "threshold": {"split": "val", "specificity": 0.9, "value": 0.75, "test": {"acc": 0.5}},
    "preprocessing": {
        "ndim": 2,
        "size": 224,
        "window": [0.0, 100.0],
        "spacing": 0.0,
        "masked": False,
        "image_size": 224,
        "resize": 0,
        "nan": None,
        "max_pixels": 67108864,
        "max_voxels": 536870912,
    },
    "images": {"batch": None, "shape": [224, 224, 3], "dtype": "uint8"},
    "batch_size": 128,
    "platforms": ["cpu", "cuda", "tpu"],
    "provenance": {"model": "vit_s"},
    "files": {"program.bin": "0" * 64, "weights-00001-of-00002.safetensors": "a" * 64},
}
WILD = (None, True, 0, -1, 3, 10**30, 1e308, "", "x", "../x", "x" * 20_000, [], ["x"], [[1]], {}, {"../x": "0" * 64})


def write(folder, described, *, checksum=True):
    described = {**described, **({"sha256": json_sha256(described)} if checksum else {})}
    (folder / "export.json").write_text(json.dumps(described, indent=2))
    return folder


def read(folder):
    """The description, or None where it is refused."""
    try:
        return exported.read_description(folder)
    except UserError as error:
        text = str(error)
    assert "\n" not in text
    assert len(text) < 1000
    assert text.endswith(("export the run again", "export the run again with it"))
    return None


def test_the_unit_of_earlier_exports_is_that_of_their_run(tmp_path):
    for provenance, unit in (({}, "image"), ({"config": {"eval": {"unit": "patient"}}}, "patient")):
        found = exported.read_description(write(tmp_path, DESCRIBED | {"provenance": provenance}))
        assert found.unit == unit
    # What the export says itself counts.
    assert (
        exported.read_description(write(tmp_path, DESCRIBED | {"provenance": provenance, "unit": "image"})).unit
        == "image"
    )
    for wild in ([], {"config": 3}, {"config": {"eval": {"unit": ["patient"]}}}):
        found = read(write(tmp_path, DESCRIBED | {"provenance": wild}))
        assert found is None or found.unit == "image"


def test_what_is_read(tmp_path):
    for checksum in (True, False):
        found = exported.read_description(write(tmp_path, DESCRIBED, checksum=checksum))
        assert (found.task, found.classes, found.batch_size) == ("binary-class", ("healthy", "sick"), 128)
        assert (found.images.batch, found.threshold.value) == (None, 0.75)
        assert (found.preprocessing.window, found.preprocessing.masked) == ((0.0, 100.0), False)
        assert found.files == DESCRIBED["files"]
    # Earlier versions had fewer fields.
    older = {name: DESCRIBED["preprocessing"][name] for name in list(DESCRIBED["preprocessing"])[:7]}
    assert exported.read_description(write(tmp_path, DESCRIBED | {"preprocessing": older})) == found
    # JSON has no infinity: null is a threshold that nothing reaches.
    unreached = exported.read_description(write(tmp_path, DESCRIBED | {"threshold": {"value": None}}))
    assert unreached.threshold.value == math.inf
    assert exported.read_description(write(tmp_path, DESCRIBED | {"threshold": None})).threshold is None
    # Format 1 had another name for the preprocessing.
    first = {name: value for name, value in DESCRIBED.items() if name != "preprocessing"}
    assert exported.read_description(write(tmp_path, first | {"format": 1, "preparation": older})) == found


def test_mutants(tmp_path):
    content = write(tmp_path, DESCRIBED).joinpath("export.json").read_bytes()
    whole, outcomes = exported.read_description(tmp_path), set()
    for _, damaged in mutations(content, 100, header=len(content)):
        (tmp_path / "export.json").write_bytes(damaged)
        found = read(tmp_path)
        assert found in (None, whole)
        outcomes.add(found is None)
    assert outcomes == {True, False}


def _paths(tree, path=()):
    for name, value in tree.items() if isinstance(tree, dict) else ():
        yield (*path, name)
        yield from _paths(value, (*path, name))


@pytest.mark.parametrize("path", list(_paths(DESCRIBED)), ids=".".join)
def test_wild_values(path, tmp_path):
    """With the right checksum: somebody made them."""
    for value in WILD:
        described = json.loads(json.dumps(DESCRIBED))
        place = described
        for name in path[:-1]:
            place = place[name]
        place[path[-1]] = value
        found = read(write(tmp_path, described))
        if found is not None:
            assert found.files.keys() <= {"program.bin", "weights-00001-of-00002.safetensors"}
            assert found.batch_size <= 2**16
            assert 1 <= found.preprocessing.image_size <= 8192


@pytest.mark.parametrize(
    "name",
    ["../program.bin", "/etc/passwd", "weights/../../x.safetensors", "weights.safetensors\n", "x.safetensors", ""],
)
def test_names_of_files(name, tmp_path):
    files = {"program.bin": "0" * 64, name: "0" * 64}
    with pytest.raises(UserError, match=r"export\.json is damaged or of another version \(files\."):
        exported.load(write(tmp_path, DESCRIBED | {"files": files}))


def test_a_folder_in_its_place(tmp_path):
    (tmp_path / "export.json").mkdir()
    assert read(tmp_path) is None
    assert not exported.is_export(tmp_path)


def test_another_format(tmp_path):
    with pytest.raises(UserError, match="has the format 4, this jaxboost reads up to 3"):
        exported.read_description(write(tmp_path, DESCRIBED | {"format": 4}))
