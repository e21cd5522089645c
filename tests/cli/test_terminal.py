"""What a person sees: no line of a run wraps on a narrow terminal, and columns stand below each other."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
import unicodedata

from support import ENVIRONMENT, LQUANT, TINY, random_model, run, text_rows

COLUMNS = 60


def on_terminal(arguments, folder, columns=COLUMNS):
    """What the program writes to stderr on a terminal of so many columns, byte by byte."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    process = subprocess.Popen([LQUANT, *map(str, arguments)], stdin=theirs, stdout=subprocess.DEVNULL, stderr=theirs, cwd=folder, env=ENVIRONMENT)
    os.close(theirs)
    written = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # the other side is closed
            break
        if not part:
            break
        written += part
    os.close(ours)
    assert process.wait(timeout=300) == 0, written.decode()
    return written.decode()


def width(text):
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def test_progress_does_not_wrap(tmp_path):
    """A line that is drawn over is one on the screen as long as it ends before the last column."""
    model = random_model(tmp_path / "model", num_hidden_layers=2)
    rows = text_rows(tmp_path / "rows.jsonl", count=300)
    sizes = ["--num-samples", 256, "--num-valid", 8, "--batch-size", 2, "--max-seq-length", 64]
    seen = on_terminal(["dwq", "--model", model, "--data-path", rows, "--bits", 3, *sizes], tmp_path)
    drawn = re.findall(r"\r\x1b\[K([^\r\n]*)(?=\r\x1b)", seen)  # what another drawing replaces
    assert any(text.startswith("step: ") for text in drawn), seen
    assert any(text.endswith("…") for text in drawn), "nothing was cut: the test shows nothing"
    assert all(width(text) < COLUMNS for text in drawn), [text for text in drawn if width(text) >= COLUMNS]


def columns_of_table(text):
    """For each line, the columns of the screen where its cells begin, cells being two spaces apart at least."""
    return [[width(line[: m.start()]) for m in re.finditer(r"(?<!\S)\S+(?: \S+)*", line)] for line in text.splitlines() if line.strip()]


def test_columns_stand_below_each_other(tmp_path):
    """The folders' names take one byte, two, and three for each column or two of them."""
    folders = []
    for name, bits in (("plain", 4), ("größer", 3), ("模型", 2)):
        folders.append(tmp_path / name)
        run("convert", "--model", TINY, "-q", "--q-bits", bits, "--mlx-path", folders[-1])
    text = text_rows(tmp_path / "rows.jsonl", count=20)
    sizes = ["--num-samples", 6, "--sequence-length", 32, "--layers", "none"]
    table = run("report", *folders, "--teacher", TINY, "--data-path", text, *sizes, "--output", tmp_path / "r.html").stdout
    head, *rows = columns_of_table(table)
    assert len(rows) == 4 and all(row == head for row in rows[:3]) and rows[3] == head[:4], table
