"""Bracketed forms."""

from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.stripe.errors import Refusal
from sandbox.stripe.forms import decode_form


def test_nested_maps_and_lists() -> None:
    """Brackets nest, indexes and empty brackets make lists in order."""
    form = "a=1&items[1][price]=q&items[0][price]=p&m[x][y]=z&e[]=one&e[]=two"
    assert decode_form(form) == {
        "a": "1",
        "items": [{"price": "p"}, {"price": "q"}],
        "m": {"x": {"y": "z"}},
        "e": ["one", "two"],
    }


@pytest.mark.parametrize("form", ["a[b=1", "a]=1", "[a]=1", "a=1&a[b]=2", "a[b]=2&a=1", "a=%ff"])
def test_malformed_names_are_refused(form: str) -> None:
    """Unbalanced brackets, a name that is both value and map, and bytes that are no UTF-8 are a 400."""
    with pytest.raises(Refusal):
        decode_form(form)


@given(
    st.dictionaries(
        st.text(st.characters(codec="ascii", categories=["L"]), min_size=1), st.text(), min_size=1
    )
)
def test_any_map_of_text_comes_back(values: dict[str, str]) -> None:
    """Encoding and decoding a map of text changes nothing."""
    form = "&".join(f"payload[{quote(key)}]={quote(value)}" for key, value in values.items())
    assert decode_form(form) == {"payload": values}
