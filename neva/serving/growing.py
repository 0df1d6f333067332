"""An answer on its way to the client: the pieces that its tokens make."""

from __future__ import annotations

from dataclasses import dataclass

from neva.inference.continuation import Score
from neva.serving.logprobs import TokenNames
from neva.serving.problems import RequestProblem
from neva.serving.protocol import FinishReason, Logprobs
from neva.serving.text import TextInPieces
from neva.serving.worker import AnswerJob, NewTokens


@dataclass(frozen=True)
class AnswerPiece:
    """A piece of the text of an answer, one of several to a question.

    `logprobs` is there where it is asked for, `finish_reason` with the last piece, whose text may be empty.
    """

    index: int
    text: str
    logprobs: Logprobs | None
    finish_reason: FinishReason | None


class GrowingAnswer:
    """One answer.

    Args:
        index: among those to its question.
        job: what has been asked.
        text: the text of its tokens.
        names: of tokens whose log probabilities are told.
    """

    def __init__(self, index: int, job: AnswerJob, text: TextInPieces, names: TokenNames) -> None:
        self.index, self.job, self._text, self._names = index, job, text, names
        self._scores: list[Score] = []
        self.tokens = 0
        self.finish_reason: FinishReason | None = None

    def piece(self, progress: NewTokens) -> AnswerPiece | None:
        """Returns what new tokens add; None: nothing yet.

        Raises:
            RequestProblem: decoding failed.
        """
        if progress.end == "failed":
            raise RequestProblem(500, "decoding failed; the server's log says where")
        self.tokens += len(progress.ids)
        self._scores += progress.scores
        self.finish_reason = progress.end
        text = self._text.add(progress.ids) + (self._text.rest() if progress.end else "")
        if not text and progress.end is None:
            return None
        logprobs = self._names.told(self._scores) if self._scores else None
        self._scores = []
        return AnswerPiece(self.index, text, logprobs, progress.end)
