"""No test builds the CUDA image; that its versions and extras are those of pyproject.toml and Makefile is tested."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
IMAGE = (ROOT / "docker/cuda.Dockerfile").read_text()


def test_the_image_has_the_versions_of_the_makefile() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for pattern in (r"torch==[\d.]+", r"'scikit-build-core[^']+'", r"'cmake[^']+'", r"'ninja[^']+'"):
        assert set(re.findall(rf"(?<!\w){pattern}", IMAGE)) == set(re.findall(rf"(?<!\w){pattern}", makefile)) != set()


def test_the_image_installs_extras_that_exist() -> None:
    (extras,) = re.findall(r"/src\[([\w,]+)\]", IMAGE)
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {"cuda", "objects"} <= set(extras.split(",")) <= set(known)


def test_what_the_build_needs_is_sent_to_it() -> None:
    sent = re.findall(r"^!([\w.*/]+)$", (ROOT / "docker/cuda.Dockerfile.dockerignore").read_text(), re.MULTILINE)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = project["tool"]["scikit-build"]["wheel"]["packages"]
    needed = {"CMakeLists.txt", "pyproject.toml", project["project"]["readme"], *project["project"]["license-files"]}
    assert needed | set(packages) <= {path.partition("/")[0] for path in sent}
    for path in sent:
        assert list(ROOT.glob(path)), path
