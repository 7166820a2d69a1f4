"""`data:image/...;base64,...` to bytes, strictly: no whitespace, exact padding (RFC 2397, RFC 4648 §4)."""

from __future__ import annotations

import binascii
import re

import pybase64

from server.protocol.errors import bad_request, too_large

# The declared subtype is not believed: clients label PNG as JPEG every day, and the bytes tell.
_HEAD = re.compile(r"data:image/[a-z0-9.+-]{1,64}(;[a-z0-9-]{1,32}=[a-z0-9._-]{1,64}){0,4};base64", re.IGNORECASE)
_MAX_HEAD = 512


def is_data_url(url: str) -> bool:
    return url[:5].lower() == "data:"


def decoded_size(url: str) -> int:
    """About how many bytes a data URL holds; what stands before the comma counts as nothing."""
    return (len(url) - url.find(",", 0, _MAX_HEAD) - 1) // 4 * 3


def decode_data_url(url: str, max_bytes: int) -> bytes:
    """Raises ApiError: 400 for a broken URL, 413 beyond `max_bytes`."""
    comma = url.find(",", 0, _MAX_HEAD)
    if comma < 0 or not _HEAD.fullmatch(url, 0, comma):
        raise bad_request(
            "The picture's data URL cannot be read: it must begin 'data:image/png;base64,' or with another image type.",
            code="invalid_image_url",
        )
    start, length = comma + 1, len(url) - comma - 1
    if length // 4 * 3 - 2 > max_bytes:
        raise too_large(f"The picture is larger than {max_bytes} bytes.")
    try:
        if length == 0 or length % 4:
            raise binascii.Error
        return pybase64.b64decode(url[start:], validate=True)
    except (binascii.Error, ValueError):
        raise bad_request("The picture's data URL does not hold valid base64.", code="invalid_image_url") from None


def encode_data_url(data: bytes, format: str) -> str:
    """The reverse, for pictures that the controller fetched. `format` is `ImageHeader.format`."""
    return f"data:image/{format.lower()};base64,{pybase64.b64encode(data).decode('ascii')}"
