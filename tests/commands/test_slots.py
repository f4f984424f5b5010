"""`--kv auto`, the default, from the command line: what it comes to is said, recorded and kept."""

import json

import pytest
import torch

from scope_cli.batch.ledger import Ledger
from scope_cli.engine import slots_check, slots_known
from tests.helpers.tiny import tiny_model, tiny_tokenizer

WRITES = ["--ignore-eos", "--max-new-tokens", 12, "--budget", 8, "--temperature", 0]
NOTE = "note: slots are plain: in int8 they move this model by a KL of "


@pytest.fixture(autouse=True)
def nothing_known(tmp_path, monkeypatch):
    monkeypatch.setenv("SCOPE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(slots_known, "_found", {})
    monkeypatch.setattr(slots_check, "reads_packed", lambda loaded: True)


@pytest.fixture
def moves(monkeypatch):
    """How far int8 moves a model, as a test says; how often somebody looked."""
    told, looked = [0.0], []
    monkeypatch.setattr(slots_check, "moved", lambda loaded, ids: looked.append(1) or told[0])
    return told, looked


@pytest.fixture(scope="module")
def large_keys(tmp_path_factory):
    """A model with a few very large channels in its keys, as the biases of Qwen2.5 make them."""
    folder = tmp_path_factory.mktemp("large-keys")
    model = tiny_model("qwen2", torch.float32)
    for layer in model.model.layers:
        layer.self_attn.k_proj.bias.data[::8] += 3000.0
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def record_of(text):
    return json.loads(text.with_name(f"{text.name}.run.json").read_text())


def test_a_model_with_very_large_key_channels_runs_with_plain_slots(scope, large_keys, tmp_path):
    out = tmp_path / "out.txt"
    ran = scope("generate", "hello " * 20, "-m", large_keys, "-o", out, *WRITES)
    assert ran.code == 0 and ran.stderr.count(NOTE) == 1
    record = record_of(out)
    assert record["profile"]["cache"]["kv"] == "plain" and "slots int8" not in record["policy"]
    plan = ["profile", "--plan", "-m", large_keys, "--dtype", "float32", "--device", "cpu", "--json"]
    plans = [json.loads(scope(*plan, *more).stdout)["plans"] for more in ([], ["--kv", "plain"])]
    (known,), (asked,) = plans
    assert known["plan"] == asked["plan"]  # what is known of a model counts in it


def test_the_record_says_which_slots_a_run_had(scope, tiny_folder, tmp_path, moves):
    out = tmp_path / "out.txt"
    ran = scope("generate", "hello " * 20, "-m", tiny_folder, "-o", out, *WRITES)
    assert ran.code == 0 and "slots are plain" not in ran.stderr and "slots int8" in ran.stderr
    assert record_of(out)["profile"]["cache"]["kv"] == "int8" and "slots int8" in record_of(out)["policy"]
    assert len(moves[1]) == 2  # the model and the prompt
    asked = scope("generate", "hello " * 20, "-m", tiny_folder, *WRITES, "--kv", "plain", "--quiet")
    assert len(moves[1]) == 2 and asked.code == 0


def test_a_text_goes_on_with_the_slots_that_it_had(scope, tiny_folder, tmp_path, moves):
    whole, out = tmp_path / "whole.txt", tmp_path / "out.txt"
    story = ["generate", "hello " * 20, "-m", tiny_folder, *WRITES]
    scope(*story, "--max-new-tokens", 20, "-o", whole)
    scope(*story, "-o", out, "--keep-checkpoint")
    moves[0][0] = 1.0  # would be plain now
    slots_known._found.clear()
    assert scope("resume", out, "--max-new-tokens", 20).code == 0
    assert out.read_bytes() == whole.read_bytes() and record_of(out)["profile"]["cache"]["kv"] == "int8"


def test_a_state_that_says_auto_is_one_of_int8_slots(scope, tiny_folder, tmp_path, monkeypatch):
    """As builds kept it that did not settle it."""
    from scope_cli.engine import checkpoint

    whole, out = tmp_path / "whole.txt", tmp_path / "out.txt"
    story = ["generate", "hello " * 20, "-m", tiny_folder, *WRITES, "--kv", "int8"]
    scope(*story, "--max-new-tokens", 20, "-o", whole)
    scope(*story, "-o", out, "--keep-checkpoint")
    read_facts = checkpoint.read_facts

    def as_it_was(file):
        facts = read_facts(file)
        facts["profile"]["cache"] |= {"kv": "auto"}
        return facts

    monkeypatch.setattr(checkpoint, "read_facts", as_it_was)
    ran = scope("resume", out, "--max-new-tokens", 20)
    assert ran.code == 0, ran.stderr
    assert out.read_bytes() == whole.read_bytes() and record_of(out)["profile"]["cache"]["kv"] == "int8"


def test_a_prompt_file_brings_its_slots_along(scope, tiny_folder, tmp_path, moves):
    kept, out, direct = tmp_path / "a.scope", tmp_path / "out.txt", tmp_path / "direct.txt"
    prompt = ["hello " * 20, "-m", tiny_folder]
    assert scope("prompt", "save", *prompt, "-o", kept).code == 0
    assert scope("generate", *prompt, *WRITES, "-o", direct).code == 0
    moves[0][0] = 1.0
    slots_known._found.clear()
    assert scope("generate", "--prompt-cache", kept, "-m", tiny_folder, *WRITES, "-o", out).code == 0
    assert out.read_bytes() == direct.read_bytes() and record_of(out)["profile"]["cache"]["kv"] == "int8"
    refused = scope("generate", "--prompt-cache", kept, "-m", tiny_folder, *WRITES, "--kv", "plain")
    assert refused.code == 2 and "--kv belongs to scope prompt save" in refused.stderr
    assert scope("prompt", "save", *prompt, "--kv", "k8v4", "-o", tmp_path / "b.scope").code == 2  # 8 wide


def batch(folder, out, tiny_folder, *more):
    return ["batch", folder, "-o", out, "-m", tiny_folder, *WRITES, "--lanes", 2, *more]


@pytest.fixture
def prompts(tmp_path):
    folder = tmp_path / "prompts"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.txt").write_text(f"{number} " + "lighthouse " * 10)
    return folder


@pytest.mark.parametrize(("kl", "form"), [(0.0, "int8"), (1.0, "plain")])
def test_a_job_keeps_in_its_ledger_what_auto_came_to(scope, tiny_folder, prompts, tmp_path, moves, kl, form):
    out, told = tmp_path / "out", moves[0]
    told[0] = kl
    ran = scope(*batch(prompts, out, tiny_folder, "--limit", 1))
    assert ran.code == 0 and ran.stderr.count("slots are plain") == (form == "plain")
    assert Ledger(out, read_only=True).get("slots") == form and len(moves[1]) == 1  # the model alone
    told[0] = 1.0 - kl
    slots_known._found.clear()
    (tmp_path / "prompts" / "new.txt").write_text("another")
    assert scope(*batch(prompts, out, tiny_folder)).code == 0
    assert len(moves[1]) == 1
    for text in ("0.txt", "1.txt", "2.txt", "new.txt"):
        record = record_of(out / text)
        assert record["profile"]["cache"]["kv"] == form and ("slots int8" in record["policy"]) == (
            form == "int8"
        )
    for note in (tmp_path / "cache" / "slots").glob("*"):
        note.unlink()
    assert scope(*batch(prompts, out, tiny_folder, "--restart")).code == 0
    assert Ledger(out, read_only=True).get("slots") == ("plain" if form == "int8" else "int8")


def test_a_job_with_slots_of_its_own_asks_nobody(scope, tiny_folder, prompts, tmp_path, moves):
    out = tmp_path / "out"
    assert scope(*batch(prompts, out, tiny_folder, "--kv", "int8")).code == 0
    assert Ledger(out, read_only=True).get("slots") is None and not moves[1]


def test_evaluations_measure_the_slots_that_a_run_has(scope, tiny_folder, tmp_path, moves):
    text, out = tmp_path / "text.txt", tmp_path / "out.json"
    text.write_text("the lighthouse keeper and the sea " * 10)
    told = ["evaluate", "fidelity", "-t", text, "--prompt-tokens", 64, "--tokens", 64, "-m", tiny_folder]
    for kl, form in ((0.0, "int8"), (1.0, "plain")):
        moves[0][0] = kl
        slots_known._found.clear()
        for note in (tmp_path / "cache" / "slots").glob("*"):
            note.unlink()
        ran = scope(*told, "-p", "full", "-p", "slide kv=int8", "-o", out, "--force")
        assert ran.code == 0, ran.stderr
        entry, named = json.loads(out.read_text())["profiles"]
        assert named["profile"]["cache"]["kv"] == "int8"
        assert entry["profile"]["cache"]["kv"] == form and ("slots are plain" in ran.stderr) == (
            form == "plain"
        )
        assert (entry["rows"][0]["kl"][0] == 0) == (form == "plain")


def test_keys_in_four_bits_are_refused_with_what_they_cost(scope):
    ran = scope("generate", "hi", "--set", "cache.keys=int4")
    assert (ran.code, ran.stdout) == (2, "") and "a KL of 0.006" in ran.stderr and "hint:" in ran.stderr
