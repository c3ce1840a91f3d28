"""How valid files and values are broken: bytes by a seeded generator, structures by hypothesis."""

import copy
import io
import json
import math
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from random import Random
from typing import Any

from hypothesis import strategies as st


def _vast(number: int | float) -> int | float:
    try:
        return number * 1e200
    except OverflowError:  # it is already
        return number * 10


ODD = (
    -1,
    0,
    1,
    2**31,
    2**63,
    10**12,
    10**400,
    -0.0,
    1e-320,
    1e308,
    math.nan,
    math.inf,
    -math.inf,
    "",
    " ",
    "nan",
    "..",
    "../../escape",
    "a\x00b",
    "\ud800",
    "x" * 5000,
    [],
    [[]],
    {},
    None,
    True,
    False,
)
SCALARS = st.one_of(
    st.sampled_from(ODD), st.integers(), st.floats(), st.booleans(), st.text(max_size=12)
)
JSON = st.recursive(
    SCALARS,
    lambda one: st.lists(one, max_size=4) | st.dictionaries(st.text(max_size=8), one, max_size=4),
    max_leaves=6,
)


# ---- bytes ---------------------------------------------------------------------------------------

WORDS = (b"\x00", b"\xff", b"\xff" * 8, b"\x00" * 8, b"[" * 3000, b'{"a":' * 2000, b"1" * 5000)
WORDS += (b"null", b"NaN", b"1e999", b'"', b"}", b"\xef\xbb\xbf", b"\r", b"-", b"\\ud800")


def broken_bytes(data: bytes, random: Random) -> bytes:
    "One to four cuts, copies, flips and insertions; now and then something else altogether."
    if random.random() < 0.02:
        return random.choice((b"", random.randbytes(random.randrange(200)), data[::-1]))
    for _ in range(random.randint(1, 4)):
        data = random.choice(BYTES)(data, random)
    return data


def _spot(data: bytes, random: Random) -> int:
    # Files begin with what says how they are read, so half of the spots are there.
    n = len(data) if random.random() < 0.5 else min(len(data), 400)
    return random.randrange(n) if n else 0


def _flip(data: bytes, random: Random) -> bytes:
    at = _spot(data, random)
    return data[:at] + bytes([random.randrange(256)]) + data[at + 1 :]


def _cut(data: bytes, random: Random) -> bytes:
    return data[: _spot(data, random)]


def _drop(data: bytes, random: Random) -> bytes:
    at = _spot(data, random)
    return data[:at] + data[at + random.randint(1, 16) :]


def _copy(data: bytes, random: Random) -> bytes:
    at, to = _spot(data, random), _spot(data, random)
    return data[:to] + data[at : at + random.randint(1, 64)] + data[to:]


def _insert(data: bytes, random: Random) -> bytes:
    at = _spot(data, random)
    return data[:at] + random.choice(WORDS) + data[at:]


def _overwrite(data: bytes, random: Random) -> bytes:
    at, word = _spot(data, random), random.choice(WORDS)
    return data[:at] + word + data[at + len(word) :]


BYTES = (_flip, _flip, _cut, _drop, _copy, _insert, _overwrite)


# ---- structures ----------------------------------------------------------------------------------


def places(value: Any, found: list[tuple] | None = None, path: tuple = ()) -> list[tuple]:
    "The paths of all nodes; of long lists the first three, and one at the end."
    found = [] if found is None else found
    found.append(path)
    if isinstance(value, dict):
        for key in value:
            places(value[key], found, (*path, key))
    elif isinstance(value, list):
        for at in sorted({*range(min(3, len(value))), *range(len(value))[-1:]}):
            places(value[at], found, (*path, at))
    return found


def at_path(value: Any, path: tuple) -> Any:
    for key in path:
        value = value[key]
    return value


def broken_value(data: st.DataObject, value: Any) -> Any:
    "A copy of a JSON value with one to three of its nodes changed, as hypothesis draws them."
    value = copy.deepcopy(value)
    for _ in range(data.draw(st.integers(1, 3))):
        value = _with_change(data, value)
    return value


def _with_change(data: st.DataObject, value: Any) -> Any:
    there = places(value)
    path = data.draw(st.sampled_from(there))
    node = at_path(value, path)
    new = _changed(data, node, value, there)
    if not path:
        return new
    parent = at_path(value, path[:-1])
    how = data.draw(st.integers(0, 9))
    if how == 0:
        del parent[path[-1]]
    elif how == 1 and isinstance(parent, dict):
        parent[data.draw(st.text(max_size=8))] = parent.pop(path[-1])
    elif how == 1:
        parent.insert(path[-1], new)
    else:
        parent[path[-1]] = new
    return value


def _changed(data: st.DataObject, node: Any, whole: Any, there: list[tuple]) -> Any:
    how = data.draw(st.integers(0, 5))
    if how == 0:  # what stands elsewhere in the same file
        return copy.deepcopy(at_path(whole, data.draw(st.sampled_from(there))))
    if isinstance(node, (int, float)) and how < 3:
        moved = (lambda: -node, lambda: node + 1, lambda: _vast(node), lambda: str(node))
        return data.draw(st.sampled_from(moved))()
    if isinstance(node, list) and how < 3:
        return data.draw(st.sampled_from((node[:-1], node[::-1], node + node[-1:], node * 30)))
    if isinstance(node, str) and how < 3:
        return node + data.draw(st.text(max_size=4))
    return copy.deepcopy(data.draw(st.sampled_from(ODD) if how < 4 else JSON))


def broken_json(data: st.DataObject, content: bytes) -> bytes:
    "A JSON text with changes in its structure; still JSON, but for NaN and the like."
    return json.dumps(broken_value(data, json.loads(content))).encode()


