"""A guess at the language of a text: its script, then its function words.

No model, no network. A script of one language decides alone; in Latin and Cyrillic script the language whose
most frequent words (articles, pronouns, prepositions) make up the largest share of the text, if that share is
large enough and clearly ahead. Of everything else it says that it is unsure: short texts, other languages,
lists, code. Related languages that are not listed (Norwegian, Catalan) are taken for a listed one, or none.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import islice

UNSURE = "unsure"
LOOKED_AT = 600
"""Characters of a text that are looked at."""
_ENOUGH, _AHEAD, _FEWEST = 0.12, 1.25, 3
"""Share of function words, its lead over the next language, and how many words must be found."""
_WORD = re.compile(r"[^\W\d_]+")
_SCRIPTS = {"HIRAGANA": "ja", "KATAKANA": "ja", "HANGUL": "ko", "GREEK": "el", "HEBREW": "he", "THAI": "th"}
_HAN = "CJK"
_FUNCTION_WORDS: Mapping[str, str] = {
    "en": "the of and to in a is that it was for on are as with his they at be this from have or by but "
    "not what all were we when your can there an which their if will each about how she he i you",
    "de": "der die und in den von zu das mit sich des auf für ist im dem nicht ein eine als auch es an "
    "werden aus er hat dass sie nach wird bei einer um am sind noch wie einem über so zum kann nur "
    "ich wir",
    "fr": "le la les de des du et à un une est que qui dans pour pas sur au avec ce il elle sont par plus "
    "se ne nous vous mais ou je cette été aux son sa ses leur comme tout d l qu c n s",
    "es": "el la los las de del y que en un una es por con para su se no al lo como más pero sus le ya o "
    "este sí porque esta entre cuando muy sin sobre también me hasta hay donde yo ser fue era",
    "it": "il lo la i gli le di del della dei delle e che è un una in per con non si da al alla come più "
    "ma sono nel nella anche o se ha era suo questo ci mi dal dalla sul io l",
    "pt": "o a os as de do da dos das e que em um uma é não para com por no na nos nas se ao à como mais "
    "mas foi ele ela seu sua ou ser quando muito há já está também só pelo pela eu você",
    "nl": "de het een en van in is dat op te zijn met voor niet aan er om ook als dan maar bij uit nog "
    "naar door ze hij wat deze worden werd heeft over of tot die was had ik je wij",
    "sv": "och att det i en är som på av för med till den har inte om ett men var jag de han från så vi "
    "kan när hade under eller nu sig efter hon också vid mot skulle sin där ska",
    "pl": "i w na z do się nie to że jest o po jak a za od przez co był dla ale tak jego już przy czy ich "
    "tym są być może które który oraz tylko jej było tego ja mnie",
    "tr": "ve bir bu da de için ile çok ne daha gibi o en kadar olarak olan ama var mi ben sonra her ya "
    "değil ki bunu şey mı biz diye içinde şu hem ise",
    "ru": "и в не на я что он с как это а то все она так его но да ты к у же вы за бы по только ее мне "
    "было вот от меня о из ему для мы их при или был если",
    "uk": "і в не на що я з як це а то все він та його але до у же ви за би по тільки її мені було від "
    "мене про із йому для ми їх при або був якщо є й цей",
}


def _by_word() -> dict[str, tuple[str, ...]]:
    found: dict[str, list[str]] = defaultdict(list)
    for language, listed in _FUNCTION_WORDS.items():
        for word in set(listed.split()):
            found[word].append(language)
    return {word: tuple(languages) for word, languages in found.items()}


_LANGUAGES = _by_word()


def guess(text: str) -> str:
    """ISO 639-1 code of a text's language by the rules above, or `unsure`, with the script where that is not
    Latin.
    """
    words = _WORD.findall(unicodedata.normalize("NFC", text[:LOOKED_AT]).lower())
    letters = "".join(words)
    script = "LATIN" if letters.isascii() else _script(letters)
    if script in _SCRIPTS:
        return _SCRIPTS[script]
    if script == _HAN:
        return "zh"
    language = _by_function_words(words)
    return language if language != UNSURE or script == "LATIN" else f"{UNSURE} ({script.title()})"


def guess_document(sentences: Sequence[str]) -> str:
    """The same of a document."""
    return guess(" ".join(islice(sentences, 20)))


def _by_function_words(words: Sequence[str]) -> str:
    hits = Counter(language for word in words for language in _LANGUAGES.get(word, ()))
    if not hits:
        return UNSURE
    (best, count), (_, second) = (*hits.most_common(2), ("", 0))[:2]
    sure = count >= max(_FEWEST, _ENOUGH * len(words)) and count >= _AHEAD * second
    return best if sure else UNSURE


def _script(letters: str) -> str:
    """Most frequent script, by the first word of each letter's Unicode name; Japanese where any Kana stands
    among Han.
    """
    counts = Counter(unicodedata.name(letter, "OTHER").split()[0] for letter in letters)
    kana = counts["HIRAGANA"] + counts["KATAKANA"]
    if kana and 10 * kana >= counts[_HAN]:
        counts["HIRAGANA"] = kana + counts.pop(_HAN, 0)
    return counts.most_common(1)[0][0]
