"""The guess is right on plain sentences, and says that it is unsure elsewhere."""

from __future__ import annotations

import pytest

from distillkit.audit.languages import guess, guess_document

SENTENCES = {
    "en": "It was the best of times, and it was the worst of times for all of them.",
    "de": "Er hat gesagt, dass die Kinder nicht mit dem Zug in die Stadt gefahren sind.",
    "fr": "Il y a dans cette maison une personne qui ne veut pas parler avec les autres.",
    "es": "El hombre que vino ayer no quería hablar con los niños de la escuela.",
    "it": "La casa che si trova nella strada non è più quella che era una volta.",
    "pt": "O livro que eu li ontem não é tão bom como os outros que ele escreveu.",
    "nl": "Het was een dag die niet meer voor hem zou komen, en dat wist hij ook.",
    "sv": "Det är inte så att jag har sett den film som han talade om.",
    "pl": "To jest dom, w którym nie było już nikogo, ale drzwi są otwarte.",
    "tr": "Bu kitap çok güzel ve ben onu daha sonra bir kez için okumak istiyorum.",
    "ru": "Он сказал, что это не так и что она была в городе с ними.",
    "uk": "Він сказав, що це не так і що вона була в місті з ними, але й там.",
    "el": "Η γλώσσα αυτή γράφεται με δικό της αλφάβητο.",
    "ja": "これは日本語の文章です。",
    "zh": "这是一个中文句子。",
    "ko": "이것은 한국어 문장입니다.",
    "he": "זה משפט בעברית.",
    "th": "นี่คือประโยคภาษาไทย",
}


@pytest.mark.parametrize("language", SENTENCES)
def test_a_plain_sentence_is_recognised(language: str) -> None:
    assert guess(SENTENCES[language]) == language


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "unsure"),
        ("42 + 17 = 59", "unsure"),
        ("Lorem ipsum dolor sit amet consectetur adipiscing elit", "unsure"),
        ("for (int index = 0; index < size; ++index) total += values[index];", "unsure"),
        ("a film", "unsure"),
        ("Български текст с думи", "unsure (Cyrillic)"),
        ("هذا نص عربي", "unsure (Arabic)"),
    ],
)
def test_what_cannot_be_told_is_unsure(text: str, said: str) -> None:
    assert guess(text) == said


def test_a_document_is_looked_at_as_a_whole() -> None:
    assert guess_document(["The end", "of the day", "is here."]) == "en"
