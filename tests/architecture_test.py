"""The rooms of docs/architecture.md, held to what the code does.

CMakeLists.txt says which room may use which (`lquant_room` rows). Every include, and the page's picture and table, must
say the same. The rest are rules of the house that a reader would otherwise have to watch for: small files, headers that
guard themselves, nothing of one developer's machine in the repository.
"""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FRONT = "cli"  # above all rooms, may use any; has no row since it is the program itself
LONGEST_FILE = 500  # lines; a longer file holds a second idea


def rooms():
    """{room: rooms it may use}, in the order of CMakeLists.txt."""
    rows = re.findall(r"^lquant_room\(([^)]*)\)", (ROOT / "CMakeLists.txt").read_text(encoding="utf-8"), re.MULTILINE)
    table = {}
    for row in rows:
        name, *words = row.split()
        uses = words[words.index("USES") + 1 :] if "USES" in words else []
        table[name] = set(uses[: uses.index("LINK")] if "LINK" in uses else uses)
    return table


def files():
    """Everything that belongs to the repository, also where a copy without .git is tested."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode == 0 and listed.stdout:
        paths = [ROOT / name for name in listed.stdout.split("\0") if name]
    else:
        made = re.compile(r"\..*|build.*|target|dist|__pycache__")
        paths = [p for p in ROOT.rglob("*") if not any(made.fullmatch(part) for part in p.relative_to(ROOT).parts)]
    return [p for p in paths if p.is_file()]


def code(*folders):
    return [p for p in files() if p.suffix in (".h", ".cpp") and p.relative_to(ROOT).parts[0] in folders]


def quoted_includes(path):
    return re.findall(r'^\s*#\s*include\s+"([^"]+)"', path.read_text(encoding="utf-8"), re.MULTILINE)


def section(page, title):
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    return re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL).group(1)


def needed_arrows(table):
    """The uses that do not follow from others: what is left when every detour is taken out of the picture."""

    def reach(room):
        return table[room] | {far for near in table[room] for far in reach(near)}

    return {(room, near) for room in table for near in table[room] if not any(near in reach(other) for other in table[room] - {near})}


def test_a_room_uses_only_rooms_above_it():
    seen = set()
    for room, uses in rooms().items():
        assert uses <= seen, f"{room} uses {uses - seen}, whose rows come later: rows stand in the order that data flows"
        seen.add(room)
    assert len(seen) > 5, "no lquant_room rows found"


def test_every_folder_is_a_room():
    folders = {p.relative_to(ROOT / "src").parts[0] for p in code("src")}
    assert folders - {FRONT, "hub"} <= set(rooms())


def test_includes_stay_within_the_rooms():
    table = rooms()
    wrong = []
    public = {p.relative_to(ROOT / "include").as_posix(): p for p in code("include")}
    for path in code("src", "include"):
        parts = path.relative_to(ROOT).parts
        # The public headers are a face of the whole; the program may call anything.
        room = parts[1] if parts[0] == "src" else None
        allowed = set(table) if room in (None, FRONT) else {room, "base"} | table[room]
        for include in quoted_includes(path):
            first = include.split("/")[0]
            if include in public:
                # A room may read a public header as long as no other room comes in with it.
                fine = room in (None, FRONT) or not quoted_includes(public[include])
            else:
                fine = (first in allowed or first == room) and (ROOT / "src" / include).is_file()
            if not fine:
                wrong.append(f"{path.relative_to(ROOT)} includes {include}")
    assert not wrong, "\n".join(wrong)


def test_the_picture_shows_the_rooms():
    picture = re.search(r"```mermaid\n(.*?)```", section("architecture.md", "The rooms"), re.DOTALL).group(1)
    drawn = set()
    for left, right in re.findall(r"^\s*(\w+) --> (.+?)\s*$", picture, re.MULTILINE):
        drawn |= {(left, name.strip()) for name in right.split("&")}
    table = {room: uses - {"base"} for room, uses in rooms().items() if room != "base"}
    expected = needed_arrows(table) | {(FRONT, room) for room, uses in table.items() if not any(room in u for u in table.values())}
    assert drawn == expected


def test_the_table_shows_the_rooms():
    shown = {}
    for room, uses in re.findall(r"^\| `(\w+)/` \|[^|]*\|([^|]*)\|", section("architecture.md", "The rooms"), re.MULTILINE):
        shown[room] = set(re.findall(r"`(\w+)`", uses))
    shown.pop(FRONT)
    assert shown == {room: uses - {"base"} for room, uses in rooms().items()}


def test_every_test_file_is_in_one_item():
    """tests/CMakeLists.txt names pytest's files one by one and the rooms that have GoogleTest files; what it forgets would never run."""
    listed = (ROOT / "tests" / "CMakeLists.txt").read_text(encoding="utf-8")
    named = [name for row in re.findall(r"^lquant_pytest\(\w+ +\d+ ([^)]+)\)", listed, re.MULTILINE) for name in row.split()]
    assert len(named) == len(set(named)), f"in two items: {sorted({name for name in named if named.count(name) > 1})}"
    there = [p.relative_to(ROOT / "tests") for p in (ROOT / "tests").rglob("*.py") if re.fullmatch(r"test_.*|.*_test", p.stem)]
    assert set(named) == {p.as_posix() for p in there if p.parts[0] != "shared"}, "tests/CMakeLists.txt gives each file of tests an lquant_pytest row"
    with_binary = re.search(r"^foreach\(room (base [^)]*)\)", listed, re.MULTILINE).group(1).split()
    assert {p.relative_to(ROOT / "tests").parts[0] for p in code("tests") if p.stem.endswith("_test")} <= set(with_binary)


