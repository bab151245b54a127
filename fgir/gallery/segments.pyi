# Written by tests/stubs.py from segments.py: do not edit.
# ruff: noqa: E501, I001, UP037
from dataclasses import dataclass
from pathlib import Path
import numpy as np
from ..data.files import OpenFile
from .faiss import Engine, FaissStore
@dataclass
class Origin:
    """What a store knows of the file that holds it."""
    path: Path
    sums: list[str]
    first: int
    gone: np.ndarray
    engines: list[Engine]
    verified: bool = ...
def read_store(file: OpenFile, verify: bool=True) -> FaissStore:
    """The store of a gallery's open file; ValueError names the file and what is wrong."""
def load_store(path: Path, verify: bool=True) -> FaissStore:
    """Read a store; ValueError for a file that is damaged, later, or not a gallery."""
