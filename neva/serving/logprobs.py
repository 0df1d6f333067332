"""Log probabilities of an answer's tokens, as OpenAI's interface tells them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from neva.inference.continuation import Score
from neva.inference.stopping import UNFINISHED
from neva.serving.protocol import Logprobs, TokenLogprob, TopLogprob

_LEAST = -9999.0
"""What stands for the logarithm of 0, which JSON does not have."""


class TokenNames:
    """What tokens are called: their text as it stands behind other text, with the space in front.

    Args:
        decode: the text of ids.
        before: ids of a text that tokens are read behind.
    """

    def __init__(self, decode: Callable[[list[int]], str], before: Sequence[int]) -> None:
        self._decode, self._before = decode, [*before]
        self._known = len(decode(self._before))

    def told(self, scores: Sequence[Score]) -> Logprobs:
        """Returns what a client is told of tokens: the model's own distribution, before any rule of sampling."""
        return Logprobs(
            content=[
                TokenLogprob(
                    **self._top(score.token, score.log_prob).model_dump(),
                    top_logprobs=[self._top(token, log_prob) for token, log_prob in score.likeliest],
                )
                for score in scores
            ]
        )

    def _top(self, token: int, log_prob: float) -> TopLogprob:
        text = self._decode([*self._before, token])[self._known :]
        # a part of a character has no text of its own
        data = None if UNFINISHED in text else [*text.encode()]
        return TopLogprob(token=text, logprob=max(log_prob, _LEAST), bytes=data)
