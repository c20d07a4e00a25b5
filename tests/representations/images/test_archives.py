import contextlib
import io
import os
import pathlib
import random
import struct
import tarfile
import threading
import warnings
import zipfile
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from hume_jax.errors import UserError
from hume_jax.representations.images import naming, sources

NAMES = ("train/b/2.png", "train/a/10.png", "train/a/9.png", "train/b/1.jpg")


def photo(i):
    """A PNG whose red is i."""
    file = io.BytesIO()
    Image.new("RGB", (2, 2), (i, 0, 0)).save(file, "PNG")
    return file.getvalue()


def red(source, i):
    return int(np.asarray(sources.decode(source.read(i)))[0, 0, 0])


def tar_member(name, **fields):
    member = tarfile.TarInfo(name)
    for field, value in fields.items():
        setattr(member, field, value)
    return member


def write_tar(path, members, **options):
    """Writes a .tar of names, or of pairs of a name or a TarInfo and what is in it."""
    with tarfile.open(path, "w", **options) as archive:
        for i, item in enumerate(members):
            member, data = item if isinstance(item, tuple) else (item, photo(i))
            if isinstance(member, str):
                member = tar_member(member)
            if member.isreg():
                member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def write_zip(path, members, method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", method) as archive:
        for i, item in enumerate(members):
            member, data = item if isinstance(item, tuple) else (item, photo(i))
            if isinstance(member, zipfile.ZipInfo):
                member.compress_type = method
            archive.writestr(member, data)


WRITERS = {"tar": write_tar, "zip": write_zip}
both = pytest.mark.parametrize("kind", WRITERS)


def fails(where, message):
    with pytest.raises(UserError, match=message) as error:
        sources.open_images(str(where))
    assert str(where) in str(error.value)
    assert "\n" not in str(error.value)


def breaks(source, i, reason):
    with pytest.raises(sources.BrokenImage, match=reason):
        source.read(i)


# ---- what is read


@both
def test_images_are_in_the_order_of_the_archive(kind, tmp_path):
    path = tmp_path / "x.any"  # the content says what it is
    WRITERS[kind](path, NAMES)
    source = sources.open_images(str(path))
    assert source.ids == NAMES
    assert [red(source, i) for i in (3, 0, 2, 1)] == [3, 0, 2, 1]
    assert source.labels.tolist() == [1, 0, 0, 1]
    assert source.class_names == ("a", "b")
    assert sources.open_images(str(path), labels=False).labels is None


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_form_of_tar_with_long_and_foreign_names(form, tmp_path):
    long = "a/" + "n" * 90 + "/" + "m" * 60 + ".png"
    names = [long, "b/é中.png", "b/ with space.png"]
    write_tar(tmp_path / "x.tar", names, format=form)
    source = sources.open_images(str(tmp_path / "x.tar"))
    assert list(source.ids) == names
    assert [red(source, i) for i in range(3)] == [0, 1, 2]


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_stored_and_deflated_zip_members(method, tmp_path):
    write_zip(tmp_path / "x.zip", NAMES, method)
    source = sources.open_images(str(tmp_path / "x.zip"))
    assert [source.read(i) for i in range(4)] == [photo(i) for i in range(4)]


def test_a_zip_behind_other_bytes_is_not_taken_for_one(tmp_path):
    write_zip(tmp_path / "x.zip", NAMES)
    (tmp_path / "y.zip").write_bytes(b"#!/bin/sh\n" + (tmp_path / "x.zip").read_bytes())
    fails(tmp_path / "y.zip", "is not a .tar file")


@both
def test_dots_in_paths_hidden_files_and_other_files(kind, tmp_path, caplog):
    members = ["./a/1.png", "a/./._1.png", "__MACOSX/a/1.png", ("b/x.txt", b""), ".b/1.png"]
    WRITERS[kind](tmp_path / "x", [*members, "b//2.png"])
    with caplog.at_level("INFO", "absl"):
        source = sources.open_images(str(tmp_path / "x"))
    assert source.ids == ("a/1.png", "b/2.png")
    assert red(source, 1) == 5
    assert "1 file left out, as no images: 1 .txt" in caplog.text


def test_folders_devices_and_pipes_are_no_images(tmp_path):
    kinds = (tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, b"V")
    odd = [(tar_member(f"{i}.png", type=kind), b"") for i, kind in enumerate(kinds)]
    write_tar(tmp_path / "x.tar", [*odd, "a.png"])
    source = sources.open_images(str(tmp_path / "x.tar"))
    assert source.ids == ("a.png",)
    assert red(source, 0) == 5


def test_backslashes_of_old_windows_programs_are_separators(tmp_path):
    write_zip(tmp_path / "x.zip", [r"a\1.png", r"b\2.png"])
    assert sources.open_images(str(tmp_path / "x.zip")).ids == ("a/1.png", "b/2.png")


@both
def test_threads_read_at_once(kind, tmp_path):
    WRITERS[kind](tmp_path / "x", [f"{i}.png" for i in range(200)])
    source = sources.open_images(str(tmp_path / "x"))
    found = {}

    def work(seed):
        rows = random.Random(seed).sample(range(200), 200)
        found[seed] = all(source.read(i) == photo(i) for i in rows)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == dict.fromkeys(range(6), True)


@both
def test_the_fingerprint_changes_with_names_order_and_contents(kind, tmp_path):
    found = set()
    lists = (
        NAMES,
        NAMES[::-1],
        NAMES[:3],
        [*NAMES[:3], "train/b/3.jpg"],
        [*NAMES[:3], (NAMES[3], b"x")],
    )
    for members in lists:
        WRITERS[kind](tmp_path / "x", members)
        found.add(sources.open_images(str(tmp_path / "x")).fingerprint())
        assert sources.open_images(str(tmp_path / "x")).fingerprint() in found
    assert len(found) == len(lists)


@both
def test_the_file_is_closed_with_the_source(kind, tmp_path):
    WRITERS[kind](tmp_path / "x", NAMES)

    def held():
        links = pathlib.Path("/proc/self/fd")
        if not links.is_dir():
            pytest.skip("there is no /proc here")
        targets = []
        for link in links.iterdir():
            with contextlib.suppress(OSError):
                targets.append(os.readlink(link))
        return targets.count(str(tmp_path / "x"))

    source = sources.open_images(str(tmp_path / "x"))
    assert held() == 1
    del source
    assert held() == 0


# ---- what is no archive


@pytest.mark.parametrize(
    ("mode", "command"), [("gz", "gunzip"), ("bz2", "bunzip2"), ("xz", "unxz")]
)
def test_compressed_tars_say_how_to_unpack_them(mode, command, tmp_path):
    path = tmp_path / f"x.tar.{mode}"
    with tarfile.open(path, f"w:{mode}") as archive:
        archive.addfile(tar_member("1.png"))
    fails(path, f"unpack it once, {command} --keep {path}")


def test_other_archives_and_files_are_refused(tmp_path):
    (tmp_path / "x.7z").write_bytes(b"7z\xbc\xaf\x27\x1c" + bytes(600))
    fails(tmp_path / "x.7z", "7z archive")
    for content in (b"", b"hello", b"hello" * 500):
        (tmp_path / "x.tar").write_bytes(content)
        fails(tmp_path / "x.tar", "is not a .tar file")
    (tmp_path / "x.zip").write_bytes(b"PK\x03\x04" + bytes(100))
    fails(tmp_path / "x.zip", "is not a .zip file")


@both
def test_archives_without_images_are_refused(kind, tmp_path):
    WRITERS[kind](tmp_path / "x", [])
    fails(tmp_path / "x", "holds no images")
    WRITERS[kind](tmp_path / "x", [("a.txt", b"")])
    fails(tmp_path / "x", "holds no images, only other files: 1 .txt")


# ---- hostile archives


HOSTILE = ["/etc/1.png", "../1.png", "a/../../1.png", "a/..", "C:/1.png", "//host/1.png", "\\1.png"]


@both
@pytest.mark.parametrize("name", HOSTILE)
def test_paths_that_lead_out_are_refused(kind, name, tmp_path):
    WRITERS[kind](tmp_path / "x", ["a.png", (name, photo(1))])
    fails(tmp_path / "x", "leads out of the archive")


@both
@pytest.mark.parametrize("second", ["a/1.png", "./a/1.png", "a//1.png"])
def test_a_name_that_comes_twice_is_refused(kind, second, tmp_path):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Duplicate name", UserWarning)
        WRITERS[kind](tmp_path / "x", ["a/1.png", second])
    fails(tmp_path / "x", "holds 'a/1.png' twice")


def test_nothing_is_written(tmp_path, monkeypatch):
    folder = tmp_path / "empty"
    folder.mkdir()
    monkeypatch.chdir(folder)
    for kind, write in WRITERS.items():
        write(tmp_path / kind, NAMES)
        source = sources.open_images(str(tmp_path / kind))
        assert [red(source, i) for i in range(4)] == [0, 1, 2, 3]
    assert sorted(os.listdir(tmp_path)) == ["empty", "tar", "zip"]
    assert not list(folder.iterdir())


def test_hard_links_to_images_are_read_and_other_links_break(tmp_path):
    links = [
        (tar_member("b.png", type=tarfile.LNKTYPE, linkname="a.png"), b""),
        (tar_member("c.png", type=tarfile.SYMTYPE, linkname="a.png"), b""),
        (tar_member("d.png", type=tarfile.SYMTYPE, linkname="/etc/passwd"), b""),
        (tar_member("e.png", type=tarfile.LNKTYPE, linkname="../a.png"), b""),
        (tar_member("f.png", type=tarfile.LNKTYPE, linkname="c.png"), b""),
        (tar_member("g.png", type=tarfile.LNKTYPE, linkname="g.png"), b""),
    ]
    write_tar(tmp_path / "x.tar", ["a.png", *links, "z.png"])
    source = sources.open_images(str(tmp_path / "x.tar"))
    assert len(source) == 8
    assert (red(source, 0), red(source, 1), red(source, 7)) == (0, 0, 7)
    breaks(source, 2, "a link to 'a.png'.*--dereference")
    breaks(source, 3, "a link to '/etc/passwd'")
    for i in (4, 5, 6):
        breaks(source, i, "hard link")


def test_links_in_a_zip_break(tmp_path):
    link = zipfile.ZipInfo("b.png")
    link.create_system = 3
    link.external_attr = 0o120777 << 16
    write_zip(tmp_path / "x.zip", ["a.png", (link, b"/etc/passwd")])
    source = sources.open_images(str(tmp_path / "x.zip"))
    assert red(source, 0) == 0
    breaks(source, 1, "it is a link")


def test_sparse_members_break(tmp_path):
    headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "9"}
    sparse = tar_member("b.png", pax_headers={**headers, "GNU.sparse.name": "b.png"})
    content = b"1\n0\n3\n".ljust(512, b"\0") + b"abc"
    write_tar(tmp_path / "x.tar", ["a.png", (sparse, content), "c.png"], format=tarfile.PAX_FORMAT)
    source = sources.open_images(str(tmp_path / "x.tar"))
    assert source.ids == ("a.png", "b.png", "c.png")
    breaks(source, 1, "stored as a sparse file")
    assert red(source, 2) == 2


