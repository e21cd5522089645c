"""Ids, texts and rendered chats must equal those of the Python packages `tokenizers` and `transformers`.

The C++ side is the test binary of this room: its test Probe.AnswersTheQuestionsOfPytest reads questions from a file and writes answers.
"""

import json
import os
import pathlib
import random
import subprocess

import pytest

tokenizers = pytest.importorskip("tokenizers")
chat_utils = pytest.importorskip("transformers.utils.chat_template_utils")

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parent.parent
TINY = ROOT / "models" / "tiny"


@pytest.fixture
def ask(tmp_path):
    """Sends questions, each about one folder, and returns their answers."""
    if "LQUANT" not in os.environ:
        pytest.skip("LQUANT is not set to the built binary")
    binary = pathlib.Path(os.environ["LQUANT"]).resolve().parent / "tests" / "test_text"
    if not binary.exists():
        pytest.skip(f"{binary} is not built")

    def run(questions):
        path = tmp_path / "questions.json"
        path.write_text(json.dumps(questions))
        environment = {**os.environ, "LQUANT_TEXT_PROBE": str(path)}
        done = subprocess.run([binary, "--gtest_filter=Probe.*"], env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(pathlib.Path(f"{path}.answers").read_text())

    return run


# Texts -----------------------------------------------------------------------------------------------------------------

ALPHABETS = {
    "latin": "abcdefghijklmnopqrstuvwxyz ABCDEFG,.;:!?'\"-0123456789",
    "accents": "àéîõüçñßøåœæžşğıİ ﬁ",
    "combining": "aeiou\u0300\u0301\u0308\u0327\u20d7\u0483 n\u0303",
    "cjk": "日本語中文字漢字仮名カタカナひらがな한국어조선말 。，、「」１２３",
    "scripts": "русский עברית العربية हिन्दी ไทย ქართული አማርኛ বাংলা ",
    "emoji": "😀👍🏽👨‍👩‍👧‍👦🏳️‍🌈🇫🇷❤️🧑🏿‍🚀 ✨",
    "space": " \t\n\r\v\f\u00a0\u2003\u200b\u3000\u2028\u0085 ",
    "code": "def f(x):\n    return x['k'] += 1; // <T>&*#{}[]()\\|~`^%$@_=\t\n",
    "symbols": "∑∫√∞≈≠±×÷→←↑↓■□▲●★☆©®™°µ¶§²³½€£¥",
    "controls": "".join(map(chr, range(32))) + "\x7f\ufeff\ufffd\ufffe\u202e",
}

HAND_WRITTEN = [
    "", " ", "\n", "\x00", "a", "Hello, world!", "I'll we've they'd DON'T it's", "3.14159 1,000,000 12345678901234567890",
    "https://example.com/a?b=c&d=%20#e", "<|endoftext|>", "<|im_start|>user\nhi<|im_end|>\n", "<s>hi</s> <unk><pad>", "</s></s> x</s>",
    "[CLS] a [SEP] [MASK]", " " * 500, "\n" * 300, "\t \t" * 100, "a" * 1000, "ab " * 400, "é" * 200, "日" * 300, "e\u0301" * 50,
    "▁under ▁score▁", "Ġword Ċline", "\ufeffbom", "ﬁ ligature Ⅷ ½ ①", "İstanbul ıI", "ǅ ǆ ß ẞ", "\u1e9b\u0323", "𝒜𝓃 𝔤𝔬 𝕏", "\U0010ffff\U000e0001",
    "mixed العربية and English עברית 123", "if (a<b && c>d) { return \"x\\n\"; }  // comment", "<0x41><0xFF>", "#### ## a##b",
]  # fmt: skip


def texts(count, seed):
    """Strings of every kind, and byte strings (as lists of bytes) that are mostly no UTF-8."""
    pick = random.Random(seed)
    out = list(HAND_WRITTEN)
    kinds = list(ALPHABETS.values())
    while len(out) < count:
        kind = pick.randrange(6)
        length = pick.choice([1, 3, 10, 40, 120])
        if kind < 2:
            out.append("".join(pick.choices(pick.choice(kinds), k=length)))
        elif kind == 2:
            out.append("".join(pick.choice(pick.choice(kinds)) for _ in range(length)))
        elif kind == 3:
            points = (pick.choice([pick.randrange(0x80), pick.randrange(0x3000), pick.randrange(0x110000)]) for _ in range(length))
            out.append("".join(chr(p) for p in points if not 0xD800 <= p < 0xE000))
        elif kind == 4:
            out.append(" ".join(pick.choice(HAND_WRITTEN)[:60] for _ in range(pick.randrange(1, 4))))
        else:
            whole = pick.choice(["日本語 😀 naïve", "plain words"]).encode()
            out.append(list(pick.choice([pick.randbytes(length), whole[pick.randrange(4) : pick.randrange(5, len(whole))]])))
    return out


def as_text(text):
    return text if isinstance(text, str) else bytes(text).decode("utf-8", "replace")


# Tokenizers ------------------------------------------------------------------------------------------------------------

CORPUS = [
    "The quick brown fox jumps over the lazy dog. The dog sleeps; the fox does not.",
    "naïve café — déjà vu, über, señor, Łódź, ein Straßenfest",
    "日本語の文章です。中文也在这里。한국어 문장도 있습니다。",
    "русский текст и ещё немного слов, العربية كذلك",
    "def add(a, b):\n    return a + b\n\nfor i in range(10):\n\tprint(add(i, 2 * i))\n",
    "Numbers 1 22 333 4444 and 3.14, e-mail a.b@c.de, I'll, we've, they'd",
    "😀 👍🏽 ❤️ and   spaces\t\ttabs",
] * 3

# How Llama 3 and Qwen cut text into words; written for Oniguruma, with Unicode classes and a lookahead.
WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def byte_level():
    t = tokenizers.Tokenizer(tokenizers.models.BPE())
    t.normalizer = tokenizers.normalizers.NFC()
    t.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([
        tokenizers.pre_tokenizers.Split(tokenizers.Regex(WORDS), "isolated"),
        tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])  # fmt: skip
    t.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<s>", "</s>", "<|im_start|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    t.train_from_iterator(CORPUS, trainer)
    t.post_processor = tokenizers.processors.Sequence([
        tokenizers.processors.ByteLevel(trim_offsets=False),
        tokenizers.processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", t.token_to_id("<s>"))]),
    ])  # fmt: skip
    t.add_tokens([tokenizers.AddedToken("fox", lstrip=True, single_word=True), tokenizers.AddedToken(" and ", rstrip=True, normalized=True)])
    return t


def sentencepiece_like():
    """As Llama 2 and Gemma have it: blanks are ▁, unknown characters fall back to byte tokens."""
    bytes_ = [f"<0x{b:02X}>" for b in range(256)]
    t = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    t.normalizer = tokenizers.normalizers.Sequence([tokenizers.normalizers.Prepend("▁"), tokenizers.normalizers.Replace(" ", "▁")])
    t.pre_tokenizer = None
    d = tokenizers.decoders
    t.decoder = d.Sequence([d.Replace("▁", " "), d.ByteFallback(), d.Fuse(), d.Strip(" ", 1, 0)])
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=700, special_tokens=["<unk>", "<s>", "</s>", *bytes_], limit_alphabet=60, show_progress=False)
    # Without words there are no merges to learn, so the training alone cuts at blanks.
    t.pre_tokenizer = tokenizers.pre_tokenizers.Split("▁", "merged_with_next")
    t.train_from_iterator(CORPUS, trainer)
    t.pre_tokenizer = None
    content = json.loads(t.to_str())
    # The byte tokens are plain members of the vocabulary, not added tokens.
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] not in bytes_]
    t = tokenizers.Tokenizer.from_str(json.dumps(content))
    template = tokenizers.processors.TemplateProcessing
    t.post_processor = template(single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", t.token_to_id("<s>"))])
    return t


def metaspace():
    t = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<unk>", byte_fallback=False))
    t.normalizer = tokenizers.normalizers.NFKC()
    t.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(prepend_scheme="first")
    t.decoder = tokenizers.decoders.Metaspace(prepend_scheme="first")
    t.train_from_iterator(CORPUS, tokenizers.trainers.BpeTrainer(vocab_size=400, special_tokens=["<unk>", "</s>"], show_progress=False))
    t.post_processor = tokenizers.processors.TemplateProcessing(single="$A </s>", pair="$A $B </s>", special_tokens=[("</s>", 1)])
    return t


def unigram():
    t = tokenizers.Tokenizer(tokenizers.models.Unigram())
    n = tokenizers.normalizers
    t.normalizer = n.Sequence([n.Nmt(), n.NFKC(), n.Replace(tokenizers.Regex(" {2,}"), " "), n.Lowercase()])
    t.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    t.decoder = tokenizers.decoders.Metaspace()
    trainer = tokenizers.trainers.UnigramTrainer(vocab_size=300, special_tokens=["<unk>", "</s>"], unk_token="<unk>", show_progress=False)
    t.train_from_iterator(CORPUS, trainer)
    return t


def wordpiece():
    t = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token="[UNK]", max_input_chars_per_word=50))
    t.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
    t.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    t.decoder = tokenizers.decoders.WordPiece()
    trainer = tokenizers.trainers.WordPieceTrainer(vocab_size=400, special_tokens=["[UNK]", "[CLS]", "[SEP]", "[MASK]"], show_progress=False)
    t.train_from_iterator(CORPUS, trainer)
    template = tokenizers.processors.TemplateProcessing
    t.post_processor = template(single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B", special_tokens=[("[CLS]", 1), ("[SEP]", 2)])
    return t


def compare(ask, folder, count, seed):
    reference = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    some = texts(count, seed)
    plain = [as_text(text) for text in some]
    ids = [e.ids for e in reference.encode_batch(plain)]
    pick = random.Random(seed)
    size = reference.get_vocab_size()
    rows = ids[:400] + [[pick.randrange(size + 3) for _ in range(pick.randrange(30))] for _ in range(300)]
    [got] = ask([{"folder": str(folder), "texts": some, "decode": rows}])

    assert got["vocab_size"] == size
    for text, mine, mine_plain, expected, expected_plain in zip(
        plain, got["ids"], got["ids_plain"], ids, (e.ids for e in reference.encode_batch(plain, add_special_tokens=False)), strict=True
    ):
        assert mine == expected, repr(text)
        assert mine_plain == expected_plain, repr(text)
    assert got["decoded"] == [reference.decode(row, skip_special_tokens=False) for row in rows]
    assert got["skipped"] == [reference.decode(row) for row in rows]
    # Where bytes make no character the stream may show more or fewer replacements (see text/stream.h).
    for streamed, decoded in zip(got["streamed"], got["decoded"], strict=True):
        if "\ufffd" not in decoded:
            assert streamed == decoded


def test_tiny_model(ask):
    compare(ask, TINY, 2400, seed=1)


@pytest.mark.parametrize("make", [byte_level, sentencepiece_like, metaspace, unigram, wordpiece], ids=lambda make: make.__name__)
def test_kinds_of_tokenizers(ask, tmp_path, make):
    make().save(str(tmp_path / "tokenizer.json"))
    compare(ask, tmp_path, 800, seed=2)


def test_unicode_classes_are_those_of_the_package(ask, tmp_path):
    """Every code point through the classes by which patterns cut text: a regex engine of another Unicode version would differ."""
    t = tokenizers.Tokenizer(tokenizers.models.WordLevel({"?": 0, "L": 1, "N": 2, "P": 3, "S": 4, "M": 5, " ": 6, "C": 7}, unk_token="?"))
    replace = [(r"[\s\p{Z}]", " "), (r"\p{L}", "L"), (r"\p{N}", "N"), (r"\p{P}", "P"), (r"\p{S}", "S"), (r"\p{M}", "M")]
    replace.append((r"[\p{C}&&[^\x{F0000}-\x{F0010}]]", "C"))
    # Every character becomes the letter of its class, by way of a private code point, which no later row takes for a letter.
    n = tokenizers.normalizers
    private = {letter: chr(0xF0000 + i) for i, (_, letter) in enumerate(replace)}
    t.normalizer = n.Sequence(
        [n.Replace(tokenizers.Regex(pattern), private[letter]) for pattern, letter in replace]
        + [n.Replace(mark, letter) for letter, mark in private.items()]
    )
    t.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex("(?m:.)"), "isolated")
    t.save(str(tmp_path / "tokenizer.json"))
    points = [p for p in range(0x20000) if not 0xD800 <= p < 0xE000]
    rows = ["".join(map(chr, points[i : i + 4096])) for i in range(0, len(points), 4096)]
    [got] = ask([{"folder": str(tmp_path), "texts": rows}])
    expected = [e.ids for e in t.encode_batch(rows)]
    assert got["ids"] == expected
    seen = {i for row in expected for i in row}
    assert seen >= {1, 2, 3, 4, 5, 6, 7}, "each class must occur, or the test tests nothing"


