"""expected and tri against their formulas, with the rotation undone by hand, pair by pair."""

import cmath
from math import cos, sin, sqrt

import pytest
import torch

from scope_cli.policies import plugins
from tests.policies.scorers.plain import by_position, close, heads_of, last_view, mean, softmax

FAMILIES = pytest.mark.parametrize("family", ["llama", "llama-mha"])
THETA = 10_000.0
PAIRS = 4  # head_dim 8
FREQUENCIES = [THETA ** (-2 * j / 8) for j in range(PAIRS)]


def pairs_before(x, position) -> list[complex]:
    """The channel pairs (j, j + 4) of a key or query, turned back by its position."""
    return [complex(x[j], x[j + PAIRS]) * cmath.exp(-1j * FREQUENCIES[j] * position) for j in range(PAIRS)]


def channels(pairs) -> torch.Tensor:
    return torch.tensor([pair.real for pair in pairs] + [pair.imag for pair in pairs], dtype=torch.float64)


@FAMILIES
def test_expected_is_the_attention_of_gaussian_queries_times_the_values_norm(family):
    view = last_view({"name": "expected", "window": 12, "future": 7}, family=family)
    scores = plugins.build("scorers", "expected", {"window": 12, "future": 7}).score(view)
    now = int(view.now[0])
    turning = torch.zeros(8, 8, dtype=torch.float64)  # the rotation, averaged over the next 7 positions
    for j, frequency in enumerate(FREQUENCIES):
        angles = [frequency * (now + ahead) for ahead in range(1, 8)]
        c, s = mean([cos(a) for a in angles]), mean([sin(a) for a in angles])
        turning[j, j] = turning[j + PAIRS, j + PAIRS] = c
        turning[j, j + PAIRS], turning[j + PAIRS, j] = -s, s
    for head in heads_of(view):
        weights = []
        for member in range(len(next(iter(head.queries.values())))):
            plain = torch.stack(
                [channels(pairs_before(head.queries[p][member], p)) for p in head.newest_queries(12)]
            )
            mu = turning @ plain.mean(0)
            sigma = turning @ torch.cov(plain.T, correction=0) @ turning.T
            logits = {
                p: float(mu @ k) * head.scale + float(k @ sigma @ k) * head.scale**2 / 2
                for p, k in head.keys.items()
            }
            weights.append(softmax(logits))
        expected = {p: mean([w[p] for w in weights]) * float(v.norm()) for p, v in head.values.items()}
        assert close(by_position(view, scores, head.index), expected, 1e-6)


@FAMILIES
def test_tri_sums_calibrated_queries_over_distances_to_come(tmp_path, family):
    view = last_view("attention", family=family)
    chance = torch.Generator().manual_seed(0)
    heads = view.queries.shape[1]
    file = {}
    for layer in range(2):
        file[f"{layer}.mean"] = torch.randn(heads, PAIRS, 2, generator=chance)
        file[f"{layer}.size"] = file[f"{layer}.mean"].norm(dim=-1) + torch.rand(
            heads, PAIRS, generator=chance
        )
    from safetensors.torch import save_file

    save_file(file, tmp_path / "tri.safetensors")
    options = {"calibration": str(tmp_path / "tri.safetensors"), "furthest": 5}
    scores = plugins.build("scorers", "tri", options).score(view)
    now, group = int(view.now[0]), heads // view.keys.shape[1]
    for head in heads_of(view):
        members = []
        for member in range(head.index * group, (head.index + 1) * group):
            q = [complex(*pair) for pair in file["1.mean"][member].tolist()]
            size = file["1.size"][member].tolist()
            raw = {}
            for p, key in head.keys.items():
                k = pairs_before(key, p)
                raw[p] = sum((size[j] - abs(q[j])) * abs(k[j]) for j in range(PAIRS)) + mean(
                    [
                        sum(
                            abs(q[j])
                            * abs(k[j])
                            * cos(FREQUENCIES[j] * (now - p + 2**o) + cmath.phase(q[j] * k[j].conjugate()))
                            for j in range(PAIRS)
                        )
                        for o in range(6)
                    ]
                )
            middle = mean(list(raw.values()))
            deviation = sqrt(mean([(value - middle) ** 2 for value in raw.values()]))
            members.append({p: (value - middle) / deviation for p, value in raw.items()})
        expected = {p: max(m[p] for m in members) for p in head.held}
        assert close(by_position(view, scores, head.index), expected, 1e-5)


