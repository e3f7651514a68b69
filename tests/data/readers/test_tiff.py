"""TIFF files: every type of value as it is stored, and refusals of files that cannot be read exactly."""

import struct

import imagecodecs
import numpy as np
import pytest
import tifffile

from jaxboost.data.problems import ProblemError
from jaxboost.data.readers.pictures import read_picture
from tests.data.files_of_pictures import LONG, SHORT, packed, read_image, smooth, tiff, turned

H, W = 21, 19
RGB = {262: (SHORT, [2]), 277: (SHORT, [3]), 258: (SHORT, [8, 8, 8])}
TYPES = ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8"]


def drawn(kind, channels=1):
    shape = (H, W) if channels == 1 else (H, W, channels)
    draw = np.random.default_rng(3).integers(0, 250, shape)
    if kind[0] == "f":
        return (draw / 7 - 9).astype(kind)
    # Whole numbers in all of the type's bytes.
    scale = np.iinfo(kind).max // 255
    return (draw * scale + draw % 3 - (100 * scale if kind[0] == "i" else 0)).astype(kind)


def shown(stored, window=None):
    low, high = (
        window or (int(stored.min()), int(stored.max()))
        if stored.dtype.kind != "f"
        else window or (float(stored.min()), float(stored.max()))
    )
    exact = [(int(v) if stored.dtype.kind != "f" else float(v)) - low for v in stored.ravel()]
    return np.clip(np.array([value * 255 / (high - low) for value in exact]), 0, 255).reshape(stored.shape)


def write(folder, content, name="a.tif"):
    path = folder / name
    path.write_bytes(content)
    return path


def refused(path, match, **options):
    with pytest.raises(ProblemError, match=match):
        read_image(path, **options)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", TYPES)
def test_types(tmp_path, kind, channels):
    stored = drawn(kind, channels)
    tifffile.imwrite(path := tmp_path / "a.tif", stored, photometric="rgb" if channels == 3 else "minisblack")
    np.testing.assert_array_equal(read_picture(path), stored)
    if kind == "u1":
        np.testing.assert_array_equal(read_image(path, (0, 100)), stored)
    else:
        np.testing.assert_allclose(read_image(path), shown(stored), atol=0.502)
        window = (float(stored.min()) / 2, float(stored.max()) / 2)
        np.testing.assert_allclose(read_image(path, window), shown(stored, window), atol=0.502)


@pytest.mark.parametrize(
    "options",
    [
        *({"compression": name} for name in ("zlib", "lzw", "packbits", "zstd", "lzma")),
        {"tile": (16, 16)},
        {"tile": (16, 16), "compression": "zlib", "predictor": True},
        {"rowsperstrip": 4, "compression": "lzw", "predictor": True},
        {"byteorder": ">", "compression": "zlib", "predictor": True},
        {"byteorder": ">", "bigtiff": True},
        {"planarconfig": "separate", "rowsperstrip": 5},
    ],
    ids=lambda options: " ".join(map(str, options.values())),
)
@pytest.mark.parametrize("kind", ["u1", "u2", "f4"])
def test_ways_to_store(tmp_path, kind, options):
    stored = drawn(kind, 3)
    written = np.moveaxis(stored, -1, 0) if "planarconfig" in options else stored
    tifffile.imwrite(path := tmp_path / "a.tif", written, photometric="rgb", **options)
    np.testing.assert_array_equal(read_picture(path), stored)


@pytest.mark.parametrize("bits", range(1, 17))
def test_bits(tmp_path, bits):
    stored = np.random.default_rng(bits).integers(0, 2**bits, (H, W))
    data = stored.astype("<u2").tobytes() if bits == 16 else packed(stored, bits)
    found = read_picture(write(tmp_path, tiff(data, H, W, {258: (SHORT, [bits])})))
    np.testing.assert_array_equal(found, np.rint(stored * 255 / (2**bits - 1)) if bits < 9 else stored)


