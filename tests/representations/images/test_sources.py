import io
import os
import pathlib
import struct
import threading
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from hume_jax.errors import UserError
from hume_jax.representations.images import decoding, naming, sources

RED, GREY = (255, 0, 0), (128, 128, 128)


def encoded(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def picture(width=6, height=4):
    """An image whose corners differ, for telling how it was turned."""
    values = np.zeros((height, width, 3), np.uint8)
    values[0, 0], values[0, -1], values[-1, 0] = (200, 0, 0), (0, 200, 0), (0, 0, 200)
    return Image.fromarray(values)


def pixels(data):
    image = sources.decode(data)
    assert image.mode == "RGB"
    return np.asarray(image)


def breaks(data, reason):
    with pytest.raises(sources.BrokenImage, match=reason) as error:
        sources.decode(data)
    assert "\n" not in str(error.value)
    assert "0x" not in str(error.value)


# ---- decoding: formats and modes


@pytest.mark.parametrize("kind", ["PNG", "BMP", "DIB", "TIFF", "PPM", "GIF"])
def test_lossless_formats_give_their_pixels(kind, rng):
    # Few colours, which a palette holds exactly.
    values = rng.integers(0, 2, (5, 7, 3)).astype(np.uint8) * 255
    np.testing.assert_array_equal(pixels(encoded(Image.fromarray(values), kind)), values)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "JPEG2000", "AVIF", "MPO"])
def test_lossy_formats_give_nearly_their_pixels(kind):
    found = pixels(encoded(Image.new("RGB", (32, 24), (200, 100, 50)), kind))
    assert found.shape == (24, 32, 3)
    assert np.abs(found.astype(int) - (200, 100, 50)).max() <= 4


def test_lossless_variants_of_webp_and_jpeg2000_are_exact(rng):
    values = rng.integers(0, 256, (16, 20, 3)).astype(np.uint8)
    image = Image.fromarray(values)
    np.testing.assert_array_equal(pixels(encoded(image, "WEBP", lossless=True)), values)
    np.testing.assert_array_equal(pixels(encoded(image, "JPEG2000")), values)


@pytest.mark.parametrize(
    ("mode", "colour", "kind", "shown"),
    [
        ("L", 128, "PNG", GREY),
        ("L", 128, "JPEG", GREY),
        ("1", 1, "PNG", (255, 255, 255)),
        ("LA", (128, 7), "PNG", GREY),
        ("RGBA", (*RED, 0), "PNG", RED),  # the colour under full transparency
        ("RGBA", (*RED, 90), "TIFF", RED),
        ("CMYK", (0, 255, 255, 0), "TIFF", RED),
        ("YCbCr", (128, 128, 128), "TIFF", GREY),
        ("RGB", RED, "PNG", RED),
    ],
)
def test_every_mode_becomes_rgb(mode, colour, kind, shown):
    found = pixels(encoded(Image.new(mode, (9, 8), colour), kind))
    np.testing.assert_array_equal(found, np.broadcast_to(np.uint8(shown), (8, 9, 3)))


def test_cmyk_jpeg_is_not_inverted():
    found = pixels(encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG"))
    assert np.abs(found.astype(int) - RED).max() <= 3


@pytest.mark.parametrize("transparency", [None, 1, bytes([255, 0, 128])])
def test_a_palette_gives_its_colours_with_and_without_transparency(transparency):
    image = Image.fromarray(np.array([[0, 1], [2, 0]], np.uint8), "P")
    colours = [(10, 20, 30), (40, 50, 60), (70, 80, 90)]
    image.putpalette(sum(colours, ()))
    options = {} if transparency is None else {"transparency": transparency}
    expected = np.array(colours, np.uint8)[[[0, 1], [2, 0]]]
    np.testing.assert_array_equal(pixels(encoded(image, **options)), expected)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_grey_of_16_bits_loses_its_lower_half(kind):
    values = np.array([[0, 255, 256], [4660, 65280, 65535]], np.uint16)
    found = pixels(encoded(Image.fromarray(values), kind))
    np.testing.assert_array_equal(found, np.repeat((values >> 8)[..., None], 3, axis=-1))


def test_colour_png_of_16_bits_loses_its_lower_half(rng):
    values = rng.integers(0, 2**16, (3, 4, 3))

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in values)
    header = struct.pack(">IIBBBBB", 4, 3, 16, 2, 0, 0, 0)
    parts = (b"IHDR", header), (b"IDAT", zlib.compress(lines)), (b"IEND", b"")
    data = b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)
    np.testing.assert_array_equal(pixels(data), values >> 8)


