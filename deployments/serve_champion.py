"""The champion that is served: verified before it is loaded, and changed for its successor once there is one.

It is answered with from memory: after verification no file is read again, so that nobody can change what is served.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from tasks import log, models, registry
from tasks.models import Champion
from tasks.settings import Settings
from tasks.signing import signing_key
from trading.calendars import require_calendar
from trading.errors import ModelError, ModelNotFound, ModelRejected, TradeflowsError

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from tasks.store import Store


@dataclass(frozen=True)
class Served:
    """What there is to answer with.

    Attributes:
        champion: None where no version may be used; ``trouble`` says why.
        alias: the version that the alias named when ``champion`` was chosen; another one where that did not verify.
        since: when it was verified and loaded (UTC).
        checked: when the registry was last asked (UTC).
        trouble: why there is none, or why the registry did not answer at ``checked``.
    """

    name: str
    champion: Champion | None
    alias: str | None
    since: datetime
    checked: datetime
    trouble: str | None = None


class ChampionWatch:
    """The champion of one registered model; ``current`` is replaced as a whole, so that readers need no lock."""

    def __init__(
        self,
        client: MlflowClient,
        settings: Settings,
        store: Store,
        name: str,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Verify and load it.

        Raises:
            ModelNotFound: there is no champion.
            ModelRejected: neither it nor the previous version is what was registered.
            ConfigurationError: there is no key to verify with.
        """
        self._client, self._settings, self._store, self._name = client, settings, store, name
        self._clock = clock
        self._one_at_a_time = threading.Lock()
        self.current = self._loaded()

    def refresh(self) -> bool:
        """Take the successor, where the alias names another version by now; whether that was so.

        Likewise a version that did not verify and does by now, such as a champion whose files were away. A champion
        that was withdrawn, or whose successor does not verify, is not answered with any more. While the registry does
        not answer, the verified one stays, and ``trouble`` says so.
        """
        from mlflow.exceptions import MlflowException

        with self._one_at_a_time:
            before, now = self.current, self._clock()
            try:
                named = registry.version_of(self._client, self._name, registry.CHAMPION)
                same = named is not None and str(named.version) == before.alias
                if same and not self._verifies_now(before):
                    self.current = replace(before, checked=now, trouble=before.trouble if not before.champion else None)
                    return False
                self.current = self._loaded()
            except ModelError as error:
                log.logger().error("no model is served", model=self._name, reason=str(error))
                alias = str(named.version) if named is not None else None
                self.current = Served(self._name, None, alias, now, now, str(error))
            except (MlflowException, TradeflowsError, OSError) as error:
                log.logger().warning("registry does not answer", model=self._name, reason=str(error))
                trouble = f"the registry does not answer: {error}" if before.champion else before.trouble
                self.current = replace(before, checked=now, trouble=trouble)
                return False
        return True

    def _verifies_now(self, before: Served) -> bool:
        """Whether a version that ``before`` had to do without would verify; without an alert where it does not."""
        if before.champion is not None and before.champion.degraded is None:
            return False
        key = signing_key(self._settings)
        for alias in (registry.CHAMPION, registry.PREVIOUS):
            version = registry.version_of(self._client, self._name, alias)
            if version is None or (before.champion is not None and str(version.version) == before.champion.version):
                continue
            try:
                models.load(self._client, self._settings, version, key)
            except ModelRejected:
                continue
            return True
        return False

    def _loaded(self) -> Served:
        now = self._clock()
        named = registry.require_champion(self._client, self._name)
        found = models.champion(self._client, self._settings, self._name, store=self._store, now=now)
        if found.model.calendar is not None:
            # the first answer would wait a second for it
            require_calendar(found.model.calendar)
        # where it fell back, or somebody promoted meanwhile, the alias says another number
        alias = found.version if found.degraded is None else str(named.version)
        return Served(self._name, found, alias, now, now)


def require(served: Served) -> Champion:
    """The champion.

    Raises:
        ModelNotFound: there is none that may be used.
    """
    if served.champion is None:
        raise ModelNotFound(f"no version of {served.name} can be served: {served.trouble}")
    return served.champion
