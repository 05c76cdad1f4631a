"""The artifact: it comes back as it was, or not at all."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pandas as pd
import pytest

import ml.model
from ml.artifact import MANIFEST, SavedModel, code_digest, load, lock_digest, save, verified
from ml.estimators import ESTIMATORS, Fitted
from ml.features import FeatureSet
from ml.labels import LabelDefinition
from ml.signals import SignalRule
from ml.training import TrainingTable, assemble, fit_final
from trading.errors import InvalidRequest, ModelRejected
from trading.window import Timeframe

SET = FeatureSet(ema=(9, 21), rsi=7, atr=7, adx=5, macd=(5, 10, 4))
LABEL = LabelDefinition(horizon=4)
LOCK = Path(__file__).resolve().parents[2] / "requirements.lock"


@dataclass(frozen=True)
class Case:
    folder: Path
    saved: SavedModel
    fitted: Fitted
    rule: SignalRule


@pytest.fixture(scope="module")
def table(predictable: pd.DataFrame) -> TrainingTable:
    return assemble({"MOM": predictable.iloc[:2000]}, SET, LABEL)


def _saved(table: TrainingTable, name: str, folder: Path) -> Case:
    fitted, rule = fit_final(table, name, 1)
    saved = save(
        folder, fitted, feature_set=SET, label=LABEL, rule=rule, timeframe=Timeframe.H1,
        dataset_digest=table.digest, metadata={"data_mode": "simulated"},
    )  # fmt: skip
    return Case(folder, saved, fitted, rule)


@pytest.fixture(scope="module")
def cases(table: TrainingTable, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Path], Case]:
    """A copy of the model of that name; each is fitted once."""
    made: dict[str, Case] = {}

    def copy(name: str, folder: Path) -> Case:
        if name not in made:
            made[name] = _saved(table, name, tmp_path_factory.mktemp(name) / "model")
        shutil.copytree(made[name].folder, folder)
        return replace(made[name], folder=folder)

    return copy


@pytest.fixture(params=list(ESTIMATORS))
def case(request: pytest.FixtureRequest, cases: Callable[[str, Path], Case], tmp_path: Path) -> Case:
    return cases(request.param, tmp_path / "model")


@pytest.fixture
def trees(cases: Callable[[str, Path], Case], tmp_path: Path) -> Case:
    return cases("lightgbm", tmp_path / "model")


def test_what_comes_back_predicts_as_what_was_trained(
    case: Case, table: TrainingTable, predictable: pd.DataFrame
) -> None:
    model = load(case.folder, case.saved.sha256)
    found = model.probabilities(predictable.iloc[:2000])[: -LABEL.future_rows]
    np.testing.assert_array_equal(found, case.fitted.predict_proba(table.x))
    assert (model.rule, model.label, model.feature_set) == (case.rule, LABEL, SET)


def test_the_manifest_says_all_there_is_to_know(case: Case, table: TrainingTable) -> None:
    manifest = case.saved.manifest
    assert manifest == json.loads((case.folder / MANIFEST).read_text())
    assert set(manifest["files"]) == {path.name for path in case.folder.iterdir()} - {MANIFEST}
    assert manifest["dataset_digest"] == table.digest
    assert manifest["code_digest"] == code_digest()
    assert manifest["lock_digest"] == lock_digest() == sha256(LOCK.read_bytes()).hexdigest()
    assert manifest["code_version"] == version("tradeflows")
    for name, listed in manifest["files"].items():
        data = (case.folder / name).read_bytes()
        assert listed == {"sha256": sha256(data).hexdigest(), "size": len(data)}
    assert manifest["input"]["rows_needed"] == SET.rows_needed
    assert (manifest["input"]["calendar"], manifest["input"]["gaps_tolerated"]) == ("24/7", 0)
    assert manifest["features"]["version"] == SET.version
    assert manifest["metadata"] == {"data_mode": "simulated"}


def test_equal_models_have_equal_manifests(table: TrainingTable, tmp_path: Path) -> None:
    assert _saved(table, "lightgbm", tmp_path / "a").saved == _saved(table, "lightgbm", tmp_path / "b").saved


def test_one_changed_byte_in_any_file_is_refused_by_name_and_never_parsed(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    def parsed(*_: object) -> NoReturn:
        raise AssertionError("parsed before it was verified")

    monkeypatch.setattr("ml.artifact.estimator", parsed)
    for path in sorted(case.folder.iterdir()):
        whole = path.read_bytes()
        for at in (0, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
            with pytest.raises(ModelRejected, match=path.name):
                load(case.folder, case.saved.sha256)
        path.write_bytes(whole[:-1])
        with pytest.raises(ModelRejected, match=path.name):
            load(case.folder, case.saved.sha256)
        path.write_bytes(whole)


def test_a_missing_surplus_or_linked_file_is_refused(trees: Case) -> None:
    booster = trees.folder / "booster.txt"
    whole = booster.read_bytes()
    (trees.folder / "code.py").write_text("print('hello')")
    with pytest.raises(ModelRejected, match=r"code\.py"):
        load(trees.folder)
    (trees.folder / "code.py").unlink()
    booster.rename(trees.folder.parent / "elsewhere.txt")
    with pytest.raises(ModelRejected, match=r"booster\.txt is missing"):
        load(trees.folder)
    booster.symlink_to(trees.folder.parent / "elsewhere.txt")
    with pytest.raises(ModelRejected, match=r"booster\.txt"):
        load(trees.folder)
    booster.unlink()
    booster.write_bytes(whole)
    assert load(trees.folder).fitted.name == "lightgbm"
    booster.unlink()
    os.mkfifo(booster)  # would keep whoever reads it waiting for ever
    with pytest.raises(ModelRejected, match=r"booster\.txt"):
        load(trees.folder)
    booster.unlink()
    booster.write_bytes(whole)
    with pytest.raises(ModelRejected, match=r"manifest\.json is missing"):
        load(trees.folder.parent / "nowhere")


def test_another_whole_model_is_refused_where_the_manifest_is_known(trees: Case) -> None:
    assert load(trees.folder, trees.saved.sha256)
    with pytest.raises(ModelRejected, match="was registered"):
        load(trees.folder, "0" * 64)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: m.update(schema=1), "schema"),
        (lambda m: m.update(files=[]), "schema"),
        (lambda m: m.update(estimator="oracle"), "oracle"),
        (lambda m: m["features"].update(version="features-0"), "features-0"),
        (lambda m: m["features"]["definition"].update(rsi=8), "this code computes"),
        (lambda m: m["label"].update(definition={}), "label definition"),
        (lambda m: m.update(probe=[0.2, 0.3, 0.5]), "probe"),
        (lambda m: m.pop("probe"), "probe"),
        (lambda m: m["input"].update(timeframe="7h"), "7h"),
        (lambda m: m["files"].update({"../x": {"sha256": "", "size": 0}}), "plain file name"),
    ],
)
def test_a_manifest_that_this_code_cannot_honour_is_refused(
    trees: Case, change: Callable[[dict[str, Any]], object], said: str
) -> None:
    manifest = json.loads((trees.folder / MANIFEST).read_text())
    change(manifest)
    (trees.folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(ModelRejected, match=said):
        load(trees.folder)


def test_a_feature_that_changed_its_arithmetic_is_noticed_by_the_probe(
    trees: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = ml.model.features
    monkeypatch.setattr(ml.model, "features", lambda *asked: -real(*asked))
    with pytest.raises(ModelRejected, match="probe"):
        load(trees.folder, trees.saved.sha256)


def test_files_can_be_verified_without_being_parsed(trees: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    found = verified(trees.folder, trees.saved.sha256)
    assert found.manifest == trees.saved.manifest
    assert found.files == {name: (trees.folder / name).read_bytes() for name in found.manifest["files"]}
    # a text that makes LightGBM end the process shows that nobody gave it to LightGBM
    (trees.folder / "booster.txt").write_bytes(found.files["booster.txt"].replace(b"num_leaves=", b"num_leaves=9", 1))
    with pytest.raises(ModelRejected, match=r"booster\.txt has"):
        load(trees.folder, trees.saved.sha256)


def test_a_scaler_that_was_taken_out_is_missed_whoever_rewrote_the_manifest(
    cases: Callable[[str, Path], Case], tmp_path: Path
) -> None:
    linear = cases("logistic", tmp_path / "model")
    numbers = linear.folder / "estimator.json"
    whole, manifest = numbers.read_bytes(), json.loads((linear.folder / MANIFEST).read_text())
    numbers.unlink()
    with pytest.raises(ModelRejected, match=r"estimator\.json is missing"):
        load(linear.folder, linear.saved.sha256)
    without = {key: value for key, value in json.loads(whole).items() if key not in {"means", "scales"}}
    assert len(without) == len(json.loads(whole)) - 2
    numbers.write_text(json.dumps(without))
    with pytest.raises(ModelRejected, match=r"estimator\.json has"):
        load(linear.folder, linear.saved.sha256)
    data = numbers.read_bytes()
    manifest["files"]["estimator.json"] = {"sha256": sha256(data).hexdigest(), "size": len(data)}
    (linear.folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(ModelRejected, match=r"manifest\.json has sha256"):
        load(linear.folder, linear.saved.sha256)
    with pytest.raises(ModelRejected, match=r"estimator\.json lacks"):
        load(linear.folder)


def test_nothing_is_pickled_on_the_way_in_or_out(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> NoReturn:
        raise AssertionError("pickle")

    for name in ("load", "loads", "dump", "dumps", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    assert load(case.folder, case.saved.sha256).rows_needed == SET.rows_needed


def test_saving_into_a_folder_in_use_or_with_strange_metadata_is_refused(trees: Case, tmp_path: Path) -> None:
    def again(folder: Path, metadata: dict[str, object]) -> SavedModel:
        return save(
            folder, trees.fitted, feature_set=SET, label=LABEL, rule=trees.rule, timeframe=Timeframe.H1,
            dataset_digest="x", metadata=metadata,
        )  # fmt: skip

    with pytest.raises(InvalidRequest, match="not empty"):
        again(trees.folder, {})
    with pytest.raises(InvalidRequest, match="JSON"):
        again(tmp_path / "b", {"when": float("nan")})
    assert list((tmp_path / "b").iterdir()) == []


def test_importing_the_loader_is_cheap() -> None:
    heavy = "{'mlflow', 'lightgbm', 'sklearn', 'matplotlib', 'prefect', 'numba'}"
    modules = "ml.artifact, ml.serving, ml.training, ml.promotion, ml.plots"
    code = f"import sys, {modules}; sys.exit(str(set(sys.modules) & {heavy}))"
    root = Path(ml.model.__file__).resolve().parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert done.stderr.strip() == "set()"
