"""Measurements that something else has disturbed are made again."""

from __future__ import annotations

from typing import Any

import pytest
import workers


class Answers:
    """A worker that gives these answers in turn; a text is an error."""

    def __init__(self, *answers: Any) -> None:
        self.answers, self.asked = iter(answers), 0

    def call(self, *_: Any) -> Any:
        self.asked += 1
        answer = next(self.answers)
        if isinstance(answer, str):
            raise RuntimeError(answer)
        return answer


def samples(ms: float, fastest: float, slowest: float) -> dict[str, float]:
    return {"ms": ms, "fastest": fastest, "slowest": slowest}


CALM, DISTURBED, WORSE = samples(1.0, 0.98, 1.01), samples(1.2, 1.0, 1.3), samples(1.3, 1.0, 1.9)


@pytest.mark.parametrize(
    ("answers", "asked", "counts"),
    [
        ([CALM], 1, CALM),
        ([DISTURBED, CALM], 2, CALM),
        ([WORSE, DISTURBED, WORSE], 3, DISTURBED),
        (["no kernel"], 1, "no kernel"),
        ([DISTURBED, "the worker died"], 2, DISTURBED),
        ([{"ms": 1.0}], 1, {"ms": 1.0}),  # a peer without samples
    ],
)
def test_the_calmest_measurement_counts(answers, asked, counts):
    worker = Answers(*answers)
    assert workers.measure(worker, "impl", "cell", 0.1) == counts
    assert worker.asked == asked