# Folders ---------------------------------------------------------------------------------------------------------------

FOLDERS = {
    "roles": {
        "tokenizer_config.json": {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": None, "image_token": "<image>"}
    },
    "objects": {
        "tokenizer_config.json": {
            "bos_token": {"__type": "AddedToken", "content": "<s>", "lstrip": False, "rstrip": False, "normalized": False, "single_word": False},
            "eos_token": "<|end|>",
            "added_tokens_decoder": {
                "601": {"content": "<|end|>", "lstrip": False, "rstrip": True, "normalized": False, "single_word": False, "special": False},
                "600": {"content": "<tool>", "lstrip": True, "rstrip": False, "normalized": True, "single_word": False, "special": False},
                "0": {"content": "<s>", "lstrip": True, "rstrip": False, "normalized": False, "single_word": False, "special": True},
            },
            "additional_special_tokens": ["<x>", "quick"],
        }
    },
    "legacy": {
        "tokenizer_config.json": {"bos_token": "</s>", "eos_token": "</s>"},
        "special_tokens_map.json": {
            "bos_token": {"content": "<s>", "lstrip": False, "rstrip": False, "normalized": False, "single_word": False},
            "pad_token": "<p>",
        },
    },
    "flags": {"tokenizer_config.json": {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": False, "add_eos_token": True}},
    "named_extras": {"tokenizer_config.json": {"bos_token": "<s>", "extra_special_tokens": {"boi_token": "<boi>", "eoi_token": "<eoi>"}}},
    "plain_eos": {"tokenizer_config.json": {"eos_token": "fox"}},
}  # fmt: skip


@pytest.mark.parametrize("name", FOLDERS)
def test_folders_as_transformers_reads_them(ask, tmp_path, name):
    transformers = pytest.importorskip("transformers")
    byte_level().save(str(tmp_path / "tokenizer.json"))
    roles = ["bos_token", "eos_token", "pad_token", "unk_token", "image_token", "boi_token", "eoi_token"]
    (tmp_path / "chat_template.jinja").write_text("".join("{{ %s }}|" % role for role in roles) + "{{ messages[0].content }}")
    for file, content in FOLDERS[name].items():
        (tmp_path / file).write_text(json.dumps(content))
    reference = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)

    some = [as_text(text) for text in texts(150, 3)] + ["a<pad>b <image> <|end|>  <tool>  x <x>quick <boi></s> <s> fox <p>"]
    chats = [{"messages": [{"role": "user", "content": "hi"}], "add_generation_prompt": False, "tools": None}]
    ids = [reference.encode(text) for text in some]
    [got] = ask([{"folder": str(tmp_path), "texts": some, "decode": ids, "chats": chats}])
    assert got["vocab_size"] == len(reference)
    assert got["ids"] == ids
    assert got["ids_plain"] == [reference.encode(text, add_special_tokens=False) for text in some]
    assert got["decoded"] == [reference.decode(row) for row in ids]
    assert got["skipped"] == [reference.decode(row, skip_special_tokens=True) for row in ids]
    assert got["eos_ids"] == ([] if reference.eos_token_id is None else [reference.eos_token_id])
    assert got["chats"][0]["text"] == reference.apply_chat_template(chats[0]["messages"], tokenize=False)


# Chats -----------------------------------------------------------------------------------------------------------------

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a place,\nnow or later <°C>",
        "parameters": {
            "type": "object",
            "properties": {
                "place": {"type": "string", "description": "Städte & Länder"},
                "unit": {"type": "string", "enum": ["c", "f"], "default": "c"},
                "days": {"type": "array", "items": {"type": "integer"}, "nullable": True},
                "at": {"oneOf": [{"type": "number", "default": 1e-07}, {"type": "string"}]},
                "flags": {"type": ["boolean", "null"]},
                "deep": {"type": "object", "properties": {"items": {"type": "string"}, "keys": {"type": "number"}}, "required": ["keys"]},
            },
            "required": ["place"],
        },
    },
}
CLOCK = {
    "type": "function",
    "function": {"name": "clock", "description": "", "parameters": {"type": "object", "properties": {}}, "return": {"type": "string"}},
}


