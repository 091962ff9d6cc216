"""Conditions as amounts of parts: strengths, times, rows, and what lies beyond what was seen."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scalloy.files import plain_json
from scalloy.perturbation.design import MOST_COLUMNS, Content, Design, design_of, strength

SEEN = [
    Content.of({}, 6),
    Content.of({}, 24),
    Content.of({"A": 0.1}, 6),
    Content.of({"A": 10.0}, 24),
    Content.of({"B": 2.0}, 6),
    Content.of({"A": 10.0, "B": 2.0}, 6),
]
ABOUT = {"A": [1.0, 0.0], "B": [0.0, 1.0], "C": [0.5, -0.5]}


@pytest.fixture
def design():
    return design_of(SEEN, described=ABOUT, dosed=True, timed=True)


def dense(design, contents):
    index, value = design.rows(contents)
    out = np.zeros((len(contents), design.n_columns))
    for row, at, values in zip(out, index, value, strict=True):
        for i, v in zip(at, values, strict=True):
            row[i] += v
    return out


# contents and names -------------------------------------------------------------------------------


def test_contents_have_no_parts_without_an_amount_and_are_in_order():
    assert Content.of({"B": 1, "A": 2.0, "C": 0}) == Content((("A", 2.0), ("B", 1.0)), 0.0)
    assert Content.of({"A": -0.0}) == Content()
    assert math.copysign(1, Content.of({}, -0.0).time) == 1  # and the name is not "at -0"
    assert Content.of({"A": 0.1 + 0.2}, 1 / 3) == Content((("A", 0.3),), 0.333333)


@given(st.dictionaries(st.sampled_from("ABCD"), st.floats(0, 1e12)), st.floats(0, 1e6), st.randoms())
@settings(max_examples=60, deadline=None)
def test_a_name_does_not_depend_on_how_a_condition_was_written(parts, time, rng):
    content = Content.of(parts, time)
    order = list(parts.items())
    rng.shuffle(order)
    again = Content.of(dict(order), float(f"{time:.6g}"))
    assert again == content
    design = Design(tuple("ABCD"), (content,), np.ones(4), np.ones(4), dosed=True, timed=True)
    name = design.name_of(content)
    assert name.startswith("control at ") == (not content.parts)
    assert all(f"{part} {amount:.6g}" in name for part, amount in content.parts)
    twice = design.with_condition(Content.of({"A": 3.0}))
    assert twice.names == [name, "A 3 at 0"]
    assert design.contents == (content,)


# strengths and times ------------------------------------------------------------------------------


def test_strengths_are_zero_without_a_part_and_one_at_its_largest_dose(design):
    np.testing.assert_array_equal(design.strengths([Content()]), [[0, 0, 0]])
    u = design.strengths(
        [Content.of({"A": 10.0, "B": 2.0}), Content.of({"A": 0.1}), Content.of({"A": 1000.0})]
    )
    assert u[0, :2] == pytest.approx([1, 1])
    assert u[1, 0] == pytest.approx(math.log(2) / math.log(101))  # log(1 + a / low) / log(1 + high / low)
    assert u[2, 0] == pytest.approx(math.log(10_001) / math.log(101))
    linear = design_of(SEEN, dosed=True, timed=True, log_dose=False)
    assert linear.strengths([Content.of({"A": 2.5})])[0] == pytest.approx([0.25, 0])


@given(st.floats(1e-6, 1e6), st.floats(1, 1e6), st.lists(st.floats(0, 1e9), min_size=2, max_size=5))
@settings(max_examples=60, deadline=None)
def test_strengths_grow_with_doses(low, ratio, doses):
    for log in (True, False):
        u = strength(np.sort(doses), low, low * ratio, log=log)
        assert (np.diff(u) >= 0).all()
        assert strength(np.array([0.0, low * ratio]), low, low * ratio, log=log) == pytest.approx([0, 1])


def test_times_are_on_a_scale_of_their_own(design):
    assert design.clock == (6.0, 24.0, 6.0)
    assert design.reference == Content((), 6.0)
    assert design.times([Content((), 24.0), Content()]) == pytest.approx([1, 0])
    assert design.times([Content((), 6.0)])[0] == pytest.approx(math.log(2) / math.log(5))
    untimed = design_of([Content.of({}), Content.of({"A": 1.0})])
    assert untimed.reference == Content()
    assert untimed.times([Content()]) == pytest.approx([0])


# beyond -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parts", "time", "said"),
    [
        ({}, 6, []),
        ({"A": 0.1}, 6, []),
        ({"A": 3.0}, 12, []),
        ({"A": 3.0, "B": 2.0}, 24, []),  # a combination is not beyond
        ({"A": 0.05}, 6, ["'A' was seen from 0.1 to 10, not at 0.05"]),
        ({"A": 30.0}, 6, ["'A' was seen from 0.1 to 10, not at 30"]),
        ({"B": 2.1}, 6, ["'B' was seen from 2 to 2, not at 2.1"]),
        ({"C": 1.0}, 6, ["'C' was never seen"]),
        ({"A": 1.0}, 0, ["times were seen from 6 to 24, not at 0"]),
        ({"C": 1.0, "B": 9.0}, 48, ["'B' was seen", "'C' was never seen", "times were seen"]),
    ],
)
def test_what_lies_beyond_what_was_seen(design, parts, time, said):
    found = design.beyond(Content.of(parts, time))
    assert len(found) == len(said)
    assert all(f.startswith(s) for f, s in zip(found, said, strict=True))


# rows ---------------------------------------------------------------------------------------------


def test_rows_are_those_that_the_documentation_describes(design):
    contents = [Content.of({}, 6), Content.of({"A": 3.0, "B": 2.0}, 12), Content.of({"C": 1.0}, 24)]
    assert (design.width, design.n_shared, design.n_columns) == (3, 3, 12)
    found = dense(design, contents)
    u, t = design.strengths(contents), design.times(contents)
    for row, s, time in zip(found, u, t, strict=True):
        expected = [time, *(s @ np.array(list(ABOUT.values())))]
        for own in s:
            expected += [own, 4 * own * (1 - own), own * time]
        np.testing.assert_allclose(row, expected, rtol=1e-6)
    assert found.dtype == np.float64
    index, value = design.rows(contents)
    assert index.dtype == np.int64
    assert value.dtype == np.float32
    assert index.min() >= 0
    assert index.max() < design.n_columns


def test_rows_stop_at_the_farthest_that_was_seen(design):
    far, edge = Content.of({"A": 1e6}, 1000), Content.of({"A": 10.0}, 24)
    np.testing.assert_array_equal(dense(design, [far]), dense(design, [edge]))


@pytest.mark.parametrize(
    ("dosed", "timed", "width", "shared"), [(0, 0, 1, 0), (1, 0, 2, 0), (0, 1, 2, 1), (1, 1, 3, 1)]
)
def test_only_columns_that_can_differ(dosed, timed, width, shared):
    made = design_of(SEEN, dosed=bool(dosed), timed=bool(timed))
    assert (made.width, made.n_shared, made.n_columns) == (width, shared, shared + 2 * width)


def test_few_of_many_descriptors_have_columns():
    rng = np.random.default_rng(0)
    about = {name: rng.normal(size=30) for name in "AB"}
    made = design_of(SEEN, described=about)
    assert made.n_shared == MOST_COLUMNS
    row = dense(made, [Content.of({"A": 10.0})])[0]
    np.testing.assert_allclose(row[:MOST_COLUMNS], about["A"][:MOST_COLUMNS], rtol=1e-5)
    assert made.descriptors.shape == (2, 30)


def test_rows_of_no_parts_have_one_column_of_nothing():
    index, value = design_of(SEEN[:3]).rows([Content()])
    assert index.shape == value.shape == (1, 1)
    assert not value.any()


# growing and plain --------------------------------------------------------------------------------


def test_a_known_design_grows_at_its_end(design):
    about = {**ABOUT, "Aa": [1.0, 1.0]}
    more = [*SEEN, Content.of({"Aa": 5.0}, 6), Content.of({"A": 99.0}, 99)]
    grown = design_of(more, described=about, known=design, dosed=True, timed=True)
    assert grown.parts == ("A", "B", "C", "Aa")
    np.testing.assert_array_equal(grown.lowest[:3], design.lowest)
    np.testing.assert_array_equal(grown.highest[:3], design.highest)
    assert grown.clock == design.clock
    np.testing.assert_array_equal(dense(grown, SEEN)[:, : design.n_columns], dense(design, SEEN))


def test_parts_that_were_never_seen_have_typical_doses(design):
    assert design.parts == ("A", "B", "C")
    assert design.lowest == pytest.approx([0.1, 2, (0.1 + 2) / 2])
    assert design.highest == pytest.approx([10, 2, 6])
    nothing = design_of([Content()], described=ABOUT)
    np.testing.assert_array_equal(nothing.highest, [1, 1, 1])


@pytest.mark.parametrize("described", [None, ABOUT])
def test_plain_and_back(described):
    made = design_of(SEEN, described=described, dosed=True, timed=True, control="none", separator="|")
    back = Design.from_plain(plain_json.loads(plain_json.dumps(made.plain())))
    for name in ("lowest", "highest", "descriptors"):
        np.testing.assert_array_equal(getattr(back, name), getattr(made, name))
    for name in set(vars(made)) - {"lowest", "highest", "descriptors"}:
        assert getattr(back, name) == getattr(made, name)
    assert type(back.contents[3]) is Content
    assert back.names == made.names
    assert back.with_condition(Content.of({"A": 1.0})).amounts([Content.of({"A": 1.0})])[0, 0] == 1
