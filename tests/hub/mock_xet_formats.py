"""The two formats that hf-xet uploads, as far as the mock hub must understand them (crate xet-core-structures 1.8.0).

A xorb holds chunks, one behind the other: a header of 8 bytes (version 0, compressed length in 3 bytes, scheme, plain length in 3
bytes; little-endian) and the chunk's bytes, plain (0), as an LZ4 frame (1) or as an LZ4 frame of the bytes sorted by their place in
words of 4 (2). A footer may follow that starts with XETBLOB.

A shard says which chunks of which xorbs make up a file. After a header of 48 bytes come entries of 48 bytes each: per file one with
its hash, flags and number of segments, the segments (xorb, flags, bytes, first chunk, chunk behind the last), as many hashes for
verification if the flags have bit 31, and the SHA-256 if they have bit 30; an entry whose hash is all ones ends the files. What
follows (the xorbs' chunks, again 48 bytes each) repeats what the xorbs say.
"""

import struct
from dataclasses import dataclass

SHARD_TAG = b"HFRepoMetaData\0" + bytes([85, 105, 103, 69, 106, 123, 129, 87, 131, 165, 189, 217, 92, 205, 209, 74, 169])
ENTRY = 48
PLAIN, LZ4, GROUPED_LZ4 = 0, 1, 2
LARGEST_CHUNK = 128 << 10
WITH_VERIFICATION, WITH_SHA256 = 1 << 31, 1 << 30
END = b"\xff" * 32 + bytes(16)


class Malformed(Exception):
    """An upload that the hub would refuse."""


@dataclass
class Segment:
    xorb: str
    size: int
    first: int
    last: int  # the chunk behind the last


@dataclass
class ShardFile:
    hash: str
    segments: list
    sha256: str = ""  # where the shard tells it

    @property
    def size(self):
        return sum(s.size for s in self.segments)


def hash_text(raw):
    """The hexadecimal form of a hash: four little-endian words."""
    return "".join(f"{word:016x}" for word in struct.unpack("<4Q", raw))


def hash_bytes(text):
    return struct.pack("<4Q", *(int(text[i : i + 16], 16) for i in range(0, 64, 16)))


def unpack_shard(data):
    """The files of a shard."""
    if data[:32] != SHARD_TAG:
        raise Malformed("this is no shard: it starts with another tag")
    position, files = ENTRY, []

    def entry():
        nonlocal position
        position += ENTRY
        if position > len(data):
            raise Malformed("the shard ends within its files")
        return data[position - ENTRY : position]

    while (head := entry())[:32] != END[:32]:
        flags, count = struct.unpack_from("<2I", head, 32)
        file = ShardFile(hash_text(head[:32]), [])
        for _ in range(count):
            row = entry()
            _, size, first, last = struct.unpack_from("<4I", row, 32)
            file.segments.append(Segment(hash_text(row[:32]), size, first, last))
        for _ in range(count if flags & WITH_VERIFICATION else 0):
            entry()
        if flags & WITH_SHA256:
            file.sha256 = hash_text(entry()[:32])
        files.append(file)
    return files


def pack_shard(files):
    """A shard of these files without the part about xorbs; what a test sends in place of hf-xet."""
    parts = [SHARD_TAG + struct.pack("<2Q", 2, 0)]
    for file in files:
        parts.append(hash_bytes(file.hash) + struct.pack("<2IQ", WITH_SHA256 if file.sha256 else 0, len(file.segments), 0))
        parts += [hash_bytes(s.xorb) + struct.pack("<4I", 0, s.size, s.first, s.last) for s in file.segments]
        if file.sha256:
            parts.append(hash_bytes(file.sha256) + bytes(16))
    return b"".join(parts) + END + END


def pack_chunk(data):
    return b"\0" + len(data).to_bytes(3, "little") + bytes([PLAIN]) + len(data).to_bytes(3, "little") + data


def xorb_chunks(data):
    """The chunks of a xorb, still packed: [(scheme, plain length, bytes)]."""
    chunks, position = [], 0
    while position < len(data) and data[position : position + 7] != b"XETBLOB":
        head = data[position : position + 8]
        if len(head) < 8 or head[0]:
            raise Malformed(f"no chunk starts at byte {position} of the xorb")
        packed, scheme, plain = int.from_bytes(head[1:4], "little"), head[4], int.from_bytes(head[5:8], "little")
        position += 8 + packed
        if scheme not in (PLAIN, LZ4, GROUPED_LZ4) or plain > LARGEST_CHUNK or position > len(data):
            raise Malformed(f"the chunk that ends at byte {position} of the xorb is broken")
        chunks.append((scheme, plain, data[position - packed : position]))
    if not chunks:
        raise Malformed("the xorb is empty")
    return chunks


def unpack_chunk(chunk):
    scheme, size, data = chunk
    plain = data if scheme == PLAIN else lz4_frame(data)
    if scheme == GROUPED_LZ4:
        plain = ungrouped(plain)
    if len(plain) != size:
        raise Malformed(f"a chunk of {size} bytes has {len(plain)}")
    return bytes(plain)


def ungrouped(data):
    """Undoes the sorting by place: first all first bytes of words of 4, then all second ones, …"""
    plain, start = bytearray(len(data)), 0
    for place in range(4):
        count = len(range(place, len(data), 4))
        plain[place::4] = data[start : start + count]
        start += count
    return plain


def lz4_frame(data):
    if data[:4] != b"\x04\x22\x4d\x18":
        raise Malformed("a compressed chunk is no LZ4 frame")
    flags = data[4]
    position = 7 + 8 * bool(flags & 8) + 4 * bool(flags & 1)
    plain = bytearray()
    try:
        while size := struct.unpack_from("<I", data, position)[0]:
            position += 4
            block = data[position : position + (size & 0x7FFFFFFF)]
            if size >> 31:
                plain += block
            else:
                lz4_block(block, plain)
            position += len(block) + 4 * bool(flags & 16)
    except (IndexError, struct.error) as problem:
        raise Malformed("an LZ4 frame is cut short") from problem
    return plain


def lz4_block(data, plain):
    """Appends a block's bytes: runs of literals, each but the last followed by a copy of something earlier."""
    position = 0

    def length(short):
        nonlocal position
        total = short
        if short == 15:
            while True:
                more = data[position]
                position += 1
                total += more
                if more != 255:
                    break
        return total

    while True:
        token = data[position]
        position += 1
        literals = length(token >> 4)
        plain += data[position : position + literals]
        position += literals
        if position >= len(data):
            return
        distance = data[position] | data[position + 1] << 8
        position += 2
        count = length(token & 15) + 4
        if not 0 < distance <= len(plain):
            raise Malformed("an LZ4 block copies from before its start")
        start = len(plain) - distance
        piece = plain[start : start + count]
        plain += (piece * (count // len(piece) + 1))[:count]
