"""Base64 as encoders really make it, read alike wherever a request carries it.

RFC 4648's alphabet and its URL-safe one; padded or not, since the length says as much; lines as in MIME, broken
anywhere and indented; the whole as a `data:` URL; `+`, `/`, `=` and line breaks as the percent-escapes that URLs and
forms make of them. Each of these has one meaning, so that none has to be announced. What has two is refused: a blank
inside a line is what a form makes of an unescaped `+`, and passing over it would give other bytes than were meant.

Canonical base64 is decoded at once. Anything else costs a few more passes over the text, each of them linear, and done
in C. The bytes of hostile text are those of the body that brought it.
"""

from __future__ import annotations

import binascii
import re

from service.errors import MalformedRequest

_ESCAPES = {b"%2B": b"+", b"%2F": b"/", b"%3D": b"=", b"%0A": b"\n", b"%0D": b"\r", b"%20": b" ", b"%09": b"\t"}
_STRAY_PERCENT = re.compile(rb"%(?!2[BbFf0]|3[Dd]|0[AaDd9])")
_DIGITS = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/-_"
_BREAKS = b"\r\n\f\v"
_BLANKS = b" \t"
_WHITESPACE = _BLANKS + _BREAKS
_URL_SAFE = bytes.maketrans(b"-_", b"+/")
_OUTLINE = bytes.maketrans(_DIGITS + b"=\t", b"x" * len(_DIGITS) + b"x ")
_BLANK_IN_LINE = re.compile(rb"[ \t](?<=[^\s].)[ \t]*+(?!\s|\Z)")
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]{0,31}:", re.IGNORECASE)


def from_base64(text: str | bytes | bytearray, place: str) -> bytes:
    """Return the bytes that base64 text stands for; raises MalformedRequest that names its place and what is wrong.

    Positions in the error are counted from 0 in the text as it was sent.
    """
    try:
        return binascii.a2b_base64(text, strict_mode=True)
    except ValueError:  # binascii's own error is one, and so is what a character outside ASCII raises
        return _decode(text if isinstance(text, str) else text.decode("latin-1"), place)


def _decode(text: str, place: str) -> bytes:
    start = _after_data_url(text, place)
    try:
        data = text[start:].encode("ascii")
    except UnicodeEncodeError as error:
        raise _misplaced(text, start + error.start, place) from error
    position = _first_foreign(data)
    if position is not None:
        raise _misplaced(text, start + position, place)
    plain = _unescaped(data).strip(_WHITESPACE)
    if _has_blank_in_line(plain):
        raise _blank_in_line(data, start, place)
    digits = plain.translate(_URL_SAFE, _WHITESPACE)
    bare = digits.rstrip(b"=")
    if b"=" in bare:
        raise _misplaced(text, start + _first_padding(data), place)
    if len(bare) % 4 == 1:
        raise MalformedRequest(
            f"{place} is not base64: its {len(bare)} characters are one too many or too few. Was it cut short?"
        )
    return binascii.a2b_base64(bare + b"=" * (-len(bare) % 4), strict_mode=True)


def _after_data_url(text: str, place: str) -> int:
    """Return where the base64 begins: behind the head of a data URL; raises MalformedRequest for other addresses."""
    begin = len(text) - len(text.lstrip())
    address = _ADDRESS.match(text, begin)
    if address is None:
        return 0
    if address[0].lower() != "data:":
        raise MalformedRequest(
            f"{place} is not base64: it begins like an address, {address[0]!r}. "
            "No image is fetched from an address; send the file itself."
        )
    comma = text.find(",", begin)
    if comma < 0:
        raise MalformedRequest(f"{place} is a data URL without a comma, behind which its base64 would begin.")
    if text[begin:comma].rpartition(";")[2].strip().lower() != "base64":
        raise MalformedRequest(f"{place} is a data URL that is not base64: there is no ';base64' before its comma.")
    return comma + 1


def _unescaped(data: bytes) -> bytes:
    """Return the text with its percent-escapes undone."""
    if b"%" in data:
        for escape, meant in _ESCAPES.items():
            data = data.replace(escape, meant).replace(escape.lower(), meant)
    return data


def _first_foreign(data: bytes) -> int | None:
    """Return where the first character stands that base64 has nowhere, or None."""
    positions = [data.index(rest[:1])] if (rest := data.translate(None, _DIGITS + _WHITESPACE + b"=%")) else []
    if b"%" in data and (stray := _STRAY_PERCENT.search(data)):
        positions.append(stray.start())
    return min(positions, default=None)


def _has_blank_in_line(plain: bytes) -> bool:
    """Whether a blank stands between two digits of a line, and not only before or behind a line."""
    if b" " not in plain and b"\t" not in plain:
        return False
    outline = plain.translate(_OUTLINE)
    while b"  " in outline:  # halves every run of blanks
        outline = outline.replace(b"  ", b" ")
    return b"x x" in outline


def _blank_in_line(data: bytes, start: int, place: str) -> MalformedRequest:
    found = _BLANK_IN_LINE.search(data)
    position = data.find(b"%20") if found is None else found.start()
    return MalformedRequest(
        f"{place} is not base64: there is a blank inside a line, at position {start + position}. "
        "A '+' that is not escaped becomes one on its way through a form."
    )


def _first_padding(data: bytes) -> int:
    return min(position for form in (b"=", b"%3D", b"%3d") if (position := data.find(form)) >= 0)


def _misplaced(text: str, position: int, place: str) -> MalformedRequest:
    return MalformedRequest(f"{place} is not base64: there is {text[position]!a} at position {position}.")
