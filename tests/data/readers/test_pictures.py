"""PNG and JPEG files: the pixel that was stored is the pixel that is used, or the file is refused."""

import io
import os
import pathlib
import struct
import subprocess
import sys
import zlib

import imagecodecs
import numpy as np
import pytest
from PIL import Image, ImageOps

from jaxboost.data.problems import ProblemError
from jaxboost.data.readers.pictures import read_picture
from jaxboost.data.readers.pixels import upright
from jaxboost.data.sources.folder.masks import open_masks
from tests.data.files_of_pictures import (
    GREY,
    GREY_ALPHA,
    PALETTE,
    RGB,
    RGBA,
    chunk,
    exif,
    png,
    read_image,
    smooth,
    turned,
)

H, W = 9, 13


def values(depth, channels=1, seed=0):
    shape = (H, W) if channels == 1 else (H, W, channels)
    return np.random.default_rng(seed).integers(0, 2**depth, shape)


def write(folder, content, name="a.png"):
    path = folder / name
    path.write_bytes(content)
    return path


def refused(path, match, **options):
    with pytest.raises(ProblemError, match=match):
        read_image(path, **options)


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize(("kind", "channels"), [(GREY, 1), (GREY_ALPHA, 2), (RGB, 3), (RGBA, 4)])
@pytest.mark.parametrize("depth", [8, 16])
def test_every_bit_of_a_png(tmp_path, depth, kind, channels, interlaced):
    stored = values(depth, channels)
    found = read_picture(write(tmp_path, png(stored, depth, kind, interlaced=interlaced)))
    assert found.dtype == (np.uint8 if depth == 8 else np.uint16)
    # Transparency is left out.
    np.testing.assert_array_equal(
        found, stored[..., 0] if kind == GREY_ALPHA else stored[..., :3] if channels > 1 else stored
    )


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_few_bits_are_levels(tmp_path, depth):
    stored = values(depth)
    found = read_image(write(tmp_path, png(stored, depth, GREY)))
    np.testing.assert_array_equal(found, stored * (255 // (2**depth - 1)))


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_the_colours_of_a_palette(tmp_path, depth):
    stored = values(min(depth, 3))
    colours = np.random.default_rng(2).integers(0, 256, (stored.max() + 1, 3), dtype=np.uint8)
    transparent = chunk(b"PLTE", colours.tobytes()) + chunk(b"tRNS", b"\0\x80")
    np.testing.assert_array_equal(
        read_picture(write(tmp_path, png(stored, depth, PALETTE, before=transparent))), colours[stored]
    )
    few = chunk(b"PLTE", colours[:-1].tobytes())
    refused(
        write(tmp_path, png(stored, depth, PALETTE, before=few)), "has a palette of .* colours and pixels of colour"
    )


@pytest.mark.parametrize(
    "beside",
    [
        chunk(b"sBIT", b"\x0c\x0c\x0c"),
        chunk(b"gAMA", struct.pack(">I", 100_000)),
        chunk(b"iCCP", b"x\0\0" + zlib.compress(b"not a profile")),
        chunk(b"tRNS", values(16, 3)[1, 1].astype(">u2").tobytes()),
        chunk(b"cICP", b"\x09\x10\0\1"),
    ],
    ids=lambda content: content[4:8].decode(),
)
def test_profiles_and_transparency_are_not_applied(tmp_path, beside, capfd):
    for depth in (8, 16):
        stored = values(depth, 3)
        found = read_picture(write(tmp_path, png(stored, depth, RGB, before=beside)))
        np.testing.assert_array_equal(found, stored)
    # libpng would print that the profile is no good.
    assert capfd.readouterr() == ("", "")


def test_a_window_is_of_all_channels(tmp_path):
    stored = values(12, 3)
    path = write(tmp_path, png(stored, 16, RGB))
    np.testing.assert_array_equal(read_image(path, (0, 4095)), np.rint(stored * (255 / 4095)))
    own = (stored - stored.min()) * (255 / (stored.max() - stored.min()))
    np.testing.assert_array_equal(read_image(path), np.rint(own))
    # Values below 128 were all 0 in the high byte.
    dim = stored // 32
    np.testing.assert_array_equal(read_image(write(tmp_path, png(dim, 16, RGB)), (0, 127)), np.rint(dim * (255 / 127)))


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("kind", ["grey", "grey 16", "colour", "colour 16", "palette", "behind"])
def test_png_turned_as_its_tag_says(tmp_path, kind, orientation):
    tag = chunk(b"eXIf", exif(orientation))
    depth, color = (16 if "16" in kind else 8), (RGB if "colour" in kind else PALETTE if kind == "palette" else GREY)
    stored = values(3 if color == PALETTE else depth, 3 if color == RGB else 1)
    colours = np.arange(24, dtype=np.uint8).reshape(8, 3)
    before = chunk(b"PLTE", colours.tobytes()) if color == PALETTE else b""
    where = {"after": tag} if kind == "behind" else {"before": before + tag}
    found = read_picture(write(tmp_path, png(stored, depth, color, **where)))
    np.testing.assert_array_equal(found, turned(colours[stored] if color == PALETTE else stored, orientation))


def test_orientations_agree_with_pillow():
    image = smooth(3)
    for orientation in range(1, 9):
        picture = Image.fromarray(image)
        picture.getexif()[274] = orientation
        expected = np.asarray(ImageOps.exif_transpose(picture))
        np.testing.assert_array_equal(upright(image, orientation), expected)
        np.testing.assert_array_equal(turned(image, orientation), expected)
    for nonsense in (None, 0, 9, "6", (6,), 6.5):
        assert upright(image, nonsense) is image


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_jpeg(tmp_path, mode):
    image = smooth(1 if mode == "L" else 3).squeeze()
    for orientation in (1, 6):
        content = io.BytesIO()
        Image.fromarray(image).convert(mode).save(
            content, "JPEG", quality=100, subsampling=0, exif=exif_of(orientation)
        )
        path = write(tmp_path, content.getvalue(), "a.jpg")
        # CMYK as Adobe writes it, inverted: dark where the inks would be none.
        assert np.abs(read_image(path).astype(int) - turned(image, orientation)).max() <= 5
    if mode == "CMYK":
        start = content.getvalue().index(b"\xff\xee")
        end = start + 2 + int.from_bytes(content.getvalue()[start + 2 : start + 4], "big")
        without = content.getvalue()[:start] + content.getvalue()[end:]
        refused(write(tmp_path, without), "does not say whether they are inverted: save it in RGB")


def exif_of(orientation):
    tags = Image.Exif()
    tags[274] = orientation
    return tags


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_of_twelve_bits(tmp_path, channels):
    stored = (smooth(channels).astype(np.uint16) * 16 + 7).squeeze()
    content = imagecodecs.jpeg8_encode(stored, bitspersample=12, level=100, subsampling="444")
    for orientation in (1, 8):
        tag = b"Exif\0\0" + exif(orientation)
        path = write(tmp_path, content[:2] + b"\xff\xe1" + struct.pack(">H", len(tag) + 2) + tag + content[2:], "a.jpg")
        found = read_picture(path)
        assert found.dtype == np.uint16
        assert np.abs(found.astype(int) - turned(stored, orientation)).max() <= 40
    shown = read_image(path, (0, 4095))
    assert np.abs(shown - turned(stored, 8) * (255 / 4095)).max() <= 3


def test_jpeg_of_sixteen_bits_without_loss(tmp_path):
    stored = values(16).astype(np.uint16)
    content = imagecodecs.jpeg8_encode(stored, bitspersample=16, lossless=True)
    np.testing.assert_array_equal(read_picture(write(tmp_path, content, "a.jpeg")), stored)


def test_content_decides_the_format(tmp_path):
    stored = values(8)
    np.testing.assert_array_equal(read_image(write(tmp_path, png(stored, 8, GREY), "a.jpg")), stored)


def test_animations(tmp_path):
    stored = values(8)
    frame = chunk(b"fcTL", struct.pack(">IIIIIHHBB", 0, W, H, 0, 0, 1, 1, 0, 0))
    one = png(stored, 8, GREY, before=chunk(b"acTL", struct.pack(">II", 1, 0)) + frame)
    np.testing.assert_array_equal(read_image(write(tmp_path, one)), stored)
    two = png(stored, 8, GREY, before=chunk(b"acTL", struct.pack(">II", 2, 0)) + frame)
    refused(write(tmp_path, two), "is an animation of 2 frames: give one file for each image")


@pytest.mark.parametrize("depth", [8, 16])
def test_damage_is_not_taken_for_pixels(tmp_path, depth):
    whole = png(values(depth, 3), depth, RGB, level=0)
    place = whole.index(b"IDAT") + 40
    for content in (
        # Without compression, a bit is that of a pixel: the checksums alone tell.
        whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :],
        whole[: -len(chunk(b"IEND", b""))],
        png(values(depth, 3), depth, RGB, size=(H + 1, W)),
        png(values(depth, 3), depth, RGB, after=chunk(b"eXIf", exif(6))[:-4] + b"0000"),
    ):
        refused(write(tmp_path, content), "cannot be read|is a damaged PNG file")


def test_sizes_are_compared_before_decoding(tmp_path):
    path = write(tmp_path, png(values(8), 8, GREY, size=(13300, 13300)))
    refused(
        path, r"^has 13300 x 13300 = 176890000 pixels, more than data.max_pixels=67108864: make it smaller, or raise"
    )
    refused(path, "^is a damaged PNG file: parts of its pixels are missing", max_pixels=2**28)
    jpeg = io.BytesIO()
    Image.fromarray(smooth(3)).save(jpeg, "JPEG")
    jpeg = jpeg.getvalue()
    start = jpeg.index(b"\xff\xc0") + 5
    path = write(tmp_path, jpeg[:start] + struct.pack(">HH", 65000, 65001) + jpeg[start + 4 :])
    refused(path, "has 65001 x 65000 = 4225065000 pixels")
    refused(write(tmp_path, jpeg), "has 56 x 40 = 2240 pixels, more than data.max_pixels=2239", max_pixels=2239)
    assert read_image(path.with_name(path.name), max_pixels=2240).shape == (40, 56, 3)


@pytest.mark.parametrize("depth", [8, 16])
def test_inflating_to_more_than_the_pixels(tmp_path, depth):
    stored = values(depth, 3)
    rows = b"".join(b"\0" + row.astype(f">u{depth // 8}").tobytes() for row in stored)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", W, H, depth, RGB, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(rows + bytes(2**22)))
    path = write(tmp_path, b"\x89PNG\r\n\x1a\n" + header + data + chunk(b"IEND", b""))
    np.testing.assert_array_equal(read_picture(path), stored)
    # Profiles and texts are not inflated at all.
    for name in (b"iCCP", b"zTXt"):
        beside = chunk(name, b"x\0\0" + zlib.compress(bytes(2**22)))
        np.testing.assert_array_equal(read_picture(write(tmp_path, png(stored, depth, RGB, before=beside))), stored)
    # But for one that may hold the orientation.
    beside = chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(bytes(2**22)))
    refused(write(tmp_path, png(stored, depth, RGB, before=beside)), "Decompressed data too large")


