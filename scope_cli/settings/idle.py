"""What a profile does not look at, each with the reason: a setting that was typed for nothing is told."""

from collections.abc import Iterator

from scope_cli.policies import plugins
from scope_cli.settings.policy import DecodeSettings
from scope_cli.settings.schema import Profile

DRAWING = {"random", "vase"}  # shipped scorers and methods that draw by the seed


def idle(profile: Profile) -> Iterator[tuple[str, str]]:
    """(key, why) for what this profile does not look at."""
    decode, sampling, prefill = profile.decode, profile.sampling, profile.prefill
    if decode.strategy == "full":
        for key in DecodeSettings.model_fields:
            if key != "strategy":
                yield f"decode.{key}", "strategy full evicts nothing"
    if decode.strategy == "rpc":
        yield "decode.budget", f"rpc allows one token in {decode.ratio}, whatever the budget says"
    else:
        yield "decode.ratio", f"it belongs to rpc, and the strategy is {decode.strategy}"
    if sampling.temperature == 0:
        greedy = "temperature 0 takes the most probable token each time"
        yield from ((f"sampling.{key}", greedy) for key in ("top_k", "top_p", "min_p"))
        if not (_may_draw("scorers", decode.scorer.name) or _may_draw("prefills", prefill.method.name)):
            yield "sampling.seed", greedy
    if sampling.ignore_eos:
        yield "sampling.min_new_tokens", "the model may never end by itself"
    if prefill.method.name == "full" and not prefill.wrap:
        yield "prefill.window", "full keeps the whole prompt"
    if profile.model.device.startswith(("cuda", "mps")):
        yield "model.threads", f"the model runs on {profile.model.device}"


def _may_draw(kind: str, name: str) -> bool:
    return name in DRAWING or not plugins.is_ours(kind, name)
