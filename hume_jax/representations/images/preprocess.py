"""From a photograph to the square of pixels that an encoder was trained to see.

Resize and centre crop happen here, on 8-bit images and with Pillow, as in the published
preprocessing of the encoders (torchvision's `Resize` and `CenterCrop`, of which both roundings are
kept). Mean and standard deviation are taken off on the device: a fourth of the bytes travel.
"""

from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

# A resized image may have this many times the pixels of its crop. Beyond, as for a line of pixels
# that is thousands long, only the crop is resized.
_MOST_PIXELS = 64


class Preprocessing(NamedTuple):
    """What an encoder's publication says about its images."""

    resize: int  # what the shortest side becomes, or with `squash` both sides
    crop: int  # side of the square that is cut from the centre
    mode: Literal["shortest", "squash"]
    interpolation: Literal["bilinear", "bicubic"]  # Pillow's, which blur where they shrink
    mean: tuple[float, float, float]  # of red, green and blue between 0 and 1
    std: tuple[float, float, float]

    def at(self, size: int) -> "Preprocessing":
        """Returns the same for a crop of another side; the resize scales along."""
        return self._replace(resize=self.resize * size // self.crop, crop=size)


def crop(image: "Image.Image", how: Preprocessing) -> np.ndarray:
    """Resizes an image and cuts out its centre.

    Args:
      image: of mode RGB, any size.
      how: the encoder's preprocessing.

    Returns:
      (how.crop, how.crop, 3) uint8.

    Raises:
      ValueError: another mode.
    """
    if image.mode != "RGB":
        raise ValueError(f"an RGB image is needed, not {image.mode}")
    from PIL import Image

    filters = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
    width, height = resized(image.width, image.height, how)
    # To even, as Python and torchvision round; Hugging Face's processors round down.
    left, top = round((width - how.crop) / 2), round((height - how.crop) / 2)
    if width * height <= _MOST_PIXELS * how.crop**2:
        whole = image.resize((width, height), filters[how.interpolation])
        return np.asarray(whole.crop((left, top, left + how.crop, top + how.crop)))
    x, y = image.width / width, image.height / height
    box = (left * x, top * y, (left + how.crop) * x, (top + how.crop) * y)
    # Equal up to one level: Pillow keeps the corners of a box in single precision.
    return np.asarray(image.resize((how.crop, how.crop), filters[how.interpolation], box))


def resized(width: int, height: int, how: Preprocessing) -> tuple[int, int]:
    """Returns width and height of an image once it is resized; the long side rounds down."""
    if how.mode == "squash":
        return how.resize, how.resize
    if width <= height:
        return how.resize, how.resize * height // width
    return how.resize * width // height, how.resize
