"""How `benchmarks.fuzz` changes inputs: bytes, JSON values, and the JSON in front of a safetensors file."""

import json
import random
import struct
from collections.abc import Callable
from typing import Any

WORDS = (
    b"",
    b"\0",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"\xed\xa0\x80",
    b"\r",
    b"\n",
    b"\r\n",
    b"\t",
    b" ",
    b",",
    b'"',
    b'""',
    b"'",
    b"{",
    b"}",
    b"[",
    b"]",
    b":",
    b"null",
    b"true",
    b"NaN",
    b"-Infinity",
    b"1e999",
    b"-1",
    b"0",
    b"1.5",
    b"9" * 400,
    b"-9223372036854775809",
    b"\\u0000",
    b"\\ud800",
    b"\\x",
    b"[" * 5000,
    b'{"a":' * 3000,
    b"../../",
    b"/dev/zero",
    b"~",
    b"&a",
    b"*a",
    b"!!python/object",
    b"<<:",
    b"- ",
    b"? ",
    b"---\n",
    b"#",
    b"|",
    b">",
    b"%YAML 9.9\n",
    "\u202e".encode(),
    b"\x1b[31m",
    b"<script>",
    b"=1+1",
    b"{{ x }}",
    b"{instruction",
    b"{0.__class__}",
    b"inf",
    b"2030-13-01",
    b"0x1F",
    b"1_000",
    b"no",
    b"~\n",
    b"\xc2\x85",
    b"\xe2\x80\xa8",
    b"\x0b",
    b"\x0c",
    b"\x1c",
)
"""What parsers have stumbled over."""
VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    1,
    -1,
    2,
    3,
    7,
    2**31,
    2**63,
    -(2**63) - 1,
    10**400,
    0.0,
    -0.0,
    0.5,
    1e-320,
    1e308,
    -1e308,
    float("nan"),
    float("inf"),
    "",
    " ",
    "a",
    "0",
    "1e5",
    "nan",
    "demo",
    "auto",
    "best",
    "\0",
    "\ud800",
    "\u202e",
    "../..",
    "/dev/zero",
    "a" * 300,
    "\n",
    "{instruction}",
    "{",
    "}",
    "{0}",
    "regex:(",
    "a:b",
    "os:system",
    "[",
    [],
    {},
    [[]],
    [None],
    {"": None},
    {"a": {"b": []}},
    [0] * 40,
    ["a", "a"],
    [1, "a", None],
    [1e308, -1e308],
    "text",
    "label",
    "cosine",
    "lora",
)
MAX_BYTES = 200_000
"""Inputs are cut to so many bytes: it is rates of many small ones that find faults."""

Mutate = Callable[[bytes, list[bytes], random.Random], bytes]


def bytes_changed(content: bytes, corpus: list[bytes], chance: random.Random) -> bytes:
    """Return the input with a few of its bytes, words, lines or blocks changed."""
    found = bytearray(content)
    for _ in range(1 + int(chance.expovariate(0.7))):
        _change(found, corpus, chance)
    return bytes(found[:MAX_BYTES])


def _change(found: bytearray, corpus: list[bytes], chance: random.Random) -> None:
    place = chance.randrange(len(found) + 1)
    end = min(len(found), place + 1 + int(chance.expovariate(1 / 12)))
    kind = chance.randrange(9)
    if kind == 0 and place < len(found):
        found[place] ^= 1 << chance.randrange(8)
    elif kind == 1 and place < len(found):
        found[place] = chance.randrange(256)
    elif kind == 2:
        del found[place:end]
    elif kind == 3:
        found[place:place] = found[place:end] * chance.choice((1, 1, 2, 60))
    elif kind in (4, 5):
        found[place : end if kind == 4 else place] = chance.choice(WORDS)
    elif kind == 6:
        other = chance.choice(corpus)
        start = chance.randrange(len(other) + 1)
        found[place:end] = other[start : start + chance.randrange(1, 200)]
    elif kind == 7:
        lines = bytes(found).split(b"\n")
        first, second = chance.randrange(len(lines)), chance.randrange(len(lines))
        lines[first], lines[second] = lines[second], chance.choice((lines[first], lines[second], b""))
        found[:] = b"\n".join(lines)
    else:
        del found[place:]


