"""Text in, text out. The steps run in this order, whatever the order of the options:

1. `html`: needs the tags and entities as they were written;
2. `repair_unicode`: entities may have hidden wrongly decoded characters;
3. `normalize`: compatibility forms turn special spaces into plain ones;
4. `control_characters`: before white space, so that a space on each side of one becomes a single space;
5. `stop_words`;
6. `white_space`: because the steps before leave gaps;
7. `detokenize`: last, because words are counted before it.
"""

import re
import unicodedata
from functools import lru_cache
from html.parser import HTMLParser

from data.config import Cleaning
from data.detokenize import detokenize

# A block element ends a line; every other tag disappears without a trace, as it does on a page.
_BLOCK_NAMES = """
address article aside blockquote body br caption dd details dialog div dl dt fieldset figcaption figure
footer form h1 h2 h3 h4 h5 h6 head header hr html legend li main nav ol option p pre section summary table
tbody td tfoot th thead title tr ul
"""
_BLOCKS = frozenset(_BLOCK_NAMES.split())
_HIDDEN = frozenset(("script", "style", "noscript", "template"))
# C0 and C1 controls, soft hyphen, zero-width characters, marks of direction, byte order mark; not \n, \t.
_CONTROLS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u180e\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufeff]"
)
# Zero-width joiners spell words in Persian and Indic scripts and tie emoji together, but they are zero-width
# characters, which the option promises to remove.

_ENGLISH = """
a about above after again against all am an and any are as at be because been before being below between
both but by can could did do does doing down during each few for from further had has have having he her
here hers herself him himself his how i if in into is it its itself just me more most my myself no nor not
now of off on once only or other our ours ourselves out over own same she should so some such than that the
their theirs them themselves then there these they this those through to too under until up very was we were
what when where which while who whom why will with would you your yours yourself yourselves
"""
_CHINESE = """
的 了 和 是 在 就 都 而 及 与 与其 或 或者 也 还 把 被 让 向 往 从 对 对于 关于 由
于 由于 因为 所以 因此 如果 虽然 但是 但 不过 然而 而且 并 并且 我 你 您 他 她 它 我们
你们 他们 她们 它们 这 那 这个 那个 这些 那些 这里 那里 什么 怎么 怎样 哪 哪里 哪个 谁 吗
呢 吧 啊 呀 哦 嗯 嘛 着 过 地 得 之 其 其中 以 以及 所 则 等 等等 很 又 再 才 只
只是 一个 一些 有些 某 某些 各 每 每个 自己
"""


def clean(text: str, config: Cleaning) -> str:
    """Returns `text` after the steps that `config` turns on, in the order given at the top of this file."""
    if config.html:
        text = _strip_html(text)
    if config.repair_unicode:
        import ftfy

        text = ftfy.fix_text(text, normalization=None)
    if config.normalize != "none":
        text = unicodedata.normalize(config.normalize, text)
    if config.control_characters:
        text = _CONTROLS.sub("", text)
    if config.stop_words != "none":
        text = _stop_words(config.stop_words).sub("", text)
    if config.white_space:
        text = _collapse_white_space(text)
    if config.detokenize != "none":
        text = detokenize(text, config.detokenize)
    return text


def _collapse_white_space(text: str) -> str:
    text = re.sub(r"[^\S\n]+", " ", text.replace("\r\n", "\n"))
    text = re.sub(r" ?\n ?", "\n", text)
    return re.sub(r"\n{3,}", "\n\n", text).strip(" \n")


@lru_cache(maxsize=2)
def _stop_words(language: str) -> re.Pattern[str]:
    """English: whole words, with the space after them. Chinese, which has no spaces: the longest match."""
    if language == "english":
        words = "|".join(_ENGLISH.split())
        return re.compile(rf"(?<![\w'’-])(?:{words})(?![’'-]?\w)[^\S\n]?", re.IGNORECASE)
    return re.compile("|".join(sorted(_CHINESE.split(), key=len, reverse=True)))


def _strip_html(text: str) -> str:
    parser = _TextOfPage()
    parser.feed(text)
    parser.close()
    return "".join(parser.parts)


class _TextOfPage(HTMLParser):
    """Collects what a reader of the page would see; takes any text without error."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self._hidden: list[str] = []  # the hidden elements that are open

    def parse_html_declaration(self, i):
        """Takes `<![…>` for a comment, as browsers do; the base class raises AssertionError for most."""
        if self.rawdata.startswith("<![", i):
            return self.parse_bogus_comment(i)
        return super().parse_html_declaration(i)

    def handle_starttag(self, tag, attrs):
        if tag in _HIDDEN:
            self._hidden.append(tag)
        elif tag in _BLOCKS:
            self._end_line()

    def handle_startendtag(self, tag, attrs):
        if tag in _BLOCKS:
            self._end_line()

    def handle_endtag(self, tag):
        if tag in self._hidden:
            del self._hidden[self._hidden.index(tag) :]
        elif tag in _BLOCKS:
            self._end_line()

    def handle_data(self, data):
        if not self._hidden:
            self.parts.append(data)

    def _end_line(self):
        if self.parts and not self.parts[-1].endswith("\n"):
            self.parts.append("\n")
