"""Strings on which tokenizers differ if they differ at all: scripts, numbers, blanks, code, marks, emoji, and mixtures of them."""

import random

SCRIPTS = [
    "the quick brown fox jumps over a lazy dog", "Ünïcödé façade naïve Straße œuvre", "Быстрая бурая лиса прыгает", "Η γρήγορη καφέ αλεπού",
    "السريع البني الثعلب يقفز", "השועל החום המהיר", "तेज़ भूरी लोमड़ी कूदती है", "দ্রুত বাদামী শিয়াল", "สุนัขจิ้งจอกสีน้ำตาลกระโดด", "敏捷的棕色狐狸跳过了懒狗",
    "素早い茶色の狐がのろまな犬を飛び越える", "カタカナとひらがな", "빠른 갈색 여우가 게으른 개를", "Nhanh nâu cáo nhảy qua chó", "ሰላም ልዑል", "გამარჯობა მსოფლიო", "Բարեւ աշխարհ",
    "ﬁne ﬂuﬀ Ａｂｃ １２３ ⅷ ²³ ½", "e\u0301 a\u0308 o\u0302\u0323 \u212b",
]  # fmt: skip
NUMBERS = ["0", "7", "42", "123", "1234", "12345678901234567890", "3.14159", "-1e-9", "1,234,567.89", "0x1F", "٣٤٥", "१२३", "①②", "2024-01-31", "12:59"]
BLANKS = [" ", "  ", "   ", "       ", "\t", "\t\t", "\n", "\n\n", "\n\n\n", "\r\n", " \n", "\n ", "\u00a0", "\u3000", "\u200b", "\u2028", " \t \n  "]
CODE = [
    "def f(x):\n    return x**2 + 1\n", "for (int i = 0; i < n; ++i) {\n\ta[i] += b[i];\n}", "SELECT * FROM t WHERE a='b';", "<div class=\"x\">&nbsp;</div>",
    "if(!ok){throw new Error(`no ${x}`)}", "https://example.org/a_b?c=d&e=%20#f", "#include <vector>\n", "λx.x → ∀y∈S: y≥0", "C:\\path\\to", "{\"k\": [1, null]}",
]  # fmt: skip
MARKS = ["!", "?!", "...", "—", "'s", "'T", "'re", "'LL", "don't", "I'VE", "«»", "“quoted”", "(a)", "[b]", "$5", "100%", "@user", "#tag", "~", "^_^", "\\", "/*", "。", "、", "！", "¿", "!!!!!!", "=====", "----"]  # fmt: skip
EMOJI = ["🙂", "👩‍👩‍👧", "🏳️‍🌈", "🇩🇪", "👍🏽", "❤️", "🦊🦊", "\U0001f9ff", "𝔘𝔫𝔦", "𐍈", "\ufffd", "\u0000", "\x7f", "\u202e"]


def strings(count, seed=0, more=()):
    """`more`: what a vocabulary has of its own, special tokens' texts for instance."""
    rng = random.Random(seed)
    words = [w for text in SCRIPTS for w in text.split()]
    kinds = [words, NUMBERS, BLANKS, CODE, MARKS, EMOJI, SCRIPTS, list(more) or words]
    out = ["", " ", "a", "\n"]
    while len(out) < count:
        parts = []
        for _ in range(rng.choice([1, 2, 3, 5, 8, 13, 30])):
            part = rng.choice(rng.choice(kinds))
            match rng.randrange(8):
                case 0:
                    part = part.upper()
                case 1:
                    part = part.title()
                case 2:
                    part = part[: rng.randrange(len(part) + 1)]
                case 3:
                    part = part * rng.randrange(1, 4)
                case 4:
                    part = chr(rng.choice([rng.randrange(32, 0x250), rng.randrange(0x250, 0xD800), rng.randrange(0xE000, 0x20000)]))
            parts.append(part)
        out.append(rng.choice(["", " ", " "]).join(parts))
    return out
