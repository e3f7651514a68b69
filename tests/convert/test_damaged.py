"""Damaged and hostile files: each is converted or refused in one line, nothing outside is read, and nothing hangs."""

import json
import os
import shutil

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from jaxboost.convert import Hints, convert, encoders, part_file, store
from jaxboost.convert.sources import open_source
from jaxboost.convert.tables import shapes
from jaxboost.errors import UserError
from tests.convert import vision_checkpoints as vision
from tests.convert.changed_manifests import make_earlier, rewrite, sealed
from tests.mutations import mutations
from tests.reference import llama_checkpoints as reference

COUNT = int(os.environ.get("JAXBOOST_MUTANTS", "30"))
# Source -> the file of it that is damaged, and where sizes and offsets are in it.
FILES = {
    "safetensors": ("model.safetensors", 2048),
    "safetensors_sharded": ("model.safetensors.index.json", 2048),
    "config": ("config.json", 1024),
    "bin": ("pytorch_model.bin", 4096),
    "meta": ("params.json", 512),
    "gguf": ("tiny.gguf", 1024),
    "onnx": ("tiny.onnx", 4096),
    "timm": ("vit.safetensors", 2048),
    "timm_pickle": ("vit.pth", 4096),
}


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Each source's folder, and what is passed of it."""
    folder = tmp_path_factory.mktemp("sources")
    model = reference.tiny_llama(
        seed=5, num_hidden_layers=1, hidden_size=16, head_dim=8, num_attention_heads=2, num_key_value_heads=1
    )
    written = {}
    for name in ("safetensors", "bin", "meta", "gguf"):
        written[name] = reference.WRITERS[name](model, folder / name)
    written["safetensors_sharded"] = str(folder / "safetensors_sharded")
    model.save_pretrained(folder / "safetensors_sharded", max_shard_size="2KB")
    written["config"] = reference.write_safetensors(model, folder / "config")
    (folder / "onnx").mkdir()
    written["onnx"] = vision.write_onnx(vision.tiny("dinov2", num_hidden_layers=1), folder / "onnx" / "tiny.onnx")
    state = vision.timm_state(
        vision.tiny("vit", num_hidden_layers=3, hidden_size=24, num_attention_heads=3), folder / "published"
    )
    state = {name: array for name, array in state.items() if not name.startswith("head")}
    (folder / "timm").mkdir()
    save_file(state, folder / "timm" / "vit.safetensors")
    (folder / "timm_pickle").mkdir()
    torch.save({"model": {k: torch.from_numpy(v) for k, v in state.items()}}, folder / "timm_pickle" / "vit.pth")
    written["timm"], written["timm_pickle"] = (str(folder / name / FILES[name][0]) for name in ("timm", "timm_pickle"))
    return folder, written


def read_all(source: str) -> None:
    """Everything that a conversion reads."""
    selection = open_source(source, Hints(heads=3) if "vit" in source else None).select("all", final_norm=True)
    for part in selection.parts:
        for weight in part.shapes:
            part.read(weight, np.dtype(np.float32))


@pytest.mark.parametrize("name", FILES)
def test_sources(name, sources, tmp_path):
    folder, written = sources
    file, header = FILES[name]
    shutil.copytree(folder / name, tmp_path / name)
    source = written[name].replace(str(folder), str(tmp_path))
    read_all(source)
    path = tmp_path / name / file
    refused = 0
    for what, damaged in mutations(path.read_bytes(), COUNT, header=header):
        path.write_bytes(damaged)
        refused += assert_only_user_errors(lambda: read_all(source), what)
    # Bits of weights and of names that are not read change nothing that can be seen.
    assert refused >= COUNT // 4


HOSTILE = (1e400, -1, 0, 2**60, 10**400, 0.5, True, "", "../x", None, [], {}, [[[[]]]], [-1, 2], [0, 2**60])