@pytest.mark.parametrize("bits", [1, 4, 8, 12, 16])
def test_white_as_0_shows_the_same_picture(tmp_path, bits):
    stored = np.random.default_rng(bits).integers(0, 2**bits, (H, W))
    pages = []
    for meaning, values in ((1, stored), (0, 2**bits - 1 - stored)):
        data = values.astype("<u2").tobytes() if bits == 16 else packed(values, bits)
        tags = {258: (SHORT, [bits]), 262: (SHORT, [meaning])}
        pages.append(write(tmp_path, tiff(data, H, W, tags), f"{meaning}.tif"))
    for window in ((), (0, 2**bits - 1)):
        black, white = (read_image(page, window) for page in pages)
        np.testing.assert_array_equal(black, white)
    if bits > 8:
        with pytest.raises(ProblemError, match="0 as white: save it with 0 as black"):
            read_picture(pages[1])


@pytest.mark.parametrize("kind", ["u2", "i2", "f4"])
def test_white_as_0_within_a_window(tmp_path, kind):
    """12 bits in 16: the window says what is white, not the type."""
    stored = np.random.default_rng(5).integers(0, 4096, (H, W)).astype(kind)
    tifffile.imwrite(black := tmp_path / "black.tif", stored, photometric="minisblack")
    tifffile.imwrite(white := tmp_path / "white.tif", 4095 - stored, photometric="miniswhite")
    np.testing.assert_array_equal(read_image(white, (0, 4095)), read_image(black, (0, 4095)))
    np.testing.assert_array_equal(read_image(white), read_image(black))


@pytest.mark.parametrize("kind", ["u1", "u2", "colour", "colour u2", "palette", "1 bit", "ycbcr"])
@pytest.mark.parametrize("orientation", range(1, 10))
def test_turned_as_the_tag_says(tmp_path, kind, orientation):
    stored, tags = drawn("u2" if "u2" in kind else "u1", 3 if "c" in kind else 1), {}
    if "c" in kind:
        tags = RGB | {258: (SHORT, [8 * stored.itemsize] * 3)}
    if kind == "ycbcr":
        # No colour: the first channel is what is shown.
        stored[..., 1:] = 128
        tags |= {262: (SHORT, [6]), 530: (SHORT, [1, 1])}
    if kind == "palette":
        tags = {262: (SHORT, [3]), 320: (SHORT, np.repeat(np.arange(256) * 257, 3).reshape(256, 3).T.ravel())}
    if kind == "u2":
        tags = {258: (SHORT, [16])}
    data, expected = stored.tobytes(), stored
    if kind == "1 bit":
        data, expected, tags = packed(stored > 99, 1), np.uint8(255) * (stored > 99), {258: (SHORT, [1])}
    found = read_picture(write(tmp_path, tiff(data, H, W, tags | {274: (SHORT, [orientation])})))
    if kind in ("ycbcr", "palette"):
        found, expected = found[..., 0], stored[..., 0] if kind == "ycbcr" else stored
    np.testing.assert_array_equal(found, turned(expected, orientation))


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_palettes(tmp_path, bits):
    stored = np.random.default_rng(bits).integers(0, 2**bits, (H, W))
    colours = np.random.default_rng(1).integers(0, 65536, (3, 2**bits))
    data = stored.astype("<u2").tobytes() if bits == 16 else packed(stored, bits)
    tags = {258: (SHORT, [bits]), 262: (SHORT, [3]), 320: (SHORT, colours.ravel())}
    np.testing.assert_array_equal(read_picture(write(tmp_path, tiff(data, H, W, tags))), (colours >> 8).T[stored])
    # Some writers give 8 bits where the standard has 16.
    tags[320] = (SHORT, colours.ravel() >> 8)
    np.testing.assert_array_equal(read_picture(write(tmp_path, tiff(data, H, W, tags))), (colours >> 8).T[stored])
    tags[320] = (SHORT, colours.ravel()[:-1])
    refused(write(tmp_path, tiff(data, H, W, tags)), "its palette has")


