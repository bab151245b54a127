# Written by tests/stubs.py from milvus.py: do not edit.
# ruff: noqa: E501, I001, UP037
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
import numpy as np
import pandas as pd
from ..features.store import Features
def milvus_client(uri: str):
    """Open a database; ImportError says what to install, ConnectionError what failed."""
@dataclass
class MilvusStore:
    """A collection in a Milvus database, and what is known about it."""
    client: object
    collection: str
    facts: dict

    def __len__(self) -> int:
        ...

    @property
    def record(self) -> dict:
        ...

    @property
    def name(self) -> str:
        ...

    @property
    def root(self) -> str | None:
        ...

    @property
    def dim(self) -> int:
        ...

    @property
    def kind(self) -> str:
        ...

    def write_facts(self, complete: bool=True):
        """Keep in the database what is known, and whether all images are in it."""

    def info(self) -> dict:
        """What is known, and the number of images."""

    def add(self, vectors: np.ndarray, more: pd.DataFrame):
        """Insert images, in the place of those that are there under the same path."""

    def remove(self, paths: Sequence[str]):
        """Delete images."""

    def present(self, paths: Sequence[str]) -> list[str]:
        """Which of some paths are there."""

    def classes(self) -> dict[str, int]:
        """Names of the classes and their labels."""

    def shape(self, names: Sequence[str]) -> tuple[list[str], str | None, dict[str, int], int]:
        """Columns, folder, labels of the classes with these names, and the first free label."""

    def sample(self) -> tuple[pd.DataFrame, np.ndarray]:
        """Some image: a table of one row, and its vector."""

    def find(self, query: np.ndarray, k: int, filter: Mapping | None=None) -> pd.DataFrame:
        """The most similar images, with what the table says about them."""

    def save(self, path: Path):
        """ValueError: a database keeps each change by itself."""
def new_milvus_store(client, collection: str, features: Features, name: str, kind: str='flat', settings: Mapping | None=None) -> MilvusStore:
    """Make the collection of a gallery, without its images."""
def open_milvus_store(uri: str, collection: str='gallery') -> MilvusStore:
    """The store of a gallery; FileNotFoundError if there is none, or an incomplete one."""
def make_milvus_store(uri: str, collection: str, features: Features, name: str, kind: str='flat', settings: Mapping | None=None) -> MilvusStore:
    """An empty store for a new gallery in a database; ValueError if the name is taken."""
