"""Where data lies: a person's own folder, and what ships read-only with the package; both laid out alike.

::

    datasets/<device>-<threads>t/   measurements, the device and the rules that they were named by
    models/<device>-<threads>t/     what was fitted from them: manifest, trees, device, rules

The own folder is ``--home``, else the environment's ``LATPRED_HOME``, else where the system keeps user data.
``local`` is this machine, and only an own folder can hold it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from latpred.errors import DeviceError

if TYPE_CHECKING:
    from latpred.device import Device
    from latpred.kernels.fusion import RuleBook

__all__ = [
    "LOCAL",
    "Folders",
    "available",
    "collect_command",
    "device",
    "find_model",
    "folders",
    "measured_device",
    "missing_text",
    "own_home",
    "processor_name",
    "rules_for",
    "save_device",
    "save_rules",
    "shipped_home",
]

LOCAL = "local"
ENVIRONMENT = "LATPRED_HOME"
MANIFEST = "manifest.json"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_FOLDER = re.compile(r"(?P<device>.+)-(?P<threads>\d+)t")

Place = str | os.PathLike[str] | None


@dataclass(frozen=True, slots=True)
class Folders:
    """Where one device's data goes."""

    dataset: Path
    model: Path


@dataclass(frozen=True, slots=True)
class Found:
    """A predictor's folder, and whether the caller measured it."""

    path: Path
    device: str
    threads: int
    own: bool


def own_home(home: Place = None) -> Path:
    """The folder of a person's own data; it need not exist.

    Examples
    --------
    >>> own_home("/data").as_posix()
    '/data'
    """
    if home is None:
        home = os.environ.get(ENVIRONMENT) or None
    if home is not None:
        return Path(home).expanduser()
    import platformdirs  # only where nothing was said

    return Path(platformdirs.user_data_dir("latpred", appauthor=False))


def shipped_home() -> Path:
    """The read-only folder that comes with the package, or with a checkout of its repository."""
    package = Path(__file__).resolve().parent
    installed = package / "shipped"
    return installed if installed.is_dir() else package.parent


def folder_name(device: str, threads: int) -> str:
    """Name of a device's folder.

    Raises
    ------
    DeviceError
        When the device's name cannot name a folder.

    Examples
    --------
    >>> folder_name("local", 2)
    'local-2t'
    """
    if not _NAME.fullmatch(device):
        raise DeviceError(f"a device's name must be letters, digits, '.', '_' and '-'; got {device!r}: choose another")
    return f"{device}-{threads}t"


def folders(device: str = LOCAL, threads: int = 1, home: Place = None) -> Folders:
    """Where a device's own measurements and predictor lie, or will."""
    root, name = own_home(home), folder_name(device, threads)
    return Folders(root / "datasets" / name, root / "models" / name)


def available(home: Place = None) -> list[Found]:
    """Every predictor there is: own ones first, each place by name, then by threads."""
    return [*_models(own_home(home), own=True), *_models(shipped_home(), own=False)]


def _models(root: Path, own: bool) -> Iterator[Found]:
    found = []
    for path in (root / "models").glob("*"):
        match = _FOLDER.fullmatch(path.name)
        if match and (path / MANIFEST).is_file():
            found.append(Found(path, match["device"], int(match["threads"]), own))
    return iter(sorted(found, key=lambda entry: (entry.device, entry.threads)))


def find_model(device: str = LOCAL, threads: int | None = None, home: Place = None) -> Found | None:
    """The predictor for a device; of several thread counts the fewest threads, unless `threads` says.

    For ``local`` the own one, else one that shipped (`Found.own` is False then: it is of another machine).
    None where there is none.
    """
    wanted = [entry for entry in available(home) if threads in (None, entry.threads)]
    named = [entry for entry in wanted if entry.device == device and (entry.own or device != LOCAL)]
    if named:
        return min(named, key=lambda entry: (not entry.own, entry.threads))
    if device == LOCAL:
        shipped = [entry for entry in wanted if not entry.own]
        return min(shipped, key=lambda entry: (entry.threads, entry.device), default=None)
    return None