def test_bits_in_reverse(tmp_path):
    stored = drawn("u1")
    reverse = bytes(int(f"{value:08b}"[::-1], 2) for value in stored.ravel())
    np.testing.assert_array_equal(read_image(write(tmp_path, tiff(reverse, H, W, {266: (SHORT, [2])}))), stored)


def test_cmyk(tmp_path):
    inks = drawn("u1", 4)
    tags = {258: (SHORT, [8] * 4), 262: (SHORT, [5]), 277: (SHORT, [4])}
    found = read_image(write(tmp_path, tiff(inks.tobytes(), H, W, tags)))
    light = 1 - inks / 255
    np.testing.assert_allclose(found, 255 * light[..., :3] * light[..., 3:], atol=0.501)
    tags[258] = (SHORT, [16] * 4)
    refused(write(tmp_path, tiff(inks.astype("<u2").tobytes(), H, W, tags)), "16 bits a channel: save it in RGB")


def test_subsampled_ycbcr(tmp_path):
    """Four luminances for each pair of chrominances, of which libtiff makes RGB."""
    draw = np.random.default_rng(8)
    luminance, chrominance = draw.integers(60, 200, (8, 8)), draw.integers(90, 170, (4, 4, 2))
    data = b""
    for row in range(4):
        for column in range(4):
            square = luminance[2 * row : 2 * row + 2, 2 * column : 2 * column + 2].ravel()
            data += bytes([*square, *chrominance[row, column]])
    tags = RGB | {262: (SHORT, [6]), 530: (SHORT, [2, 2])}
    found = read_image(write(tmp_path, tiff(data, 8, 8, tags)))
    blue, red = np.moveaxis(chrominance.repeat(2, 0).repeat(2, 1) - 128.0, -1, 0)
    # ITU-R BT.601, as TIFF 6.0 has it.
    colours = [luminance + 1.402 * red, luminance - 0.344136 * blue - 0.714136 * red, luminance + 1.772 * blue]
    np.testing.assert_allclose(found, np.clip(np.stack(colours, -1), 0, 255), atol=1.01)


@pytest.mark.parametrize("bits", [8, 12])
def test_jpeg_within(tmp_path, bits):
    stored = (smooth(1)[..., 0].astype(np.uint16) << (bits - 8)).astype(np.uint16 if bits > 8 else np.uint8)
    part = imagecodecs.jpeg8_encode(stored, bitspersample=bits, level=100)
    found = read_picture(write(tmp_path, tiff(part, 40, 56, {258: (SHORT, [bits]), 259: (SHORT, [7])})))
    assert np.abs(found.astype(int) - stored).max() <= 2
    refused(
        write(tmp_path, tiff(part, 40, 56, {258: (SHORT, [20 - bits]), 259: (SHORT, [7])})), f" values of {bits} bits"
    )
    # A part that asks for more memory than its place in the image.
    start = part.index(b"\xff\xc0" if bits == 8 else b"\xff\xc1") + 5
    large = part[:start] + struct.pack(">HH", 65000, 65000) + part[start + 4 :]
    tags = {258: (SHORT, [bits]), 259: (SHORT, [7])}
    refused(write(tmp_path, tiff(large, 40, 56, tags)), "a part has 65000 x 65000 x 1 values")


@pytest.mark.parametrize(("meaning", "name"), [(None, "unknown"), (0, "unknown"), (1, "multiplied"), (2, "")])
@pytest.mark.parametrize("kind", ["u1", "u2"])
@pytest.mark.parametrize("colours", [1, 3])
def test_transparency(tmp_path, meaning, name, kind, colours):
    """It is left out where the colours do not depend on it."""
    stored = drawn(kind, colours + 1)
    tags = {258: (SHORT, [8 * stored.itemsize] * (colours + 1)), 277: (SHORT, [colours + 1])}
    tags |= {262: (SHORT, [2 if colours == 3 else 1])} | ({} if meaning is None else {338: (SHORT, [meaning])})
    path = write(tmp_path, tiff(stored.tobytes(), H, W, tags))
    if name:
        refused(path, name)
    else:
        np.testing.assert_array_equal(read_picture(path), stored[..., :colours].squeeze())
    stored[..., -1] = np.iinfo(kind).max
    path = write(tmp_path, tiff(stored.tobytes(), H, W, tags))
    np.testing.assert_array_equal(read_picture(path), stored[..., :colours].squeeze())


