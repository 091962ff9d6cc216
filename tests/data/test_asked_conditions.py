"""Conditions that are asked for, however they are written, and the columns of cells under them."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scalloy.data.asked_conditions import columns_of, content_of
from scalloy.data.conditions import Conditions
from scalloy.perturbation.design import Content


def fitted(obs, **asked):
    cells = ad.AnnData(np.ones((len(obs), 2), dtype=np.float32), obs=obs.set_axis(map(str, obs.index)))
    return Conditions(**asked).fitted(cells)[0]


PLAIN = fitted(pd.DataFrame({"drug": ["control", "A", "B", "A+B", "C"]}), factors="drug")
DOSED = fitted(
    pd.DataFrame({"drug": ["control", "A", "A", "B", "A+B"], "dose": ["0", "0.5", "2", "1", "0.5+1"]}),
    factors="drug",
    dose="dose",
)
TIMED = fitted(
    pd.DataFrame({"drug": ["control", "control", "A"], "dose": [0.0, 0.0, 1.0], "hours": [0, 24, 24]}),
    factors="drug",
    dose="dose",
    time="hours",
)
TWO = fitted(
    pd.DataFrame(
        {
            "gene": ["none", "G", "none", "G", "H"],
            "drug": ["none", "none", "A", "A", "none"],
            "of_gene": [0.0, 1.0, 0.0, 1.0, 1.0],
            "of_drug": [0.0, 0.0, 3.0, 3.0, 0.0],
        }
    ),
    factors=["gene", "drug"],
    control="none",
    dose=["of_gene", "of_drug"],
)
SHARED = fitted(
    pd.DataFrame(
        {"a": ["none", "A", "none", "A"], "b": ["none", "none", "B", "B"], "dose": [0.0, 1.0, 2.0, 1.0]}
    ),
    factors=["a", "b"],
    control="none",
    dose="dose",
)
EVERY = {"plain": PLAIN, "dosed": DOSED, "timed": TIMED, "two": TWO, "shared": SHARED}


@pytest.mark.parametrize(
    ("conditions", "to", "parts"),
    [
        (PLAIN, "A+B", {"A": 1, "B": 1}),
        (PLAIN, "B + A", {"A": 1, "B": 1}),
        (PLAIN, "C+A", {"A": 1, "C": 1}),  # was never seen
        (PLAIN, "control", {}),
        (PLAIN, "control+A", {"A": 1}),
        (PLAIN, {"A": 1, "C": 1.0}, {"A": 1, "C": 1}),
        (PLAIN, {}, {}),
        (PLAIN, {"control": 1}, {}),
        (PLAIN, {"A": 0, "B": np.int64(1)}, {"B": 1}),
        (PLAIN, {"drug": "C+B"}, {"B": 1, "C": 1}),
        (DOSED, "A 0.5+B 1", {"A": 0.5, "B": 1}),
        (DOSED, "control", {}),
        (DOSED, {"A": 0.25}, {"A": 0.25}),
        (DOSED, {"A": np.float32(0.1)}, {"A": 0.1}),
        (DOSED, {"A": 0.1 + 0.2}, {"A": 0.3}),
        (DOSED, {"A": 1e6}, {"A": 1e6}),
        (DOSED, {"drug": "A", "dose": 0.25}, {"A": 0.25}),
        (DOSED, {"drug": "A+B", "dose": 3}, {"A": 3, "B": 3}),
        (DOSED, {"drug": "B+A", "dose": "2+0.5"}, {"A": 0.5, "B": 2}),
        (DOSED, {"drug": "B+A", "dose": "2e+06+0.5"}, {"A": 0.5, "B": 2e6}),
        (DOSED, {"drug": "control"}, {}),
        (DOSED, {"drug": "control", "dose": np.nan}, {}),
        (TWO, {"gene": "H", "of_gene": 1, "drug": "A", "of_drug": 7}, {"H": 1, "A": 7}),
        (TWO, {"drug": "A", "of_drug": 7}, {"A": 7}),
        (TWO, {"H": 1, "A": 7}, {"H": 1, "A": 7}),
        (SHARED, {"a": "A", "b": "B", "dose": 2}, {"A": 2, "B": 2}),
        (SHARED, {"A": 1, "B": 2}, {"A": 1, "B": 2}),
    ],
)
def test_what_is_asked_for(conditions, to, parts):
    assert content_of(conditions, to) == Content.of(parts)


def test_times_are_asked_for_as_well():
    assert content_of(TIMED, "control at 24") == Content((), 24.0)
    assert content_of(TIMED, {"A": 1.0, "hours": 3}) == Content.of({"A": 1.0}, 3)
    assert content_of(TIMED, {"hours": 3}) == Content((), 3.0)
    assert content_of(TIMED, {"drug": "A", "dose": 2, "hours": np.float32(3)}) == Content.of({"A": 2.0}, 3)


@pytest.mark.parametrize("conditions", EVERY.values(), ids=EVERY)
def test_a_name_is_that_of_its_content(conditions):
    design = conditions.design
    for name, content in zip(design.names, design.contents, strict=True):
        assert content_of(conditions, name) == content
        by_parts = {**dict(content.parts), **({"hours": content.time} if design.timed else {})}
        assert content_of(conditions, by_parts) == content
        assert design.name_of(content_of(conditions, columns_of(conditions, content))) == name


@pytest.mark.parametrize("conditions", EVERY.values(), ids=EVERY)
@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_columns_of_any_condition_are_read_as_this_condition(conditions, data):
    """Those of a prediction are columns of new cells."""
    design = conditions.design
    amount = st.sampled_from([0.25, 1.0, 3.0, 1e6, 1e-7]) if design.dosed else st.just(1.0)
    parts = data.draw(st.dictionaries(st.sampled_from(design.parts), amount))
    content = Content.of(parts, data.draw(st.sampled_from([0.0, 3.0])) if design.timed else 0.0)
    columns = columns_of(conditions, content)
    assert set(columns) == {*conditions.factors, *(conditions.dose or ()), *filter(None, [conditions.time])}
    cells = ad.AnnData(np.ones((2, 2), dtype=np.float32), obs=pd.DataFrame(columns, index=["a", "b"]))
    codes, contents = conditions.of_cells(cells)
    assert [contents[i] for i in codes] == [content, content]


# what is refused ----------------------------------------------------------------------------------


class Odd:
    """Nothing that is asked for."""


@pytest.mark.parametrize(
    ("conditions", "to", "error", "message"),
    [
        (PLAIN, "Z", ValueError, "has the part 'Z', which was neither seen nor described. Known: A, B, C"),
        (PLAIN, "", ValueError, "has the part ''"),
        (PLAIN, "A+", ValueError, "has the part ''"),
        (PLAIN, {"a": 1}, ValueError, "neither seen nor described"),
        (PLAIN, {"A": 0.5}, ValueError, "has the dose 0.5 of 'A', and the model knows no doses"),
        (PLAIN, "A+A+A", None, ""),
        (
            DOSED,
            "A",
            ValueError,
            "`to='A'` is not the name of a condition that was seen, and it says no dose",
        ),
        (DOSED, "A 7", ValueError, "Pass a dict, as in `to={'A 7': 1.0}`"),
        (DOSED, {"A": -1}, ValueError, "has -1 for 'A'. Expected an amount: a finite number from 0"),
        (DOSED, {"A": np.nan}, ValueError, "has nan for 'A'"),
        (DOSED, {"A": np.inf}, ValueError, "has inf for 'A'"),
        (DOSED, {"A": "1"}, ValueError, "has '1' for 'A'"),
        (DOSED, {"A": b"1"}, ValueError, "has b'1' for 'A'"),
        (DOSED, {"A": True}, ValueError, "has True for 'A'"),
        (DOSED, {"A": np.True_}, ValueError, "True.* for 'A'"),
        (DOSED, {"A": None}, ValueError, "has None for 'A'"),
        (DOSED, {"A": [1.0]}, ValueError, r"has \[1.0\] for 'A'"),
        (DOSED, {"A": np.array(1.0)}, ValueError, "for 'A'"),
        (DOSED, {"A": 1j}, ValueError, "has 1j for 'A'"),
        (DOSED, {"time": -1}, ValueError, "has -1 for 'time'"),
        (DOSED, {"time": "x"}, ValueError, "has 'x' for 'time'"),
        (DOSED, {"AA": 1.0}, ValueError, "Did you mean 'A'"),
        (DOSED, 3, TypeError, "`to=3` is a int. Expected the name of a condition, or a dict"),
        (DOSED, None, TypeError, "is a NoneType"),
        (DOSED, ["A"], TypeError, "is a list"),
        (DOSED, {1: 2.0}, TypeError, "is a dict"),
        (DOSED, Odd(), TypeError, "is a Odd"),
        (DOSED, {"drug": "A"}, ValueError, "lacks a dose, or has one that cannot be: 'A' has dose None"),
        (DOSED, {"drug": "A", "dose": "x"}, ValueError, "'A' has 1 parts and the doses 'x'"),
        (DOSED, {"drug": "A", "dose": [1]}, ValueError, "'A' has dose None"),
        (DOSED, {"drug": "A", "dose": {}}, ValueError, "'A' has dose None"),
        (DOSED, {"drug": "A", "dose": -1}, ValueError, "'A' has dose -1"),
        (DOSED, {"drug": "A", "dose": "1+2"}, ValueError, r"has 1 parts and the doses '1\+2'"),
        (DOSED, {"dose": 1.0}, ValueError, "'control' has dose 1"),
        (DOSED, {"drug": "A", "dose": 1, "B": 1}, ValueError, "`to` names columns, and besides 'B'"),
        (DOSED, {"drug": "Z", "dose": 1}, ValueError, "has the part 'Z'"),
        (DOSED, {"drug": 5, "dose": 1}, ValueError, "has the part '5'"),
        (TIMED, {"A": 1.0}, ValueError, "says no time. Pass one as well: `'hours': 24`"),
        (TIMED, "control", ValueError, "says no time"),
        (TIMED, "A", ValueError, "says no dose and time"),
        (TIMED, {"A": 1.0, "hours": -3}, ValueError, "has -3 for 'hours'"),
        (TIMED, {"A": 1.0, "hours": "3"}, ValueError, "has '3' for 'hours'"),
    ],
)
def test_what_cannot_be_asked_for(conditions, to, error, message):
    if error is None:  # a part that is named twice is there
        assert content_of(conditions, to) == Content.of({"A": 1.0})
        return
    with pytest.raises(error, match=message):
        content_of(conditions, to)


def test_a_condition_with_the_name_of_another_one_is_refused():
    """A plus sign is part of a name there; a model that was asked for A and B would predict A+B."""
    odd = fitted(pd.DataFrame({"drug": ["control", "A", "B", "A+B"]}), factors="drug", separator=None)
    assert content_of(odd, "A+B") == Content.of({"A+B": 1.0})
    with pytest.raises(ValueError, match=r"would have the name of another condition, 'A\+B'"):
        content_of(odd, {"A": 1, "B": 1})