def call(name, arguments, identifier="abcdefghi"):
    return {"type": "function", "id": identifier, "function": {"name": name, "arguments": arguments}}


def say(role, content, **more):
    return {"role": role, "content": content, **more}


CONVERSATIONS = {
    "one": [say("user", "  Hello <b>you</b> & 'me' \n")],
    "system": [say("system", " Be brief.\n"), say("user", "ab ba ab  ")],
    "long": [say("system", "S"), say("user", "u1"), say("assistant", "a1"), say("user", "u2"), say("assistant", "a2"), say("user", "日本 😀")],
    "ends_with_answer": [say("user", "q"), say("assistant", "<think>\nbecause\n</think>\n\nanswer")],
    "reasoning": [say("user", "q"), say("assistant", "a", reasoning_content="r1\n"), say("user", "q2"), say("assistant", "b", reasoning="r2")],
    "tool": [
        say("user", "weather?"),
        say("assistant", None, tool_calls=[call("get_weather", {"place": "Łódź", "days": [1, 2], "x": 1.5})]),
        say("tool", '{"temperature": 20}', tool_call_id="abcdefghi", name="get_weather"),
        say("assistant", "20 degrees"),
        say("user", "thanks"),
    ],
    "tools_in_a_row": [
        say("user", "both"),
        say("assistant", "calling", tool_calls=[call("get_weather", {"place": "a"}), call("clock", {}, "ABCDEFGHI")]),
        say("tool", "sun", tool_call_id="abcdefghi"),
        say("tool", "noon", tool_call_id="ABCDEFGHI"),
    ],
    "string_arguments": [
        say("user", "x"),
        say("assistant", "", tool_calls=[call("clock", '{"raw": 1}')]),
        say("tool", {"content": [1]}, tool_call_id="1"),
    ],
    "parts": [say("user", [{"type": "image"}, {"type": "text", "text": " look "}]), say("assistant", [{"type": "text", "text": "seen"}])],
    "wrong_order": [say("user", "a"), say("user", "b")],
    "wrong_role": [say("judge", "order")],
    "short_identifier": [say("user", "a"), say("assistant", "", tool_calls=[call("clock", {}, "1")])],
    "stop": [say("user", "stop"), say("assistant", "never shown by all")],
    "empty": [say("user", "")],
}  # fmt: skip

