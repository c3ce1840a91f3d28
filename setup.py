"""Packaging: every fact about the package stands in settings.ini, which nbdev reads too."""

from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).resolve().parent
config = ConfigParser(delimiters=["="], interpolation=None)
config.read(here / "settings.ini", encoding="utf-8")
cfg = config["DEFAULT"]
readme = here / "README.md"
TAIL = "_requirements"
extras = {key.removesuffix(TAIL): cfg[key].split() for key in cfg if key.endswith(TAIL)}

setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=readme.read_text(encoding="utf-8") if readme.exists() else cfg["description"],
    long_description_content_type="text/markdown",
    author=cfg["author"],
    author_email=cfg["author_email"],
    keywords=cfg["keywords"].split(),
    license="Apache-2.0",
    license_files=["LICENSE"],
    url=cfg["git_url"],
    python_requires=f">={cfg['min_python']}",
    packages=find_packages(include=[cfg["lib_path"], f"{cfg['lib_path']}.*"]),
    package_data={
        cfg["lib_path"]: [
            "weights/**/*.safetensors",
            "weights/**/*.json",
            "weights/**/*.md",
            "weights/**/*.png",
            "solvers/**/*.json",
            "solvers/**/*.md",
            "results/*.json",
            "app/*.css",
            "py.typed",
        ]
    },
    install_requires=cfg["requirements"].split(),
    extras_require=extras,
    entry_points={"console_scripts": cfg["console_scripts"].split()},
    classifiers=[
        "Programming Language :: Python :: 3",
        "Intended Audience :: Developers",
        "Natural Language :: English",
    ],
    zip_safe=False,
)
