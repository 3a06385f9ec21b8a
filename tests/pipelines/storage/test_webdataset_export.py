import pytest

from pipelines.errors import InputError
from pipelines.storage.webdataset_export import export_webdataset


@pytest.mark.parametrize(
    ("name", "command"),
    [("3ae", "package"), ("poisoned-p", "poison p"), ("poisoned-c", "poison c")],
)
def test_what_is_missing_is_made_by_its_stage(tmp_path, name, command):
    with pytest.raises(InputError, match=f"run `veneer {command}` first"):
        export_webdataset(tmp_path / name, tmp_path / "out")
