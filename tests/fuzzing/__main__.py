"""`scripts/fuzz`: odd loop files and templates, until one of them is not survived."""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
import traceback
from pathlib import Path

from .inputs import Inputs
from .reader import Found, Reader, look_at_template, smallest


def main() -> int:
    options = _options()
    seed = options.seed if options.seed is not None else random.randrange(2**32)
    print(f"{options.count} loop files and as many templates, seed {seed} (again with --seed {seed})", flush=True)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        reader = Reader(Path(folder).resolve())
        survived = look_at_all(reader, Inputs(seed), options.count)
    print(f"{time.monotonic() - began:.0f} s; valid: {reader.codes[0]}, with complaints: {reader.codes[65]}")
    return 0 if survived else 1


def look_at_all(reader: Reader, inputs: Inputs, count: int) -> bool:
    for number in range(count):
        data, template = inputs.next(), inputs.template()
        try:
            look_at_template(template)
        except Exception:  # noqa: BLE001 - whatever it is, it is a find
            print(f"\nTEMPLATE {number}: {template!r}\n{traceback.format_exc()}")
            return False
        error = failure(reader, data)
        if error:
            print(f"\nLOOP FILE {number}:\n{error}")
            print("The smallest that fails:", smallest(data, lambda shorter: failure(reader, shorter) is not None))
            return False
    return True


def failure(reader: Reader, data: bytes) -> str | None:
    """What goes wrong with an input, as text."""
    try:
        reader.look(data)
    except (Found, Exception):  # noqa: BLE001 - whatever it is, it is a find
        return traceback.format_exc()
    return None


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/fuzz", description=__doc__)
    parser.add_argument("--count", type=int, default=100_000, help="how many of each (100,000)")
    parser.add_argument("--seed", type=int, help="the number that a run printed, to have the same inputs again")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
