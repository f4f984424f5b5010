"""A quantised GGUF file in, packed weights by itself, at a loss that is measured and said."""

import pytest

from scope_cli.models.gguf.convert import open_gguf
from tests.models.gguf.cases import KINDS
from tests.models.gguf.files import write
from tests.models.gguf.losses import SETTINGS, loss_of, opened

BOUND = 0.01  # of the weights' root mean square
MIXTURES = {  # as llama.cpp's quantize names them
    "Q4_K_M": ("Q4_K", {"attn_v": "Q6_K", "ffn_down": "Q6_K"}),
    "Q5_K_M": ("Q5_K", {"attn_v": "Q6_K", "ffn_down": "Q6_K"}),
    "Q3_K_M": ("Q3_K", {"attn_v": "Q5_K", "ffn_down": "Q4_K"}),
}
FOUR_BITS = ("Q4_0", "Q4_1", "Q4_K")


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("F16", "BF16")])
def test_every_quantised_type_is_packed_by_itself_and_loses_less_than_one_in_a_hundred(tmp_path, kind):
    model = opened(tmp_path, kind)
    assert model.load_in == ("int4" if kind in FOUR_BITS else "int8")
    loaded = model.load(attention="sdpa")
    plain = opened(tmp_path, kind, load_in=None).load(attention="sdpa")
    assert loss_of(loaded, plain) < BOUND
    assert loaded.opened.loss == pytest.approx(loss_of(loaded, plain), rel=1e-3)


@pytest.mark.parametrize("name", MIXTURES)
def test_a_mixture_of_types_is_packed_to_8_bits(tmp_path, name):
    model = opened(tmp_path, *MIXTURES[name])
    assert ", " in model.folder.quantised and model.load_in == "int8"
    assert model.load(attention="sdpa").opened.loss < BOUND


@pytest.mark.parametrize("kind", ["F16", "BF16", "F32"])
def test_what_was_never_quantised_stays_plain(tmp_path, kind):
    assert opened(tmp_path, kind).load_in is None


def test_the_loss_is_in_the_first_line_and_the_record_at_every_start(tmp_path, scope):
    file = write(tmp_path / "tiny.gguf", kind="Q4_K", but={"attn_v": "Q6_K"}, **SETTINGS).path
    argv = ["generate", "hi", "--model", file, "--device", "cpu", "--max-new-tokens", "2", "--compile", "off"]
    for _ in range(2):
        result = scope(*argv)
        assert result.code == 0, result.stderr
        assert "int8 weights (0." in result.stderr and "% off Q4_K, Q6_K)" in result.stderr
    events = scope(*argv, "--json").stdout
    assert '"packed_from": "Q4_K, Q6_K"' in events and '"packing_loss": 0.00' in events


def test_a_cache_that_cannot_be_written_is_the_users_to_mend(tmp_path, scope, monkeypatch):
    """The model is there, its packed form is not: as in an image that is read-only."""
    monkeypatch.setenv("SCOPE_CACHE", str(tmp_path / "cache"))
    file = write(tmp_path / "tiny.gguf", kind="Q4_1", **SETTINGS).path
    argv = ["generate", "hi", "--model", file, "--device", "cpu", "--max-new-tokens", "2", "--compile", "off"]
    assert scope(*argv).code == 0
    (packed,) = (tmp_path / "cache" / "models").rglob("packed-int4.json")
    packed.unlink()
    monkeypatch.setattr("filelock.FileLock.acquire", refuses)
    refused = scope(*argv)
    assert refused.code == 2 and "cannot write to" in refused.stderr and "SCOPE_CACHE" in refused.stderr


def refuses(*given, **more):
    raise OSError(30, "Read-only file system")


def test_int4_would_lose_more_of_what_is_not_in_4_bits(tmp_path):
    """What the choice is for."""
    loaded = opened(tmp_path, "Q6_K", load_in="int4").load(attention="sdpa")
    assert loaded.opened.loss > 5 * BOUND
    assert open_gguf(tmp_path / "tiny.gguf").header.quantised == "Q6_K"
