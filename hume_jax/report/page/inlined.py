"""What the rows are, as the page holds it: texts, names, and small copies of images."""

import base64
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from hume_jax.errors import UserError
from hume_jax.report.page import folder
from hume_jax.representations.samples import Samples, open_samples

if TYPE_CHECKING:
    from PIL import Image

# What all small copies may take, in bytes of the page (base64 makes four of three), and what they
# and all that there is of each point of the map, each class, and each row of a class may.
_IMAGE_BYTES, _PAGE_BYTES = 2_300_000, 3_950_000
_POINT_BYTES, _CLASS_BYTES, _ROW_BYTES = 70, 850, 180
# Images of each list of a class, and their side in pixels, from what is best to what is least.
_LAYOUTS = (
    *((12, 96), (12, 80), (10, 72), (8, 72), (8, 64), (6, 64), (6, 56), (6, 48), (5, 48), (4, 48)),
    *((4, 40), (3, 40), (3, 32), (2, 32), (1, 40), (2, 24), (1, 32), (1, 24)),
)
# Images by which it is told what a layout takes.
_TRIED = 40
# Where rows are texts, names or numbers: classes up to which each list has so many of them, and of
# each so many characters.
_LINES = ((40, 8, 240), (200, 5, 240), (10**9, 2, 100))
# Characters at a point of the map, of a text or of an image's name.
_HOVER, _HOVER_NAME = 60, 30
_QUALITY = 70

Key = tuple[str, int]  # split and row


class Inlined(NamedTuple):
    """What is known of the rows that the page shows."""

    kind: str  # images, texts, names or rows: what a row is shown as
    shown: int  # rows of each list of a class
    names: Mapping[Key, str]  # texts or names of images
    thumbnails: Mapping[Key, str]  # data: addresses
    side: int  # of the thumbnails, in pixels
    notes: list[str]  # what is missing, for the reader

    def hover(self, key: Key) -> str:
        """What stands at a point of the map."""
        name = self.names.get(key, "")
        if self.kind == "texts":
            return _cut(name, _HOVER)
        # The end of a path tells more than its beginning.
        return name if len(name) <= _HOVER_NAME else f"…{name[1 - _HOVER_NAME :]}"


def collect(run: folder.Run, path: Path, given: Mapping[str, str] | None = None) -> Inlined:
    """Reads what the rows of a page are, where it can be found.

    Args:
      run: of which.
      path: its folder.
      given: samples by split, in the place of those that the config names.

    Returns:
      What was found; where texts or images are gone, a note says so.
    """
    keys = [*_keys(run, "map"), *_keys(run, "pick")]
    known = folder.names(path, keys)
    names: dict[Key, str] = {}
    thumbnails: dict[Key, str] = {}
    sources: dict[str, Samples] = {}
    notes = []
    for split in run.splits:
        own = {key: name for key, name in known.get("image", {}).items() if key[0] == split}
        try:
            found = _open(run, split, own, (given or {}).get(split, ""))
        except UserError as error:
            notes.append(f"What the {split} rows are cannot be shown: {error}")
            found = None
        names |= own or {k: v for k, v in known.get("sample", {}).items() if k[0] == split}
        if found is not None and found.texts is not None:
            names |= {k: found.texts[k[1]] for k in keys if k[0] == split}
        elif found is not None:
            sources[split] = found
    shown, length = next(rest for most, *rest in _LINES if run.n_classes <= most)
    side = 0
    if sources:
        shown, side, thumbnails, broken = _thumbnails(run, sources)
        names |= {k: sources[k[0]].names[k[1]] for k in keys if k[0] in sources}
        if broken:
            notes.append(f"{broken} of the images to show cannot be read.")
    kind = "images" if thumbnails else "names" if "image" in known else "texts" if names else "rows"
    names = {key: _cut(name, length) for key, name in names.items()}
    return Inlined(kind, shown, names, thumbnails, side, notes)