JSON_VALUES = [
    {"b": [1, 2.0, -0.0, 1e16, 1e-5, 1.5e300, 123456789.125, 0.0001, 9007199254740993, -5, 18446744073709551615], "a": 1},
    {"é": "日本 \u2028 😀 <&>'\""},
    {"controls": "".join(map(chr, range(0x21))) + "\x7f\x80\\/", "empty": [[], {}, ""], "none": None, "t": True, "f": False},
    [[[{"deep": [{"er": {}}]}]]],
    "text",
    [random.Random(4).uniform(-1, 1) * 10 ** random.Random(i).randrange(-20, 20) for i in range(200)],
]


def render(template, chat, variables):
    """The text as transformers renders it, or None where the template raises."""
    import jinja2

    messages = [{k: v for k, v in message.items() if v is not None} for message in chat["messages"]]
    # This name comes from mlx_lm, which always passes it; these tokenizers know no tokens for thinking.
    variables = {"enable_thinking": False, **variables, **chat.get("extra", {})}
    try:
        [text], _ = chat_utils.render_jinja_template(
            [messages], tools=chat["tools"], chat_template=template, add_generation_prompt=chat["add_generation_prompt"], **variables
        )
    except (jinja2.TemplateError, TypeError) as e:
        return None, str(e)
    return text, None