def test_values_that_are_not_finite(tmp_path):
    stored = np.float32([[0, 1, np.nan], [np.inf, 4, 2]])
    tifffile.imwrite(path := tmp_path / "a.tif", stored)
    refused(path, r"^has 2 values that are NaN or infinite, of 6: set data.nan=0 \(or another number\)")
    np.testing.assert_array_equal(read_image(path, nan=4.0), np.rint(np.array([[0, 1, 4], [4, 4, 2]]) * 63.75))


@pytest.mark.parametrize(
    ("kind", "text"), [("i2", "-9999"), ("f4", "-9999"), ("f4", "-3.4028234663852886e+38"), ("u2", "0")]
)
def test_values_for_no_data(tmp_path, kind, text):
    stored = np.array([[5, 1, 9], [3, 4, 2]], kind)
    stored[1, 1] = np.array(float(text), kind)
    tifffile.imwrite(path := tmp_path / "a.tif", stored, extratags=[(42113, 2, 0, text, True)])
    refused(path, r"^has 1 values that stand for no data \(.*set data.nan to the number")
    np.testing.assert_array_equal(read_image(path, nan=1.5), np.rint((np.array([[5, 1, 9], [3, 1.5, 2]]) - 1) * 31.875))
    tifffile.imwrite(path, drawn("u1"), extratags=[(42113, 2, 0, "0", True)])
    np.testing.assert_array_equal(read_image(path), drawn("u1"))


def test_smaller_copies_are_not_images(tmp_path):
    stored = drawn("u2")
    with tifffile.TiffWriter(path := tmp_path / "a.tif") as file:
        file.write(stored, subifds=1)
        file.write(stored[::2, ::2], subfiletype=1)
        file.write(stored[::3, ::3], subfiletype=1)
    np.testing.assert_array_equal(read_picture(path), stored)
    for first, second in ((0, 0), (1, 0)):
        with tifffile.TiffWriter(path) as file:
            file.write(stored, subfiletype=first)
            file.write(stored[::2], subfiletype=second)
        refused(path, "has 2 pages: give one file|has a reduced copy of an image in front")
    with tifffile.TiffWriter(path) as file:
        file.write(stored, subifds=1)
        file.write(stored)
    refused(path, "has 2 pages: give one file for each image")


@pytest.mark.parametrize(
    "options",
    [{}, {"imagej": True}, {"ome": True}, {"truncate": True}, {"imagej": True, "truncate": True}],
    ids=lambda options: " ".join(options) or "plain",
)
def test_stacks(tmp_path, options):
    planes = np.stack([drawn("u1")] * 5)
    tifffile.imwrite(path := tmp_path / "a.tif", planes, photometric="minisblack", **options)
    refused(path, "has 5 (pages|planes): give one file for each image")
    if "truncate" not in options:
        tifffile.imwrite(path, planes[0], photometric="minisblack", **options)
        np.testing.assert_array_equal(read_image(path), planes[0])


def test_volumes(tmp_path):
    tifffile.imwrite(path := tmp_path / "a.tif", np.zeros((16, 32, 32), "u1"), volumetric=True, tile=(16, 16, 16))
    refused(path, "has 16 planes: give one file for each image")


GREY = drawn("u1").tobytes()


