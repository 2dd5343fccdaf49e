"""Ctrl-C that waits, and Ctrl-C that is heard of though a library swallowed it."""

import signal
import threading

import pytest

from edgekit.interrupts import held, listening


def press() -> None:
    signal.raise_signal(signal.SIGINT)


def test_ctrl_c_waits_for_the_end_of_what_is_held() -> None:
    done = []

    def work() -> None:
        with held():
            press()
            press()
            done.append("all of it")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == ["all of it"]


def test_ctrl_c_is_not_lost_where_what_is_held_fails() -> None:
    def work() -> None:
        with held():
            press()
            raise ValueError("no such program")

    with pytest.raises(KeyboardInterrupt):
        work()


def test_without_ctrl_c_nothing_is_raised_and_the_next_one_is_heard_at_once() -> None:
    before = signal.getsignal(signal.SIGINT)
    with held():
        pass
    assert signal.getsignal(signal.SIGINT) is before
    with pytest.raises(KeyboardInterrupt):
        press()


def test_what_was_swallowed_was_heard() -> None:
    before = signal.getsignal(signal.SIGINT)
    with listening() as pressed:
        assert not pressed()
        with pytest.raises(KeyboardInterrupt):
            press()
        assert pressed()
    assert signal.getsignal(signal.SIGINT) is before


def test_what_is_held_inside_is_heard_outside() -> None:
    def work() -> None:
        with held():
            press()
            assert not pressed()

    with listening() as pressed:
        with pytest.raises(KeyboardInterrupt):
            work()
        assert pressed()


def test_an_ignored_ctrl_c_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with listening() as pressed, held():
            press()
        assert not pressed()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_threads_leave_the_handler_alone() -> None:
    before, seen = signal.getsignal(signal.SIGINT), []

    def elsewhere() -> None:
        with listening() as pressed, held():
            seen.append((pressed(), signal.getsignal(signal.SIGINT)))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen == [(False, before)]