@pytest.mark.parametrize("depth", [8, 16])
def test_damage_beside_the_pixels_of_a_png(tmp_path, depth):
    stored = values(depth, 3)

    def damaged(name, content):
        return chunk(name, content)[:-1] + b"?"

    for name in (b"tEXt", b"tIME", b"iCCP", b"gAMA", b"prVt"):
        path = write(tmp_path, png(stored, depth, RGB, before=damaged(name, b"Comment\0text")))
        np.testing.assert_array_equal(read_picture(path), stored)
    whole = png(stored, depth, RGB)
    for end in (b"\n", bytes(512), b"PK\3\4 and more", chunk(b"IDAT", b"?")):
        np.testing.assert_array_equal(read_picture(write(tmp_path, whole + end)), stored)
    # What would say how it is turned, and what nobody can skip.
    beside = {b"eXIf": exif(6), b"iTXt": b"XML:com.adobe.xmp\0\0\0\0\0", b"PLTE": bytes(3), b"acTL": bytes(8)}
    for name, content in beside.items():
        path = write(tmp_path, png(stored, depth, RGB, before=damaged(name, content)))
        refused(path, f"damaged PNG file: the checksum of its chunk {name.decode()} is wrong")
    refused(write(tmp_path, png(stored, depth, RGB, before=chunk(b"NEWC", b""))), "chunk b'NEWC', which is unknown")
    for count in (12, 13, 40):
        refused(write(tmp_path, whole[:-count]), "it ends early")


