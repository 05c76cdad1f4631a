"""The files of a registered version: where they are, and that they are those that were registered.

MLflow puts files of its own (MLmodel, requirements and such) around the artifact of ``ml.artifact``. The
artifact's are in its manifest; the others, the wrapping, are in a tag of the version, which is signed.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote, urlparse

from tasks.signing import require_signature
from trading.errors import ModelRejected

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

MODEL_FOLDER: Final = "model"
# the tag with size and sha256 of the files that MLflow puts around the artifact
WRAPPING: Final = "wrapping"
MANIFEST_SHA256: Final = "manifest_sha256"
# MLflow writes it into the folder of a version whenever somebody downloads one; nobody reads it
_META: Final = "registered_model_meta"


def wrapping(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and sha256 of each file that MLflow put around the artifact, by path."""
    return {path: _measured(folder / path) for path in _paths(folder)}


def logged(client: MlflowClient, model_id: str) -> AbstractContextManager[Path]:
    """Local folder of a logged model, for as long as it is needed."""
    return _folder_at(client, client.get_logged_model(model_id).artifact_location)


@contextmanager
def verified(client: MlflowClient, version: ModelVersion, key: bytes) -> Iterator[Path]:
    """The artifact's folder of a version, after its signature and every file were verified; nothing is parsed.

    Raises:
        ModelRejected: says which file, or that the tags, are not what was signed.
    """
    from ml.artifact import verified as verified_artifact

    require_signature(key, version)
    with model_folder(client, version) as folder:
        require_wrapping(folder, version)
        verified_artifact(artifact_folder(folder), required_tag(version, MANIFEST_SHA256))
        yield artifact_folder(folder)


@contextmanager
def model_folder(client: MlflowClient, version: ModelVersion) -> Iterator[Path]:
    """Local folder with all files of a version, fetched for as long as it is needed where the store is remote.

    Raises:
        ModelRejected: the files are gone.
    """
    from mlflow.exceptions import MlflowException

    gone = f"the files of {version.name} version {version.version} are gone"
    try:
        location = client.get_model_version_download_uri(str(version.name), str(version.version))
        if location.startswith("models:/"):
            location = client.get_logged_model(str(version.model_id)).artifact_location
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            raise ModelRejected(gone) from error
        raise
    with _folder_at(client, location) as folder:
        if not folder.is_dir():
            raise ModelRejected(f"{gone} from {location}")
        yield folder


def required_tag(version: ModelVersion, tag: str) -> str:
    """The value of a tag.

    Raises:
        ModelRejected: the version has none.
    """
    if tag not in version.tags:
        raise ModelRejected(f"{version.name} version {version.version} has no tag {tag}; train it again")
    return str(version.tags[tag])


def artifact_folder(folder: Path) -> Path:
    """Where in the folder of a version the artifact of ``ml.artifact`` is."""
    # MLflow keeps it under the name it was logged from
    return folder / "data" / MODEL_FOLDER


def require_wrapping(folder: Path, version: ModelVersion) -> None:
    """Refuse files around the artifact (MLmodel, requirements and such) that are not those registered.

    Args:
        version: one whose signature was verified.

    Raises:
        ModelRejected: says which file is missing, surplus, linked or changed.
    """
    listed = json.loads(required_tag(version, WRAPPING))
    found = set(_paths(folder))
    for path in sorted(found ^ set(listed)):
        kind = "is missing from" if path in listed else "was put into"
        raise ModelRejected(f"{path} {kind} the folder of {version.name} version {version.version}; fetch it again")
    for path, wanted in listed.items():
        if (folder / path).is_symlink():
            raise ModelRejected(f"{path} of {version.name} version {version.version} is a link and not a file")
        measured = _measured(folder / path)
        if measured != wanted:
            raise ModelRejected(
                f"{path} of {version.name} version {version.version} has {measured['size']} bytes with sha256 "
                f"{measured['sha256']}; registered were {wanted['size']} and {wanted['sha256']}: it was changed"
            )


def _paths(folder: Path) -> list[str]:
    """Files under ``folder`` that are not the artifact's, as paths below it; links count as files."""
    ours = artifact_folder(folder)
    every = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    theirs = (path for path in every if ours != path.parent and path != folder / _META)
    return sorted(path.relative_to(folder).as_posix() for path in theirs)


def _measured(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    return {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}


@contextmanager
def _folder_at(client: MlflowClient, location: str) -> Iterator[Path]:
    import mlflow

    parsed = urlparse(location)
    if parsed.scheme in {"", "file"}:
        # in place: a copy would not show what is a link; and MLflow would write into it
        yield Path(unquote(parsed.path))
        return
    with tempfile.TemporaryDirectory(prefix="tradeflows-model-") as temporary:
        tracking = client._tracking_client.tracking_uri
        yield Path(mlflow.artifacts.download_artifacts(location, dst_path=temporary, tracking_uri=tracking))