def hostile(document):
    """Copies of a JSON document with each entry replaced by each of HOSTILE, or left out."""

    def paths_in(value, path=()):
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for key, entry in items:
            yield (*path, key)
            yield from paths_in(entry, (*path, key))

    for path in paths_in(document):
        for value in (*HOSTILE, "absent"):
            copy = json.loads(json.dumps(document))
            parent = copy
            for key in path[:-1]:
                parent = parent[key]
            if value == "absent":
                del parent[path[-1]]
            else:
                parent[path[-1]] = value
            yield f"{'/'.join(map(str, path))} is {value!r:.40}", copy


def assert_only_user_errors(read, what):
    """Whether `read` refused."""
    try:
        read()
    except UserError as error:
        message = str(error)
    except Exception as error:
        raise AssertionError(f"{what}: {type(error).__name__}: {error}") from error
    else:
        return False
    assert "\n" not in message, what
    assert len(message) < 4000, what
    return True


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("config", "config.json"),
        ("meta", "params.json"),
        ("safetensors_sharded", "model.safetensors.index.json"),
        ("timm", "vit.safetensors"),
    ],
)
def test_hostile_settings(name, file, sources, tmp_path):
    """Values that are of another type, infinite, huge, negative or paths, in every place."""
    folder, written = sources
    shutil.copytree(folder / name, tmp_path / name)
    (tmp_path / "x").write_bytes(b"secret")
    source, path = written[name].replace(str(folder), str(tmp_path)), tmp_path / name / file
    contents, start = path.read_bytes(), 0
    if file.endswith(".safetensors"):
        start = 8 + int.from_bytes(contents[:8], "little")
        document = json.loads(contents[8:start])
        document = {key: document[key] for key in list(document)[:3]}
    else:
        document = json.loads(contents)
        if "weight_map" in document:
            document["weight_map"] = dict(list(document["weight_map"].items())[:2])
    for what, copy in hostile(document):
        text = json.dumps(copy).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + contents[start:] if start else text)
        assert_only_user_errors(lambda: read_all(source), what)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"rms_norm_eps": 1e400}, r"'rms_norm_eps' is inf, which is not between 1e-30 and 1e\+30"),
        ({"num_key_value_heads": 1e400}, "'num_key_value_heads' is inf"),
        ({"num_hidden_layers": 10**400}, r"'num_hidden_layers' is 1000\d*\.\.\.\d*0"),
        ({"num_hidden_layers": 2000}, "'num_hidden_layers' is 2000, above 1024"),
        ({"hidden_size": 2**40}, "'hidden_size' is 1099511627776, above 1048576"),
        ({"head_dim": True}, "'head_dim' is True instead of a positive number"),
        ({"intermediate_size": -96}, "'intermediate_size' is -96 instead of a positive number"),
    ],
)
def test_what_is_said_of_numbers(document, message, sources, tmp_path):
    _, written = sources
    source = shutil.copytree(written["config"], tmp_path / "tiny")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | document))
    with pytest.raises(UserError, match=message):
        open_source(str(source))


def test_what_no_run_would_open_is_not_written(sources, tmp_path):
    source = shutil.copytree(sources[1]["config"], tmp_path / "tiny")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 2.0}))
    message = r"^tiny is damaged or of another version \(config\.eps: .*less than or equal to 1\): choose another"
    with pytest.raises(UserError, match=message):
        convert(str(source), "0", tmp_path / "out" / "block")
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def folders(sources, tmp_path_factory):
    """A block and a vision encoder."""
    folder, written = tmp_path_factory.mktemp("converted"), sources[1]
    convert(written["config"], "all", folder / "block")
    convert(written["timm"], "all", folder / "encoder", hints=Hints(heads=3))
    return folder


def load(folder):
    if folder.name == "block":
        store.load_block(folder, None, final_norm=True)
    else:
        encoders.load_encoder(folder, image_size=8)


