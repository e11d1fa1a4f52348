"""Texts to compare tokenizers on: lines of the files that installed packages ship, and what goes wrong with text."""

import html
import os
import random
import re
import sysconfig
import unicodedata
from functools import lru_cache
from html.entities import html5
from pathlib import Path

SENTENCES = (
    "All human beings are born free and equal in dignity and rights.",
    "Alle Menschen sind frei und gleich an Würde und Rechten geboren, groß und KLEIN – STRASSE/Straße.",
    "Tous les êtres humains naissent libres et égaux en dignité ; l’œuvre d’un garçon à Noël, où ?",
    "¿Nacen todos los seres humanos libres e iguales? ¡Sí! El niño y la cigüeña.",
    "Wszyscy ludzie rodzą się wolni i równi: zażółć gęślą jaźń.",
    "Všichni lidé rodí se svobodní; příliš žluťoučký kůň úpěl ďábelské ódy.",
    "Tüm insanlar hür, haysiyet ve haklar bakımından eşit doğarlar. İSTANBUL, Iğdır, ışık.",
    "Tất cả mọi người sinh ra đều được tự do và bình đẳng về nhân phẩm và quyền.",
    "Все люди рождаются свободными и равными в своем достоинстве и правах. Ёлка, Їжак.",
    "ΟΛΟΙ ΟΙ ΑΝΘΡΩΠΟΙ ΓΕΝΝΙΟΥΝΤΑΙ ΕΛΕΥΘΕΡΟΙ· Όλοι οι άνθρωποι, ΟΔΥΣΣΕΥΣ. ΣΑΣ ΣΑΣ' Σ Σ.",
    "يولد جميع الناس أحراراً متساوين في الكرامة والحقوق، ١٢٣٤٥.",
    "כל בני האדם נולדו בני חורין ושווים בערכם ובזכויותיהם. שָׁלוֹם",
    "सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता और समानता प्राप्त है। क़ ख़",
    "মানুষ স্বাধীনভাবে সমান মর্যাদা এবং অধিকার নিয়ে জন্মগ্রহণ করে।",
    "มนุษย์ทั้งหลายเกิดมามีอิสระและเสมอภาคกันในเกียรติศักดิ์และสิทธิ น้ำ",
    "人人生而自由，在尊严和权利上一律平等。２０２４年，ＡＢＣ。",
    "すべての人間は、生まれながらにして自由であり、ﾊﾝｶｸ、ガギグ、㍿、①②③。",
    "모든 인간은 태어날 때부터 자유로우며, 그 존엄과 권리에 있어 동등하다. 한글",
    "ყველა ადამიანი იბადება თავისუფალი. Ბ Ა  Բոլոր մարդիկ ծնվում են ազատ և հավասար։ և",
    "👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 ☕️ 1️⃣ 🇩🇪🇫🇷 😀😃 ¯\\_(ツ)_/¯ (╯°□°)╯︵ ┻━┻ ♥ ★ ™ © ½ ²",
    "It's they've I'M we'll he'D can'T you're rock'n'roll 'Tis ''s ’s ‘t ʼll 'ſ 'K",
    "a photo of a cat, a dog & 3 birds; <b>bold</b> &amp; &lt;i&gt; &amp;lt; &#39; &#x2019; &eacute; &EACUTE; &nbsp; &",
    "<b>&amp;lt;i&amp;gt; &amp;amp;eacute; &lt;</b>",  # ftfy leaves entities alone beside a "<", html undoes two levels
    "<|startoftext|> <|endoftext|> <|ENDOFTEXT|> !<|endoftext|> x<|startoftext|>y <|endoftext|>'s <|endoftext| >",
    "</w> a</w> !! !? ... --- \x1b[36;44mblue\x1b[0m \x00\x07 tab\there\r\nand\vthere\fend\x85next\u2028line\u2029",
    "sÃ³ lo Ã¡ â€œquotedâ€\x9d â€” naÃ¯ve voilÃ le travail Ã la mode âœ” No problems PÃ©rez Ð¿ÑÐ¸Ð²ÐµÑ ï¬‚uï¬ƒest",
    "def f(x: int = 0x1F) -> str:\n    return f\"{x!r:>10}\" if x >= 1e-9 else '\\u00e9'  # café",
    "https://user@example.com:8080/a_b-c/%C3%A9?q=1&lang=en&copy=2#frag  C:\\Users\\naïve\\file.TXT",
    "\ud800 \udfff lone, \ud83d\ude00 paired, \ude00\ud83d swapped",
    "ﬁ ﬂ ﬃ ĳ Ǆ ǆ ẞ ß ŉ ǰ ΐ և ﬓ Å Ω K Å é e\u0301 ạ̈ 각 각 が か\u3099",
    "\ufeffBOM \u200bzero\u200dwidth\u2060 soft\u00adhyphen \u00a0nbsp\u3000ideographic\u2003em\u1680ogham \u180e",
)
FILES = re.compile(r".*\.(pyi?|txt|md|rst|html|css|po|csv)|METADATA|LICEN[CS]E.*|AUTHORS.*")
MAX_FILE_BYTES = 300_000
MAX_LINE = 240