def test_a_large_tar_member_breaks_unread(tmp_path):
    with open(tmp_path / "x.tar", "wb") as file:
        file.write(tar_member("a.png", size=naming.MAX_BYTES + 1).tobuf())
        file.seek(512 + naming.MAX_BYTES + 512)  # takes no room on disk
        file.write(tar_member("b.png", size=3).tobuf() + b"abc".ljust(512, b"\0") + bytes(1024))
    source = sources.open_images(str(tmp_path / "x.tar"))
    breaks(source, 0, "takes 268,435,457 bytes")
    assert source.read(1) == b"abc"


def edited(member, **places):
    """A tar header with some fields overwritten, and a checksum that fits."""
    header = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    for place, value in places.values():
        header[place : place + len(value)] = value
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


@pytest.mark.parametrize(
    "size", [-1, -512, -(2**40), 2**40, 2**62], ids=["-1", "-512", "-2**40", "2**40", "2**62"]
)
@pytest.mark.parametrize("kind", [b"0", b"x", b"g", b"L", b"K", b"S", b"Q"])
def test_sizes_that_no_member_has_are_refused_at_once(size, kind, tmp_path):
    # Base 256, which has room for negative sizes; some versions of `tarfile` loop over these.
    written = size.to_bytes(12, "big", signed=True)
    written = (b"\xff" if size < 0 else b"\x80") + written[1:]
    path = tmp_path / "x.tar"
    write_tar(path, ["a.png"])
    first = path.read_bytes()[:1024]
    for name in ("b.png", ".hidden", "b.txt"):
        header = edited(tar_member(name, type=kind), size=(124, written))
        path.write_bytes(first + header + photo(1).ljust(512, b"\0") + bytes(1024))
        fails(path, "cut short or damaged|damaged or cut short")