def test_scans_of_a_jpeg(tmp_path):
    """Each scan takes a pass over all pixels: 2,000 of them, with some bytes each, took 10 s at 5000 x 5000 pixels."""
    memory = io.BytesIO()
    Image.fromarray(values(8).astype(np.uint8)).save(memory, "JPEG", progressive=True)
    content = memory.getvalue()
    scan = content[content.rindex(b"\xff\xda") : -2]
    for count, end in ((0, b""), (400, b""), (0, scan * 600)):
        path = write(tmp_path, content[:-2] + scan * count + content[-2:] + end)
        np.testing.assert_array_equal(read_image(path), np.asarray(Image.open(path)))
    refused(write(tmp_path, content[:-2] + scan * 600 + content[-2:]), "^has more than 500 scans")


def test_only_regular_files_are_opened(tmp_path):
    for suffix in (".png", ".tif", ".jpg", ".npy", ".dcm"):
        os.mkfifo(pipe := tmp_path / f"pipe{suffix}")
        refused(pipe, "^is a named pipe: give a regular file")
        (folder := tmp_path / f"folder{suffix}").mkdir()
        refused(folder, "^is a folder: give a regular file")
        (link := tmp_path / f"link{suffix}").symlink_to("/dev/null")
        refused(link, "^is a device: give a regular file")
        refused(tmp_path / f"none{suffix}", "^is not there")
    refused(write(tmp_path, b""), "^is empty: it has 0 bytes")
    refused(write(tmp_path, b"GIF89a" + bytes(50)), "^is neither a PNG nor a JPEG nor a TIFF file that can be read")
    refused(write(tmp_path, bytes(128) + b"DICM"), "^holds a DICOM file: give its name the extension .dcm")
    refused(write(tmp_path, b"\x93NUMPY"), "^holds a NumPy file: give its name the extension .npy")
    refused(write(tmp_path, b"\xff\xd8\xff\xf7\0\x0b\x08" + bytes(20)), "^is a JPEG-LS file: convert it to PNG")
    refused(write(tmp_path, b"\xff\xd8\xff" + b"x" * 100_000), "it does not say how large it is")


