"""`scope models rm`: what scope converted goes, the user's own file stays."""

from scope_cli.models.registry import find, listed
from tests.models.gguf.files import write


def test_models_rm_frees_what_a_file_took(tmp_path, cache, scope):
    path = write(tmp_path / "tiny.gguf").path
    converted = find(str(path)).ready().path
    row = next(row for row in listed() if row.name == str(path))
    assert row.disk_bytes == sum(file.stat().st_size for file in converted.iterdir())
    asked = scope("models", "rm", path)
    assert asked.code == 2 and "--yes" in asked.stderr and converted.is_dir()
    removed = scope("models", "rm", path, "--yes")
    assert removed.code == 0 and "free again" in removed.stderr and path.is_file()
    assert not converted.exists() and not list(cache.rglob("*.safetensors"))
    nothing = scope("models", "rm", path, "--yes")
    assert nothing.code == 2 and "has no copy" in nothing.stderr


def test_models_rm_works_for_a_file_that_is_gone(tmp_path, scope):
    path = write(tmp_path / "tiny.gguf").path
    converted = find(str(path)).ready().path
    path.unlink()
    assert scope("models", "rm", path, "-y").code == 0 and not converted.exists()