def load_norm(folder):
    """The manifest and one part, which takes no compilation."""
    room, key = (store, "final_norm") if folder.name == "block" else (encoders, "norm")
    list(room.arrays(folder, room.read_manifest(folder), key))


@pytest.mark.parametrize("name", ["block", "encoder"])
def test_hostile_manifests(name, folders, tmp_path):
    """Nothing is allocated for what a manifest demands, and no layer is a path."""
    folder = shutil.copytree(folders / name, tmp_path / name)
    read = store.read_manifest if name == "block" else encoders.read_manifest
    document = json.loads((folder / "manifest.json").read_text())
    del document["checksum"]
    same = 0
    for what, copy in hostile(document):
        (folder / "manifest.json").write_text(sealed(copy))
        if not assert_only_user_errors(lambda: read(folder), what):
            same += 1
            assert_only_user_errors(lambda: load_norm(folder), what)
    # Such as a source of another name, and constants of another value that are sound.
    assert same < 40


def test_a_changed_constant_is_not_taken_for_the_models(folders, tmp_path):
    for name, change in (("block", '"eps": 1e-05'), ("encoder", '"eps": 1e-06')):
        folder = shutil.copytree(folders / name, tmp_path / name)
        path = folder / "manifest.json"
        assert change in path.read_text()
        path.write_text(path.read_text().replace(change, '"eps": 0.001'))
        with pytest.raises(UserError, match=r"manifest\.json was changed after the conversion .*: convert again"):
            load(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": ["../x"], "sha256": {"../x": "0" * 64, "final_norm": "0" * 64}}, "layers.0: "),
        ({"layers": [0, 0]}, "named twice"),
        ({"config": {"width": 2**30}}, "config.width: Input should be less than or equal to 65536"),
        ({"config": {"kv_heads": 3}}, "2 heads are not a multiple of 3"),
        ({"config": {"rope_factors": [1.0]}}, "1 rotary factors for a head width of 8"),
        ({"config": {"rope_factors": [1.0, 0.0, 1.0, 1.0]}}, "rope_factors.1: "),
        ({"note": "mine"}, "note: Unknown entry"),
        ({"format_version": True}, "has the format version True"),
    ],
)
def test_what_is_said_of_manifests(change, message, folders, tmp_path):
    folder = shutil.copytree(folders / "block", tmp_path / "block")
    rewrite(folder, lambda fields: fields.update(change | {"config": fields["config"] | change.get("config", {})}))
    with pytest.raises(UserError, match=message):
        load(folder)


def test_a_demand_for_more_than_the_files_hold(folders, tmp_path):
    """Within the bounds of the schema, with a header to match: still no more than the files hold."""
    folder = shutil.copytree(folders / "block", tmp_path / "block")
    rewrite(folder, lambda fields: fields["config"].update(width=65536, mlp_width=2**20))
    with pytest.raises(UserError, match="is altered or truncated: convert again"):
        load(folder)
    manifest = store.read_manifest(folder)
    for path in folder.glob("*.safetensors"):
        key = "0" if path.name.startswith("layer") else "final_norm"
        path.write_bytes(part_file._header(shapes.llama_part(manifest.config, key), np.dtype(np.float32)))
    with pytest.raises(UserError, match="is altered or truncated: convert again"):
        load(folder)


@pytest.mark.parametrize(
    "change",
    [{"dtype": "I32"}, {"shape": [4, 4]}, {"data_offsets": [8, 72]}, {"data_offsets": [0, 2**60]}, {"x": 1}, None],
)
@pytest.mark.parametrize(("part", "array"), [("final_norm", "scale"), ("layer_00000", "attention_norm")])
def test_changed_headers(part, array, change, folders, tmp_path):
    """With and without the size of the header to match."""
    folder = shutil.copytree(folders / "block", tmp_path / "block")
    path = folder / f"{part}.safetensors"
    contents = path.read_bytes()
    start = 8 + int.from_bytes(contents[:8], "little")
    header = json.loads(contents[8:start])
    header[array] = header[array] | change if change else None
    text = json.dumps(header, separators=(",", ":")).encode()
    for length in (len(text), start - 8):
        text = text[:length].ljust(length)
        path.write_bytes(length.to_bytes(8, "little") + text + contents[start:])
        with pytest.raises(UserError, match="is altered or truncated: convert again"):
            load(folder)


