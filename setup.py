"""Packaging: the facts are in settings.ini, the version in fgir/__init__.py."""
import ast
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
config = ConfigParser(delimiters=["="])
config.read(here / "settings.ini", encoding="utf-8")
facts = config["DEFAULT"]


def lines(key):
    return [line.strip() for line in facts[key].splitlines() if line.strip()]


def version():
    tree = ast.parse((here / "fgir" / "__init__.py").read_text(encoding="utf-8"))
    return next(node.value.value for node in tree.body
                if isinstance(node, ast.Assign) and node.targets[0].id == "__version__")


setup(
    version=version(),
    python_requires=f">={facts['min_python']}",
    packages=find_packages(include=["fgir", "fgir.*"]),
    package_data={"": ["*.csv", "*.css", "*.pyi", "py.typed"]},
    install_requires=lines("requirements"),
    extras_require={"dev": [line for part in ("dev", "milvus", "milvus_lite", "app", "heif")
                            for line in lines(f"{part}_requirements")],
                    "milvus": lines("milvus_requirements"), "app": lines("app_requirements"), "heif": lines("heif_requirements"),
                    "milvus-lite": lines("milvus_requirements") + lines("milvus_lite_requirements")},
    entry_points={"console_scripts": lines("console_scripts"), "nbdev": ["fgir = fgir._modidx:d"],
                  "fgir.classes": ["CGDNet = fgir.papers.cgd:CGDNet", "CGDLoss = fgir.papers.cgd:CGDLoss",
                                   "Classifier = fgir.papers.fgic:Classifier"],
                  "fgir.recipes": [f"{room} = fgir.papers.{room}:RECIPES" for room in ("cfga_training", "pp", "cgd", "fgic")],
                  "fgir.quirks": [f"{room} = fgir.papers.{room}:QUIRKS" for room in ("cfga_training", "pp", "cgd")]},
)
