"""Messages about files for a trained model: they advise nothing that only the config of a training could set."""

import numpy as np
import pytest
from PIL import Image

from jaxboost.data.sources.folder import inputs
from jaxboost.errors import UserError
from tests.data.niftis import write_volume

PIXELS = np.random.default_rng(0).integers(0, 256, (16, 16), np.uint8)
VOLUME = np.random.default_rng(0).random((6, 6, 6)).astype(np.float32)


def read(*paths, **options):
    preprocessing = {"ndim": 2, "size": 8, "masked": False, "image_size": 8, "resize": 0} | options
    masks = preprocessing.pop("masks", "")
    return inputs.read(paths, inputs.Preprocessing(**preprocessing), masks=masks)


def refused(*paths, **options):
    with pytest.raises(UserError) as error:
        read(*paths, **options)
    return str(error.value)


@pytest.mark.parametrize(
    ("values", "options", "setting"),
    [
        (np.where(PIXELS > 9, PIXELS, np.nan), {}, "data.nan=''"),
        (PIXELS, {"max_pixels": 255}, "data.max_pixels=255"),
        (np.where(VOLUME > 0.1, VOLUME, np.inf), {"ndim": 3}, "data.nan=''"),
        (VOLUME, {"ndim": 3, "max_voxels": 7}, "data.max_voxels=7"),
        (VOLUME, {"ndim": 3, "spacing": 4.0}, "data.spacing=4"),
        (VOLUME, {"ndim": 3, "window": (5.0, 6.0)}, "data.window=(5.0, 6.0)"),
        (VOLUME, {"ndim": 3, "window": (-1e308, 1e308)}, "data.window=(-1e+308, 1e+308)"),
        (PIXELS.astype(np.int32), {"window": (-9.0, -5.0)}, "data.window=(-9.0, -5.0)"),
        (VOLUME[0], {"ndim": 3}, "volumes"),
    ],
)
def test_settings(values, options, setting, tmp_path):
    np.save(tmp_path / "a.npy", values)
    message = refused(tmp_path / "a.npy", **options)
    assert message.endswith(f": change the file; the model was trained with {setting}"), message


def test_values_that_stand_for_no_data(tmp_path):
    values = PIXELS.astype(np.float32)
    values[0] = -9999
    Image.fromarray(values).save(tmp_path / "a.tif", tiffinfo={42113: "-9999"})
    assert refused(tmp_path / "a.tif").endswith("change the file; the model was trained with data.nan=''")


def test_warnings(tmp_path, caplog):
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    Image.fromarray(PIXELS.astype(np.uint16) * 200).save(tmp_path / "b.png")
    read(tmp_path / "a.png", tmp_path / "b.png")
    assert "b.png: give all of them as the images of the training were stored" in caplog.text
    caplog.clear()
    read(
        write_volume(tmp_path / "a.nii", (PIXELS[:8, :8, np.newaxis] > np.arange(0, 256, 32)).astype(np.uint8)), ndim=3
    )
    assert "give volumes with the values of those of the training" in caplog.text
    assert "data." not in " ".join(caplog.messages)


@pytest.mark.parametrize("name", ["none", "none.csv", "empty.csv", "~no_such_user/masks.csv", "x" * 300])
def test_masks_are_called_by_their_flag(name, tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    (tmp_path / "empty.csv").write_text("")
    message = refused(tmp_path / "a.png", masked=True, masks=str(tmp_path / name) if name != "x" * 300 else name)
    assert message.startswith("--masks: ")
    assert "data." not in message


def test_inputs_that_no_system_has():
    for name in ("~no_such_user/a.png", "x" * 300, "a\0b"):
        with pytest.raises(UserError, match=r"^--input "):
            inputs.find([name], 2)
