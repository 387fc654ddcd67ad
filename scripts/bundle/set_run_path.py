#!/usr/bin/env python3
"""Makes ELF files look for libraries relative to themselves: rewrites the run path that they have.

    scripts/bundle/set_run_path.py LIB_FOLDER FILE...

The run path of each FILE becomes a DT_RPATH of $ORIGIN/(way to LIB_FOLDER). DT_RPATH and not
DT_RUNPATH because it also serves the libraries that a library needs, those without a run path of
their own too: a program's DT_RPATH serves all that it loads. Files without a run path are left
alone, as there is no room for one in them. The new path must not be longer than the old one.
64-bit little-endian ELF only. Exit status: 0 done, 1 a path does not fit, 2 not such a file.
"""

import os
import struct
import sys
from pathlib import Path

PT_LOAD, PT_DYNAMIC = 1, 2
DT_NULL, DT_STRTAB, DT_RPATH, DT_RUNPATH = 0, 5, 15, 29


class Unfit(Exception):
    """Why a file cannot be rewritten."""


def segments(image):
    """(type, file offset, address, size in the file) of each program header."""
    if image[:6] != b"\x7fELF\x02\x01":
        raise ValueError("not a 64-bit little-endian ELF file")
    (table,) = struct.unpack_from("<Q", image, 32)
    entry, count = struct.unpack_from("<HH", image, 54)
    for i in range(count):
        kind, _, offset, address, _, size = struct.unpack_from("<IIQQQQ", image, table + i * entry)
        yield kind, offset, address, size


def rewrite(image, path):
    """Sets the run path in the bytes of a file; False where it has none."""
    parts = list(segments(image))

    def offset_of(address):
        for kind, offset, start, size in parts:
            if kind == PT_LOAD and start <= address < start + size:
                return address - start + offset
        raise ValueError("a dynamic section that points outside the file")

    dynamic = next((p for p in parts if p[0] == PT_DYNAMIC), None)
    if dynamic is None:
        return False
    entries = []
    for at in range(dynamic[1], dynamic[1] + dynamic[3], 16):
        tag, value = struct.unpack_from("<QQ", image, at)
        if tag == DT_NULL:
            break
        entries.append((at, tag, value))
    strings = offset_of(next(value for _, tag, value in entries if tag == DT_STRTAB))
    found = False
    for at, tag, value in entries:
        if tag not in (DT_RPATH, DT_RUNPATH):
            continue
        begin = strings + value
        room = image.index(b"\0", begin) - begin
        if len(path) > room:
            raise Unfit(f"its run path has {room} bytes of room, {len(path)} are needed")
        image[begin:begin + room] = path.ljust(room, b"\0")
        struct.pack_into("<Q", image, at, DT_RPATH)
        found = True
    return found


def main(arguments):
    if len(arguments) < 2:
        print(__doc__.splitlines()[2].strip(), file=sys.stderr)
        return 2
    library_folder = Path(arguments[0]).resolve()
    for name in arguments[1:]:
        file = Path(name)
        image = bytearray(file.read_bytes())
        way = os.path.relpath(library_folder, file.resolve().parent)
        path = "$ORIGIN" if way == "." else f"$ORIGIN/{way}"
        try:
            if rewrite(image, path.encode()):
                file.write_bytes(image)
        except Unfit as error:
            print(f"set_run_path: {file}: {error}", file=sys.stderr)
            return 1
        except (ValueError, StopIteration) as error:
            print(f"set_run_path: {file}: {error}", file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
