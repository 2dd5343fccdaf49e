"""Cohorts: what an expression means, wherever it is read, and what is none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit_runtime.cohorts import Cohort
from edgekit_runtime.contract import ContractError
from edgekit_runtime.labels import read_label, read_labels

EXAMPLE = 'region == "eu" and hardware in ("pi4", "pi5") and not customer != "x"'
NAMES = st.sampled_from(("a", "b", "region", "x_1"))
VALUES = st.sampled_from(("", "eu", "us", "größe", "it's", 'say "so"', "a # b", "(", "and"))
LABELS = st.dictionaries(NAMES, VALUES)


def quoted(value: str) -> str:
    return f'"{value}"' if '"' not in value else f"'{value}'"


def conditions() -> st.SearchStrategy[str]:
    one = st.builds(
        lambda name, op, value: f"{name}{op}{quoted(value)}", NAMES, st.sampled_from((" == ", "!=")), VALUES
    )
    several = st.builds(
        lambda name, op, values: f"{name} {op} ({', '.join(map(quoted, values))},)",
        NAMES,
        st.sampled_from(("in", "not in")),
        st.lists(VALUES, min_size=1, max_size=3),
    )
    return one | several


def expressions() -> st.SearchStrategy[str]:
    def joined(parts: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
        two = st.builds(
            lambda a, op, b: f"{a} {op} {b}", parts, st.sampled_from(("and", "or", "and not")), parts
        )
        return two | parts.map(lambda a: f"({a})") | parts.map(lambda a: f"not({a})")

    return st.recursive(conditions(), joined, max_leaves=6)


class Known(dict[str, str]):
    """Labels for Python to look up: one that is not there is empty."""

    def __missing__(self, name: str) -> str:
        return ""


@given(expressions(), LABELS)
def test_it_means_what_the_same_words_mean_in_python(text: str, labels: Mapping[str, str]) -> None:
    cohort = Cohort.parse(text)
    known = Known({**dict.fromkeys(cohort.names, ""), **labels})
    # The oracle: the text comes from the strategy above.
    assert cohort.includes(labels) == eval(text, {"__builtins__": {}}, known)


@given(expressions(), LABELS)
def test_the_canonical_text_means_the_same_and_stays(text: str, labels: Mapping[str, str]) -> None:
    cohort = Cohort.parse(text)
    again = Cohort.parse(f"  ( {cohort.text} ) ")
    assert (again.text, again.names) == (cohort.text, cohort.names)
    assert again.includes(labels) == cohort.includes(labels)
    assert all(name in text for name in cohort.names)


@given(st.text(max_size=60) | st.text(alphabet="ab=!\"' ()andortif,#\\[]{}.1:", max_size=60))
def test_whatever_stands_there_is_a_cohort_or_an_error_with_a_place(text: str) -> None:
    try:
        cohort = Cohort.parse(text)
    except ContractError:
        return
    cohort.includes({})
    assert Cohort.parse(cohort.text) == cohort


@pytest.mark.parametrize(
    ("text", "labels", "included"),
    [
        ("", {}, True),
        ("   ", {"region": "us"}, True),
        (EXAMPLE, {"region": "eu", "hardware": "pi5", "customer": "x"}, True),
        (EXAMPLE, {"region": "eu", "hardware": "pi5"}, False),
        (EXAMPLE, {"region": "eu", "hardware": "pi3", "customer": "x"}, False),
        ('region == ""', {}, True),
        ('region != ""', {}, False),
        ('region not in ("eu", "us")', {}, True),
        ('a == "1" or b == "1" and c == "1"', {"a": "1"}, True),
        ('(a == "1" or b == "1") and c == "1"', {"a": "1"}, False),
        ('not a == "1" and b == ""', {}, True),
        ("a == '\"'", {"a": '"'}, True),
    ],
)
def test_who_is_meant(text: str, labels: Mapping[str, str], included: bool) -> None:
    assert Cohort.parse(text).includes(labels) == included


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("a=='x'", 'a == "x"'),
        (' ((a == "x"))', 'a == "x"'),
        ('a in ("x",)', 'a == "x"'),
        ('a not in ("x", "x")', 'a != "x"'),
        ('(a == "x" and b == "y") and c == "z"', 'a == "x" and b == "y" and c == "z"'),
        ('a == "x" and (b == "y" or c == "z")', 'a == "x" and (b == "y" or c == "z")'),
        ('not(a == "x" or b == "y")', 'not (a == "x" or b == "y")'),
        ('not not a == "x"', 'not not a == "x"'),
    ],
)
def test_there_is_one_way_to_write_it(text: str, canonical: str) -> None:
    assert Cohort.parse(text).text == canonical


def test_it_names_its_labels() -> None:
    assert Cohort.parse(EXAMPLE).names == {"region", "hardware", "customer"}
    assert Cohort.parse("").names == frozenset()


@pytest.mark.parametrize(
    ("text", "found", "expected"),
    [
        ('region = "eu"', "character 8", "=="),
        ('region == "eu', "character 11", "a value such as"),
        ("region == eu", "'eu' at character 11", "in quotes"),
        ("region == 3", "character 11", "a value such as"),
        ('"eu" == region', "character 1", "a label"),
        ('region in "eu"', "character 11", "in parentheses"),
        ('region in ("eu")', "character 12", '("pi4",)'),
        ("region in ()", "character 11", "in parentheses"),
        ('region in ("eu" "us")', "character 17", "a comma"),
        ('region in ("eu", us)', "'us)' at character 18", "in parentheses"),
        ('region is "eu"', "character 1", "=="),
        ('a == "x" == "x"', "character 1", "a condition"),
        ('(a == "x"', "character", "in pairs"),
        ('a == "x")', "character 9", "in pairs"),
        ('a == "x" and', "character", "a condition"),
        ("region", "'region' at character 1", "a condition"),
        ('Region == "eu"', "character 1", "a label"),
        ('a == "x" # b', "character 10", "a label"),
        ('a == f"{b}"', "character 6", "a value"),
        ('a == "x\\n"', "character 6", "a value"),
        ('a == "x"\nor b == "y"', "", "one line"),
        ('a.b == "x"', "character 2", "a label"),
        ('f("x")', "'f(\"x\")' at character 1", "a condition"),
        ('"x" if a else "y"', "character 1", "a condition"),
        ('lambda == "x"', "character 8", "a condition"),
        ("__import__ == 'os'", "character 1", "a label"),
        (f"{'a' * 33} == 'x'", "character 1", "at most 32"),
        (f"a == '{'x' * 129}'", "character 6", "at most 128"),
        ("größe == 'x'", "character 1", "a label"),
        (f"a == 'ä' and b == {'c' * 3}", "'ccc' at character 19", "in quotes"),
        (" " * 1025, "1025 bytes", "at most 1024"),
        ("ä" * 513, "1026 bytes", "at most 1024"),
        (f"{'(' * 17}a == 'x'{')' * 17}", "character 17", "16 levels"),
        (f"{'not ' * 17}a == 'x'", "character 65", "16 levels"),
        (None, "None", "text"),
    ],
)
def test_what_is_no_expression_is_refused_at_its_place(text: Any, found: str, expected: str) -> None:
    with pytest.raises(ContractError) as caught:
        Cohort.parse(text)
    assert caught.value.key == "cohort"
    assert found in caught.value.found
    assert expected in caught.value.expected


def test_the_deepest_and_the_longest_are_read() -> None:
    assert Cohort.parse(f"{'(' * 16}a == 'x'{')' * 16}").text == 'a == "x"'
    assert Cohort.parse(f"{'not ' * 15}a == 'x'").includes({})
    many = " or ".join(f'a == "{n}"' for n in range(78))
    assert len(many) <= 1024
    assert Cohort.parse(many).includes({"a": "77"})


# Labels


def test_a_label_is_a_name_and_a_value() -> None:
    assert read_label("region=eu") == ("region", "eu")
    assert read_label(" region = a=b ") == ("region", "a=b")
    assert read_labels({f"l{n}": "x" * 128 for n in range(32)}, "labels")


@pytest.mark.parametrize("text", ["region", "", "=eu", "Region=eu", "a b=c", "in=eu", "a=\x07"])
def test_what_is_no_label_is_refused(text: str) -> None:
    with pytest.raises(ContractError):
        read_label(text)