def test_values_without_a_defined_range_break():
    integers = Image.fromarray(np.array([[0, 70_000]], np.int32))
    breaks(encoded(integers, "TIFF"), "0 to 70000, 8 or 16 bits")
    floating = Image.fromarray(np.array([[0.0, 0.5]], np.float32))
    breaks(encoded(floating, "TIFF"), "floating point")


def test_32_bit_integers_that_fit_16_bits_are_taken_as_such():
    values = np.array([[0, 65_535, 4660]], np.int32)
    found = pixels(encoded(Image.fromarray(values), "TIFF"))
    np.testing.assert_array_equal(found[..., 0], values >> 8)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_the_first_frame_of_several_counts(kind):
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, (0, 255, 0), (0, 0, 255))]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    np.testing.assert_array_equal(pixels(data), np.asarray(frames[0]))


def test_the_content_says_the_format_not_the_name(tmp_path):
    (tmp_path / "a.jpg").write_bytes(encoded(picture(), "PNG"))
    source = sources.open_images(str(tmp_path))
    np.testing.assert_array_equal(pixels(source.read(0)), np.asarray(picture()))


# ---- decoding: orientation


TURNED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a),
}


def with_orientation(value, kind, **options):
    exif = Image.Exif()
    exif[0x0112] = value
    return encoded(picture(), kind, exif=exif.tobytes(), **options)


@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_orientation_is_applied_once(orientation, kind):
    options = {"lossless": True} if kind == "WEBP" else {}
    found = pixels(with_orientation(orientation, kind, **options))
    np.testing.assert_array_equal(found, TURNED[orientation](np.asarray(picture())))


@pytest.mark.parametrize("kind", ["JPEG", "AVIF"])
def test_orientation_of_lossy_formats_is_applied(kind):
    data = with_orientation(6, kind, quality=95)
    assert pixels(data).shape == (6, 4, 3)
    assert pixels(with_orientation(1, kind)).shape == (4, 6, 3)


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_counts_as_none(value):
    found = pixels(with_orientation(value, "PNG"))
    np.testing.assert_array_equal(found, np.asarray(picture()))


def test_damaged_exif_data_leave_the_image_as_it_is():
    for exif in (b"Exif\0\0", b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"MM\0*\0\0"):
        assert pixels(encoded(picture(), "JPEG", exif=exif)).shape == (4, 6, 3)


# ---- decoding: broken images


def test_empty_and_foreign_contents_break():
    breaks(b"", "it is empty")
    breaks(b"\0", "no image of a known format")
    breaks(b"<html>404</html>" * 50, "no image of a known format")
    # Pillow would start Ghostscript for it.
    breaks(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 5 5\n%%EOF\n", "no image of a known format"
    )


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "AVIF", "JPEG2000"])
def test_images_that_are_cut_short_break(kind, rng):
    noise = Image.fromarray(rng.integers(0, 256, (40, 40, 3)).astype(np.uint8))
    data = encoded(noise, kind)
    for share in (0.05, 0.5, 0.9):
        with pytest.raises(sources.BrokenImage):
            sources.decode(data[: int(share * len(data))])


def test_damage_inside_is_noticed():
    data = bytearray(encoded(picture(40, 40)))
    middle = len(data) // 2
    data[middle : middle + 8] = b"\xff" * 8
    breaks(bytes(data), "damaged or cut short")


def bomb(side):
    """A PNG of (side, side) pixels by its header; nothing stands behind it."""
    header = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header
    return start + struct.pack(">I", zlib.crc32(header)) + struct.pack(">I", 0) + b"IDAT" + bytes(4)


def test_decompression_bombs_break_before_they_are_decoded(monkeypatch):
    breaks(bomb(60_000), "more than 178,956,970 pixels")
    # Whoever else uses Pillow here may have switched its own limit off.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    breaks(bomb(60_000), "60000 x 60000 pixels, more than 178,956,970")


