"""Pictures that people take."""

from PIL import Image, ImageOps


def upright(image: Image.Image) -> Image.Image:
    """The picture as the camera was held, by what EXIF says of it; as it is where that is damaged."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # Pillow's reader raises SyntaxError, struct.error ...
        return image
