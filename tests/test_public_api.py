import importlib
import inspect
import re
import subprocess
import sys
from importlib.metadata import version

import pytest

import relict_lightning


def test_exactly_these_names_are_public():
    assert relict_lightning.__all__ == [
        "MemorizationCheckpoint",
        "MemorizationStopping",
        "ReplicaDetector",
        "ReplicaMonitor",
    ]


@pytest.mark.parametrize("name", relict_lightning.__all__)
def test_every_public_name_is_there_and_documented(name):
    assert inspect.getdoc(getattr(relict_lightning, name))


def test_the_version_is_that_of_the_installed_package():
    assert relict_lightning.__version__ == version("relict-lightning")
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*", relict_lightning.__version__)


@pytest.mark.parametrize("package", ["encoders", "segmenters", "samplers", "index", "data", "functional", "testing"])
def test_every_name_that_a_subpackage_lists_is_there(package):
    module = importlib.import_module(f"relict_lightning.{package}")

    assert [name for name in module.__all__ if not hasattr(module, name)] == []


def test_importing_the_package_does_not_import_optional_packages():
    optional = ["nilearn", "nibabel", "pydicom", "jsonargparse", "sklearn", "skimage", "tensorboard", "pandas"]
    script = (
        "import sys; import lightning.pytorch, monai.data; before = set(sys.modules); import relict_lightning; "
        f"print([name for name in {optional!r} if name in set(sys.modules) - before])"
    )

    answer = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, timeout=200)

    assert answer.stdout.strip() == "[]"


def test_the_root_of_the_package_defines_nothing_of_its_own():
    own = [
        name
        for name, value in vars(relict_lightning).items()
        if getattr(value, "__module__", "") == "relict_lightning" and not name.startswith("__")
    ]

    assert own == []
