"""The model artifact: a directory that holds all a prediction depends on, and a manifest over it.

    manifest.json    sha256 and size of every other file; features, label, signal rule, timeframe,
                     schema of the input, digests of data, code and lock file, a probe, free metadata
    estimator.json   numbers of the estimator; booster.txt beside it for trees

Nothing in it is code or pickle. ``load`` reads each file once, compares it with the manifest, and only
then lets anybody parse those very bytes. The caller holds the manifest's own sha256, which is what
gets signed (``tasks.signing``): no key comes here.

The probe is a fixed candle series with the probabilities that the model gave for it when it was saved:
if today's code computes other ones, features or estimator are not what the model was trained with.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

from ml.estimators import Fitted, estimator
from ml.features import FeatureSet
from ml.labels import LabelDefinition
from ml.model import Model
from ml.signals import SignalRule
from trading import candles as candle_frames
from trading.calendars import ALWAYS_OPEN
from trading.errors import InvalidRequest, ModelRejected
from trading.window import Timeframe

SCHEMA: Final = 2
MANIFEST: Final = "manifest.json"
LOCK: Final = "requirements.lock"
PROBE_TOLERANCE: Final = 1e-6
_CHECKOUT: Final = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class SavedModel:
    """A manifest and the sha256 of its file, which is what to sign, to store and to ask for at ``load``."""

    manifest: Mapping[str, Any]
    sha256: str


@dataclass(frozen=True)
class Verified:
    """A manifest and the bytes of the files it lists: the right ones, and nobody has parsed them yet."""

    manifest: Mapping[str, Any]
    files: Mapping[str, bytes]


def save(
    directory: Path,
    fitted: Fitted,
    *,
    feature_set: FeatureSet,
    label: LabelDefinition,
    rule: SignalRule,
    timeframe: Timeframe,
    dataset_digest: str,
    calendar: str | None = ALWAYS_OPEN,
    gaps_tolerated: int = 0,
    metadata: Mapping[str, Any] | None = None,
) -> SavedModel:
    """Write the artifact into ``directory``, which is made, or is there and empty.

    Args:
        dataset_digest: names the candles it was trained on (``TrainingTable.digest``).
        calendar: when its markets trade (see ``trading.calendars``); None where its symbols have several,
            so that whoever asks for a prediction must say which.
        gaps_tolerated: bars that may be missing among those a prediction needs.
        metadata: JSON values to travel along: data_mode, symbols, training window, seed, run.

    Raises:
        InvalidRequest: the directory holds something, or the metadata are not JSON.
    """
    directory.mkdir(parents=True, exist_ok=True)
    if any(directory.iterdir()):
        raise InvalidRequest(f"{directory} is not empty; save each model into a directory of its own")
    files = fitted.to_files()
    model = Model(fitted, feature_set, label, rule, timeframe, manifest={})
    if gaps_tolerated < 0:
        raise InvalidRequest(f"gaps_tolerated is {gaps_tolerated}; it is a number of bars, at least 0")
    manifest = {
        "schema": SCHEMA,
        "estimator": fitted.name,
        "files": {name: {"sha256": _sha256(data), "size": len(data)} for name, data in sorted(files.items())},
        "features": {"version": feature_set.version, "names": list(feature_set.names), **_defined(feature_set)},
        "label": _defined(label),
        "signal_rule": _defined(rule),
        "input": {
            "index": candle_frames.INDEX_NAME,
            "index_dtype": candle_frames.INDEX_DTYPE,
            "columns": list(candle_frames.COLUMNS),
            "dtype": "float64",
            "timeframe": str(timeframe),
            "rows_needed": feature_set.rows_needed,
            "calendar": calendar,
            "gaps_tolerated": gaps_tolerated,
        },
        "dataset_digest": dataset_digest,
        "code_digest": code_digest(),
        "code_version": code_version(),
        "lock_digest": lock_digest(),
        "probe": model.probabilities(_probe(feature_set.rows_needed, timeframe))[-1].tolist(),
        "metadata": dict(metadata or {}),
    }
    try:
        text = json.dumps(manifest, sort_keys=True, indent=1, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise InvalidRequest(f"model metadata must be JSON values: {error}") from error
    for name, data in files.items():
        (directory / name).write_bytes(data)
    # last, so that an interrupted save leaves a directory that cannot be loaded
    (directory / MANIFEST).write_bytes(text)
    return SavedModel(json.loads(text), _sha256(text))


def load(directory: Path, expected_manifest_sha256: str | None = None) -> Model:
    """The model in ``directory``, verified before anything of it is parsed.

    Args:
        expected_manifest_sha256: what ``save`` returned. None checks the files against the manifest
            they came with, which finds damage but not an exchange of the whole directory.

    Raises:
        ModelRejected: says which file is missing, surplus or changed, or which definition this code
            does not compute as the model's training did.
    """
    found = verified(directory, expected_manifest_sha256)
    manifest = found.manifest
    try:
        feature_set = FeatureSet.from_definition(manifest["features"]["definition"])
        model = Model(
            estimator(manifest["estimator"]).from_files(found.files),
            feature_set,
            LabelDefinition.from_definition(manifest["label"]["definition"]),
            SignalRule.from_definition(manifest["signal_rule"]["definition"]),
            Timeframe.parse(manifest["input"]["timeframe"]),
            manifest,
            calendar=manifest["input"]["calendar"],
            gaps_tolerated=int(manifest["input"]["gaps_tolerated"]),
        )
        probe = np.array(manifest["probe"], dtype=np.float64)
    except (KeyError, TypeError, ValueError) as error:
        raise ModelRejected(f"{MANIFEST} does not describe a model of this code ({error!r}); train again") from error
    if feature_set.version != manifest["features"].get("version"):
        raise ModelRejected(
            f"{MANIFEST} has {manifest['features'].get('version')} and this code computes {feature_set.version} "
            "from the same parameters; train again"
        )
    computed = model.probabilities(_probe(feature_set.rows_needed, model.timeframe))[-1]
    if probe.shape != computed.shape or not np.allclose(computed, probe, rtol=0, atol=PROBE_TOLERANCE):
        raise ModelRejected(
            f"the probe gives {computed.tolist()} and gave {probe.tolist()} when the model was saved: "
            "features or estimator changed since; train again"
        )
    return model


def verified(directory: Path, expected_manifest_sha256: str | None = None) -> Verified:
    """The manifest and the files of the model in ``directory``, compared and not parsed.

    Args:
        expected_manifest_sha256: as for ``load``.

    Raises:
        ModelRejected: says which file is missing, surplus, linked or changed.
    """
    text = _read(directory, MANIFEST)
    if expected_manifest_sha256 is not None and not _equal(_sha256(text), expected_manifest_sha256):
        raise ModelRejected(
            f"{MANIFEST} has sha256 {_sha256(text)} and {expected_manifest_sha256} was registered; "
            "do not use this model, fall back to the previous version"
        )
    manifest = _manifest(text)
    return Verified(manifest, _files(directory, manifest["files"]))


def code_digest() -> str:
    """sha256 over the Python sources of ``ml`` and ``trading``, by path: the version of the arithmetic."""
    hashed = hashlib.sha256(b"tradeflows code 1\0")
    for path in sorted(path for folder in ("ml", "trading") for path in (_CHECKOUT / folder).rglob("*.py")):
        hashed.update(f"{path.relative_to(_CHECKOUT).as_posix()}\0{_sha256(path.read_bytes())}\0".encode())
    return hashed.hexdigest()


def code_version() -> str | None:
    """The version of the installed package; None where it runs from sources that nobody installed."""
    try:
        return version("tradeflows")
    except PackageNotFoundError:
        return None


def lock_digest() -> str | None:
    """sha256 of ``requirements.lock``, that is, of every package's version and hash; None where there is none."""
    path = _CHECKOUT / LOCK
    return _sha256(path.read_bytes()) if path.is_file() else None