def _open(run: folder.Run, split: str, images: Mapping[Key, str], given: str) -> Samples | None:
    """The samples of a split, None where nothing says what they are."""
    path = given or run.config["data"][split].get("samples", "")
    section = run.config.get("images", {})
    encoded = not path and section.get(split) if images else ""
    n = int(run.arrays["files"][run.splits.index(split)])
    if encoded:
        from hume_jax.representations.images import sources

        if not sources.are_there(encoded, section["tfds_folder"]):
            raise UserError(f"the images, {encoded}, are not there (looked in {Path.cwd()})")
        found = Samples(
            images=sources.open_images(
                encoded,
                labels=False,
                label_key=section["label"] if encoded.startswith("tfds:") else "",
                tfds_folder=section["tfds_folder"],
            )
        )
    elif path:
        found = open_samples(path)
    else:
        return None
    if len(found) != n:
        raise UserError(f"{path or encoded} has {len(found)} samples, there were {n} rows")
    if found.images is not None and any(found.names[key[1]] != images[key] for key in images):
        raise UserError(f"{path or encoded} holds other images than when the run was made")
    return found


def picks(run: folder.Run, shown: int) -> np.ndarray:
    """(K, 2, m) positions in the flattened picks: first of each list, -1 for none."""
    rows = run.arrays["pick_row"]
    numbers = np.arange(rows.size).reshape(rows.shape)
    return np.where(rows >= 0, numbers, -1)[:, :, :shown]


def _keys(run: folder.Run, prefix: str) -> Iterator[Key]:
    splits = run.splits
    of, rows = (run.arrays[f"{prefix}_{name}"].reshape(-1).tolist() for name in ("split", "row"))
    return ((splits[i], row) for i, row in zip(of, rows, strict=True) if row >= 0)


def _thumbnails(
    run: folder.Run, sources: Mapping[str, Samples]
) -> tuple[int, int, dict[Key, str], int]:
    """Small copies in the best layout that fits: rows a list, side, copies, broken images."""
    keys = list(_keys(run, "pick"))
    there = np.flatnonzero(run.arrays["pick_row"].reshape(-1) >= 0)
    by_position = dict(zip(there.tolist(), keys, strict=True))

    def of_layout(shown: int) -> list[Key]:
        wanted = picks(run, shown).reshape(-1)
        return [by_position[i] for i in wanted if i >= 0 and by_position[i][0] in sources]

    tried = of_layout(12)
    decoded = [_decode(sources, tried[i]) for i in _spread(len(tried), _TRIED)]
    for shown, side in _LAYOUTS:
        room = _image_bytes(run, shown)
        sizes = [len(_encode(image, side)) for image in decoded if image is not None]
        wanted = of_layout(shown)
        if np.mean(sizes or [0]) * len(wanted) > room and (shown, side) != _LAYOUTS[-1]:
            continue
        images = {key: _decode(sources, key) for key in wanted}
        copies = {key: _encode(image, side) for key, image in images.items() if image is not None}
        if sum(map(len, copies.values())) <= room or (shown, side) == _LAYOUTS[-1]:
            break
    return shown, side, copies, len(wanted) - len(copies)


def _image_bytes(run: folder.Run, shown: int) -> int:
    """What small copies may take for the page to stay below `html.MOST_BYTES`."""
    of_class = _CLASS_BYTES + 2 * shown * _ROW_BYTES
    rest = _POINT_BYTES * len(run.arrays["map_row"]) + of_class * run.n_classes
    return max(0, min(_IMAGE_BYTES, _PAGE_BYTES - rest))


def _spread(n: int, most: int) -> list[int]:
    return np.unique(np.linspace(0, n - 1, min(n, most)).astype(int)).tolist() if n else []


def _decode(sources: Mapping[str, Samples], key: Key) -> "Image.Image | None":
    """A decoded image, no larger than any copy of it; None of a broken one."""
    from PIL import ImageOps

    from hume_jax.representations.images.decoding import BrokenImage, decode

    source = sources[key[0]].images
    assert source is not None
    try:
        image = decode(source.read(key[1]))
    except BrokenImage:
        return None
    side = min(_LAYOUTS[0][1], *image.size)
    # The middle square, which most encoders see.
    return ImageOps.fit(image, (side, side))


def _encode(image: "Image.Image", side: int) -> str:
    from PIL import Image

    if image.width > side:
        image = image.resize((side, side), Image.Resampling.LANCZOS)
    kind = "WEBP" if _writes_webp() else "JPEG"
    file = io.BytesIO()
    options: dict[str, Any] = {"method": 4} if kind == "WEBP" else {"optimize": True}
    image.save(file, kind, quality=_QUALITY, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


def _writes_webp() -> bool:
    """Whether this Pillow writes WebP, half the size of JPEG where images are small."""
    from PIL import Image

    Image.init()
    return "WEBP" in Image.SAVE


def _cut(text: str, most: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= most else f"{text[: most - 1].rstrip()}…"
