"""Short names: what each model asks of a machine, and the way from a name to checked files on disk."""

from hashlib import sha256
from pathlib import Path

import huggingface_hub
import pytest

from scope_cli.errors import ModelError
from scope_cli.models import catalogue
from scope_cli.models.catalogue import KNOWN
from scope_cli.models.registry import find
from tests.helpers.hub import REVISION, network, write_model  # noqa: F401  a fixture

PARAMETERS = {  # as their publishers count them
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "mistral-7b": 7_248_023_552,
    "llama-3.1-8b": 8_030_261_248,
    "qwen3-8b": 8_190_735_360,
}
GIB = 2**30


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_model_has_the_parameters_that_its_publisher_counts(name):
    assert KNOWN[name].parameters == PARAMETERS[name]
    assert KNOWN[name].weight_bytes == 2 * PARAMETERS[name]


def test_the_cache_of_a_thousand_tokens_is_counted_by_hand():
    assert KNOWN["qwen3-4b"].cache_bytes(1000) == 1000 * 36 * 2 * 8 * 128 * 2
    windows, full = 40, 8
    per_token = 2 * 8 * 256 * 2
    assert KNOWN["gemma-3-12b"].cache_bytes(5000) == per_token * (windows * 1024 + full * 5000)


@pytest.mark.parametrize(
    ("device", "free", "fits"),
    [
        ("cpu", 8 * GIB, "yes"),
        ("cpu", 5 * GIB, "no"),
        ("cuda", 4 * GIB, "yes"),
        ("cuda", 2 * GIB, "packed"),
        ("cuda", GIB, "no"),
    ],
)
def test_what_fits_is_weights_and_cache_in_the_form_that_a_run_takes(device, free, fits):
    assert KNOWN["qwen3-1.7b"].fits(device, free) == fits


def test_the_next_to_take_is_the_largest_that_fits_and_is_not_waited_for(monkeypatch):
    for device, free, name in (
        ("cpu", 64 * GIB, "qwen3-1.7b"),
        ("cpu", 4 * GIB, "qwen3-0.6b"),
        ("cuda", 80 * GIB, "gemma-3-12b"),
    ):
        monkeypatch.setattr(catalogue, "here", lambda device=device, free=free: (device, free))
        assert catalogue.next_to_take().name == name
    monkeypatch.setattr(catalogue, "here", lambda: ("cpu", GIB))
    assert catalogue.next_to_take() is None


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub that serves any model once, as its cache lays files out; what it is asked for, by name."""
    asked = []

    def info(self, name, **_):
        files = [type("File", (), {"rfilename": file}) for file in ("config.json", "model.safetensors")]
        return type("Info", (), {"siblings": files})

    def download(name, local_files_only=False, **_):
        repo = tmp_path / "hub" / f"models--{name.replace('/', '--')}"
        snapshot = repo / "snapshots" / REVISION
        if local_files_only:
            if not snapshot.exists():
                raise huggingface_hub.errors.LocalEntryNotFoundError("not there")
            return str(snapshot)
        asked.append(name)
        (snapshot / "model.safetensors").unlink(missing_ok=True)
        write_model(snapshot)
        (repo / "blobs").mkdir(exist_ok=True)
        blob = repo / "blobs" / sha256(bytes(8)).hexdigest()
        (snapshot / "model.safetensors").replace(blob)
        (snapshot / "model.safetensors").symlink_to(blob)
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", info)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return asked


def test_a_short_name_is_fetched_once_under_the_hubs_own(hub):
    said = []
    first = find("qwen3-0.6b", say=said.append)
    assert (first.name, hub) == ("qwen3-0.6b", ["Qwen/Qwen3-0.6B"])
    assert said[0].startswith("fetching Qwen/Qwen3-0.6B") and said[1] == "checking 8 B of weights"
    assert find("qwen3-0.6b").path == find("Qwen/Qwen3-0.6B").path == first.path
    assert len(hub) == 1


def test_weights_that_arrive_damaged_are_removed_and_refused(hub, monkeypatch):
    good = huggingface_hub.snapshot_download

    def damaged(name, **more):
        snapshot = good(name, **more)
        if not more.get("local_files_only"):
            (Path(snapshot) / "model.safetensors").resolve().write_bytes(b"12345678")
        return snapshot

    monkeypatch.setattr(huggingface_hub, "snapshot_download", damaged)
    with pytest.raises(ModelError, match="arrived damaged"):
        find("qwen3-0.6b")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", good)
    assert find("qwen3-0.6b").path.is_dir(), "fetched again"
    assert len(hub) == 2


def test_a_misspelt_short_name_names_the_nearest():
    with pytest.raises(ModelError) as caught:
        find("qwen3-06b", offline=True)
    assert "did you mean qwen3-0.6b?" in caught.value.hint


def test_a_folder_of_that_name_goes_before_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_model(tmp_path / "qwen3-4b")
    assert find("qwen3-4b").source == "local folder"
