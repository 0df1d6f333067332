"""Special tokens for sentencepiece `.model` files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sentencepiece import sentencepiece_model_pb2

from neva.errors import DataError
from neva.formats.atomic_write import finished_target

Model = sentencepiece_model_pb2.ModelProto  # type: ignore[attr-defined]


def add_to_sentencepiece(
    source: Path, target: Path, tokens: Sequence[str], user_defined: bool, overwrite: bool = False
) -> list[int]:
    """Writes `source` with `tokens` after its pieces to `target`.

    Args:
        source: sentencepiece model.
        target: file to write.
        tokens: the tokens to add.
        user_defined: they are found in text; control tokens, the others, are not: text cannot forge them.
        overwrite: replace `target`.

    Returns:
        The ids of the tokens.

    Raises:
        DataError: `source` is no sentencepiece model, or a token is there already or is given twice.
        UserError: `target` exists.
    """
    model = Model()
    try:
        model.ParseFromString(source.read_bytes())
    except Exception as error:  # protobuf's DecodeError, of the implementation that is installed
        raise DataError(f"{source} is not a sentencepiece model ({error})") from error
    pieces = {piece.piece for piece in model.pieces}
    kind = Model.SentencePiece.USER_DEFINED if user_defined else Model.SentencePiece.CONTROL
    for token in tokens:
        if token in pieces:
            raise DataError(f"{source} has the token {token!r} already, or it was given twice")
        pieces.add(token)
        model.pieces.append(Model.SentencePiece(piece=token, score=0.0, type=kind))
    with finished_target(target, overwrite) as temporary:
        temporary.write_bytes(model.SerializeToString())
    return list(range(len(model.pieces) - len(tokens), len(model.pieces)))
