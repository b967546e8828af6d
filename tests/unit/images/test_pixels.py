"""Pixels in and out: fitted to a size, flattened, and the same file again from the same picture."""

import pytest

from serai.decode.decoder import DecodedImage
from serai.decode.messages import MediaInfo
from serai.errors import EngineFailed
from serai.images.drawing import picture_id, seed_of
from serai.images.pixels import array_of, file_of, thumb_of
from support.embedded import read_embedded

INFO = MediaInfo(kind="image", media_type="image/png")
PPM = b"P6\n2 1\n255\n" + bytes([255, 0, 0, 0, 0, 255])


def a_picture(*pixels: tuple[int, ...]) -> DecodedImage:
    mode = "RGBA" if len(pixels[0]) == 4 else "RGB"
    data = bytes(value for pixel in pixels for value in pixel)
    return DecodedImage(info=INFO, width=len(pixels), height=1, mode=mode, pixels=data)  # type: ignore[arg-type]


def test_what_is_transparent_is_white_in_a_picture_and_black_in_a_mask() -> None:
    """So a hole in a mask stays as it is."""
    picture = a_picture((9, 9, 9, 0), (9, 9, 9, 255))
    found = array_of(picture, (2, 1), "RGB")
    assert (found.dtype, found.shape, found.data) == ("uint8", (1, 2, 3), bytes([255] * 3 + [9] * 3))
    assert array_of(picture, (2, 1), "L").data == bytes([0, 9])


def test_a_picture_is_fitted_to_the_size() -> None:
    """Height × width × 3, and height × width for a mask."""
    white = a_picture((255, 255, 255))
    assert array_of(white, (16, 8), "RGB").shape == (8, 16, 3)
    mask = array_of(white, (16, 8), "L")
    assert (mask.shape, set(mask.data)) == ((8, 16), {255})


def test_a_file_holds_what_made_it_and_nothing_else() -> None:
    """The document is asked for with the real size; the same pixels give the same bytes."""
    one, again = (
        file_of(PPM, format="png", quality=None, document=lambda size: {"prompt": "x", "width": size[0]}) for _ in "ab"
    )
    assert one == again
    size, file = one
    assert (size, read_embedded(file)) == ((2, 1), {"prompt": "x", "width": 2})
    _, plain = file_of(a_picture((255, 0, 0), (0, 0, 255)), format="png", quality=None, document=None)
    assert read_embedded(plain) is None


def test_a_thumbnail_is_of_the_pixels_whoever_decoded_them() -> None:
    """A worker's PPM and a decoded file of the same pixels give the same one."""
    found = thumb_of(PPM)
    assert found.startswith(b"RIFF")
    assert found == thumb_of(a_picture((255, 0, 0), (0, 0, 255)))


def test_what_is_no_ppm_is_an_engines_failure() -> None:
    """Not the caller's mistake."""
    with pytest.raises(EngineFailed):
        file_of(b"P6 nonsense", format="png", quality=None, document=None)
    with pytest.raises(EngineFailed):
        thumb_of(b"P6 nonsense")


def test_seeds_and_ids_follow_from_the_job() -> None:
    """The same for each attempt, others for each job, in the order of the pictures."""
    jobs = [f"job_01k4x9vq2f8y6n3m5r7t1w0a{end}z" for end in "bc"]
    assert seed_of(jobs[0]) == seed_of(jobs[0]) != seed_of(jobs[1])
    assert 0 <= seed_of(jobs[0]) < 2**32
    ids = [picture_id(job, position) for job in jobs for position in range(8)]
    assert ids == sorted(set(ids))
    assert all(id_.startswith("img_") and len(id_) == len(jobs[0]) for id_ in ids)
