"""Texts in pictures: fonts that are there, and labels that they can show."""

from __future__ import annotations

from functools import cache

import matplotlib
from matplotlib import font_manager
from matplotlib.ft2font import FT2Font

_CHINESE_FONTS = ("Noto Sans CJK SC", "Source Han Sans SC", "WenQuanYi Micro Hei", "PingFang SC", "Microsoft YaHei")


def fonts() -> matplotlib.rc_context:
    """Within it, texts are set in DejaVu Sans and, for Chinese, in one of the usual fonts where one is installed."""
    return matplotlib.rc_context({"font.family": list(_installed())})


@cache
def _installed() -> tuple[str, ...]:
    there = set(font_manager.fontManager.get_font_names())
    return ("DejaVu Sans", *(name for name in _CHINESE_FONTS if name in there))


@cache
def _characters() -> frozenset[int]:
    """Code points that the fonts can show."""
    return frozenset(code for name in _installed() for code in FT2Font(font_manager.findfont(name)).get_charmap())


def shown(label: str, otherwise: str) -> str:
    """The label as text of a picture; `otherwise` where no font here can show it."""
    if label and all(ord(character) in _characters() for character in label):
        return label.replace("$", r"\$")  # which would begin a formula
    return otherwise
