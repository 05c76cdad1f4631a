"""Secrets from files: ``<VARIABLE>_FILE`` names a file with what ``<VARIABLE>`` would hold, as with Docker's secrets.

This is so for every setting that is a ``SecretStr``, under each of its names.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final, get_args

from pydantic import AliasChoices, SecretStr
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource

from trading.errors import ConfigurationError

SUFFIX: Final = "_FILE"
LARGEST: Final = 64 * 1024


def secret_fields(settings: type[BaseSettings]) -> dict[str, tuple[str, ...]]:
    """The environment variables of each secret setting; ``SUFFIX`` makes the names of their files."""
    prefix = str(settings.model_config.get("env_prefix", ""))
    return {
        name: tuple(map(str, field.validation_alias.choices))
        if isinstance(field.validation_alias, AliasChoices)
        else (prefix + name.upper(),)
        for name, field in settings.model_fields.items()
        if SecretStr in (field.annotation, *get_args(field.annotation))
    }


class SecretFiles(PydanticBaseSettingsSource):
    """Reads the files when the settings are made.

    Raises:
        ConfigurationError: a secret is given both ways or twice, a path is not absolute, or a file cannot be read, is
            empty or no text; names variable and file, never what is in it.
    """

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """The text of a secret setting's file, None where there is none."""
        names = secret_fields(self.settings_cls)[field_name]
        files = [name + SUFFIX for name in names if os.environ.get(name + SUFFIX)]
        plain = [name for name in names if os.environ.get(name)]
        if files and len(files) + len(plain) > 1:
            raise ConfigurationError(f"{' and '.join([*files, *plain])} are both set; unset all but one")
        # where names are given, pydantic knows the field by them alone
        key = names[0] if isinstance(field.validation_alias, AliasChoices) else field_name
        return (_read(files[0], Path(os.environ[files[0]])) if files else None), key, False

    def __call__(self) -> dict[str, Any]:
        """All that were found."""
        fields = self.settings_cls.model_fields
        found = [self.get_field_value(fields[name], name) for name in secret_fields(self.settings_cls)]
        return {key: value for value, key, _ in found if value is not None}


def _read(variable: str, path: Path) -> str:
    if not path.is_absolute():
        raise ConfigurationError(f"{variable} is {path}; write the whole path, for not every process starts here")
    try:
        with path.open("rb") as file:
            text = file.read(LARGEST + 1).decode().strip()
    except OSError as error:
        raise ConfigurationError(f"{variable} names {path}, which cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"{variable} names {path}, which is no UTF-8 text") from None
    if not text or len(text) > LARGEST:
        raise ConfigurationError(f"{variable} names {path}, which {'is too large' if text else 'is empty'}")
    return text
