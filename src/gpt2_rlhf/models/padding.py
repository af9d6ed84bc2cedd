"""Choose a padding token that no text produces, with the `tokenizers` library alone, so that preflight can do it too.

First choice is the token of a byte that valid UTF-8 never contains. Byte-level vocabularies write it as one symbol,
SentencePiece's byte fallback as <0xFF>. Some vocabularies have none, because they were trained without the full
alphabet of bytes. There a special token that nothing else uses serves, and rows with its text are dropped.
"""

from collections.abc import Collection

from tokenizers import Tokenizer

from gpt2_rlhf.config.errors import UserError

_UNUSED_BYTES = (*range(0xFF, 0xF4, -1), 0xC1, 0xC0)  # RFC 3629, section 1
_MEANT_FOR_IT = ("pad", "unused", "reserved")  # in the names of special tokens, the best first


def choose(tokenizer: Tokenizer, in_use: Collection[str], template: str) -> str:
    """Return the padding token.

    in_use: special tokens that have a meaning of their own, such as EOS. template: the chat template, if any.

    Raises:
        UserError: the vocabulary has no such token.
    """
    # GPT-2's byte-level alphabet writes these bytes as Latin-1. Elsewhere the same symbols are letters of a text.
    is_byte_level = "ByteLevel" in f"{tokenizer.pre_tokenizer!r} {tokenizer.decoder!r}"
    for byte in _UNUSED_BYTES:
        symbol = chr(byte) if is_byte_level else f"<0x{byte:02X}>"
        token_id = tokenizer.token_to_id(symbol)
        if token_id is not None and token_id not in tokenizer.encode(f"{symbol} a{symbol}").ids:
            return symbol
    unused = [
        token.content
        for _, token in sorted(tokenizer.get_added_tokens_decoder().items())
        if token.special and token.content not in in_use and token.content not in template
    ]
    if not unused:
        raise UserError(
            "model.tokenizer: the vocabulary has no token to pad with: none for a byte that UTF-8 cannot contain, and "
            "no special token without another use; use a tokenizer that has one"
        )
    by_name = [token for word in _MEANT_FOR_IT for token in unused if word in token.lower()]
    return by_name[0] if by_name else unused[0]
