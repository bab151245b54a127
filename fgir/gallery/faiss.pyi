# Written by tests/stubs.py from faiss.py: do not edit.
# ruff: noqa: E501, I001, UP037
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
import faiss
import numpy as np
import pandas as pd
from torch import Tensor
from ..features.store import Features, Stacked
def unit_rows(x: Tensor | np.ndarray, what: str='query', start: int=0) -> np.ndarray:
    """Rows scaled to length one; ValueError names the first row that cannot be."""
KINDS: dict
RANGES: dict
def complete_settings(kind: str, settings: Mapping) -> dict:
    """Settings of an engine with their defaults; ValueError for unknown ones."""
def check_engine(kind: str, settings: Mapping, database: str | None=None):
    """ValueError for an unknown engine or setting, in a file or in a database."""
def code_bytes(settings: Mapping, dim: int) -> int:
    """Bytes of a row in IVF-PQ: the most allowed that divide `dim` evenly."""
def cells_for(settings: Mapping, n: int) -> int:
    """Number of cells of IVF-PQ for `n` rows."""
BLOCK: int
@dataclass(eq=False)
class Engine:
    """A faiss index over some rows of a gallery, made when it is first needed."""
    kind: str
    dim: int
    rows: np.ndarray
    make: Callable[[], faiss.Index]
    what: str = ...

    def __len__(self) -> int:
        ...

    @cached_property
    def index(self) -> faiss.Index:
        ...

    @cached_property
    def gpu(self) -> faiss.Index | None:
        """A copy on the GPU, if it suits one that is there."""

    def part(self, mask: np.ndarray) -> np.ndarray:
        """What a mask over the gallery's rows says of the engine's."""

    def take(self, x: np.ndarray, rows: np.ndarray, what: str):
        """Take in more rows of the vectors."""

    def lose(self, lost: np.ndarray):
        """Take out the rows (N,) of a mask."""
@dataclass
class FaissStore:
    """Features, engines over one array of them, and a mark for each row that is gone."""
    features: Features
    name: str
    kind: str
    settings: dict
    engines: list[Engine]
    gone: np.ndarray = ...
    what: str = ...
    origin: object = ...

    def __post_init__(self):
        ...

    def __len__(self) -> int:
        ...

    @property
    def record(self) -> dict:
        ...

    @property
    def root(self) -> str | None:
        ...

    @property
    def dim(self) -> int:
        ...

    @property
    def vectors(self) -> np.ndarray | Stacked:
        ...

    @property
    def known(self) -> int:
        ...

    def over(self, rows: np.ndarray, begun: Engine | None=None) -> Engine:
        """An engine over some rows, built when it is first needed."""

    def ready(self) -> FaissStore:
        """Make the engines now; else the first search does."""

    def nearest(self, query: np.ndarray, k: int, mask: np.ndarray | None=None) -> tuple[np.ndarray, np.ndarray]:
        """The most similar rows, best first, ties by row; the engine chooses the last ties."""

    def find(self, query: np.ndarray, k: int, filter: Mapping | None=None) -> pd.DataFrame:
        """The most similar images, with what the table says about them."""

    def sample(self) -> tuple[pd.DataFrame, np.ndarray]:
        """The first image that is there: a table of one row, and its vector."""

    def present(self, paths: Sequence[str]) -> list[str]:
        """Which of some paths are there."""

    def remove(self, paths: Sequence[str]):
        """Mark images as gone."""

    def classes(self) -> dict[str, int]:
        """Names of the classes and their labels."""

    def shape(self, names: Sequence[str]) -> tuple[list[str], str | None, dict[str, int], int]:
        """Columns, folder, labels of the classes with these names, and the first free label."""

    def add(self, vectors: np.ndarray, more: pd.DataFrame):
        """Append images, and mark those as gone that were there under the same path."""

    def merged(self) -> FaissStore:
        """The store with one engine; without removed images, where that is worth a new one."""

    def info(self) -> dict:
        """Numbers of a store."""
def faiss_store(features: Features, name: str, kind: str='flat', settings: Mapping | None=None, progress: bool=False) -> FaissStore:
    """Put features into a new engine; ValueError names a row without direction."""
def wanted_values(filter: Mapping, columns: Iterable[str]) -> dict[str, list]:
    """The values that each column of a filter may have; ValueError for other columns."""
