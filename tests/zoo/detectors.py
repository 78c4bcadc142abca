"""Attention in every family of MMDetection's configs.

It takes minutes, and pytest does not find a file of this name by itself: `make zoo` runs it. A
detector that stops in the same way without attention is skipped, with its reason.
"""
import functools
import os

import pytest

from zoo.attempt import attempt
from zoo.families import NECK, ROUTES, ZOO, family_names, find_family
from zoo.page import CANNOT_RUN, FAILS, WORKS
from zoo.reasons import explain

os.environ.setdefault('HF_HUB_OFFLINE', '1')  # nothing is downloaded


@pytest.mark.parametrize(
    ('name', 'route'), [(name, route) for name in family_names() for route in ROUTES])
def test_detector(name, route, monkeypatch, record_property):
    family = find_family(name)

    def record(**result):
        record_property('zoo', (*family[:3], route, result))

    if route not in family.routes:
        record()
        pytest.skip(f'{family.backbone}: not for {route}')
    side = 256 if route == NECK else 64  # maps of one position give some parameters no gradient
    monkeypatch.chdir(ZOO.parent)  # configs name their teacher's relative to MMDetection's root
    try:
        record(outcome=WORKS, remarks=attempt(family.config, route, side))
    except Exception as error:
        reason = explain(error)
        own = reason == problem_without_attention(family.config, side)
        record(outcome=CANNOT_RUN if own else FAILS, remarks=[], reason=reason)
        if own:
            pytest.skip(reason)
        raise


@functools.cache
def problem_without_attention(config: str, side: int) -> str | None:
    try:
        attempt(config, None, side)
    except Exception as error:
        return explain(error)
    return None
