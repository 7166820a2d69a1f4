"""Files told apart by their first bytes: what is accepted, and the names of what often comes instead."""

from __future__ import annotations

# Those that are refused, so that the message can say what was sent. Each is (offset, bytes, name).
_OTHERS = (
    (0, b"II*\x00", "TIFF"),
    (0, b"MM\x00*", "TIFF"),
    (0, b"II+\x00", "TIFF"),
    (0, b"MM\x00+", "TIFF"),
    (0, b"SIMPLE  =", "FITS"),
    (0, b"8BPS", "a Photoshop document"),
    (0, b"\x00\x00\x01\x00", "an icon (ICO)"),
    (0, b"icns", "an icon (ICNS)"),
    (4, b"ftypavif", "AVIF"),
    (4, b"ftypavis", "AVIF"),
    (4, b"ftyphei", "HEIC"),
    (4, b"ftyphev", "HEIC"),
    (4, b"ftypmif1", "HEIF"),
    (4, b"ftypmsf1", "HEIF"),
    (4, b"ftyp", "a video (MP4)"),
    (0, b"\xff\x0a", "JPEG XL"),
    (0, b"\x00\x00\x00\x0cJXL ", "JPEG XL"),
    (0, b"\x00\x00\x00\x0cjP  ", "JPEG 2000"),
    (0, b"\xff\x4f\xff\x51", "JPEG 2000"),
    (0, b"%PDF", "PDF"),
    (0, b"%!PS", "PostScript"),
    (0, b"\xc5\xd0\xd3\xc6", "PostScript"),
    (0, b"<svg", "SVG"),
    (0, b"<?xml", "XML or SVG"),
    (0, b"<!DOCTYPE", "HTML"),
    (0, b"<!doctype", "HTML"),
    (0, b"<html", "HTML"),
    (0, b"DDS ", "DDS"),
    (0, b"qoif", "QOI"),
    (0, b"\x8aMNG", "MNG"),
    (0, b"\x1aE\xdf\xa3", "a video (WebM)"),
    (0, b"\xd7\xcd\xc6\x9a", "WMF"),
    (0, b"\x01\x00\x00\x00", "EMF"),
    (0, b"P1\n", "PBM"),
    (0, b"P4\n", "PBM"),
    (0, b"P2\n", "PGM"),
    (0, b"P5\n", "PGM"),
    (0, b"P3\n", "PPM"),
    (0, b"P6\n", "PPM"),
    (0, b"\x1f\x8b", "a gzip archive"),
    (0, b"PK\x03\x04", "a ZIP archive"),
)


def accepted_format(data: bytes) -> str | None:
    """PNG, JPEG, WEBP, GIF, BMP, or None."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "WEBP"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if data.startswith(b"BM"):
        return "BMP"
    return None


def name_of_other(data: bytes) -> str | None:
    """What a refused file seems to be, as words for a message."""
    for offset, signature, name in _OTHERS:
        if data.startswith(signature, offset):
            return name
    return None