def compare_chats(ask, tmp_path, template, chats):
    byte_level().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))
    (tmp_path / "chat_template.jinja").write_text(template)
    [got] = ask([{"folder": str(tmp_path), "chats": chats}])
    rendered = 0
    for chat, mine in zip(chats, got["chats"], strict=True):
        expected, error = render(template, chat, {"bos_token": "<s>", "eos_token": "</s>"})
        if expected is None:
            assert "error" in mine, (error, chat, mine)
            assert "chat_template.jinja, line" in mine["error"]
        else:
            assert mine.get("text") == expected, (chat, mine)
            rendered += 1
    return rendered


@pytest.mark.parametrize("name", ["headers", "im_tags", "thinking", "turns", "inst", "plain_tags", "macros"])
def test_templates_of_families(ask, tmp_path, name):
    template = (HERE / "templates" / f"{name}.jinja").read_text()
    chats = [
        {"messages": messages, "add_generation_prompt": prompt, "tools": tools}
        for messages in CONVERSATIONS.values()
        for prompt in (False, True)
        for tools in (None, [], [WEATHER], [WEATHER, CLOCK])
    ]
    extras = [{"date_string": "1 May 2025"}, {"tools_in_user_message": False}, {"enable_thinking": True}, {"custom_tools": [CLOCK]}]
    chats += [{"messages": CONVERSATIONS["system"], "add_generation_prompt": True, "tools": [WEATHER], "extra": extra} for extra in extras]
    assert compare_chats(ask, tmp_path, template, chats) > len(chats) // 4


def test_python_in_templates(ask, tmp_path):
    """Line by line, so that a difference is named."""
    lines = (HERE / "templates" / "python.jinja").read_text().splitlines()
    head = lines[1]
    messages = [CONVERSATIONS["system"][::-1], CONVERSATIONS["long"], CONVERSATIONS["empty"], CONVERSATIONS["tools_in_a_row"]]
    chats = [{"messages": each, "add_generation_prompt": True, "tools": None} for each in messages]
    for line in [*lines[2:], "\n".join(lines)]:
        assert compare_chats(ask, tmp_path, head + "\n" + line, chats) == len(chats), line


def test_tojson(ask, tmp_path):
    template = (HERE / "templates" / "json.jinja").read_text()
    chats = [{"messages": [say("user", "", value=value)], "add_generation_prompt": False, "tools": None} for value in JSON_VALUES]
    assert compare_chats(ask, tmp_path, template, chats) == len(chats)
