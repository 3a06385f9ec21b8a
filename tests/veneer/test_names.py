import importlib
import subprocess
import sys
import time
from pathlib import Path

import pytest

import veneer


@pytest.mark.parametrize("name", veneer.__all__)
def test_each_name_can_be_imported_and_says_what_it_is(name):
    value = getattr(veneer, name)
    assert value.__doc__
    assert value is getattr(importlib.import_module(veneer._MODULES[name]), name)


def test_the_table_is_the_list_and_the_types():
    assert list(veneer._MODULES) == veneer.__all__ == sorted(veneer.__all__)
    text = Path(veneer.__file__).read_text()
    checked = text.split("if TYPE_CHECKING:")[1].split("__all__")[0]
    for name, module in veneer._MODULES.items():
        (line,) = (one for one in checked.splitlines() if f"from {module} import" in one)
        assert name in line.split("import")[1].replace(",", " ").split()


def test_nothing_heavy_is_imported_before_it_is_used():
    code = (
        "import time, sys; t = time.perf_counter(); import veneer; "
        "print(time.perf_counter() - t, sorted({'torch', 'numpy', 'PIL'} & set(sys.modules)))"
    )
    began = time.perf_counter()
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, heavy = out.stdout.split(maxsplit=1)
    assert heavy.strip() == "[]"
    assert float(seconds) < 0.2, time.perf_counter() - began


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'atack'"):
        _ = veneer.atack
    assert dir(veneer) == veneer.__all__


def test_types_ship_with_each_package():
    root = Path(veneer.__file__).parents[1]
    for package in ("veneer", "attackers", "victims", "defenders", "pipelines"):
        assert (root / package / "py.typed").is_file()