def test_eight_bits_never_become_floating_point(tmp_path, monkeypatch):
    path = write(tmp_path, png(values(8, 3), 8, RGB))
    monkeypatch.setattr("jaxboost.data.readers.arrays.to_levels", None)
    np.testing.assert_array_equal(read_image(path), values(8, 3))
    np.save(path.with_suffix(".npy"), values(8, 3).astype(np.uint8))
    np.testing.assert_array_equal(read_image(path.with_suffix(".npy")), values(8, 3))


@pytest.mark.parametrize("kind", ["1", "8", "16", "16 colour", "palette", "grey and alpha"])
def test_masks_are_above_0(tmp_path, kind):
    mask = values(1).astype(bool)
    colours = chunk(b"PLTE", b"\0\0\0\0\1\0")
    content = {
        "1": lambda: png(mask, 1, GREY),
        "8": lambda: png(mask * 1, 8, GREY),
        # The high byte is 0.
        "16": lambda: png(mask * 1, 16, GREY),
        "16 colour": lambda: png(np.stack([mask * 0, mask * 0, mask * 1], -1), 16, RGB),
        "palette": lambda: png(mask, 1, PALETTE, before=colours),
        "grey and alpha": lambda: png(np.stack([mask * 1, mask * 0 + 255], -1), 16, GREY_ALPHA),
    }[kind]()
    write(tmp_path, content)
    np.testing.assert_array_equal(open_masks(tmp_path, ["a"])("a", (H, W)), mask)


def test_libraries_print_nothing(tmp_path):
    """A second process, for pytest has filters of its own."""
    image = Image.fromarray(values(8).astype(np.uint8))
    image.save(tmp_path / "exif.jpg", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x05" + bytes(7))
    few = np.stack([np.arange(4).reshape(2, 2)] * 1)[0]
    before = chunk(b"PLTE", bytes(range(12))) + chunk(b"tRNS", b"\0\1") + chunk(b"acTL", bytes(8))
    write(tmp_path, png(few, 8, PALETTE, before=before), "b.png")
    write(tmp_path, b"II*\0\x08\0\0\0\x02\0" + b"\xff" * 40, "c.tif")
    code = (
        "import pathlib, sys\nfrom jaxboost.data.readers.pictures import ProblemError, read_shown\n"
        "for path in sorted(pathlib.Path(sys.argv[1]).iterdir()):\n"
        "    try:\n        read_shown(path)\n    except ProblemError:\n        pass\n"
    )
    root = pathlib.Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, cwd=root)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
