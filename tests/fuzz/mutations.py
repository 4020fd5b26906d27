"""Mutations of files: each takes the bytes of a valid file and a generator, and returns others."""

import gzip
import io
import json
import pickle
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import h5py
import nibabel as nib
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from scipy.io import loadmat, savemat

Mutation = Callable[[bytes, Random], bytes]

# What a value is replaced by in a text: numbers that are none, texts, nothing, nested lists.
EVIL = (
    "NaN", "nan", "inf", "-Infinity", "1e400", "-1", "0", "-0.5", "1.5", str(2**63), str(2**33),
    "9" * 5000, '"text"', "text", '""', "", "null", "n/a", "true", "[]", "{}", "[[[1]]]",
    "[" * 3000, "[" * 200 + "]" * 200,
    "[" * 800 + "]" * 800,  '{"a": [null]}', '"\\ud800"', '"\\u0000"', "\0", "\x1f",
    "../../x", "\N{RIGHT-TO-LEFT OVERRIDE}", "\t", ",", '"', "\n", "\ufeff", "\u2028", "<fMRI>",
    "é" * 2000,
)  # fmt: skip
ROLES = ("user", "assistant", "system", "human", "gpt", "tool", "")
TOKEN = re.compile(r"[\w.+-]+|\s+|.", re.DOTALL)


