"""Tests that say whether a diffusion model is good enough to ship.

Importing this package imports nothing heavy: public names are listed in `__init__.pyi` and looked up when they are first used.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
