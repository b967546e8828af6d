"""How far a job is: fractions over all pictures, and the time that is left by the steps measured."""

from serai.events import Loading, Progress
from serai.images.course import ImageCourse


def a_step(done: int, total: int = 4, image: int = 0, images: int = 1) -> Progress:
    return Progress(stage="generating", done=done, total=total, unit="steps", detail={"image": image, "images": images})


def test_the_time_left_follows_from_the_steps_since_the_first() -> None:
    """The first one warms up and does not count; the last one leaves nothing."""
    course = ImageCourse(images=2, steps=4)
    first = course.is_generating(a_step(1, images=2), 100.0)
    assert (first.fraction, first.detail and first.detail["eta_s"]) == (0.125, None)
    second = course.is_generating(a_step(2, images=2), 102.0)
    assert second.detail == {"image": 0, "images": 2, "step": 2, "steps": 4, "eta_s": 12.0}
    other = course.is_generating(a_step(1, image=1, images=2), 108.0)
    assert (other.fraction, other.detail and other.detail["eta_s"]) == (0.625, 6.0)
    assert (course.is_generating(a_step(4, image=1, images=2), 114.0).detail or {})["eta_s"] == 0.0


def test_a_server_that_tells_no_steps_leaves_them_unknown() -> None:
    """Neither fraction nor time is made up."""
    course = ImageCourse(images=1, steps=4)
    told = course.is_generating(Progress(stage="generating", detail={"image": 0, "images": 1}), 1.0)
    assert (told.stage, told.fraction, (told.detail or {})["eta_s"]) == ("generating", None, None)


def a_load(fraction: float) -> Loading:
    return Loading(model="m", version="1.0.0", fraction=fraction)


def test_loading_and_drawing_are_timed_apart() -> None:
    """From the begin of the load to its end, and from there, with the first step, to the last picture."""
    course = ImageCourse(images=2, steps=2)
    course.is_free(9.0)
    told = course.is_loading(a_load(0.5), 10.0)
    assert (told.stage, told.fraction, told.detail) == ("loading", 0.5, {"model": "m", "version": "1.0.0"})
    course.is_loading(a_load(1.0), 12.0)
    course.is_generating(a_step(1, 2, images=2), 13.0)
    assert course.is_saving(0, 15.0).fraction == 0.5
    assert course.is_saving(1, 16.0).fraction == 1.0
    assert (course.loading_s, course.generating_s) == (2.0, 4.0)


def test_what_is_loaded_draws_from_the_call_on() -> None:
    """Also the only step is timed, of which is heard when it is over."""
    course = ImageCourse(images=1, steps=1)
    course.is_free(10.0)
    course.is_generating(a_step(1, 1), 13.0)
    course.is_saving(0, 14.0)
    assert (course.loading_s, course.generating_s) == (0.0, 4.0)


def test_waiting_is_no_drawing() -> None:
    """Where its end is not told, of a queue or of a load, the run is timed from what is first heard of it."""
    queued, loading = ImageCourse(), ImageCourse()
    queued.is_free(10.0)
    queued.is_queued()
    queued.is_generating(a_step(1), 13.0)
    queued.is_saving(0, 14.0)
    assert (queued.loading_s, queued.generating_s) == (0.0, 1.0)
    loading.is_free(10.0)
    loading.is_loading(a_load(0.0), 11.0)
    loading.is_saving(0, 14.0)
    assert (loading.loading_s, loading.generating_s) == (3.0, 0.0)
