"""The order of rows depends on nothing but their ids."""

import hashlib

from hypothesis import given
from hypothesis import strategies as st

from samtl._runtime import hash_order


@given(st.lists(st.text(), unique=True, max_size=30), st.randoms())
def test_the_order_depends_on_nothing_but_the_ids(ids, random):
    other = random.sample(ids, len(ids))
    assert [ids[i] for i in hash_order(ids)] == [other[i] for i in hash_order(other)]


def test_the_order_is_that_of_sha256():
    ids = [f"Forest/Forest_{i}.jpg" for i in range(50)]
    digests = [hashlib.sha256(ids[i].encode()).hexdigest() for i in hash_order(ids)]
    assert digests == sorted(digests)
