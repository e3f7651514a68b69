"""Damaged and hostile files: each is converted or refused in one line, nothing outside is read, and nothing hangs."""

import json
import os
import shutil

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from jaxboost.convert import convert, encoder_names, encoders, store
from jaxboost.convert.encoder_names import EncoderSource
from jaxboost.convert.given import Given
from jaxboost.convert.names import check
from jaxboost.convert.sources import open_source
from jaxboost.errors import UserError
from tests.convert import vision_checkpoints as vision
from tests.convert.changed_manifests import rewrite
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
    reader = open_source(source, Given(heads=3) if "vit" in source else None)
    if isinstance(reader, EncoderSource):
        encoder_names.check(reader)
        encoder_names.left_out(reader)
        for key, shapes in encoder_names.part_shapes(reader.arguments, reader.image_size).items():
            for weight in shapes:
                encoder_names.read_weight(reader, key, weight, np.dtype(np.float32))
        return
    check(reader, range(reader.n_layers), final_norm=True)
    for name in reader.layout.names(0).values():
        reader.read(name)


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
    """Copies of a JSON document with each of its entries exchanged for each of HOSTILE, left out or doubled."""

    def places(value, path=()):
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for key, entry in items:
            yield (*path, key)
            yield from places(entry, (*path, key))

    for path in places(document):
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
    """A block and a encoder."""
    folder, written = tmp_path_factory.mktemp("converted"), sources[1]
    convert(written["config"], "all", folder / "block")
    convert(written["timm"], "all", folder / "encoder", given=Given(heads=3))
    return folder


def load(folder):
    if folder.name == "block":
        store.load_block(folder, None, final_norm=True)
    else:
        encoders.load_encoder(folder, image_size=8)


def load_norm(folder):
    """The manifest and one part, which takes no compilation."""
    if folder.name == "block":
        manifest, key = store.read_manifest(folder), "final_norm"
        shapes = {"scale": (manifest.config.width,)}
    else:
        manifest, key = encoders.read_manifest(folder), "norm"
        shapes = encoder_names.part_shapes(manifest.arguments, manifest.image_size)[key]
    list(store.restored(folder, key, shapes, store.DTYPES[manifest.dtype], manifest.sha256))


@pytest.mark.parametrize("name", ["block", "encoder"])
def test_hostile_manifests(name, folders, tmp_path):
    """Nothing is allocated for what a manifest demands, and no layer is a path."""
    folder = shutil.copytree(folders / name, tmp_path / name)
    read = store.read_manifest if name == "block" else encoders.read_manifest
    document = json.loads((folder / "manifest.json").read_text())
    del document["checksum"]
    same = 0
    for what, copy in hostile(document):
        (folder / "manifest.json").write_text(json.dumps(copy))
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
        ({"note": "mine"}, "note: Extra inputs are not permitted"),
        ({"format_version": True}, "has the format version True"),
    ],
)
def test_what_is_said_of_manifests(change, message, folders, tmp_path):
    folder = shutil.copytree(folders / "block", tmp_path / "block")
    rewrite(folder, lambda fields: fields.update(change | {"config": fields["config"] | change.get("config", {})}))
    with pytest.raises(UserError, match=message):
        load(folder)


def test_a_demand_for_more_than_the_files_hold(folders, tmp_path):
    """Within the bounds of the schema, with arrays' metadata to match: still no more than the files can hold."""
    folder = shutil.copytree(folders / "block", tmp_path / "block")
    rewrite(folder, lambda fields: fields["config"].update(width=65536, mlp_width=2**20))
    with pytest.raises(UserError, match="is altered or truncated: convert again"):
        load(folder)
    for path in folder.rglob(".zarray"):
        metadata = json.loads(path.read_text())
        shape = [{16: 65536, 96: 2**20}.get(number, number) for number in metadata["shape"]]
        path.write_text(json.dumps(metadata | {"shape": shape, "chunks": shape}))
    with pytest.raises(UserError, match="is altered or truncated: convert again"):
        load(folder)


@pytest.mark.parametrize("change", [{"dtype": "<i4"}, {"shape": [8, 2]}, {"order": "F"}, {"fill_value": 1.0}, {"x": 1}])
@pytest.mark.parametrize("array", ["final_norm/scale", "layer_00000/attention_norm", "layer_00000/q"])
def test_changed_metadata_of_arrays(array, change, folders, tmp_path):
    folder = shutil.copytree(folders / "block", tmp_path / "block")
    path = folder / array / ".zarray"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match="is altered or truncated: convert again"):
        load(folder)


def test_links_out_of_a_converted_folder(folders, tmp_path):
    folder = shutil.copytree(folders / "block", tmp_path / "block")
    (folder / "final_norm").rename(tmp_path / "elsewhere")
    (folder / "final_norm").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"final_norm.* is a link that leads out of .*block: copy what it links to"):
        load(folder)
    (folder / "final_norm").unlink()
    shutil.copytree(tmp_path / "elsewhere", folder / "final_norm")
    load(folder)
    # The folder itself may be a link, and links may stay inside.
    (folder / "layer_00000").rename(folder / "layer")
    (folder / "layer_00000").symlink_to("layer")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "block").symlink_to(folder)
    load(tmp_path / "linked" / "block")


def test_pipes_are_not_opened(folders, sources, tmp_path):
    folder = shutil.copytree(folders / "block", tmp_path / "block")
    (folder / "final_norm" / "scale" / "0").unlink()
    os.mkfifo(folder / "final_norm" / "scale" / "0")
    with pytest.raises(UserError, match="scale/0 is not a regular file"):
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
    """Every file of one array and of its part, manifest included: the values are right, or it is refused."""
    folder = shutil.copytree(folders / name, tmp_path / name)
    part = folder / ("final_norm" if name == "block" else "norm")
    for path in [folder / "manifest.json", *sorted(path for path in part.rglob("*") if path.is_file())]:
        contents = path.read_bytes()
        for what, damaged in mutations(contents, max(3, COUNT // 8)):
            path.write_bytes(damaged)
            assert_only_user_errors(lambda: load_norm(folder), f"{path.relative_to(folder)}: {what}")
        path.write_bytes(contents)
    load(folder)
    assert "Traceback" not in capfd.readouterr().err