def test_a_header_that_claims_much_memory_is_refused(tmp_path):
    for kind in (b"x", b"g", b"L", b"K"):
        path = tmp_path / "x.tar"
        with open(path, "wb") as file:
            file.write(tar_member("b", type=kind, size=2**30).tobuf())
            file.truncate(2**30 + 2048)  # takes no room on disk
        fails(path, "a header of 1073741824 bytes")


def test_headers_nested_without_end_are_refused(tmp_path):
    header = tar_member("x", type=b"L", size=1).tobuf() + b"a".ljust(512, b"\0")
    (tmp_path / "x.tar").write_bytes(header * 5000 + bytes(1024))
    fails(tmp_path / "x.tar", "damaged or cut short")


def test_every_truncated_tar_is_noticed(tmp_path):
    path = tmp_path / "x.tar"
    write_tar(path, NAMES)
    data = path.read_bytes()
    end = 1024 * len(NAMES)
    assert data[end:] == bytes(len(data) - end)
    # One block of zeros says that this is the end; whatever lacks it may lack images.
    for length in (0, 1, 511, 512, 513, 1023, 1024, 1025, 2048, 3000, end - 1, end, end + 511):
        path.write_bytes(data[:length])
        fails(path, "cut short|is not a .tar")
    path.write_bytes(data[: end + 512])
    assert len(sources.open_images(str(path))) == len(NAMES)


