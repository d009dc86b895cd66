"""fbackprop: backpropagation you can read, check and change.

Public names are loaded on first use (PEP 562), so that `fbackprop --help` never imports jax.
"""

import sys

from .moved import Moved
from .names import lazy_names

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = lazy_names(__name__)
sys.meta_path.append(Moved())
