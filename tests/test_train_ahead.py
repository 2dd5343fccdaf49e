"""What is read ahead comes in order, with its errors, and no thread stays behind."""

from __future__ import annotations

import threading

import pytest

from edgekit.stages.train.ahead import ahead


def readers() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name == "edgekit-ahead"]


@pytest.mark.parametrize("n", [0, 1, 2, 50])
def test_items_come_in_their_order(n):
    assert list(ahead(iter(range(n)))) == list(range(n))
    assert readers() == []


def test_none_is_an_item_like_any_other():
    assert list(ahead(iter([None, 1, None]))) == [None, 1, None]


def test_no_more_than_asked_for_is_read_ahead():
    read: list[int] = []

    def source():
        for i in range(20):
            read.append(i)
            yield i

    items = ahead(source(), depth=2)
    for expected in range(5):
        assert next(items) == expected
        assert len(read) <= expected + 1 + 2 + 1
    items.close()
    assert readers() == []


@pytest.mark.parametrize("error", [ValueError("bad row"), KeyboardInterrupt()])
def test_an_error_comes_after_what_was_read_before(error):
    def source():
        yield 1
        raise error

    items = ahead(source())
    assert next(items) == 1
    with pytest.raises(type(error)):
        next(items)
    assert readers() == []


def test_closing_ends_a_reader_that_waits_for_room():
    items = ahead(iter(range(1000)), depth=1)
    assert next(items) == 0
    items.close()
    assert readers() == []
