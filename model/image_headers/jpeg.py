"""JPEG up to its first scan, and how many scans there are (ITU-T T.81 annex B)."""

from __future__ import annotations

import re
from struct import unpack_from

from model.image_headers.base import MAX_STEPS, Stored, broken, too_long, unsupported
from model.image_headers.exif import exif_orientation

# A scan costs a pass over all pixels however few bytes it has, so that a small file could keep a decoder busy for
# hours. Encoders write about ten.
MAX_SCANS = 100

_FRAMES = {0xC0, 0xC1, 0xC2}  # baseline, extended sequential, progressive, all with Huffman codes
_OTHER_FRAMES = {0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF}  # lossless, hierarchical, arithmetic
_ALONE = {0x01, *range(0xD0, 0xD8)}  # markers without a length
_SOI, _EOI, _SOS, _APP1, _DHP = 0xD8, 0xD9, 0xDA, 0xE1, 0xDE
_MARKER = re.compile(rb"\xff([\x01-\xfe])")  # after 0xFF, 0 is a stuffed byte and 0xFF a filler
_MARKER_AFTER_SCAN = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])")  # restarts belong to the scan


def read_jpeg(data: bytes) -> Stored:
    """Of an MPO the first picture, which is a JPEG of its own."""
    at, size, orientation, progressive, components = 2, None, None, False, 0
    for _ in range(MAX_STEPS):
        found = _MARKER.search(data, at)
        if found is None:
            raise broken("JPEG", "it ends before its pixels begin")
        marker, at = found[1][0], found.end()
        if marker in _ALONE:
            continue
        if marker in (_SOI, _EOI):
            raise broken("JPEG", "it begins or ends before its pixels")
        (length,) = unpack_from(">H", data, at)
        if length < 2 or at + length > len(data):
            raise broken("JPEG", "a segment is longer than the file")
        if marker in _OTHER_FRAMES or marker == _DHP:
            raise unsupported("JPEG", "it is lossless, hierarchical or arithmetically coded")
        if marker in _FRAMES:
            if size is not None:
                raise unsupported("JPEG", "it has two headers")
            size, components, progressive = _frame(data, at, length), data[at + 7], marker == 0xC2
        elif marker == _SOS:
            if size is None:
                raise broken("JPEG", "its pixels stand before its header")
            (in_scan,) = unpack_from("B", data, at + 2)
            if progressive or in_scan < components:
                _hold_scans(data, at + length)
            return Stored(*size, orientation or 1)
        elif marker == _APP1 and orientation is None and data.startswith(b"Exif\x00\x00", at + 2):
            orientation = exif_orientation(data[at + 2 : at + length])
        at += length
    raise too_long("JPEG", "segments")


def _frame(data: bytes, at: int, length: int) -> tuple[int, int]:
    """Width and height of the frame header that begins with its length at `at`."""
    depth, height, width, components = unpack_from(">BHHB", data, at + 2)
    if length != 8 + 3 * components:
        raise broken("JPEG", "its header is of the wrong length")
    if depth != 8:
        raise unsupported("JPEG", f"it has {depth} bits a colour, not 8")
    if components not in (1, 3, 4):
        raise unsupported("JPEG", f"it has {components} colours")
    if height == 0:
        raise unsupported("JPEG", "its height is not in its header")
    return width, height


def _hold_scans(data: bytes, at: int) -> None:
    """Counts scans from behind the first scan's header on; refuses a file with more than the limit."""
    scans = 1
    for _ in range(MAX_STEPS):
        found = _MARKER_AFTER_SCAN.search(data, at)
        if found is None or found[1][0] == _EOI:
            return
        marker, at = found[1][0], found.end()
        if marker == 0x01:
            continue
        scans += marker == _SOS
        if scans > MAX_SCANS:
            raise unsupported("JPEG", f"it has more than {MAX_SCANS} scans")
        if at + 2 > len(data):
            return
        at += max(2, unpack_from(">H", data, at)[0])
    raise unsupported("JPEG", f"it has more than {MAX_STEPS} segments")