def test_files_are_small():
    long = {str(p.relative_to(ROOT)): n for p in code("src", "include") if (n := len(p.read_text(encoding="utf-8").splitlines())) > LONGEST_FILE}
    assert not long


def test_results_go_through_one_writer():
    """src/cli/print.cpp, which checks every write."""
    way_past = re.compile(r"fmt::print\(|std::cout|\bv?f?printf\(|\bputs\(|\bputchar\(|\bstdout\b")
    found = []
    for path in code("src"):
        if path.relative_to(ROOT).as_posix() == "src/cli/print.cpp":
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if way_past.search(re.sub(r'"[^"]*"', "", line.split("//")[0])):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()}")
    assert not found, "\n".join(found)


def test_the_example_of_a_family_is_what_the_files_hold():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    name, quoted = re.search(r"^```cpp\n// (src/model/family/\w+\.cpp)\n(.*?)^```", text, re.MULTILINE | re.DOTALL).groups()
    assert quoted == (ROOT / name).read_text(encoding="utf-8")
    rows = re.findall(r"^\| `((?:src|tests)/[\w/.]+)`[^|]*\| `(.+)` \|$", text, re.MULTILINE)
    assert [file for file, _ in rows] == ["src/model/family/family.h", "src/model/family/family.cpp", "tests/families.py"]
    for file, line in rows:
        assert line in [there.strip() for there in (ROOT / file).read_text(encoding="utf-8").splitlines()], f"{file} has no line {line}"


# Names of families that say something else outside src/model/family: (files, what is allowed there, why).
NOT_A_FAMILY = [
    ("src/checkpoint/gguf/pretokenizers.cpp", r"[\s\S]+", "tokenizers as llama.cpp names them (tokenizer.ggml.pre), and their patterns"),
    ("src/checkpoint/gguf/tokenizer.cpp", r'"gpt2"|"llama"|\\"gpt2\\"|\\"llama\\"', "kinds of vocabularies as GGUF names them (tokenizer.ggml.model)"),
    ("src/checkpoint/gguf/rope_scaling.cpp", r"\bllama3(_factor)?\b|factors of Llama 3 and LongRoPE", "a value of rope_type, and who scales positions by it"),
    ("src/model/rope.cpp", r"\bllama3\b|\bdeepseek_yarn\b|\btelechat3-yarn\b", "values of rope_type"),
    ("src/text/chat.cpp", r"longcat_think", "a tag in the templates of chats"),
    ("src/kernels/simd_activations-inl.h", r"\bphi\b", "Φ, the normal distribution"),
]
# First words of types that are words of the language or of mathematics too: such a type is searched by its whole name alone.
WORDS = {"dots", "gpt", "phi", "recurrent", "seed", "solar", "step"}
# First words of types that are called as the op of their paper is, which other families have too.
OPS = {"mamba", "rwkv"}


