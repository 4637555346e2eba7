"""Makes damaged values and bytes."""

import copy

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st


def bounded(examples):
    """Returns settings of a property test with a number of fixed examples."""
    return settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


numbers = st.one_of(
    st.integers(-3, 3),
    st.sampled_from([2**31, 2**63, 10**12, -(10**30), 10**400]),
    st.floats(),
    st.sampled_from([0.5, 1e-300, 1e300]),
)
words = st.one_of(
    st.text(max_size=8),
    st.sampled_from(["", "_", "$a$ $", "\x00", "\ud800", "convnet", "sgdr", "a|b"]),
)
leaves = st.one_of(st.none(), st.booleans(), numbers, words)
values = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(words, inner, max_size=3)
    ),
    max_leaves=6,
)


@st.composite
def changed(draw, value, what=values):
    """Changes, removes or adds a node of a JSON value, at any depth."""
    value = copy.deepcopy(value)
    node, inner = None, value
    while inner and isinstance(inner, (dict, list)):
        if node is not None and draw(st.integers(0, 3)) == 0:
            break
        node = inner
        keys = list(node) if isinstance(node, dict) else range(len(node))
        place = draw(st.sampled_from(keys))
        inner = node[place]
    act = draw(st.sampled_from(["replace", "replace", "drop", "add"]))
    if act == "drop":
        del node[place]
    elif act == "replace" or isinstance(node, dict):
        node[place] = draw(what)
    else:
        node.insert(place, draw(what))
    return value


@st.composite
def damaged(draw, content, blocks=False):
    """Changes or removes some bytes, in a tar mostly in its headers."""
    content = bytearray(content)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(content)))
        if blocks:
            at = at // 512 * 512 + draw(st.integers(0, 350))
        new = draw(st.binary(max_size=4))
        length = draw(st.sampled_from([len(new), len(new), 0, 4, 10**6]))
        content[at : at + length] = new
    return bytes(content)