def flip_bits(data: bytes, rng: Random) -> bytes:
    """Flip one to eight bits."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 8))):
        out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    return bytes(out)


def flip_bits_of_head(data: bytes, rng: Random) -> bytes:
    """Flip bits where a container has its header, or its footer."""
    size = min(len(data), 512)
    if rng.random() < 0.5:
        return flip_bits(data[:size], rng) + data[size:]
    return data[: len(data) - size] + flip_bits(data[len(data) - size :], rng)


def overwrite_run(data: bytes, rng: Random) -> bytes:
    """Set a run of bytes to 0x00, to 0xff, or to other bytes of the file."""
    start, length = rng.randrange(len(data)), rng.choice((1, 2, 4, 8, 64, 4096))
    length = min(length, len(data) - start)
    source = rng.randrange(len(data) - length + 1)
    run = rng.choice((bytes(length), b"\xff" * length, data[source : source + length]))
    return data[:start] + run + data[start + length :]


def truncate(data: bytes, rng: Random) -> bytes:
    """Cut the file anywhere, or close to its ends."""
    near = min(len(data), rng.choice((1, 8, 64)))
    return data[: rng.choice((0, near, len(data) - near, rng.randrange(len(data))))]


def insert_bytes(data: bytes, rng: Random) -> bytes:
    """Insert bytes, zeros, or a part of the file."""
    at, length = rng.randrange(len(data) + 1), rng.choice((1, 3, 8, 512))
    part = data[at : at + length]
    return data[:at] + rng.choice((bytes(length), rng.randbytes(length), part)) + data[at:]


def swap_chunks(data: bytes, rng: Random) -> bytes:
    """Exchange two parts of the file, or leave one out."""
    a, b, c, d = sorted(rng.randrange(len(data) + 1) for _ in range(4))
    if rng.random() < 0.3:
        return data[:a] + data[b:]
    return data[:a] + data[c:d] + data[b:c] + data[a:b] + data[d:]


BYTES: tuple[Mutation, ...] = (
    flip_bits, flip_bits, flip_bits_of_head, flip_bits_of_head, overwrite_run, overwrite_run,
    truncate, insert_bytes, swap_chunks,
)  # fmt: skip


def mutate_tokens(data: bytes, rng: Random) -> bytes:
    """Delete, repeat, exchange or replace a token of a text."""
    tokens = TOKEN.findall(data.decode(errors="replace"))
    for _ in range(rng.choice((1, 1, 2))):
        at = rng.randrange(len(tokens))
        kind = rng.randrange(5)
        if kind == 0:
            tokens[at] = ""
        elif kind == 1:
            tokens[at] *= rng.choice((2, 2, 500))
        elif kind == 2:
            other = rng.randrange(len(tokens))
            tokens[at], tokens[other] = tokens[other], tokens[at]
        else:
            tokens[at] = rng.choice((*EVIL, *ROLES))
    return "".join(tokens).encode(errors="surrogatepass")


def mutate_lines(data: bytes, rng: Random) -> bytes:
    """Delete, repeat or move a line, or cut one."""
    lines = data.split(b"\n")
    at, other = rng.randrange(len(lines)), rng.randrange(len(lines))
    kind = rng.randrange(4)
    if kind == 0:
        del lines[at]
    elif kind == 1:
        lines.insert(other, lines[at])
    elif kind == 2:
        lines[at], lines[other] = lines[other], lines[at]
    else:
        lines[at] = lines[at][: rng.randrange(len(lines[at]) + 1)]
    return b"\n".join(lines)


def mutate_cell(data: bytes, rng: Random) -> bytes:
    """Replace a cell of a table, or a cell of its header."""
    lines = data.decode().split("\n")
    at = rng.choice((0, rng.randrange(len(lines))))
    separator = "\t" if "\t" in lines[0] else ","
    cells = lines[at].split(separator)
    cells[rng.randrange(len(cells))] = rng.choice(EVIL)
    lines[at] = separator.join(cells)
    return "\n".join(lines).encode(errors="surrogatepass")


TEXT: tuple[Mutation, ...] = (mutate_tokens, mutate_tokens, mutate_lines, *BYTES[1:])
TABLE: tuple[Mutation, ...] = (mutate_cell, mutate_cell, *TEXT)


def list_places(content: Any) -> list[tuple[Any, Any]]:
    """List every container of a JSON value with each of its keys."""
    places: list[tuple[Any, Any]] = []
    if isinstance(content, dict | list):
        keys = list(content) if isinstance(content, dict) else range(len(content))
        for key in keys:
            places += [(content, key), *list_places(content[key])]
    return places


def mutate_json(data: bytes, rng: Random) -> bytes:
    """Replace a value of a JSON file, take one out, rename or repeat a key, or exchange two."""
    text = data.decode()
    is_lines = text.count("\n") > 0 and text[0] == "{"
    content = [json.loads(line) for line in text.splitlines()] if is_lines else json.loads(text)
    places = list_places(content)
    replaced = {}
    for number in range(rng.choice((1, 1, 1, 3))):
        container, key = rng.choice(places)
        kind = rng.randrange(6)
        if key not in container and isinstance(container, dict):
            continue
        if isinstance(container, list) and key >= len(container):
            continue
        if kind == 0:
            del container[key]
        elif kind == 1 and isinstance(container, dict):
            container[rng.choice((*ROLES, str(key).upper(), "x"))] = container.pop(key)
        elif kind == 2:
            container[key] = [container[key]]
        elif kind == 3 and container[key] in ROLES:
            container[key] = rng.choice(ROLES)
        elif kind == 4:
            other, other_key = rng.choice(places)
            if isinstance(other, dict) and not isinstance(other.get(other_key), dict | list):
                container[key] = other.get(other_key)
        else:
            container[key] = f"@{number}@"
            replaced[f'"@{number}@"'] = rng.choice(EVIL)
    lines = [json.dumps(c) for c in content] if is_lines else [json.dumps(content)]
    out = "\n".join(lines)
    for mark, value in replaced.items():
        out = out.replace(mark, value)
    return out.encode(errors="surrogatepass")


JSON: tuple[Mutation, ...] = (mutate_json, mutate_json, mutate_json, *TEXT)


def compressed(mutations: Sequence[Mutation]) -> tuple[Mutation, ...]:
    """Apply mutations to what is in a .gz file, so that its checksum does not tell of them."""

    def inside(mutation: Mutation) -> Mutation:
        def mutate(data: bytes, rng: Random) -> bytes:
            return gzip.compress(mutation(gzip.decompress(data), rng), 1, mtime=0)

        return mutate

    return tuple(inside(mutation) for mutation in mutations)


def mutate_nifti_header(data: bytes, rng: Random) -> bytes:
    """Put a value that cannot be into a field of a NIfTI-1 header."""
    header = nib.Nifti1Header.from_fileobj(io.BytesIO(data), check=False).structarr.copy()
    name = rng.choice((
        "dim", "dim", "datatype", "bitpix", "vox_offset", "scl_slope", "scl_inter", "qform_code",
        "sform_code", "srow_x", "srow_y", "quatern_b", "pixdim", "magic", "sizeof_hdr",
    ))  # fmt: skip
    field = header[name]
    values: list[Any] = [0, -1, 1, 2, 7, 32767, -32768, 128, 1e30, -1e30]
    if field.dtype.kind == "f":
        values += [np.nan, np.inf, 0.5]
    if field.dtype.kind == "S":
        header[name] = rng.choice((b"", b"ni1", b"xxxx"))
    elif field.ndim:
        flat = header[name]
        value = rng.choice(values)
        flat[rng.randrange(len(flat))] = (
            value if flat.dtype.kind == "f" else int(np.clip(value, -32768, 32767))
        )
    else:
        value = rng.choice(values)
        is_float = field.dtype.kind == "f"
        header[name] = value if is_float else int(np.clip(value, -32768, 32767))
    return header.tobytes() + data[header.nbytes :]


NIFTI: tuple[Mutation, ...] = (mutate_nifti_header, mutate_nifti_header, *BYTES)
NIFTI_GZ: tuple[Mutation, ...] = (*compressed(NIFTI), *BYTES)


def evil_datasets(group: h5py.Group, name: str, old: np.ndarray, rng: Random) -> None:
    """Put something else at the place of a data set."""
    kind = rng.randrange(14)
    if kind == 0:
        group.create_group(name)
    elif kind == 1:
        group[name] = h5py.SoftLink("/nothing")
    elif kind == 2:
        group[name] = h5py.SoftLink("/")
    elif kind == 3:
        group[name] = h5py.ExternalLink(rng.choice(("/nothing.h5", "/etc/passwd")), "/a")
    elif kind == 4:
        group.create_dataset(name, (2**33,), np.float64, chunks=(2**16,))
    elif kind == 5:
        shape = (2**33, *old.shape[1:]) if old.ndim else (2**33,)
        group.create_dataset(name, shape, old.dtype)
    elif kind == 6:
        group[name] = "text"
    elif kind == 7:
        group[name] = np.full(old.shape, np.nan)
    elif kind == 8:
        group[name] = h5py.Empty("f")
    elif kind == 9:
        group[name] = np.zeros(old.shape, [("a", "f4"), ("b", "i4")])
    elif kind == 10:
        group[name] = old[..., None]
    elif kind == 11:
        group[name] = group["/"]
    elif kind == 12:
        group[name] = np.zeros(old.shape, complex)
    else:
        group.create_dataset(
            name, old.shape, old.dtype, external=[("/etc/passwd", 0, max(1, old.nbytes))]
        )


def mutate_attribute(item: Any, rng: Random) -> None:
    """Take an attribute away, or put a wrong value there."""
    name = rng.choice(sorted(item.attrs))
    value = rng.choice(
        (None, np.nan, -1, 2**40, "text", b"\xff", np.zeros(3), "", h5py.Empty("f"), b"train\xff")
    )
    del item.attrs[name]
    if value is not None:
        item.attrs[name] = value


def mutate_hdf5_objects(data: bytes, rng: Random) -> bytes:
    """Take a data set of an HDF5 file away, put something else there, or at its attributes."""
    buffer = io.BytesIO(data)
    with h5py.File(buffer, "r+") as file:
        items: list[Any] = []
        file.visititems(lambda name, item: items.append(item))
        with_attributes = [item for item in items if len(item.attrs)]
        if with_attributes and rng.random() < 0.4:
            mutate_attribute(rng.choice(with_attributes), rng)
        else:
            item = rng.choice(items)
            group, name = item.parent, item.name.rsplit("/", 1)[1]
            is_array = isinstance(item, h5py.Dataset) and item.shape is not None
            old = np.asarray(item[()]) if is_array else np.zeros(1)
            del group[name]
            if rng.random() < 0.8:
                evil_datasets(group, name, old, rng)
            else:
                group.create_dataset(rng.choice(("x", "é", "a b")), data=old)
    return buffer.getvalue()


def mutate_hdf5_structure(data: bytes, rng: Random) -> bytes:
    """Damage the tables of an HDF5 file: symbol tables, trees, heaps and object headers."""
    out, marks = bytearray(data), [b"SNOD", b"TREE", b"HEAP", b"OHDR", b"FRHP", b"GCOL"]
    places = [m.start() for mark in marks for m in re.finditer(mark, data)]
    for _ in range(rng.choice((1, 1, 3))):
        start = rng.choice(places or [0]) + rng.randrange(128)
        if start + 8 <= len(out):
            value = rng.choice((0, 1, 2**31, 2**33, 2**64 - 1, rng.randrange(len(data))))
            length = rng.choice((1, 2, 4, 8))
            out[start : start + length] = struct.pack("<Q", value)[:length]
    return bytes(out)


HDF5: tuple[Mutation, ...] = (
    mutate_hdf5_objects, mutate_hdf5_objects, mutate_hdf5_structure, mutate_hdf5_structure, *BYTES,
)  # fmt: skip


def mutate_npy_header(data: bytes, rng: Random) -> bytes:
    """Announce another shape, type or order in the header of a .npy file."""
    version, length = data[6:8], struct.unpack("<H", data[8:10])[0]
    header = data[10 : 10 + length].decode("latin1")
    kind = rng.randrange(4)
    if kind == 0:
        shape = rng.choice((f"({2**33},)", "(-1,)", "()", "(2.5,)", "(0,)", f"({2**70}, 2)", "(1,"))
        header = re.sub(r"\(.*?\)", shape, header)
    elif kind == 1:
        types = ("|O", "<U9", "<c16", "|V8", "<M8[s]", "<f2", "nonsense", "|S5", "|b1")
        header = re.sub(r"'descr': '.*?'", f"'descr': '{rng.choice(types)}'", header)
    elif kind == 2:
        header = header.replace("False", rng.choice(("True", "None", "[]", "(" * 500)))
    else:
        header = mutate_tokens(header.encode(), rng).decode("latin1", "replace")
    encoded = header.encode("latin1", "replace")[:60000]
    return b"\x93NUMPY" + version + struct.pack("<H", len(encoded)) + encoded + data[10 + length :]


NPY: tuple[Mutation, ...] = (mutate_npy_header, mutate_npy_header, *BYTES)


class Code:
    """What a pickle would run."""

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("raise SystemExit(77)",)


def mutate_pickled(data: bytes, rng: Random) -> bytes:
    """Put another value into the dictionary of a .npy file, or code."""
    content = np.load(io.BytesIO(data), allow_pickle=True).item()
    key = rng.choice(sorted(content))
    content[key] = rng.choice((
        None, "text", np.nan, -1, [], {}, np.zeros((2, 2, 2, 2), complex), np.zeros(3, "U4"),
        np.array([{}]), Code(), [[1], [2, 3]], 2**70, b"x", np.zeros((0, 1, 1, 3)),
    ))  # fmt: skip
    if rng.random() < 0.2:
        del content[key]
    buffer = io.BytesIO()
    np.save(buffer, np.array(rng.choice((content, content, content, Code(), [1]))))
    return buffer.getvalue()


OPCODES = (
    pickle.BINUNICODE8, pickle.LONG4, pickle.BINBYTES8, pickle.MEMOIZE, pickle.REDUCE, pickle.BUILD,
    pickle.BINGET, pickle.LONG_BINPUT, b"\xff", b"\x7f",
)  # fmt: skip


def mutate_opcodes(data: bytes, rng: Random) -> bytes:
    """Replace an opcode or a length of a pickle."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 2))):
        at = rng.randrange(128, len(out))
        out[at] = rng.choice(OPCODES)[0]
        if rng.random() < 0.5:
            out[at + 1 : at + 9] = struct.pack("<Q", rng.choice((2**33, 2**31 - 1, 2**62)))
    return bytes(out)


