"""The artifact: it comes back as it was, or not at all."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pandas as pd
import pytest

import ml.features
from ml.artifact import MANIFEST, SavedModel, _load_pyfunc, code_digest, load, save
from ml.estimators import ESTIMATORS, Fitted
from ml.features import FeatureSet
from ml.labels import LabelDefinition
from ml.model import Model
from ml.signals import SignalRule
from ml.training import TrainingTable, assemble, fit_final
from trading.analysis import Signal
from trading.errors import CandleContractError, InsufficientHistory, InvalidRequest, ModelRejected
from trading.window import Timeframe

SET = FeatureSet(ema=(9, 21), rsi=7, atr=7, adx=5, macd=(5, 10, 4))
LABEL = LabelDefinition(horizon=4)


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


@pytest.fixture(params=list(ESTIMATORS))
def case(request: pytest.FixtureRequest, table: TrainingTable, tmp_path: Path) -> Case:
    return _saved(table, request.param, tmp_path / "model")


@pytest.fixture
def trees(table: TrainingTable, tmp_path: Path) -> Case:
    return _saved(table, "lightgbm", tmp_path / "model")


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
    assert manifest["input"]["rows_needed"] == SET.rows_needed
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
    with pytest.raises(ModelRejected, match=r"manifest\.json is missing"):
        load(trees.folder.parent / "nowhere")


def test_another_whole_model_is_refused_where_the_manifest_is_known(trees: Case) -> None:
    assert load(trees.folder, trees.saved.sha256)
    with pytest.raises(ModelRejected, match="was registered"):
        load(trees.folder, "0" * 64)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: m.update(schema=2), "schema"),
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
    monkeypatch.setattr(ml.features, "_log_returns", lambda close, bars: np.full(len(close), 0.05))
    with pytest.raises(ModelRejected, match="probe"):
        load(trees.folder, trees.saved.sha256)


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
    code = f"import sys, ml.artifact, ml.training, ml.promotion, ml.plots; sys.exit(str(set(sys.modules) & {heavy}))"
    root = Path(ml.features.__file__).resolve().parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert done.stderr.strip() == "set()"


# --- a model in use -------------------------------------------------------------------------------


def test_a_prediction_reads_like_one(trees: Case, predictable: pd.DataFrame) -> None:
    model = load(trees.folder)
    found = [model.predict(predictable.iloc[:end]) for end in range(2000, 2200, 7)]
    assert {one.signal for one in found} == set(Signal)
    for one in found:
        assert one.p_short + one.p_neutral + one.p_long == pytest.approx(1)
        assert one.confidence == {"Short": one.p_short, "Neutral": one.p_neutral, "Long": one.p_long}[one.signal]
        assert one.reasons[0].endswith(one.signal)
        assert len(one.reasons) == 4
    assert found[0].open_time == predictable.index[1999]


def test_shadow_replays_the_backtest(trees: Case, predictable: pd.DataFrame) -> None:
    model = load(trees.folder)
    candles = predictable.iloc[1700:2300]
    targets = model.targets(candles)
    assert targets.dtype == np.int8
    assert (targets[: model.rows_needed - 1] == 0).all()
    for at in range(model.rows_needed - 1, len(candles), 5):
        live = model.predict(candles.iloc[at + 1 - model.rows_needed : at + 1])
        assert live.signal.direction == targets[at]
    assert set(targets) == {-1, 0, 1}
    np.testing.assert_array_equal(model.targets(candles, short_allowed=False), np.maximum(targets, 0))


def test_the_future_does_not_change_targets(trees: Case, predictable: pd.DataFrame) -> None:
    model = load(trees.folder)
    whole = model.targets(predictable)
    np.testing.assert_array_equal(model.targets(predictable.iloc[:2500]), whole[:2500])


def test_candles_that_do_not_fit_are_refused(trees: Case, predictable: pd.DataFrame) -> None:
    model: Model = load(trees.folder)
    candles = predictable.iloc[:400]
    assert model.predict(candles)
    gap = candles.drop(index=candles.index[100:150])
    assert model.predict(gap).open_time == candles.index[-1]
    with pytest.raises(InsufficientHistory, match=rf"needs {model.rows_needed} 1h candles and there are 50"):
        model.predict(candles.iloc[:50])
    holed = candles.copy()
    holed.iloc[5, 2] = np.nan
    wrong = {
        "volume": candles.drop(columns="volume"),
        "impossible": holed,
        "increasing": candles.iloc[::-1],
        "at least 120 minutes": predictable.iloc[::2],
        "float64": candles.astype({"volume": "int64"}),
        "index": candles.reset_index(drop=True),
    }
    for said, frame in wrong.items():
        for use in (model.predict, model.predict_all, model.targets):
            with pytest.raises(CandleContractError, match=said):
                use(frame)


def test_mlflow_may_ask_with_a_column_of_times_text_or_milliseconds(trees: Case, predictable: pd.DataFrame) -> None:
    served = _load_pyfunc(str(trees.folder))
    candles = predictable.iloc[:400]
    expected = load(trees.folder).predict(candles)
    plain = candles.reset_index()
    stamps = pd.DatetimeIndex(plain["open_time"])
    asked = [
        candles,
        plain,
        plain.assign(open_time=[stamp.isoformat() for stamp in stamps]),
        plain.assign(open_time=stamps.asi8),
        plain.assign(open_time=stamps.tz_convert("Asia/Tokyo")),
    ]
    for frame in asked:
        row = served.predict(frame)
        assert len(row) == 1
        assert row["signal"].item() == expected.signal.value
        assert row["p_long"].item() == expected.p_long
        assert row["open_time"].item() == expected.open_time.isoformat()
        json.loads(row.to_json(orient="records"))
    for frame, said in (
        (plain.assign(open_time=stamps.tz_localize(None)), "time zone"),
        (plain.drop(columns="open_time"), "no open_time"),
        (plain.drop(columns="close"), "close"),
        (plain.assign(open_time="yesterday or so"), "cannot be read"),
        (plain.assign(open_time=plain["open_time"].where(plain.index > 0)), "missing in some rows"),
    ):
        with pytest.raises(CandleContractError, match=said):
            served.predict(frame)
    with pytest.raises(InvalidRequest, match="temperature"):
        served.predict(candles, {"temperature": 1})