def test_links_out_of_a_converted_folder(folders, tmp_path):
    folder = shutil.copytree(folders / "block", tmp_path / "block")
    norm, layer = folder / "final_norm.safetensors", folder / "layer_00000.safetensors"
    norm.rename(tmp_path / "elsewhere")
    norm.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"final_norm.* is a link that leads out of .*block: replace it by what it"):
        load(folder)
    norm.unlink()
    shutil.copy(tmp_path / "elsewhere", norm)
    load(folder)
    # The folder itself may be a link, and links may stay inside.
    layer.rename(folder / "layer")
    layer.symlink_to("layer")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "block").symlink_to(folder)
    load(tmp_path / "linked" / "block")


def test_pipes_are_not_opened(folders, sources, tmp_path):
    folder = shutil.copytree(folders / "block", tmp_path / "block")
    (folder / "final_norm.safetensors").unlink()
    os.mkfifo(folder / "final_norm.safetensors")
    with pytest.raises(UserError, match=r"final_norm\.safetensors is not a regular file"):
        load(folder)
    os.mkfifo(tmp_path / "vit.pth")
    with pytest.raises(UserError, match=r"vit\.pth is not a regular file \(a pipe or a device\?\)"):
        open_source(str(tmp_path / "vit.pth"))
    source = shutil.copytree(sources[1]["config"], tmp_path / "source")
    (source / "model.safetensors").unlink()
    os.mkfifo(source / "model.safetensors")
    with pytest.raises(UserError, match="has no weights"):
        read_all(str(source))


@pytest.mark.parametrize("name", ["block", "encoder"])
def test_damaged_folders(name, folders, tmp_path, capfd):
    """Every file: the values are right, or it is refused."""
    folder = shutil.copytree(folders / name, tmp_path / name)
    read_manifest = store.read_manifest if name == "block" else encoders.read_manifest
    expected, manifest = all_arrays(folder), read_manifest(folder)
    for path in sorted(folder.iterdir()):
        contents = path.read_bytes()
        for what, damaged in mutations(contents, COUNT):
            path.write_bytes(damaged)
            where = f"{path.name}: {what}"
            # A mutation may leave the file as it was.
            if not assert_only_user_errors(lambda: all_arrays(folder), where):
                found = all_arrays(folder)
                assert read_manifest(folder) == manifest, where
                assert found.keys() == expected.keys(), where
                for key, array in found.items():
                    np.testing.assert_array_equal(array, expected[key], err_msg=where)
                assert path.suffix == ".json" or damaged == contents, where
        path.write_bytes(contents)
    load(folder)
    assert "Traceback" not in capfd.readouterr().err


def all_arrays(folder):
    """Part and name -> values, of every part of a converted folder."""
    room = store if folder.name == "block" else encoders
    manifest = room.read_manifest(folder)
    return {
        (key, name): np.array(array) for key in manifest.sha256 for name, array in room.arrays(folder, manifest, key)
    }


@pytest.mark.parametrize("name", ["block", "encoder"])
def test_hostile_manifests_of_earlier_versions(name, folders, tmp_path):
    """The command in the message is built of their entries: one line, whatever these are."""
    folder = shutil.copytree(folders / name, tmp_path / name)
    make_earlier(folder)
    read = store.read_manifest if name == "block" else encoders.read_manifest
    document = json.loads((folder / "manifest.json").read_text())
    for what, copy in hostile(document):
        (folder / "manifest.json").write_text(json.dumps(copy))
        if copy.get("format_version") == 1:
            assert assert_only_user_errors(lambda: read(folder), what)
