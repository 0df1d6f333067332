"""What every reader of a `.nemo` asks of it before it takes a size or a tensor from it."""

from __future__ import annotations

from neva.config.stored import check_stored
from neva.formats.hf_tokenizer import check_tokenizer
from neva.formats.nemo import NemoFile


def verify(nemo: NemoFile) -> None:
    """Compares the file with its checksums, then what it says of the model and the tokenizer with what can be.

    Raises:
        UserError: the first that is not so.
    """
    nemo.verify()
    check_stored(nemo.config, nemo.path)
    check_tokenizer(nemo.tokenizer(), nemo.path)