def test_calibration_is_the_mean_query_before_the_rotation(scope, tiny_folder, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("The keeper of the lighthouse wrote every evening.")
    out = tmp_path / "tri.safetensors"
    result = scope("calibrate", out, "--text", text, "--model", tiny_folder)
    assert result.code == 0 and "2 layers, 49 tokens" in result.stderr
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_folder)
    ids = torch.tensor([list(text.read_bytes())])
    states = model.model.layers[0].input_layernorm(model.model.embed_tokens(ids))
    queries = model.model.layers[0].self_attn.q_proj(states).unflatten(-1, (4, 8))[0]  # not yet rotated
    pairs = torch.complex(queries[..., :PAIRS], queries[..., PAIRS:]).detach()
    file = load_file(out)
    torch.testing.assert_close(torch.view_as_complex(file["0.mean"]), pairs.mean(0), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(file["0.size"], pairs.abs().mean(0), atol=1e-4, rtol=1e-4)


def test_tri_writes_with_its_file_and_says_what_lacks_without(scope, tiny_folder, tmp_path):
    out = tmp_path / "tri.safetensors"
    assert scope("calibrate", out, "--text", "examples/logbook.txt", "--model", tiny_folder).code == 0
    argv = [
        "generate",
        "a lighthouse",
        "--model",
        tiny_folder,
        "--ignore-eos",
        "--max-new-tokens",
        60,
        "--budget",
        16,
    ]
    result = scope(*argv, "--set", f"decode.scorer={{name: tri, calibration: {out}}}")
    assert result.code == 0 and "policy active" in result.stderr
    lacking = scope(*argv, "--scorer", "tri")
    assert lacking.code == 2 and "scope calibrate" in lacking.stderr
    missing = scope(*argv, "--set", "decode.scorer={name: tri, calibration: no-such-file}")
    assert missing.code == 2 and "no-such-file" in missing.stderr


def calibration(layers=2, heads=4, pairs=4, number=0.5):
    """What `scope calibrate` writes for a model of that shape; the tiny model's by default."""
    shapes = {"mean": (heads, pairs, 2), "size": (heads, pairs)}
    every = [(layer, name, shape) for layer in range(layers) for name, shape in shapes.items()]
    return {f"{layer}.{name}": torch.full(shape, number) for layer, name, shape in every}


@pytest.mark.parametrize(
    ("file", "told"),
    [
        (calibration(layers=1), "was made for another model"),
        (calibration(heads=9), "was made for another model"),
        (calibration(pairs=32), "was made for another model"),
        ({"0.mean": torch.zeros(4, 4, 2)}, "was made for another model"),
        (calibration(number=float("nan")), "is damaged"),
        (calibration(layers=3), None),  # more than is asked for
    ],
)
def test_a_calibration_file_is_looked_at_before_anything_is_written(scope, tiny_folder, tmp_path, file, told):
    """Nothing is evicted in this run: without a look the file would not be noticed at all."""
    from safetensors.torch import save_file

    save_file(file, tmp_path / "tri.safetensors")
    tri = f"decode.scorer={{name: tri, calibration: {tmp_path / 'tri.safetensors'}}}"
    argv = ["generate", "hi", "--model", tiny_folder, "--ignore-eos", "--max-new-tokens", 5, "--set", tri]
    result = scope(*argv)
    if told is None:
        assert result.code == 0
    else:
        assert (result.code, result.stdout) == (2, "") and told in result.stderr