PICKLE: tuple[Mutation, ...] = (mutate_pickled, mutate_pickled, mutate_opcodes, *NPY)


def mutate_npz(data: bytes, rng: Random) -> bytes:
    """Damage a member of an .npz file, its zip and checksums being right."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new:
        names = old.namelist()
        changed = rng.choice(names)
        for name in names:
            content = old.read(name)
            if name == changed:
                if rng.random() < 0.2:
                    continue
                content = rng.choice(NPY)(content, rng)
            new.writestr(name, content)
    return out.getvalue()


NPZ: tuple[Mutation, ...] = (mutate_npz, mutate_npz, *BYTES)


def mutate_mat(data: bytes, rng: Random) -> bytes:
    """Put another value into a variable of a MATLAB 5 file."""
    content = {k: v for k, v in loadmat(io.BytesIO(data)).items() if not k.startswith("__")}
    name = rng.choice(sorted(content))
    old = content.pop(name)
    value = rng.choice((
        None, "text", np.nan, -1, old - 2, old.astype(float) + 0.5, old[:, :-1], old.T,
        np.array([{}, "x"], object), {"a": 1}, np.zeros((0, 0)), old * 1j, old[..., None],
        np.where(old > 0, np.nan, 0.0),
    ))  # fmt: skip
    if value is not None:
        content[rng.choice((name, name, name, "x"))] = value
    buffer = io.BytesIO()
    savemat(buffer, content)
    return buffer.getvalue()


def mutate_mat_elements(data: bytes, rng: Random) -> bytes:
    """Damage the first bytes of a variable within its compression."""
    at, elements = 128, []
    while at < len(data):
        kind, size = struct.unpack("<II", data[at : at + 8])
        elements.append((kind, data[at + 8 : at + 8 + size]))
        at += 8 + size
    number = rng.randrange(len(elements))
    out = data[:128]
    for i, (kind, content) in enumerate(elements):
        if i == number and kind == 15:
            plain = zlib.decompress(content)
            content = zlib.compress(rng.choice(BYTES)(plain[:128], rng) + plain[128:], 1)
        out += struct.pack("<II", kind, len(content)) + content
    return out


MAT: tuple[Mutation, ...] = (mutate_mat, mutate_mat_elements, mutate_mat_elements, *BYTES)


def mutate_parquet_table(data: bytes, rng: Random) -> bytes:
    """Write a table with a column of another type, with nulls, or without it."""
    table = pq.read_table(io.BytesIO(data)).to_pandas()
    name, count = rng.choice(list(table.columns)), len(table)
    values: tuple[Any, ...] = (
        None, np.nan, -1, 2**62, "text", 1.5, True, b"\xff", [1, 2], {"a": 1},
        pd.Timestamp("2020-01-01"), [{"role": "tool", "content": "x"}], [], "../x",
    )  # fmt: skip
    kind = rng.randrange(4)
    if kind == 0:
        table = table.drop(columns=name)
    elif kind == 1:
        table = table.rename(columns={name: rng.choice(("x", "", "é"))})
    elif kind == 2:
        table[name] = pd.Series([rng.choice(values)] * count, index=table.index)
    else:
        table = table.iloc[: rng.randrange(count)] if rng.random() < 0.5 else table.sample(frac=1)
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pandas(table), buffer)
    return buffer.getvalue()


def mutate_parquet_footer(data: bytes, rng: Random) -> bytes:
    """Damage the footer, whose numbers say where and how large everything is."""
    size = struct.unpack("<I", data[-8:-4])[0]
    start = len(data) - 8 - size
    footer = bytearray(data[start:-8])
    for _ in range(rng.choice((1, 1, 4))):
        footer[rng.randrange(size)] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
    return data[:start] + bytes(footer) + data[-8:]


PARQUET: tuple[Mutation, ...] = (
    mutate_parquet_table, mutate_parquet_table, mutate_parquet_footer, mutate_parquet_footer,
    *BYTES,
)  # fmt: skip


def mutate_safetensors_header(data: bytes, rng: Random) -> bytes:
    """Damage the JSON header of a safetensors file."""
    size = struct.unpack("<Q", data[:8])[0]
    header = rng.choice((mutate_json, mutate_json, mutate_tokens))(data[8 : 8 + size], rng)
    length = rng.choice((len(header),) * 6 + (2**40, 0))
    return struct.pack("<Q", length) + header + data[8 + size :]


SAFETENSORS: tuple[Mutation, ...] = (mutate_safetensors_header,) * 3 + BYTES


def mutate_zip_members(data: bytes, rng: Random) -> bytes:
    """Damage a member of a zip file, its checksums being right."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new:
        names = old.namelist()
        changed = rng.choice([name for name in names if name.endswith("data.pkl")] * 3 + names)
        for name in names:
            content = old.read(name)
            if name == changed and content:
                content = rng.choice(BYTES)(content, rng)
            new.writestr(name, content)
    return out.getvalue()


ZIP: tuple[Mutation, ...] = (mutate_zip_members, mutate_zip_members, *BYTES)