def test_a_damaged_header_inside_a_tar_is_noticed(tmp_path):
    path = tmp_path / "x.tar"
    write_tar(path, NAMES)
    data = bytearray(path.read_bytes())
    data[2048:2148] = b"\xaa" * 100  # the third member's name: its checksum does not fit
    path.write_bytes(data)
    fails(path, "damaged at byte 2048")


def test_an_encrypted_zip_is_refused(tmp_path):
    path = tmp_path / "x.zip"
    write_zip(path, NAMES)
    data = bytearray(path.read_bytes())
    place = data.rindex(b"PK\x01\x02")
    data[place + 8] |= 1
    path.write_bytes(data)
    fails(path, f"'{NAMES[-1]}' is encrypted")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_zip_methods_other_than_deflate_are_refused(method, tmp_path):
    write_zip(tmp_path / "x.zip", NAMES, method)
    fails(tmp_path / "x.zip", f"compressed by method {method}")


def zip_of(packed, size, checksum, method=zipfile.ZIP_DEFLATED):
    """A .zip of one member, `1.png`, that claims what it is told to."""
    fields = struct.pack("<HHHHIIIHH", 0, method, 0, 0, checksum, len(packed), size, 5, 0)
    local = b"PK\x03\x04" + struct.pack("<H", 20) + fields + b"1.png" + packed
    entry = b"PK\x01\x02" + struct.pack("<HH", 20, 20) + fields
    entry += struct.pack("<HHHII", 0, 0, 0, 0, 0) + b"1.png"
    end = struct.pack("<HHHHIIH", 0, 0, 1, 1, len(entry), len(local), 0)
    return local + entry + b"PK\x05\x06" + end


def deflated(data):
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return packer.compress(data) + packer.flush()


