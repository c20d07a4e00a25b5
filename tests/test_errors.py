from hume_jax.errors import UserError


def test_the_message_is_one_line():
    assert str(UserError("a\n  b\t c ")) == "a b c"
    assert isinstance(UserError("a"), ValueError)
