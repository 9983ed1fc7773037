"""Pictures and frames of videos as arrays: the one place that opens them.

Needs the extra `face`: Pillow for pictures, PyAV, which brings FFmpeg's libraries along, for videos. Sizes
are looked at before anything is decoded.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from aligncap.utils.errors import UserError

if TYPE_CHECKING:
    import av

MOST_BYTES = 64 << 20  # of a picture
MOST_VIDEO_BYTES = 4 << 30
MOST_PIXELS = 50_000_000  # of a picture or a frame
MOST_SIDE = 1600  # larger pictures are reduced to this: a face in them is still larger than the nets take
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")  # none that starts another program
_VIDEOS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,flv"  # none that names other files
_EXTRA = "install the extra: pip install 'aligncap[face]'"
_APART = 1500  # frames that are decoded at most to get from one that stands by itself to one that is wanted


def read_picture(path: str | Path) -> np.ndarray:
    """Pixels (height, width, 3), uint8 RGB, upright.

    Raises:
        UserError: no such file, too large, no picture, cut off, or Pillow is missing.
    """
    try:
        from PIL import Image, ImageOps
    except ImportError:
        raise UserError(f"{path}: pictures need Pillow; {_EXTRA}") from None
    _refuse_large(path, MOST_BYTES)
    try:
        with Image.open(path, formats=_FORMATS) as image:
            _refuse_pixels(path, *image.size)
            if image.mode.startswith(("I", "F")):
                raise UserError(f"{path}: pixels of more than 8 bits; save it with 8 bits a colour")
            image.draft("RGB", (MOST_SIDE, MOST_SIDE))
            upright = ImageOps.exif_transpose(image).convert("RGB")
            upright.thumbnail((MOST_SIDE, MOST_SIDE))
            return np.asarray(upright)
    except Image.UnidentifiedImageError:
        raise UserError(f"{path}: no picture of a kind that is read ({', '.join(_FORMATS)})") from None
    except Image.DecompressionBombError:
        raise UserError(f"{path}: too many pixels; at most {MOST_PIXELS // 10**6} million are read") from None
    except (OSError, ValueError, SyntaxError) as error:
        raise UserError(f"{path}: damaged or cut off ({error}); save it again") from error


def read_frames(path: str | Path, count: int) -> list[np.ndarray]:
    """Up to `count` frames of a video, evenly drawn over its length, as `read_picture` gives pictures.

    Raises:
        UserError: no such file, too large, no video, damaged, no pictures in it, or PyAV is missing.
    """
    try:
        import av
    except ImportError:
        raise UserError(f"{path}: videos need PyAV; {_EXTRA}") from None
    _refuse_large(path, MOST_VIDEO_BYTES)
    try:
        with open(path, "rb") as file, av.open(file, "r", options={"format_whitelist": _VIDEOS}) as video:
            if not video.streams.video:
                raise UserError(f"{path}: has sound alone, no pictures")
            stream = video.streams.video[0]
            _refuse_pixels(path, stream.codec_context.width, stream.codec_context.height)
            # A recording by a browser does not say how long it is: what is in it is listed, not decoded.
            times = sorted(p.pts for p in video.demux(stream) if p.pts is not None)
            wanted = [times[i] for i in evenly(len(times), count)]
            return [frame for time in wanted for frame in _frame_at(video, stream, time)]
    except (av.FFmpegError, OSError, ValueError) as error:
        raise UserError(
            f"{path}: no video that can be read ({error}); save it again as mp4 or webm"
        ) from error


def _frame_at(video: av.container.InputContainer, stream: av.VideoStream, time: int) -> Iterator[np.ndarray]:
    """The frame shown at `time`, in units of the stream; none where it cannot be decoded."""
    video.seek(time, stream=stream)
    for number, frame in enumerate(video.decode(stream)):
        if frame.pts is not None and frame.pts >= time:
            pixels = frame.to_ndarray(format="rgb24")
            pixels = np.rot90(pixels, frame.rotation // 90)  # a telephone held upright
            step = max(1, max(pixels.shape) // MOST_SIDE)
            yield np.ascontiguousarray(pixels[::step, ::step])
            return
        if number > _APART:
            return


def evenly(total: int, count: int) -> list[int]:
    """Up to `count` of `total` places, each in the middle of an equal part.

    >>> evenly(10, 5)
    [1, 3, 5, 7, 9]
    """
    count = min(count, total)
    return [int((i + 0.5) * total / count) for i in range(count)]


def _refuse_large(path: str | Path, most: int) -> None:
    try:
        size = Path(path).stat().st_size
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    if size > most:
        raise UserError(f"{path}: {size >> 20} MiB; at most {most >> 20} are read")
    if not size:
        raise UserError(f"{path}: empty")


def _refuse_pixels(path: str | Path, width: int, height: int) -> None:
    if width * height > MOST_PIXELS:
        raise UserError(
            f"{path}: {width} x {height} pixels; at most {MOST_PIXELS / 1e6:.0f} million are read"
        )
