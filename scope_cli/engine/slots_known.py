"""What int8 slots were found to do to a model, kept on the disk; what `auto` comes to by that. No torch."""

import json
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from scope_cli import __version__
from scope_cli.console.safe import as_json
from scope_cli.errors import ModelError
from scope_cli.files import cache_folder, replace_file
from scope_cli.models.fingerprint import fingerprint
from scope_cli.models.model_folder import ModelFolder
from scope_cli.settings.load import LoadedProfile

MOST_KL = 0.005  # nats: 20 times what the embedded model shows, half of what the mildest eviction costs
DEVICES = ("cpu", "cuda")  # whose steps read int8 slots as they are
_found: dict[Path, float] = {}  # by this process, which may not be able to write


@dataclass(frozen=True)
class Computed:
    """A model, and what its numbers depend on."""

    folder: ModelFolder
    dtype: str  # "float32"
    load_in: str | None
    device: str  # its kind

    @property
    def note(self) -> Path:
        """Where the check's result is kept."""
        seen = sha256(as_json([fingerprint(self.folder), self.dtype, self.load_in, self.device]).encode())
        ours = Path(__file__).parent
        for file in (ours / "slots_check.py", ours.with_name("formats") / "int8.py"):
            seen.update(file.read_bytes())
        return cache_folder() / "slots" / f"{seen.hexdigest()[:32]}.json"

    def known_kl(self) -> float | None:
        """Mean KL(plain || int8) in nats, None where nobody has measured it."""
        note = self.note
        if note not in _found:
            with suppress(OSError, ValueError, KeyError, TypeError):
                told = json.loads(note.read_bytes())["kl"]
                _found[note] = float("inf") if told is None else float(told)
        return _found.get(note)

    def remember(self, kl: float) -> None:
        note = self.note
        _found[note] = kl
        said = {"model": self.folder.name, "kl": None if kl == float("inf") else kl, "scope": __version__}
        with suppress(OSError):  # a cache folder that cannot be written: the next process measures again
            note.parent.mkdir(parents=True, exist_ok=True)
            replace_file(note, as_json(said))

    def foreseen(self, settings: LoadedProfile) -> LoadedProfile:
        """For a plan, before any weight is read: plain where that is known, else `auto` counts as int8."""
        if not settings.open_slots:
            return settings
        kl = None
        with suppress(ModelError):  # a plan needs no weights
            kl = None if self.folder.pending else self.known_kl()
        if self.device not in DEVICES or (kl is not None and kl > MOST_KL):
            return settings.with_slots("plain")
        return settings