def words_of_code(text):
    """C++ without comments, which may say which model an idea comes from: nothing depends on them."""
    token = re.compile(r'R"(\w*)\([\s\S]*?\)\1"|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])+\'|//[^\n]*|/\*[\s\S]*?\*/')
    return token.sub(lambda match: " " if match.group().startswith("/") else match.group(), text)


def names_of_families():
    """A pattern of every type that src/model/family/family.cpp lists, alone or in a longer name: "gemma3_text" is found as gemma2, kGemma or GemmaForCausalLM."""
    table = (ROOT / "src/model/family/family.cpp").read_text(encoding="utf-8")
    types = {name for row in re.findall(r'^\s+\{"([\w-]+)", (?:family::\w+|"([\w-]+)")\},', table, re.MULTILINE) for name in row if name}
    assert len(types) > 50, "the rows of family.cpp have another form than is looked for here"
    stem = {name: re.match(r"[a-z]+", name.lower()).group() for name in types}
    whole = {re.sub(r"[-_]", "[-_ ]?", name.lower()) for name in types if stem[name] not in OPS}
    names = sorted(whole | {word + r"[\d.]*" for word in set(stem.values()) - WORDS - OPS}, key=len, reverse=True)
    # A name begins where a word does, also within kQwenExperts, and ends where no small letter goes on.
    return re.compile(rf"(?:(?<![A-Za-z])|(?<=[a-z])(?=[A-Z]))(?i:{'|'.join(names)})(?![a-z])")


def test_no_family_is_named_outside_its_room():
    pattern = names_of_families()
    found = []
    for path in code("src", "include"):
        place = path.relative_to(ROOT).as_posix()
        if place.startswith("src/model/family/"):
            continue
        text = words_of_code(path.read_text(encoding="utf-8")).replace("llama.cpp", "the program that writes GGUF files")
        for file, allowed, why in NOT_A_FAMILY:
            if place == file:
                assert re.search(allowed, text), f"{file} no longer has {allowed} ({why}): take its row out"
                text = re.sub(allowed, " ", text)
        found += [f"{place}: {word}" for word in sorted(set(re.findall(r"[\w.-]+", text))) if pattern.search(word)]
    assert not found, "\n".join(found)


def test_headers_guard_themselves():
    # Highway's *-inl.h files are read once per instruction set and have the toggle that it asks for.
    for header in (p for p in code("src", "include", "tests", "benchmarks") if p.suffix == ".h"):
        first = next(line for line in header.read_text(encoding="utf-8").splitlines() if line.startswith("#"))
        assert first == "#pragma once" or (header.name.endswith("-inl.h") and "HWY_TARGET_TOGGLE" in first), header.relative_to(ROOT)


# What must not be in a file that others clone: a developer's folders, and the hosts and settings of a private package mirror.
MACHINE = {
    "an absolute path of one machine": re.compile(r"(?<![\w.~])/(?:work|root|Users|home/[a-z]\w*)/\w"),
    "an address of a private network": re.compile(r"https?://(?:[^/\s\"']*@|10\.|192\.168\.|172\.(?:1[6-9]|2\d|3[01])\.|[\w-]+[:/]|[\w.-]+\.(?:internal|local|lan|corp)\b)"),
    "a package index other than the public one": re.compile(r"--(?:extra-)?index-url|^\s*(?:extra-)?index-url\s*=|^\s*replace-with\s*=", re.MULTILINE),
}


@pytest.mark.parametrize("what", MACHINE)
def test_nothing_of_one_machine(what):
    found = []
    for path in files():
        data = path.read_bytes()
        if path == Path(__file__).resolve() or b"\0" in data:
            continue
        match = MACHINE[what].search(data.decode("utf-8", "replace"))
        if match:
            found.append(f"{path.relative_to(ROOT)}: {match.group()}")
    assert not found, "\n".join(found)