def _lines_of(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return []
    return [line.strip()[:MAX_LINE] for line in text.splitlines() if line.strip()]


@lru_cache
def shipped_lines(count: int = 20_000) -> list[str]:
    """Lines from the standard library and installed packages, half of them not ASCII as far as there are such."""
    paths = []
    for folder in {sysconfig.get_path("stdlib"), sysconfig.get_path("purelib")}:
        for where, folders, names in os.walk(folder):
            folders[:] = [name for name in folders if name not in ("include", "site-packages", "__pycache__")]
            paths += [Path(where, name) for name in names if FILES.fullmatch(name)]
    paths.sort()
    random.Random(0).shuffle(paths)
    plain, foreign = {}, {}
    for path in paths:
        if path.stat().st_size > MAX_FILE_BYTES or len(plain) + len(foreign) >= count // 2 * 2:
            continue
        for line in _lines_of(path):
            chosen = plain if line.isascii() else foreign
            if len(chosen) < count // 2:
                chosen[line] = None
    return [*plain, *foreign]


def _mojibake(text: str, rng: random.Random) -> str:
    wrong = rng.choice(("cp1252", "latin-1", "cp1251", "cp1250", "cp1253", "mac_roman", "cp437"))
    return text.encode("utf-8", "replace").decode(wrong, "replace")


def _spaced(text: str, rng: random.Random) -> str:
    spaces = (" ", "  ", "\t", "\n", "\r\n", "\xa0", "\u2003", "\u3000", "\u2028", "\x85", "\x1c", "\u200b", " \x0b ")
    return "".join(rng.choice(spaces) if character == " " else character for character in text) + rng.choice(spaces)


def _mixed(text: str, rng: random.Random) -> str:
    extra = rng.choice(SENTENCES + tuple(html5.values()) + ("<|endoftext|>", "<|startoftext|>", "'s", "&"))
    at = rng.randrange(len(text) + 1)
    return text[:at] + extra[: rng.randrange(1, 20)] + text[at:]


DAMAGE = (
    lambda text, rng: text,
    lambda text, rng: text.upper(),
    lambda text, rng: text.title(),
    lambda text, rng: text.swapcase(),
    lambda text, rng: unicodedata.normalize(rng.choice(("NFC", "NFD", "NFKC", "NFKD")), text),
    lambda text, rng: html.escape(text),
    lambda text, rng: html.escape(html.escape(html.escape(text))),
    lambda text, rng: text.encode("ascii", "xmlcharrefreplace").decode("ascii") if text.isprintable() else text,
    _mojibake,
    lambda text, rng: _mojibake(_mojibake(text, rng), rng)[:MAX_LINE],
    _spaced,
    _mixed,
    lambda text, rng: "".join(rng.sample(text, len(text))),
)


def _random_text(rng: random.Random) -> str:
    """Characters of one or two neighbourhoods of Unicode, the first planes mostly, surrogates and gaps included."""
    characters = []
    for _ in range(rng.randint(1, 2)):
        start = rng.choice((rng.randrange(0x80), rng.randrange(0x600), rng.randrange(0x3000), rng.randrange(0x20000)))
        start = rng.randrange(0x110000) if rng.random() < 0.05 else start
        window = rng.choice((4, 32, 256))
        characters += [chr(min(start + rng.randrange(window), 0x10FFFF)) for _ in range(rng.randint(1, 20))]
        characters += rng.choices(" aZ'0!é\u0301", k=rng.randint(0, 6))
    rng.shuffle(characters)
    return "".join(characters)


def corpus(count: int, seed: int = 0) -> list[str]:
    """`count` texts, the same for a seed on the same installation."""
    rng = random.Random(seed)
    lines = [*shipped_lines(), *(name for name in html5), *(f"x &{name} y" for name in html5)]
    texts = [*SENTENCES, "", " ", "\n", "!", "&", "&amp", "'"]
    while len(texts) < count:
        kind = rng.random()
        if kind < 0.2:
            text = _random_text(rng)
        elif kind < 0.3:
            text = rng.choice(SENTENCES)
        else:
            text = rng.choice(lines)
        for _ in range(rng.choice((0, 1, 1, 2, 3))):
            text = rng.choice(DAMAGE)(text, rng)
        texts.append(text[:MAX_LINE])
    return texts[:count]
