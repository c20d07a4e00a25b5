"""Encoded images to RGB pixels, and what makes an image a broken one."""

import functools
import io
import re
import struct
import threading
import warnings
from typing import TYPE_CHECKING

import numpy as np

from hume_jax.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

# Formats of photographs that announce themselves in their first bytes. Pillow can read more of
# them, some of which start other programs (EPS) or are recognised in arbitrary bytes (TGA).
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "DIB", "PPM", "JPEG2000", "AVIF")
# Where Pillow, as it comes, takes an image for a decompression bomb: as RGB it fills 512 MiB.
MAX_PIXELS = 2 * (2**30 // 4 // 3)

_ORIENTATION = 0x0112  # the tag of EXIF 2.32, section 4.6.4 A
# What Pillow was seen to raise over damaged files, beside its own errors, which are OSErrors.
_DAMAGED = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    AttributeError,
    EOFError,
    RuntimeError,
    NotImplementedError,
    MemoryError,
    struct.error,
)
_ADDRESS = re.compile(r"<[\w.]+ object at 0x[0-9a-f]+>")
_PILLOW_MODULES = r"PIL\."
_filters = threading.Lock()


class BrokenImage(ValueError):
    """An image that has a row but no pixels; the message says why, without naming the image."""


def decode(data: bytes) -> "Image.Image":
    """Decodes an image as the published pipelines do, upright.

    Those of the encoders call Pillow's `convert("RGB")` (torchvision's `ImageFolder`, the
    processors of Hugging Face), so this does: grey becomes three equal channels, a palette its
    colours, CMYK is converted without a profile, and transparency is dropped: what colours lie
    under it show. On top of that an EXIF orientation is applied, grey values of 16 bits lose their
    lower half (`convert` would cut them off at 255, all white), and of an animation the first frame
    counts.

    Args:
      data: the content of an image file, in one of `FORMATS`, whatever its name.

    Returns:
      An image of mode RGB.

    Raises:
      BrokenImage: empty, not an image, damaged, cut short, of more than 179 million pixels, or of
        values without a defined range (32-bit integers and floating point).
      UserError: Pillow is not installed.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise UserError('reading images needs Pillow: pip install "hume_jax[images]"') from error
    if not data:
        raise BrokenImage("it is empty")
    _ignore_warnings()
    try:
        # Not closed early: an image that `convert` hands back as it is must keep its pixels.
        image = Image.open(io.BytesIO(data), formats=_formats())
        _check_pixels(image)
        image.load()
        return _as_rgb(_upright(image))
    except BrokenImage:
        raise
    except Image.DecompressionBombError as error:
        raise BrokenImage(f"it has more than {MAX_PIXELS:,} pixels") from error
    except Image.UnidentifiedImageError as error:
        raise BrokenImage(f"it is no image of a known format ({', '.join(_formats())})") from error
    except _DAMAGED as error:
        raise BrokenImage(f"it is damaged or cut short: {_text(error)}") from error


@functools.cache
def _formats() -> tuple[str, ...]:
    """Those of `FORMATS` that the installed Pillow was built with."""
    from PIL import Image

    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _check_pixels(image: "Image.Image") -> None:
    # Pillow's own limit can be switched off by whoever else uses it in this process.
    if image.width * image.height > MAX_PIXELS:
        raise BrokenImage(f"it has {image.width} x {image.height} pixels, more than {MAX_PIXELS:,}")


def _upright(image: "Image.Image") -> "Image.Image":
    """Applies the EXIF orientation; damaged EXIF data count as none."""
    from PIL import Image

    moves = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
    try:
        move = moves.get(int(image.getexif().get(_ORIENTATION, 1)))
    except _DAMAGED:
        move = None
    return image if move is None else image.transpose(move)


def _as_rgb(image: "Image.Image") -> "Image.Image":
    if image.mode.startswith("I;16"):
        return _high_bytes(image)
    if image.mode == "I":
        # 16-bit grey as older versions of Pillow open it, or 32 bits, whose range is anyone's.
        values = np.asarray(image)
        if values.min() < 0 or values.max() >= 2**16:
            raise BrokenImage(
                f"its values go from {values.min()} to {values.max()}, 8 or 16 bits can be read"
            )
        return _high_bytes(image)
    if image.mode == "F":
        raise BrokenImage("its values are floating point, 8 or 16 bits can be read")
    if image.mode == "La":
        image = image.convert("LA")
    return image if image.mode == "RGB" else image.convert("RGB")


def _high_bytes(image: "Image.Image") -> "Image.Image":
    from PIL import Image

    return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")


def _text(error: BaseException) -> str:
    text = " ".join(_ADDRESS.sub("the data", str(error)).split())
    return text or type(error).__name__


def _ignore_warnings() -> None:
    """Keeps Pillow's warnings, of large images and of damaged metadata, from becoming errors.

    `warnings.catch_warnings` is not for threads, so the filter stays, for what Pillow's own modules
    have to say alone. It is set again where someone has taken it away.
    """
    if _is_set():
        return
    with _filters:
        if not _is_set():
            warnings.filterwarnings("ignore", module=_PILLOW_MODULES)


def _is_set() -> bool:
    return any(
        action == "ignore" and getattr(module, "pattern", None) == _PILLOW_MODULES
        for action, _, _, module, _ in warnings.filters
    )