def collect_command(device: str = LOCAL, threads: int | None = None) -> str:
    """What to type to measure a device.

    >>> collect_command(threads=2)
    'latpred collect --device local --threads 2'
    """
    return f"latpred collect --device {device}" + (f" --threads {threads}" if threads else "")


def missing_text(device: str, threads: int | None, home: Place = None) -> str:
    """Why there is no predictor, what there is, and the command that makes one; one line."""
    counts = sorted({entry.threads for entry in available(home) if entry.device == device})
    asked = f"{device!r}" + (f" with {threads} threads" if threads else "")
    if counts:
        return (
            f"no predictor for {asked}, there is one for {', '.join(map(str, counts))}: "
            f"run `{collect_command(device, threads)}`"
        )
    if device == LOCAL:
        return f"no predictor for {asked}: run `{collect_command(device, threads)}`"
    return f"no predictor for {asked}; {_choices(home)}"


def processor_name() -> str:
    """Model name of this machine's CPU as Linux tells it; empty elsewhere."""
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8") as file:
            for line in file:
                name, separator, value = line.partition(":")
                if separator and name.strip() == "model name":
                    return value.strip()
    except (OSError, UnicodeDecodeError):
        return ""  # the caller says that it could not compare
    return ""


# -- devices and rules ----------------------------------------------------------------------------------------------


def measured_device(device: str = LOCAL, threads: int = 1, home: Place = None) -> Device | None:
    """A device that was measured here, by its dataset or its predictor; None where it was not."""
    from latpred.device import load_toml

    places = folders(device, threads, home)
    for folder in (places.dataset, places.model):
        if (folder / "device.toml").is_file():
            return load_toml(folder / "device.toml")
    return None


def save_device(device: Device, name: str = LOCAL, home: Place = None) -> Path:
    """Keep a measured device beside its measurements; the next fit takes it from there."""
    from latpred.device import dump_toml

    folder = folders(name, device.threads, home).dataset
    folder.mkdir(parents=True, exist_ok=True)
    dump_toml(device, folder / "device.toml")
    return folder / "device.toml"


def device(name: str, threads: int | None = None, home: Place = None) -> Device:
    """A device by name: measured, a TOML file, or a preset.

    Raises
    ------
    DeviceError
        When there is none; the text says what there is.
    """
    from latpred.device import load_toml, preset, presets

    if name.endswith(".toml"):
        return load_toml(name)
    found = measured_device(name, threads or 1, home) if _NAME.fullmatch(name) else None
    if found is not None:
        return found
    model = find_model(name, threads, home)
    if model is not None:
        return load_toml(model.path / "device.toml")
    if name in presets():
        return preset(name)
    raise DeviceError(f"no device {name!r}; {_choices(home)}")


def _choices(home: Place) -> str:
    """What may stand in place of a device's name."""
    from latpred.device import presets

    known = sorted({entry.device for entry in available(home)} | {LOCAL})
    return (
        f"predictors: {', '.join(known)}; analytical: {', '.join(presets())}, or a .toml file; "
        f"`{collect_command()}` measures this machine"
    )


def rules_for(device: str = LOCAL, threads: int | None = None, home: Place = None) -> RuleBook:
    """Fusion rules of a device's runtime: its own where probed, else those that ship."""
    from latpred.kernels.fusion import RuleBook, default_rules

    if not _NAME.fullmatch(device):
        return default_rules()
    own = folders(device, threads or 1, home).model / "rules.toml"
    if own.is_file():
        return RuleBook.load(own)
    found = find_model(device, threads, home)
    return RuleBook.load(found.path / "rules.toml") if found else default_rules()


def save_rules(rules: RuleBook, device: str = LOCAL, threads: int = 1, home: Place = None) -> Path:
    """Keep probed rules beside the predictor, where `rules_for` and the next fit find them."""
    folder = folders(device, threads, home).model
    folder.mkdir(parents=True, exist_ok=True)
    rules.dump(folder / "rules.toml")
    return folder / "rules.toml"
