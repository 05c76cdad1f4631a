"""``mlflow`` with authentication, started as ``python -m deployments.auth_mlflow server ...``.

MLflow takes its administrator's password from the environment once, when it makes the account. Here it is held to the
environment at each start: another password there is the password from then on, and the old one opens nothing.
"""

from __future__ import annotations

import os

from deployments import mlflow_server


def main() -> None:
    """Hold the account to the environment, then be MLflow's command line."""
    # readable by nobody else, as all that MLflow will make
    os.umask(0o077)
    require_own_password()
    mlflow_server.main()


def require_own_password() -> None:
    """Make the password of the environment the administrator's, where there is an account already."""
    from mlflow.environment_variables import MLFLOW_AUTH_ADMIN_PASSWORD, MLFLOW_AUTH_ADMIN_USERNAME
    from mlflow.server.auth.config import read_auth_config
    from mlflow.server.auth.sqlalchemy_store import SqlAlchemyStore

    user, password = MLFLOW_AUTH_ADMIN_USERNAME.get(), MLFLOW_AUTH_ADMIN_PASSWORD.get()
    store = SqlAlchemyStore()
    store.init_db(read_auth_config().database_uri)
    if store.has_user(user) and not (store.authenticate_user(user, password) and store.get_user(user).is_admin):
        store.update_user(user, password=password, is_admin=True)


if __name__ == "__main__":
    main()
