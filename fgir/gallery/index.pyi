# Written by tests/stubs.py from index.py: do not edit.
# ruff: noqa: E501, I001, UP037
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable
import numpy as np
import pandas as pd
from torch import Tensor
from ..features.store import Features
from matplotlib.figure import Figure
@runtime_checkable
class Store(Protocol):
    """What an `Index` asks of the place that holds its images."""

    @property
    def record(self) -> dict:
        """How the vectors were made."""

    @property
    def name(self) -> str:
        """Name of the array that they come from."""

    @property
    def root(self) -> str | None:
        """Folder of the images."""

    @property
    def dim(self) -> int:
        """Numbers in a vector."""

    @property
    def kind(self) -> str:
        """Engine, such as flat."""

    def __len__(self) -> int:
        """Number of images."""

    def find(self, query: np.ndarray, k: int, filter: Mapping | None=None) -> pd.DataFrame:
        """The `k` images nearest to each unit row: query, score, the table's columns."""

    def sample(self) -> tuple[pd.DataFrame, np.ndarray]:
        """One image: a table of one row, and its vector (D,)."""

    def present(self, paths: Sequence[str]) -> list[str]:
        """Which of these paths are in the gallery."""

    def classes(self) -> dict[str, int]:
        """Names of the classes and their labels."""

    def shape(self, names: Sequence[str]) -> tuple[list, str | None, dict, int]:
        """Columns, folder, labels of the classes with these names, first free label."""

    def add(self, vectors: np.ndarray, more: pd.DataFrame) -> None:
        """Put images in; they replace those of the same path."""

    def remove(self, paths: Sequence[str]) -> None:
        """Take images out."""

    def save(self, path: Path) -> None:
        """Write all of it to a file."""

    def info(self) -> dict:
        """Size, engine and settings."""
class Index:
    """A searchable gallery."""
    store: Store

    def __init__(self, store: Store):
        ...

    def __len__(self) -> int:
        ...

    @property
    def record(self) -> dict:
        ...

    @property
    def name(self) -> str:
        ...

    def __repr__(self) -> str:
        ...

    @classmethod
    def build(cls, features: Features, name: str | None=None, kind: str='flat', progress: bool=True, **settings) -> Index:
        """Make a gallery; ValueError names a row without direction, or an image given twice."""

    def search(self, query: Tensor | np.ndarray, k: int=8, filter: Mapping | None=None) -> pd.DataFrame:
        """The `k` most similar images of the gallery for each query, best first."""

    def as_described(self, tfms: str | None=None, size: int | None=None, descriptor: Callable | None=None) -> dict:
        """How to read one photograph for this gallery; ValueError for an unnamed transform."""

    def same_file(self, photo: str | Path) -> list[str]:
        """Paths of the gallery's images that are the file of a photograph."""

    def about_photo(self, photo: str | Path) -> pd.Series | None:
        """The gallery's row for a photograph that is one of its images, else None."""

    def search_known(self, vector: np.ndarray, path: str | Path, k: int=8, filter: Mapping | None=None, leave_out_self: bool=True) -> pd.DataFrame:
        """Search with the vector of a photograph that is described already."""

    def search_image(self, path: str | Path, descriptor: Callable, k: int=8, box: Sequence[float] | None=None, tfms: str | None=None, size: int | None=None, filter: Mapping | None=None, leave_out_self: bool=True) -> pd.DataFrame:
        """Describe a photograph as the gallery was described, and search with it."""

    def add(self, features: Features, replace: bool=False):
        """Add images, all of them or, with a ValueError, none."""

    def update(self, features: Features):
        """Add images, in the place of those that are there under the same path."""

    def remove(self, paths: str | Sequence[str]):
        """Take images out; ValueError for one that is not there, and then none is taken out."""

    def save(self, path: str | Path, force: bool=False) -> Path:
        """Write the gallery, completely or not at all; `force` overwrites a file."""

    @classmethod
    def load(cls, path: str | Path, verify: bool=True) -> Index:
        """Open a gallery; its vectors stay on disk, mapped into memory."""

    def info(self) -> dict:
        """What the gallery holds and how it was made: its numbers, and the record."""

    @classmethod
    def connect(cls, uri: str, features: Features | None=None, name: str | None=None, kind: str='flat', collection: str='gallery', **settings) -> Index:
        """Open a gallery in a database, or make one; FileNotFoundError if there is none."""
def photo_table(path: str | Path, box: Sequence[float] | None=None) -> pd.DataFrame:
    """A table of one photograph of unknown class, with its box."""
def spellings_of(photo: str | Path, root: str | None) -> list[str]:
    """The paths by which a gallery whose folder is `root` may name a file."""
def show_search(index: Index, photo: str | Path, results: pd.DataFrame, name: str | None=None, box: Sequence[float] | None=None) -> Figure:
    """Draw the photograph and, on its right, what was found, with the cosines."""
def features_of(path: str | Path) -> Features:
    """The features in a file, in a gallery, or in a file of a paper's program."""