def test_zip_members_that_lie_break(tmp_path):
    good = photo(7)
    cases = (
        (zip_of(deflated(good), len(good), zlib.crc32(good)), None),
        (zip_of(deflated(good), len(good), 1), "checksum differs"),
        (zip_of(deflated(good), len(good) - 1, zlib.crc32(good)), "size or checksum differs"),
        (zip_of(deflated(good), len(good) + 1, zlib.crc32(good)), "size or checksum differs"),
        (zip_of(b"\xff" * 40, 100, 0), "damaged in the archive"),
        (zip_of(deflated(good)[:-9], len(good), zlib.crc32(good)), "size or checksum differs"),
        (zip_of(deflated(bytes(10**7)), 100, 0), "size or checksum differs"),
        (zip_of(deflated(b"a"), 2**31, 0), "takes 2,147,483,648 bytes"),
    )
    for data, reason in cases:
        (tmp_path / "x.zip").write_bytes(data)
        source = sources.open_images(str(tmp_path / "x.zip"))
        if reason is None:
            assert source.read(0) == good
        else:
            breaks(source, 0, reason)


def test_a_zip_bomb_inflates_no_further_than_it_claims(tmp_path, monkeypatch):
    made = []
    inflate = zlib.decompressobj

    class Watched:
        def __init__(self, *options):
            self._real = inflate(*options)

        def decompress(self, data, most):
            made.append(self._real.decompress(data, most))
            return made[-1]

    monkeypatch.setattr(zlib, "decompressobj", Watched)
    (tmp_path / "x.zip").write_bytes(zip_of(deflated(bytes(10**7)), 1000, 0))
    breaks(sources.open_images(str(tmp_path / "x.zip")), 0, "differs")
    assert list(map(len, made)) == [1001]


def test_zip_entries_that_point_elsewhere(tmp_path):
    path = tmp_path / "x.zip"
    write_zip(path, NAMES)
    data = bytearray(path.read_bytes())
    place = data.index(b"PK\x01\x02")
    data[place + 42 : place + 46] = struct.pack("<I", 7)
    path.write_bytes(data)
    breaks(sources.open_images(str(path)), 0, "header in the archive is damaged")
    data[place + 42 : place + 46] = struct.pack("<I", 10**6)
    path.write_bytes(data)
    fails(path, "claims .* bytes from byte 1000000")


def test_every_truncated_zip_is_noticed(tmp_path):
    path = tmp_path / "x.zip"
    write_zip(path, NAMES)
    data = path.read_bytes()
    for length in (*range(0, len(data), 37), len(data) - 1):
        path.write_bytes(data[:length])
        fails(path, "cut short|is not a .tar")


def test_an_archive_that_shrinks_after_it_was_opened_is_an_error(tmp_path):
    path = tmp_path / "x.tar"
    write_tar(path, NAMES)
    source = sources.open_images(str(path))
    os.truncate(path, 600)
    with pytest.raises(UserError, match="has changed while it was read"):
        source.read(2)


def use(path):
    """Opens an archive and reads all of it; only the two errors there are may come up."""
    try:
        source = sources.open_images(str(path))
    except UserError as error:
        return str(error)
    for name in source.ids:
        assert not name.startswith("/")
        assert ".." not in name.split("/")
    assert len(set(source.ids)) == len(source)
    found = []
    for i in range(len(source)):
        try:
            found.append(source.read(i))
        except sources.BrokenImage as error:
            found.append(str(error))
    return found


member_names = st.lists(
    st.one_of(
        st.sampled_from(
            ["..", ".", "", "a", "b.png", "c.jpg", "C:", "~", "\\", ".png", "x\\..\\y"]
        ),
        st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=6),
    ),
    min_size=1,
    max_size=5,
).map("/".join)


@both
@settings(max_examples=60, deadline=None)
@given(names=st.lists(member_names, min_size=1, max_size=3, unique=True))
def test_any_member_names_give_paths_inside_or_an_error(kind, names, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / f"names.{kind}"
    # Names that end in `/` are those of folders; without it two may be equal.
    images = dict.fromkeys(name.rstrip("/") + ".png" for name in names)
    WRITERS[kind](path, [(name, b"x") for name in images])
    found = use(path)
    assert isinstance(found, str) or set(found) == {b"x"}


@both
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_damage_gives_images_or_an_error(kind, data, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / f"damaged.{kind}"
    WRITERS[kind](path, NAMES[:2])
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(content) - 1))
        piece = data.draw(st.binary(min_size=1, max_size=12))
        content[place : place + len(piece)] = piece
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content))) :]
    path.write_bytes(content)
    assert use(path) is not None