@pytest.mark.parametrize(
    ("tags", "leave_out", "match"),
    [
        ({}, (262,), "does not say what its values mean"),
        ({262: (SHORT, [8])}, (), r"has the colours of CIE L\*a\*b\*: save it in grey or RGB"),
        ({262: (SHORT, [32803])}, (), "has the colours of a camera's sensor"),
        ({262: (SHORT, [77])}, (), "has the colours of the kind 77"),
        (
            {259: (SHORT, [34712])},
            (),
            "has the compression JPEG.*, which is not read: save it with LZW, Deflate or none",
        ),
        ({259: (SHORT, [999])}, (), "has the compression 999"),
        ({258: (SHORT, [24])}, (), "has values of 24 bits"),
        ({339: (SHORT, [6]), 258: (SHORT, [64])}, (), "values of type complex64, not real numbers"),
        ({277: (SHORT, [3]), 258: (SHORT, [8, 8, 8])}, (), "has 2 channels in addition to grey: save only"),
        ({277: (SHORT, [2000]), 258: (SHORT, [8])}, (), "has 1999 channels in addition to grey"),
        (RGB | {258: (SHORT, [5, 6, 5])}, (), r"has values of \(5, 6, 5\) bits"),
        ({279: (LONG, [100])}, (), "parts of its pixels are missing"),
        ({279: (LONG, [10**9])}, (), "parts of its pixels are missing"),
        ({273: (LONG, [0])}, (), "parts of its pixels are missing"),
        ({278: (LONG, [10])}, (), "parts of its pixels are missing"),
        ({256: (LONG, [2**31 - 1])}, (), "pixels, more than data.max_pixels"),
        ({256: (LONG, [0])}, (), "has no pixels"),
        (
            {322: (LONG, [2**20]), 323: (LONG, [2**20]), 324: (LONG, [8]), 325: (LONG, [99])},
            (),
            "its tiles have 1048576 x",
        ),
        ({42113: (2, b"none\0")}, (), "cannot be read|has the value 'none' for no data"),
    ],
)
def test_files_that_cannot_be_read_exactly(tmp_path, tags, leave_out, match):
    data = GREY
    if 339 in tags:
        data = np.ones((H, W), np.complex64).tobytes()
    if 42113 in tags:
        data, tags = drawn("u2").tobytes(), tags | {258: (SHORT, [16])}
    refused(write(tmp_path, tiff(data, H, W, tags, leave_out=leave_out)), match)


def test_tags_of_absurd_length(tmp_path):
    content = tiff(GREY, H, W, RGB | {700: (1, b"12345")})
    for code, kind, count in ((258, SHORT, 3), (273, LONG, 1)):
        found = struct.pack("<HHI", code, kind, count)
        assert found in content
        longer = content.replace(found, struct.pack("<HHI", code, kind, 2**32 - 1))
        refused(write(tmp_path, longer), f"its tag {code} cannot be read")
    grey = tiff(GREY, H, W, {700: (1, b"12345")})
    beside = grey.replace(struct.pack("<HHI", 700, 1, 5), struct.pack("<HHI", 700, 1, 2**32 - 1))
    np.testing.assert_array_equal(read_image(write(tmp_path, beside)), drawn("u1"))


def test_a_loop_of_pages(tmp_path):
    """A chain of 150 pages whose last one leads to the first."""
    content = bytearray(tiff(GREY, H, W, {}))
    (start,) = struct.unpack("<I", content[4:8])
    directory = content[start:]
    length = len(directory)
    content = content[:start] + b"".join(
        directory[:-4] + struct.pack("<I", start + length * ((number + 1) % 150)) for number in range(150)
    )
    refused(write(tmp_path, bytes(content)), "has many pages: give one file for each image")


def test_inflating_to_more_than_the_pixels(tmp_path):
    data = {8: imagecodecs.zlib_encode, 50000: imagecodecs.zstd_encode, 5: imagecodecs.lzw_encode}
    for code, encode in data.items():
        path = write(tmp_path, tiff(encode(GREY + bytes(2**22)), H, W, {259: (SHORT, [code])}))
        try:
            np.testing.assert_array_equal(read_image(path), drawn("u1"))
        except ProblemError:
            assert code != 5
