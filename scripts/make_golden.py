#!/usr/bin/env python3
"""Writes the golden values of tests/golden/, in 50 digits (mpmath), from the papers' formulas and by
other routes than the C++ code takes where there is one.

    scripts/make_golden.py [--check]        write, or compare with what is there

rotary.json: for each scheme its inverse frequencies, attention scale, and cos and sin (times that
scale) at positions 131071 and 1048575.
"""

import argparse
import json
import sys
from pathlib import Path

import mpmath
from mpmath import mpf

mpmath.mp.dps = 50
FOLDER = Path(__file__).resolve().parents[1] / "tests" / "golden"
POSITIONS = (131071, 1048575)


def omega(theta, d):
    return [1 / mpmath.power(theta, mpf(2 * j) / d) for j in range(d // 2)]


def linear(theta, d, s, **_):
    return [w / s for w in omega(theta, d)], mpf(1)


def ntk(theta, d, s, **_):
    return omega(theta * mpmath.power(s, mpf(d) / (d - 2)), d), mpf(1)


def llama3(theta, d, s, L, low=1, high=4, **_):
    out = []
    for w in omega(theta, d):
        wavelength = 2 * mpmath.pi / w
        if wavelength < mpf(L) / high:
            out.append(w)
        elif wavelength > mpf(L) / low:
            out.append(w / s)
        else:
            smooth = (L / wavelength - low) / (mpf(high) - low)
            out.append((1 - smooth) * w / s + smooth * w)
    return out, mpf(1)


def yarn(theta, d, s, L, form="hf", fast=32, slow=1, **_):
    def dim(r):
        return d * mpmath.log(L / (2 * mpmath.pi * r)) / (2 * mpmath.log(theta))

    lo, hi = max(mpmath.floor(dim(fast)), 0), min(mpmath.ceil(dim(slow)), d - 1)
    out = []
    for j, w in enumerate(omega(theta, d)):
        gamma = min(max((j - lo) / (hi - lo), mpf(0)), mpf(1))
        interpolated, extrapolated = w / s, w
        out.append(w / (gamma * s + 1 - gamma) if form == "pose" else
                   interpolated * gamma + extrapolated * (1 - gamma))
    return out, mpf("0.1") * mpmath.log(s) + 1


def dynamic(theta, d, s, L, length, **_):
    if length <= L:
        return omega(theta, d), mpf(1)
    return omega(theta * mpmath.power(s * length / L - (s - 1), mpf(d) / (d - 2)), d), mpf(1)


def longrope(theta, d, s, L, length, short, long, **_):
    factors = short if length <= L else long
    return ([w / mpf(f) for w, f in zip(omega(theta, d), factors)],
            mpmath.sqrt(1 + mpmath.log(s) / mpmath.log(L)))


# Factors that grow with the pair, as a search finds them; doubles, so that both sides read the same.
SHORT = [1 + j / 64 for j in range(48)]
LONG = [1 + j * j / 32 for j in range(48)]

CASES = [
    ("none", lambda theta, d, **_: (omega(theta, d), mpf(1)), dict(theta=10000, d=128)),
    ("abf", lambda theta, d, **_: (omega(theta, d), mpf(1)), dict(theta=500000, d=128)),
    ("linear", linear, dict(theta=10000, d=128, s=8)),
    ("ntk", ntk, dict(theta=10000, d=128, s=8)),
    ("llama3", llama3, dict(theta=500000, d=128, s=8, L=8192)),
    ("llama3", llama3, dict(theta=500000, d=64, s=32, L=8192)),
    ("yarn", yarn, dict(theta=10000, d=128, s=16, L=4096)),
    ("yarn", yarn, dict(theta=10000, d=128, s=16, L=4096, form="pose")),
    ("yarn", yarn, dict(theta=500000, d=64, s=4, L=8192)),
    ("yarn", yarn, dict(theta=10000, d=32, s=64, L=2048, form="pose")),
    ("dynamic", dynamic, dict(theta=10000, d=128, s=2, L=4096, length=4096)),
    ("dynamic", dynamic, dict(theta=10000, d=128, s=2, L=4096, length=131072)),
    ("dynamic", dynamic, dict(theta=500000, d=64, s=32, L=32768, length=1048576)),
    ("longrope", longrope, dict(theta=10000, d=96, s=32, L=4096, length=4096, short=SHORT, long=LONG)),
    ("longrope", longrope, dict(theta=10000, d=96, s=32, L=4096, length=131072, short=SHORT,
                                long=LONG)),
]


def rotary():
    cases = []
    for name, scheme, arguments in CASES:
        inv_freq, scale = scheme(**{k: v if isinstance(v, (str, list)) or k == "d" else mpf(v)
                                    for k, v in arguments.items()})
        case = {"type": "none" if name == "abf" else name, **arguments, "scale": float(scale),
                "inv_freq": [float(w) for w in inv_freq], "tables": []}
        for p in POSITIONS:
            case["tables"].append({"position": p,
                                   "cos": [float(mpmath.cos(p * w) * scale) for w in inv_freq],
                                   "sin": [float(mpmath.sin(p * w) * scale) for w in inv_freq]})
        cases.append(case)
    return cases


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 on a difference")
    options = parser.parse_args()
    text = json.dumps(rotary(), indent=0).replace(",\n", ", ") + "\n"
    path = FOLDER / "rotary.json"
    if options.check:
        same = path.exists() and path.read_text() == text
        print(f"{path}: {'as computed' if same else 'differs'}")
        sys.exit(0 if same else 1)
    FOLDER.mkdir(exist_ok=True)
    path.write_text(text)
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
