from lclm_jax.data.store.shards import Recent


def test_those_used_longest_ago_are_let_go():
    made, recent = [], Recent(2)

    def get(key):
        return recent.get(key, lambda: made.append(key) or key.upper())

    assert [get(key) for key in "abacab"] == list("ABACAB")
    assert made == ["a", "b", "c", "b"]
