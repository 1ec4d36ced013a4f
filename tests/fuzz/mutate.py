"""How a valid file becomes a hostile one: by its bytes, by its lines, or by the values in its tree."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from itertools import islice
from random import Random
from typing import Any

import yaml

HOSTILE: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, -0.0, 1e-320, 0.5, 1e308, -1e308, float("inf"), float("-inf"), float("nan"), 2**31,
    2**63, -(2**63), 10**30, 10**400, "", " ", "0", "-1", "1e999", "nan", "inf", "1 GiB", "-5 ms", "9999999999999 TB/s",
    "null", "../../../etc/passwd", "/dev/zero", "/dev/null", "/", ".", "..", "C:\\con", "\x00", "\u202e", "\ud7ff",
    "<script>alert(1)</script>", "{{7*7}}", "%s%n", "a" * 5000, [], {}, [[]], [None], {"": None}, {"kind": "poisson"},
    {"kind": None}, {"kind": "constant", "rate": 1e-300}, [1, "a", None], {"a": {"b": {"c": {}}}}, "2024-13-45",
    "2001-01-01T00:00:00Z", "!!python/object/apply:os.system [echo]", "0x7fffffffffffffff", "1_000", "١٢", "1.2.3",
)  # fmt: skip
"""Values that programs forget."""
_BYTES = (
    b"\x00", b"\xff", b"\xfe\xff", b"\xef\xbb\xbf", b"\r\n", b"\r", b"\t", b"\n\n", b"{", b"}", b"[", b"]", b":", b": ",
    b",", b"#", b'"', b"'", b"&a ", b"*a", b"<<: *a", b"!!python/name:os.system ", b"- ", b"---\n", b"...\n",
    b"%YAML 9.9\n",
    b"| ", b"?", b"@", b"`", b"9" * 50, b"9" * 5000, b"-", b".", b"e999", b"NaN", b"Infinity", b"1e400", b"\xc3\x28",
    b"\xed\xa0\x80", b"\xf4\x90\x80\x80", "\u2028".encode(), b" " * 300, b"[" * 2000, b"{\"a\":" * 2000, b"x" * 70000,
)  # fmt: skip
"""Pieces that parsers stumble over: encodings, line ends, anchors, tags, numbers without end, nesting without end."""
BOMB = b"a: &a [x, x, x, x, x, x, x, x, x]\n" + b"".join(
    b"%c: &%c [%s]\n" % (n, n, b", ".join([b"*%c" % (n - 1)] * 9)) for n in range(ord("b"), ord("n"))
)
"""Nine to the thirteenth references in half a kilobyte."""

Mutation = Callable[[Random, bytes], bytes]


def mutated(random: Random, seed: bytes) -> bytes:
    """One to six things wrong at once; now and then a bomb."""
    for _ in range(random.choice((1, 1, 1, 2, 3, 6))):
        seed = random.choice(_MUTATIONS)(random, seed)
    if random.random() < 0.01:
        seed = BOMB + seed if random.random() < 0.5 else seed + b"\n" + BOMB
    return seed[: 1 << 20]


def _flip(random: Random, data: bytes) -> bytes:
    at = random.randrange(len(data) + 1)
    return data[:at] + bytes([random.randrange(256)]) + data[at + 1 :]


def _insert(random: Random, data: bytes) -> bytes:
    at = random.randrange(len(data) + 1)
    return data[:at] + random.choice(_BYTES) + data[at + random.choice((0, 0, 1, 3)) :]


def _cut(random: Random, data: bytes) -> bytes:
    a, b = sorted(random.randrange(len(data) + 1) for _ in range(2))
    return data[:a] + data[b:] if random.random() < 0.7 else data[:a]


def _lines(random: Random, data: bytes) -> bytes:
    lines = data.splitlines(keepends=True) or [b""]
    i, j = random.randrange(len(lines)), random.randrange(len(lines))
    how = random.randrange(5)
    if how == 0:
        lines.insert(i, lines[j])  # a key that is written twice
    elif how == 1:
        del lines[i]
    elif how == 2:
        lines[i], lines[j] = lines[j], lines[i]
    elif how == 3:
        lines[i] = lines[i].rstrip(b"\r\n") + random.choice((b"\r\n", b"\r", b"", b"\x85", b"\n"))
    else:
        lines[i] = b" " * random.randrange(5) + lines[i].lstrip()
    return b"".join(lines)


def _tree(random: Random, data: bytes) -> bytes:
    """A value, a key or a list is replaced by something else; what cannot be parsed any more stays as it is."""
    text = data.decode(errors="ignore")
    try:
        is_json = text.lstrip()[:1] in ("{", "[")
        tree = json.loads(text) if is_json else yaml.safe_load(text)
    except (ValueError, RecursionError, yaml.YAMLError, TypeError):
        return _insert(random, data)
    places = list(islice(_places(tree), 3000))
    if not places:
        return _insert(random, data)
    tree = copy.deepcopy(tree)
    _replace(random, tree, random.choice(places))
    try:
        return (json.dumps(tree) if is_json else yaml.safe_dump(tree, sort_keys=False)).encode(errors="surrogatepass")
    except (ValueError, RecursionError, yaml.YAMLError, TypeError):
        return data


def _places(tree: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if len(at) > 40:
        return
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield (*at, key)
        yield from _places(value, (*at, key))


def _replace(random: Random, tree: Any, at: tuple[Any, ...]) -> None:
    for key in at[:-1]:
        tree = tree[key]
    how, key, value = random.randrange(5), at[-1], copy.deepcopy(random.choice(HOSTILE))
    if how == 0 and isinstance(tree, dict):
        tree[random.choice(("", "kind", f"{key}s", "n" * 300, None, 3, True))] = tree.pop(key)
    elif how == 1 and isinstance(tree, dict):
        del tree[key]
    elif how == 2 and isinstance(tree[key], (int, float)) and abs(tree[key]) < 1e300:
        tree[key] = random.choice((0, -tree[key], tree[key] * 1e9, tree[key] * 1e-9, tree[key] + 0.5, str(tree[key])))
    else:
        tree[key] = value


def _dress(random: Random, data: bytes) -> bytes:
    """Line ends, byte-order marks and encodings of other systems."""
    how = random.randrange(5)
    if how == 0:
        return data.replace(b"\n", b"\r\n")
    if how == 1:
        return b"\xef\xbb\xbf" + data
    if how == 2:
        return data.decode(errors="ignore").encode("utf-16")
    if how == 3:
        return data.replace(b"\n", b"\r")
    return data.replace(b"\n", b"")  # one line without end


_MUTATIONS: tuple[Mutation, ...] = (_flip, _insert, _insert, _cut, _lines, _lines, _tree, _tree, _tree, _tree, _dress)
