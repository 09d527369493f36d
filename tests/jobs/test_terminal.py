"""What a person at a terminal sees: Ray Data's own lines are kept out of its way, and nobody else's."""

import logging

import ray.data  # noqa: F401 - it sets up its logger

from jobs.terminal import terminal


def test_only_rays_own_handler_is_made_quiet():
    logger = logging.getLogger("ray.data")
    [console] = [each for each in logger.handlers if type(each).__name__ == "PlainRayHandler"]
    before, of_another = console.level, logging.StreamHandler()
    logger.addHandler(of_another)
    try:
        terminal()
        assert console.level == logging.ERROR and of_another.level == logging.NOTSET
    finally:
        logger.removeHandler(of_another)
        console.setLevel(before)
