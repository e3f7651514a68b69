"""Damaged pictures: each is read or refused, without much memory and without output on the terminal."""

import io
import tracemalloc

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from jaxboost.data.problems import ProblemError
from tests.data.files_of_pictures import GREY, PALETTE, RGB, SHORT, chunk, exif, packed, png, read_image, tiff
from tests.mutations import mutations

DRAW = np.random.default_rng(6).integers(0, 4096, (12, 10, 3)).astype(np.uint16)


def _tiff(values, **options):
    content = io.BytesIO()
    tifffile.imwrite(content, values, **options)
    return content.getvalue()


def _npy(values):
    content = io.BytesIO()
    np.save(content, values)
    return content.getvalue()


def _jpeg(mode, **options):
    content = io.BytesIO()
    Image.fromarray((DRAW >> 4).astype(np.uint8)).convert(mode).save(content, "JPEG", **options)
    return content.getvalue()


YCBCR = {258: (SHORT, [8, 8, 8]), 262: (SHORT, [6]), 277: (SHORT, [3]), 530: (SHORT, [1, 1])}
COLOURS = chunk(b"PLTE", bytes(range(48))) + chunk(b"tRNS", b"\0\1")
KINDS = {
    "a.png": lambda: png(DRAW >> 4, 8, RGB, before=chunk(b"eXIf", exif(6))),
    "deep.png": lambda: png(DRAW, 16, RGB, interlaced=True),
    "grey.png": lambda: png(DRAW[..., 0], 16, GREY),
    "palette.png": lambda: png(DRAW[..., 0] % 16, 4, PALETTE, before=COLOURS),
    "a.jpg": lambda: _jpeg("RGB", exif=b"Exif\0\0" + exif(3)),
    "progressive.jpg": lambda: _jpeg("L", progressive=True),
    "cmyk.jpg": lambda: _jpeg("CMYK"),
    "deep.jpg": lambda: imagecodecs.jpeg8_encode(DRAW, bitspersample=12),
    "a.tif": lambda: _tiff(DRAW),
    "tiles.tif": lambda: _tiff(DRAW, photometric="rgb", tile=(16, 16), compression="zlib", predictor=True),
    "lzw.tif": lambda: _tiff(DRAW.astype("f4"), photometric="rgb", compression="lzw"),
    "packed.tif": lambda: tiff(packed(DRAW[..., 0], 12), 12, 10, {258: (SHORT, [12]), 262: (SHORT, [0])}),
    "jpeg.tif": lambda: _tiff((DRAW >> 4).astype("u1"), photometric="rgb", compression="jpeg"),
    "ycbcr.tif": lambda: tiff((DRAW >> 4).astype("u1").tobytes(), 12, 10, YCBCR),
    "a.npy": lambda: _npy(DRAW),
    "float.npy": lambda: _npy(DRAW[..., 0].astype(">f4")),
}


@pytest.mark.parametrize("name", KINDS)
def test_every_damaged_file_is_read_or_refused(tmp_path, name, capfd, recwarn):
    path = tmp_path / name
    path.write_bytes(whole := KINDS[name]())
    assert read_image(path).dtype == np.uint8
    refusals = 0
    tracemalloc.start()
    try:
        for _, content in mutations(whole, 30):
            path.write_bytes(content)
            try:
                image = read_image(path)
            except ProblemError:
                refusals += 1
            else:
                assert image.dtype == np.uint8
                assert image.size < 2**20
        assert tracemalloc.get_traced_memory()[1] < 2**26
    finally:
        tracemalloc.stop()
    assert refusals
    assert not recwarn.list
    assert capfd.readouterr() == ("", "")
