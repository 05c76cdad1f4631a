"""PostgreSQL, Redis and a MongoDB-protocol server as processes of one folder, for the wide stack on one machine.

Debian's packages ``postgresql`` and ``redis-server`` have the programs. Every password is made when it is first needed
and kept in a file that only its owner can read; it comes to the processes by their environment or a file, never by
a command line.
"""

from __future__ import annotations

import os
import secrets
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from deployments.stack_parts import LOOPBACK, free_port
from deployments.supervising import Part
from trading.errors import ConfigurationError

# where Debian keeps what it does not put on the path
POSTGRES_FOLDERS: Final = "/usr/lib/postgresql/*/bin"
POSTGRES_PROGRAMS: Final = ("postgres", "initdb", "pg_isready", "psql", "createdb")
# who PostgreSQL runs as where we are root, which it refuses to be
POSTGRES_USER: Final = "postgres"
OWNER: Final = "tradeflows"
DATABASES: Final = ("prefect", "mlflow")
# Debian's redis-server, and what speaks MongoDB's protocol for the tests
REDIS: Final = "redis-server"
MONGODB: Final = "secantusd-py"


def missing_programs() -> list[str]:
    """Which of the programs are not on this machine."""
    found = [name for name in POSTGRES_PROGRAMS if _postgres(name) is None]
    return found + [name for name in (REDIS,) if shutil.which(name) is None]


def secret(home: Path, name: str) -> str:
    """The password called ``name`` of a folder, made when first asked for."""
    path = home / "secrets" / name
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not path.exists():
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
    return path.read_text()


def postgres_parts(home: Path) -> tuple[list[Part], Mapping[str, str]]:
    """PostgreSQL with a database for Prefect and one for MLflow; and libpq's variables for who connects to it.

    Raises:
        ConfigurationError: the programs are not there, or root's folder cannot be entered by PostgreSQL's user.
    """
    folder, port = home / "postgres", free_port(0)
    login = {"PGHOST": LOOPBACK, "PGPORT": str(port), "PGUSER": OWNER, "PGPASSWORD": secret(home, "postgres")}
    _initialise(home, folder)
    server = _as_postgres(
        _required("postgres"), "-D", str(folder), "-p", str(port), "-c", f"listen_addresses={LOOPBACK}",
        "-c", "unix_socket_directories=", "-c", "max_connections=200",
    )  # fmt: skip
    ask = [_required("pg_isready"), "--quiet", "--host", LOOPBACK, "--port", str(port)]
    made = [
        Part("postgres", server, plain(), lambda _: subprocess.run(ask, check=False, env=plain()).returncode == 0)
    ]  # fmt: skip
    # a folder that was used before has them
    psql, createdb = shlex.quote(_required("psql")), shlex.quote(_required("createdb"))
    make = f"{psql} -tAc 'select 1' $name >/dev/null 2>&1 || {createdb} $name"
    script = f"for name in {' '.join(DATABASES)}; do {make} || exit 1; done"
    variables = {**plain(), **login}
    made.append(Part("databases", ("/bin/sh", "-c", script), variables, lambda _: True, after=("postgres",), once=True))
    return made, login


def redis_part(home: Path) -> tuple[Part, int]:
    """Redis, which keeps what it is told, and its port; the password is ``secret(home, "redis")``.

    Raises:
        ConfigurationError: the program is not there.
    """
    program = shutil.which(REDIS)
    if program is None:
        raise ConfigurationError(f"{REDIS} is not on the path; install it: apt-get install redis-server")
    folder, port = home / "redis", free_port(0)
    folder.mkdir(parents=True, exist_ok=True)
    file = home / "secrets" / "redis.conf"
    password = secret(home, "redis")
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as written:
        written.write(
            f'bind {LOOPBACK}\nport {port}\ndir "{folder}"\nappendonly yes\nrequirepass {password}\ndaemonize no\n'
        )

    def ready(_: float) -> bool:
        import redis

        with redis.Redis(host=LOOPBACK, port=port, password=password, socket_timeout=5) as client:
            try:
                return bool(client.ping())
            except redis.exceptions.ConnectionError:
                return False

    return Part("redis", (program, str(file)), plain(), ready), port


def mongodb_part(home: Path) -> tuple[Part, str]:
    """A MongoDB-protocol server for tests on this machine, and its address.

    Raises:
        ConfigurationError: it is not installed.
    """
    program = Path(sys.executable).with_name(MONGODB)
    if not program.exists():
        raise ConfigurationError(
            f"{MONGODB} is not installed (it comes with the development packages); set MONGODB_URL to a server"
        )
    folder, port = home / "mongodb", free_port(0)
    folder.mkdir(parents=True, exist_ok=True)
    # or it looks for one that may lie about
    empty = folder / "secantusd.toml"
    empty.touch()
    url = f"mongodb://{LOOPBACK}:{port}/tradeflows"
    command = (
        str(program), "--host", LOOPBACK, "--port", str(port), "--storage-path", str(folder / "data"),
        "--cache-size", "256M", "--log-level", "WARNING", "--config", str(empty),
    )  # fmt: skip

    def ready(_: float) -> bool:
        from pymongo import MongoClient
        from pymongo.errors import PyMongoError

        with MongoClient(url, serverSelectionTimeoutMS=1000) as client:
            try:
                return bool(client.admin.command("ping")["ok"])
            except PyMongoError:
                return False

    return Part("mongodb", command, plain(), ready), url


def plain() -> dict[str, str]:
    """The environment of a program that is no business of ours: none of our settings and secrets."""
    return {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TZ", "TMPDIR") if name in os.environ}


def _initialise(home: Path, folder: Path) -> None:
    if (folder / "PG_VERSION").exists():
        return
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if os.geteuid() == 0:
        shutil.chown(folder, POSTGRES_USER, POSTGRES_USER)
        entered = subprocess.run(_as_postgres("/usr/bin/test", "-w", str(folder)), check=False, env=plain())
        if entered.returncode:
            raise ConfigurationError(
                f"PostgreSQL does not run as root, and its user {POSTGRES_USER} cannot enter {folder}; take a "
                "--home below folders that everybody may enter (mode 0711), or run this as another user"
            )
    with tempfile.NamedTemporaryFile("w") as file:
        file.write(secret(home, "postgres"))
        file.flush()
        if os.geteuid() == 0:
            shutil.chown(file.name, POSTGRES_USER)
        command = _as_postgres(
            _required("initdb"), "-D", str(folder), "--username", OWNER, "--auth", "scram-sha-256", "--encoding",
            "UTF8", "--locale", "C.UTF-8", "--pwfile", file.name,
        )  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/", env=plain())
    if done.returncode:
        raise ConfigurationError(f"initdb failed: {done.stderr.strip()[-500:]}")


def _as_postgres(*command: str) -> tuple[str, ...]:
    if os.geteuid() != 0:
        return command
    return ("setpriv", "--reuid", POSTGRES_USER, "--regid", POSTGRES_USER, "--init-groups", "--", *command)


def _postgres(name: str) -> str | None:
    """The program, from the newest version that Debian has put beside the path."""
    beside = sorted(Path("/").glob(POSTGRES_FOLDERS[1:]), key=lambda path: int(path.parent.name), reverse=True)
    return shutil.which(name, path=os.pathsep.join([*map(str, beside), os.environ.get("PATH", os.defpath)]))


def _required(name: str) -> str:
    found = _postgres(name)
    if found is None:
        raise ConfigurationError(f"PostgreSQL's {name} is not on this machine; install it: apt-get install postgresql")
    return found
