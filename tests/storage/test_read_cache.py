"""One look at a storage: what is asked twice is asked for once, and never across what changes or takes long."""

from __future__ import annotations

import threading

from curation_resources.storage.read_cache import forget, one_look, remembered


class Counter:
    """A question whose answer is how often it was asked."""

    def __init__(self) -> None:
        self.asked = 0

    def ask(self) -> int:
        return remembered("question", self._answer)

    def _answer(self) -> int:
        self.asked += 1
        return self.asked


def test_outside_a_look_everything_is_asked_for() -> None:
    counter = Counter()
    assert [counter.ask(), counter.ask()] == [1, 2]


def test_within_a_look_once_until_something_changes() -> None:
    counter = Counter()
    with one_look():
        assert [counter.ask(), counter.ask()] == [1, 1]
        forget()
        assert [counter.ask(), counter.ask()] == [2, 2]
    assert counter.ask() == 3


def test_what_takes_long_sees_what_there_is_and_the_look_begins_anew() -> None:
    counter = Counter()
    with one_look():
        counter.ask()
        with one_look(on=False):
            assert [counter.ask(), counter.ask()] == [2, 3]
        assert [counter.ask(), counter.ask()] == [4, 4]


def test_another_thread_has_no_part_in_it() -> None:
    counter = Counter()
    seen: list[int] = []
    with one_look():
        counter.ask()
        thread = threading.Thread(target=lambda: seen.extend([counter.ask(), counter.ask()]))
        thread.start()
        thread.join()
        assert counter.ask() == 1
    assert seen == [2, 3]


def test_answers_that_are_not_worth_it_are_not_kept() -> None:
    counter = Counter()
    with one_look():
        assert [remembered("q", counter._answer, lambda answer: answer > 1) for _ in range(3)] == [1, 2, 2]
