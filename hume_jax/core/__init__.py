"""The search of the paper as pure functions: no config, file, flag, log or device in here.

Arrays of one task are class-major: labels and logits are ``(K, n)``, inner weights ``(K, r)``.
Under ``vmap`` over tasks the products then become one ``(S * K, r) @ (r, n)`` without a transpose,
and softmax reduces over a major axis, which vectorises for K = 10 as for K = 1000.
"""
