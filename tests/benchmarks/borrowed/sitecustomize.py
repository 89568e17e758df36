"""As if Python had what a borrowed machine with a GPU has, and no more: for processes with this folder on PYTHONPATH.

That is the machine's own packages (torch 2.11, NumPy, PyArrow, pytest) and those that were brought along for TorchRec.
"""

from __future__ import annotations

import re
import sys
from importlib.abc import MetaPathFinder
from importlib.metadata import packages_distributions

MACHINE = """
absl-py aiohappyeyeballs aiohttp aiosignal annotated-doc anyio attrs certifi charset-normalizer click cmake contourpy
cycler execnet filelock fonttools frozenlist fsspec grpcio h11 httpcore httpx hypothesis idna iniconfig jinja2 joblib
kiwisolver lightning-utilities markdown markdown-it-py markupsafe matplotlib mdurl mpmath multidict narwhals networkx
ninja numpy packaging pandas pathspec pillow pip pluggy propcache protobuf pyarrow pygments pyparsing pytest
pytest-xdist python-dateutil pyyaml regex requests rich scikit-build-core scikit-learn scipy setuptools six
sortedcontainers sympy tensorboard tensorboard-data-server threadpoolctl torch tqdm typing-extensions urllib3 werkzeug
wrapt yarl
"""
BROUGHT = """
cloudpickle docker docstring-parser fbgemm-gpu importlib-metadata iopath mypy-extensions orjson portalocker
pyre-extensions pyvers shtab tabulate tensordict torchmetrics torchrec torchx typeguard typing-inspect tyro zipp
"""
HERE = "fbgemm-gpu-cpu recsys-derm"  # in the place of fbgemm-gpu, and this project

_there = {*MACHINE.split(), *BROUGHT.split(), *HERE.split()}


class _Borrowed(MetaPathFinder):
    def __init__(self) -> None:
        self._absent = {
            module
            for module, names in packages_distributions().items()
            if not _there & {re.sub(r"[-_.]+", "-", name).lower() for name in names}
        }

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if path is None and name in self._absent:
            raise ModuleNotFoundError(f"No module named {name!r} on a borrowed machine", name=name)


sys.meta_path.insert(0, _Borrowed())