def broken_lines(data: st.DataObject, content: bytes) -> bytes:
    "A text, line by line."
    lines = broken_value(data, content.decode().splitlines())
    lines = lines if isinstance(lines, list) else [lines]
    return "\n".join(map(str, lines)).encode("utf-8", "surrogatepass")


# ---- files of tensors ----------------------------------------------------------------------------


def broken_safetensors(data: st.DataObject, content: bytes) -> bytes:
    "A safetensors file whose header says something else, or whose numbers are others."
    size = struct.unpack("<Q", content[:8])[0]
    header, body = json.loads(content[8 : 8 + size]), content[8 + size :]
    how = data.draw(st.integers(0, 3))
    if how == 0:
        at = 8 * data.draw(st.integers(0, max(0, len(body) // 8 - 1)))
        number = struct.pack("<f", data.draw(st.sampled_from((math.nan, math.inf, 1e30, -1.0))))
        body = body[:at] + 2 * number + body[at + 8 :]
    elif how == 1 and "__metadata__" in header:
        _break_metadata(data, header["__metadata__"])
    elif how == 2:
        header, body = _with_other_tensor(data, header, body)
    else:
        header = broken_value(data, header)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + body


def _break_metadata(data: st.DataObject, words: dict[str, str]) -> None:
    name = data.draw(st.sampled_from(sorted(words)))
    try:
        words[name] = json.dumps(broken_value(data, json.loads(words[name])))
    except ValueError:
        words[name] = data.draw(st.text(max_size=12))


def _with_other_tensor(data: st.DataObject, header: dict, body: bytes) -> tuple[dict, bytes]:
    "One tensor cut, named otherwise, in another dtype or gone; the file stays well-formed."
    names = sorted(header.keys() - {"__metadata__"})
    parts = {name: body[slice(*header[name]["data_offsets"])] for name in names}
    name, how = data.draw(st.sampled_from(names)), data.draw(st.integers(0, 4))
    said = header[name]
    if how == 0 or not parts[name]:
        del header[name], parts[name]
    elif how == 1:
        other = data.draw(st.sampled_from([*names, "other"]))
        header[other], parts[other] = header.pop(name), parts.pop(name)
    elif how == 2:
        said["shape"] = [math.prod(said["shape"])]
    elif how == 3:
        width = len(parts[name]) // max(1, math.prod(said["shape"]))
        said["shape"], parts[name] = [1, 1], parts[name][:width]
    else:
        said["dtype"] = "I8"
        said["shape"] = [len(parts[name])]
    body, kept = b"", {"__metadata__": header["__metadata__"]} if "__metadata__" in header else {}
    for name in sorted(parts):
        kept[name] = header[name] | dict(data_offsets=[len(body), len(body) + len(parts[name])])
        body += parts[name]
    return kept, body


# ---- pickles, with something in them that must not run -------------------------------------------

CANARY = "canary"  # a file of this name in the folder it runs in: code of an input has run


class Runs:
    "Pickled: a call of `f(*arguments)` when it is read."

    def __init__(self, f: Callable, *arguments: Any):
        self.f, self.arguments = f, arguments

    def __reduce__(self) -> tuple:
        return self.f, self.arguments


def _touch(words: str) -> str:
    return f"open({words!r}, 'w').close()"


PAYLOADS = (
    lambda: Runs(os.system, f"touch {CANARY}"),
    lambda: Runs(exec, _touch(CANARY)),
    lambda: Runs(eval, f"open({CANARY!r}, 'w')"),
    lambda: Runs(open, CANARY, "w"),
    lambda: Runs(os.mkdir, CANARY),
    lambda: Runs(getattr, Runs(__import__, "os"), "system"),
    lambda: Runs(map, Runs(getattr, Runs(__import__, "os"), "system"), [f"touch {CANARY}"]),
    lambda: Runs(bytearray, 10**10),
)
OPCODES = (
    f"cos\nsystem\n(S'touch {CANARY}'\ntR".encode(),
    f"cbuiltins\nexec\n(S\"open('{CANARY}','w')\"\ntR".encode(),
    f"(S'touch {CANARY}'\nios\nsystem\n".encode(),
    b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x0ctouch " + CANARY.encode() + b"\x85R",
    b"ctorch\nload\n(S'x'\ntR",
    b"Pnowhere\n.",
    b"\x82\x01",
)


def broken_pickle(content: bytes, random: Random) -> bytes:
    "A pickle with a call in its place, before its end or anywhere; or with its bytes broken."
    how = random.random()
    if how < 0.1:
        return pickle.dumps(random.choice(PAYLOADS)(), random.randint(0, 4))
    if how < 0.25:
        held = {"noise": random.choice(PAYLOADS)(), "ema": random.choice(PAYLOADS)()}
        return pickle.dumps(held, random.randint(0, 4))
    if how < 0.5:
        at, word = _spot(content, random), random.choice(OPCODES)
        return content[:at] + word + content[at:]
    return broken_bytes(content, random)


def broken_zip(content: bytes, random: Random) -> bytes:
    "An archive whose parts are broken but whose checksums are right; or one of broken bytes."
    if random.random() < 0.4:
        return broken_bytes(content, random)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    chosen = [name for name in parts if name.endswith((".pkl", ".npy"))] or list(parts)
    if random.random() < 0.3:
        chosen = list(parts)
    name = random.choice(chosen)
    break_it = broken_pickle if name.endswith(".pkl") else broken_bytes
    parts[name] = break_it(parts[name], random)
    if random.random() < 0.1:
        del parts[random.choice(list(parts))]
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for name, part in parts.items():
            archive.writestr(name, part)
    return made.getvalue()
