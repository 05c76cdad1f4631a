"""What a warm worker's flow runs find imported. No thread may start here: a fork would not have it."""

from __future__ import annotations

import gc
import importlib

from deployments import declared
from tasks import environment
from tasks.settings import load_settings

environment.prepare(load_settings().home)
for one in declared.read():
    declared.flow_of(one.entrypoint)
# what the flows import when they come to need it
for name in ("mlflow", "mlflow.lightgbm", "lightgbm", "talib"):
    importlib.import_module(name)
# a fork's first collection would write into every object here, and so copy 95 MiB of what it shares with the others
gc.collect()
gc.freeze()