def _probe(rows: int, timeframe: Timeframe) -> pd.DataFrame:
    """A fixed series of ``rows`` candles: two waves and a drift, from 2020 on."""
    at = np.arange(rows, dtype=np.float64)
    close = 100 * np.exp(0.0002 * at + 0.05 * np.sin(at / 7) + 0.02 * np.sin(at * 1.7))
    open_ = np.concatenate([[100.0], close[:-1]])
    spread = 1.002 + 0.001 * np.cos(at)
    high, low = np.maximum(open_, close) * spread, np.minimum(open_, close) / spread
    step = int(timeframe.delta.total_seconds() * 1000)
    values = np.column_stack([open_, high, low, close, 1000 * (1.5 + np.sin(at / 3))])
    return candle_frames.frame_of(1_577_836_800_000 + step * np.arange(rows), values)


def _manifest(text: bytes) -> dict[str, Any]:
    try:
        manifest = json.loads(text)
    except ValueError as error:
        raise ModelRejected(f"{MANIFEST} is not JSON ({error}); fetch or train the model again") from error
    known = isinstance(manifest, dict) and manifest.get("schema") == SCHEMA
    if not known or not isinstance(manifest.get("files"), dict):
        raise ModelRejected(f"{MANIFEST} is not one of schema {SCHEMA}; train the model again with this code")
    return dict(manifest)


def _files(directory: Path, listed: Mapping[str, Any]) -> dict[str, bytes]:
    surplus = {path.name for path in directory.iterdir()} - set(listed) - {MANIFEST}
    if surplus:
        raise ModelRejected(f"{sorted(surplus)} in the model's directory are not in its manifest; fetch it again")
    files = {}
    for name, wanted in listed.items():
        if Path(name).name != name or not isinstance(wanted, dict):
            raise ModelRejected(f"the manifest lists {name!r}, which is no plain file name with sha256 and size")
        data = _read(directory, name)
        if len(data) != wanted.get("size") or not _equal(_sha256(data), str(wanted.get("sha256"))):
            raise ModelRejected(
                f"{name} has {len(data)} bytes with sha256 {_sha256(data)}; the manifest says "
                f"{wanted.get('size')} and {wanted.get('sha256')}: it was changed, fall back to the previous version"
            )
        files[name] = data
    return files


def _read(directory: Path, name: str) -> bytes:
    missing = f"{name} is missing from the model in {directory}, or is not a file; fetch it again"
    try:
        # a link could point to other bytes after they were compared; a pipe would keep us waiting
        opened = os.open(directory / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise ModelRejected(f"{missing} ({error.strerror})") from error
    with os.fdopen(opened, "rb") as file:
        if not stat.S_ISREG(os.fstat(opened).st_mode):
            raise ModelRejected(missing)
        return file.read()


def _defined(what: FeatureSet | LabelDefinition | SignalRule) -> dict[str, Any]:
    return {"definition": what.definition()}


def _equal(found: str, wanted: str) -> bool:
    """Whether two digests are equal, in a time that does not tell how far they are."""
    return hmac.compare_digest(found.encode(), wanted.encode())


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