def test_an_image_that_pillow_warns_of_is_tried():
    # 100 million pixels are large, not absurd; here they are missing.
    breaks(bomb(10_000), "damaged or cut short")


def outcome(data):
    """An image, or the reason why it is broken."""
    try:
        return np.asarray(sources.decode(data)).shape[2] == 3
    except sources.BrokenImage as error:
        return str(error)


@settings(max_examples=150, deadline=None)
@given(
    data=st.binary(max_size=300),
    start=st.sampled_from(
        [
            b"",
            *(
                encoded(Image.new("RGB", (8, 8)), kind)[:n]
                for kind in ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "JPEG2000", "AVIF", "PPM")
                for n in (12, 60)
            ),
        ]
    ),
)
def test_any_bytes_decode_or_break(data, start):
    assert outcome(start + data)


@settings(max_examples=150, deadline=None)
@given(
    kind=st.sampled_from(["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "JPEG2000", "AVIF", "PPM"]),
    place=st.floats(0, 1, exclude_max=True),
    value=st.integers(0, 255),
)
def test_any_changed_byte_decodes_or_breaks(kind, place, value):
    data = bytearray(encoded(picture(16, 12), kind))
    data[int(place * len(data))] = value
    assert outcome(bytes(data))


def test_decoding_in_threads_gives_the_same():
    data = [encoded(Image.new("RGB", (8, 8), (i, 2 * i, 3 * i))) for i in range(80)]
    found = [None] * len(data)

    def work(first):
        for i in range(first, len(data), 8):
            found[i] = tuple(pixels(data[i])[0, 0])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [(i, 2 * i, 3 * i) for i in range(80)]


# ---- folders


def write(folder, *names):
    """Writes images whose red tells their place in `names`."""
    for i, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        kind = {".png": "PNG", ".bmp": "BMP", ".tif": "TIFF"}.get(path.suffix.lower(), "PNG")
        path.write_bytes(encoded(Image.new("RGB", (2, 2), (i, 0, 0)), kind))


def reds(source):
    return [int(pixels(source.read(i))[0, 0, 0]) for i in range(len(source))]


def test_a_folder_is_read_in_the_order_of_relative_paths(tmp_path):
    names = ["b/10.png", "b/9.png", "B/x.PNG", "a.d/deep/down/1.TiF", "a/1.JPeG", "a-b/1.bmp"]
    write(tmp_path, *names)
    source = sources.open_images(str(tmp_path))
    # By code points of the whole path: `-` and `.` come before `/`, capitals before small letters.
    assert list(source.ids) == sorted(names)
    assert source.ids[:3] == ("B/x.PNG", "a-b/1.bmp", "a.d/deep/down/1.TiF")
    assert [names[i] for i in reds(source)] == list(source.ids)
    assert len(source) == 6
    assert source.name == str(tmp_path)


def test_a_trailing_slash_and_the_home_folder_are_understood(tmp_path, monkeypatch):
    write(tmp_path / "photos", "a/1.png", "b/1.png")
    monkeypatch.setenv("HOME", str(tmp_path))
    for where in ("~/photos", f"{tmp_path}/photos/", f"{tmp_path}/./photos//"):
        source = sources.open_images(where)
        assert source.ids == ("a/1.png", "b/1.png")
        assert reds(source) == [0, 1]


def test_hidden_files_and_what_systems_leave_are_ignored(tmp_path):
    write(tmp_path, "a/1.png", "b/2.png", ".hidden.png", ".cache/3.png", "__MACOSX/a/._1.png")
    write(tmp_path, "a/._1.png", "a/@eaDir/1.png", "Thumbs.db", "b/desktop.ini")
    assert sources.open_images(str(tmp_path)).ids == ("a/1.png", "b/2.png")


def test_a_hidden_folder_can_be_named_itself(tmp_path):
    write(tmp_path / ".photos", "1.png")
    assert sources.open_images(str(tmp_path / ".photos")).ids == ("1.png",)


def test_other_files_are_counted_and_told_once(tmp_path, caplog):
    write(tmp_path, "a/1.png")
    for name in ("notes.txt", "a/more.TXT", "a/x.heic", "README"):
        (tmp_path / name).write_bytes(b"x")
    os.mkfifo(tmp_path / "pipe.png")
    with caplog.at_level("INFO", "absl"):
        source = sources.open_images(str(tmp_path))
    assert source.ids == ("a/1.png",)
    told = [record.message for record in caplog.records if "left out" in record.message]
    assert len(told) == 1
    for part in ("5 files", "2 .txt", "1 .heic", "1 without a suffix", "1 special"):
        assert part in told[0]


def test_links_are_followed_and_loops_end(tmp_path, caplog):
    write(tmp_path / "elsewhere", "cat/1.png", "dog.png")
    write(tmp_path / "photos", "bird/1.png")
    photos = tmp_path / "photos"
    (photos / "cat").symlink_to(tmp_path / "elsewhere/cat")
    (photos / "dog.png").symlink_to(tmp_path / "elsewhere/dog.png")
    (photos / "bird/loop").symlink_to(photos)
    (photos / "again").symlink_to(photos)
    source = sources.open_images(str(photos))
    assert source.ids == ("bird/1.png", "cat/1.png", "dog.png")
    assert reds(source) == [0, 0, 1]
    assert "leads back into a folder it lies in" in caplog.text


def test_a_link_to_an_image_that_is_not_there_keeps_its_place(tmp_path):
    write(tmp_path, "1.png", "4.png")
    (tmp_path / "2.png").symlink_to("gone.png")
    (tmp_path / "3.png").symlink_to("3.png")
    source = sources.open_images(str(tmp_path))
    assert source.ids == ("1.png", "2.png", "3.png", "4.png")
    for row, target in ((1, "gone.png"), (2, "3.png")):
        with pytest.raises(sources.BrokenImage, match=f"a link to {target}, which is not there"):
            source.read(row)
    write(tmp_path, "gone.png")
    assert source.read(1) == (tmp_path / "gone.png").read_bytes()


def test_names_that_are_no_text_get_printable_ids(tmp_path):
    name = os.fsencode(tmp_path) + b"/caf\xe9.png"
    try:
        pathlib.Path(os.fsdecode(name)).write_bytes(encoded(picture()))
    except OSError:
        pytest.skip("this file system takes names in UTF-8 only")
    source = sources.open_images(str(tmp_path))
    assert source.ids == (r"caf\xe9.png",)
    assert source.read(0) == encoded(picture())
    assert source.fingerprint()


def test_control_characters_are_no_part_of_ids(tmp_path, caplog):
    write(tmp_path, "a\nb\x1b[2J.png")
    (tmp_path / "x.\x1b[2J").write_bytes(b"")
    with caplog.at_level("INFO", "absl"):
        source = sources.open_images(str(tmp_path))
    assert source.ids == (r"a\x0ab\x1b[2J.png",)
    assert source.read(0)
    assert "1 without a suffix" in caplog.text
    assert "\x1b" not in caplog.text


def test_two_files_with_one_printed_name_are_an_error(tmp_path):
    write(tmp_path, "\x1b.png", r"\x1b.png")
    fails(tmp_path, "two images whose path is written")


def fails(where, message, **options):
    with pytest.raises(UserError, match=message) as error:
        sources.open_images(str(where), **options)
    assert "\n" not in str(error.value)


def test_what_is_no_list_of_images_is_an_error(tmp_path):
    fails(tmp_path / "nothing", "there is no .*nothing.*give a folder of images, a .tar")
    fails("stl10/train", r"there is no stl10/train .*did you mean tfds:stl10/train\?")
    fails("photos/train", "or tfds:.*/SPLIT$")
    fails(tmp_path, "holds no images; images are files that end in .*.jpeg")
    (tmp_path / "notes.txt").write_text("x")
    fails(tmp_path, "holds no images, only other files: 1 .txt")
    fails(tmp_path / "notes.txt", "is not a .tar file")
    os.mkfifo(tmp_path / "pipe")
    fails(tmp_path / "pipe", "neither a folder nor a regular file")
    write(tmp_path, "1.png")
    fails(tmp_path, "images.label=coarse is for tfds", label_key="coarse")
    fails(tmp_path / "1.png", "1.png is a single image: give the folder that it lies in")


def test_an_unreadable_folder_is_an_error(tmp_path, monkeypatch):
    write(tmp_path, "a/1.png", "b/2.png")
    scandir = os.scandir

    def refuse(path):
        if str(path).rstrip("/").endswith("/b"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    fails(tmp_path, "b/ cannot be read: Permission denied")


def test_a_file_that_vanishes_is_an_error_and_names_it(tmp_path):
    write(tmp_path, "a/1.png", "b/2.png")
    source = sources.open_images(str(tmp_path))
    (tmp_path / "b/2.png").unlink()
    with pytest.raises(UserError, match=r"b/2.png cannot be read: No such file"):
        source.read(1)


def test_an_absurdly_large_file_breaks_unread(tmp_path):
    write(tmp_path, "1.png")
    with open(tmp_path / "2.png", "wb") as file:
        file.truncate(naming.MAX_BYTES + 1)  # takes no room on disk
    with pytest.raises(sources.BrokenImage, match="takes 268,435,457 bytes"):
        sources.open_images(str(tmp_path)).read(1)


def test_the_fingerprint_changes_with_the_list(tmp_path):
    write(tmp_path, "a/1.png", "a/2.png")
    first = sources.open_images(str(tmp_path)).fingerprint()
    assert sources.open_images(f"{tmp_path}/").fingerprint() == first
    (tmp_path / "a/2.png").rename(tmp_path / "a/3.png")
    renamed = sources.open_images(str(tmp_path)).fingerprint()
    write(tmp_path, "a/4.png")
    assert len({first, renamed, sources.open_images(str(tmp_path)).fingerprint()}) == 3


# ---- classes


@pytest.mark.parametrize(
    ("ids", "labels", "names"),
    [
        (["a/1", "b/1", "a/2"], [0, 1, 0], ("a", "b")),
        (["top/train/b/1", "top/train/a/1"], [1, 0], ("a", "b")),
        (["b/x/1", "b/y/1", "a/1"], [1, 1, 0], ("a", "b")),
        (["10/1", "9/1"], [0, 1], ("10", "9")),
        (["ab/1", "abc/1"], [0, 1], ("ab", "abc")),
        (["1", "2"], None, ()),
        (["a/1", "a/2"], None, ()),
        (["a/1", "b/1", "loose"], None, ()),
        (["t/a/1", "t/b/1", "t/loose"], None, ()),
    ],
)
def test_the_first_folder_that_differs_is_the_class(ids, labels, names):
    found = naming.classes("where", ids)
    assert found.names == names
    assert (None if found.labels is None else found.labels.tolist()) == labels
    assert found.labels is None or found.labels.dtype == np.int64


@given(st.lists(st.lists(st.sampled_from("abc"), max_size=3), min_size=1, max_size=8))
def test_classes_follow_their_definition(folders):
    ids = ["/".join([*parts, f"{i}.png"]) for i, parts in enumerate(folders)]
    shared = len(os.path.commonprefix(folders))
    found = naming.classes("where", ids)
    if min(map(len, folders)) == shared:
        assert found.labels is None
    else:
        expected = [parts[shared] for parts in folders]
        assert [found.names[label] for label in found.labels] == expected
        assert len(found.names) >= 2
        assert found.names == tuple(sorted(set(expected)))


@pytest.mark.parametrize(
    ("ids", "why"),
    [
        (("cat/1.png", "cat/2.png"), "all images lie in one"),
        (("cat/1.png", "dog/1.png", "2.png"), "images lie beside some of them"),
    ],
)
def test_why_folders_are_no_classes_is_told(ids, why, caplog):
    with caplog.at_level("INFO", "absl"):
        assert naming.classes("photos", ids).labels is None
    assert f"photos: its folders are not taken for classes, since {why}" in caplog.text


def test_folders_that_look_like_splits_are_told(tmp_path, caplog):
    write(tmp_path, "train/1.png", "Test/2.png")
    sources.open_images(str(tmp_path))
    assert "look like splits, not classes" in caplog.text


def test_labels_can_be_left_out(tmp_path):
    write(tmp_path, "a/1.png", "b/1.png")
    source = sources.open_images(str(tmp_path), labels=False)
    assert source.labels is None
    assert source.class_names == ()


def test_every_suffix_is_of_a_format_that_is_decoded():
    Image.init()
    of = Image.registered_extensions()
    kinds = {of.get(suffix, suffix) for suffix in naming.SUFFIXES}
    assert kinds <= {*decoding.FORMATS, "MPO"}