def value_changed(value: Any, chance: random.Random) -> Any:
    """Return a JSON value with a few of its parts replaced, left out, doubled, renamed, wrapped or moved."""
    for _ in range(1 + int(chance.expovariate(0.9))):
        value = _value_changed(value, chance)
    return value


def _value_changed(value: Any, chance: random.Random) -> Any:
    places = list(_places(value))
    if not places:
        return chance.choice(VALUES)
    holder, key = chance.choice(places)
    kind = chance.randrange(8)
    if kind <= 2:
        holder[key] = chance.choice(VALUES)
    elif kind == 3:
        del holder[key]
    elif kind == 4:
        holder[key] = chance.choice(([holder[key]], {"a": holder[key]}, str(holder[key])))
    elif kind == 5:
        other, place = chance.choice(places)
        holder[key] = json.loads(json.dumps(other[place]))
    elif kind == 6 and isinstance(holder, dict):
        holder[chance.choice(("", "a", "root", "checksum", "\0", "version", "lr", f"{key} "))] = holder.pop(key)
    elif isinstance(holder, list):
        holder.insert(key, holder[key])
    elif isinstance(holder[key], int | float) and not isinstance(holder[key], bool):
        holder[key] = chance.choice((-holder[key], holder[key] + 1, holder[key] * 1000, 0, float(holder[key])))
    return value


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Return every list or object with each of its places, as deep as there are a few thousand."""
    found: list[tuple[Any, Any]] = []
    left = [value]
    while left and len(found) < 5000:
        one = left.pop()
        if isinstance(one, dict):
            found += [(one, key) for key in one]
            left += one.values()
        elif isinstance(one, list):
            found += [(one, place) for place in range(len(one))]
            left += one
    return found


def json_changed(content: bytes, corpus: list[bytes], chance: random.Random) -> bytes:
    """Return the input with its JSON value changed; as bytes where it is none, and now and then anyhow."""
    try:
        value = json.loads(content) if chance.random() > 0.2 else None
    except (ValueError, RecursionError):
        value = None
    if value is None:
        return bytes_changed(content, corpus, chance)
    return written(value_changed(value, chance))


def json_lines_changed(content: bytes, corpus: list[bytes], chance: random.Random) -> bytes:
    """Return the input with the JSON value of one of its lines, or of each, changed in the same way."""
    lines = content.split(b"\n")
    try:
        if chance.random() < 0.3:
            raise ValueError
        seed = chance.getrandbits(32)
        places = range(len(lines)) if chance.random() < 0.3 else [chance.randrange(len(lines))]
        for place in places:
            if lines[place].strip():
                lines[place] = written(value_changed(json.loads(lines[place]), random.Random(seed)))
    except (ValueError, RecursionError):
        return bytes_changed(content, corpus, chance)
    return b"\n".join(lines)[:MAX_BYTES]


def tensors_changed(content: bytes, corpus: list[bytes], chance: random.Random) -> bytes:
    """Return a safetensors file with its header changed as JSON and its length made right, or its bytes changed."""
    try:
        (length,) = struct.unpack("<Q", content[:8])
        header = json.loads(content[8 : 8 + length])
        if chance.random() < 0.4:
            raise ValueError
        text = written(value_changed(header, chance))
        return struct.pack("<Q", len(text)) + text + content[8 + length :]
    except (ValueError, RecursionError, struct.error):
        return bytes_changed(content, corpus, chance)


def signed_changed(content: bytes, corpus: list[bytes], chance: random.Random) -> bytes:
    """Return a record with its values changed and its checksum made right, or not."""
    from tuneoff.study.identity import digest

    try:
        body = json.loads(content)
        if not isinstance(body, dict) or chance.random() < 0.3:
            return json_changed(content, corpus, chance)
        body.pop("checksum", None)
        body = value_changed(body, chance)
        return written(body | {"checksum": digest(body)})
    except (ValueError, TypeError, RecursionError):
        return bytes_changed(content, corpus, chance)


def written(value: Any) -> bytes:
    """Return a value as JSON; lone surrogates as the escapes that they are read from."""
    try:
        return json.dumps(value).encode()
    except (ValueError, RecursionError, TypeError):
        return b"null"
