"""The roofline by hand."""

from __future__ import annotations

import dataclasses

from traces.costs.roofline import Roofline


def test_a_knee_lets_tokens_behind_it_pay_in_full() -> None:
    # 8 bytes at 4 a second take 2 s, a token 0.5 s: the textbook's knee is at 4 tokens.
    plain = Roofline(8.0, 1.0, 0.0, 0.0, 4.0, 2.0)
    early = dataclasses.replace(plain, knee_tokens=2.0)
    late = dataclasses.replace(plain, knee_tokens=9.0)  # no more can hide than the reading takes
    tokens = (1, 2, 3, 4, 6)
    assert [plain.verify_s(n, 1, 0) for n in tokens] == [2.0, 2.0, 2.0, 2.0, 3.0]
    assert [early.verify_s(n, 1, 0) for n in tokens] == [2.0, 2.0, 2.5, 3.0, 4.0]
    assert [late.verify_s(n, 1, 0) for n in tokens] == [2.0, 2.0, 2.0, 2.0, 3.0]
