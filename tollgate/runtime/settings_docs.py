"""Settings as documentation: the same classes that read the environment, as Markdown and as an example file.

Owns the wording of a setting for a reader. It refuses to know any particular service: it is given classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, SecretStr
from pydantic_core import PydanticUndefined

from tollgate.runtime.settings import ServiceSettings, also_from, env_name, leaves


@dataclass(frozen=True, slots=True)
class SettingDoc:
    """One setting as the documentation shows it. `default` is None where a value is required."""

    env: str
    also: tuple[str, ...]
    type: str
    default: str | None
    description: str
    secret: bool


def describe_settings(cls: type[ServiceSettings]) -> list[SettingDoc]:
    """Every setting of `cls`, in the order of the class. Raises ValueError for one without a description."""
    documented = []
    for path, field in leaves(cls):
        if not field.description:
            raise ValueError(f"{cls.__name__}: {'.'.join(path)} has no description")
        kind = _type_words(field.annotation)
        documented.append(
            SettingDoc(
                env=env_name(path),
                also=tuple(also_from(field)),
                type=kind,
                default=_default_words(_default_of(cls, path)),
                description=field.description,
                secret=kind == "secret text",
            )
        )
    return documented


def _default_of(model: type[BaseModel], path: tuple[str, ...]) -> object:
    """The default in force at `path`: that of the outermost group which has one."""
    field = model.model_fields[path[0]]
    default = field.get_default(call_default_factory=True)
    if len(path) == 1:
        return default
    if isinstance(default, BaseModel):
        for name in path[1:]:
            default = getattr(default, name)
        return default
    assert isinstance(field.annotation, type)
    return _default_of(field.annotation, path[1:])


def _default_words(default: object) -> str | None:
    if default is PydanticUndefined:
        return None
    if default is None:
        return ""
    if isinstance(default, SecretStr):
        return default.get_secret_value()
    if isinstance(default, bool):
        return "true" if default else "false"
    if isinstance(default, (list, tuple, set, frozenset, Mapping)):
        return "" if not default else ", ".join(map(str, default))
    return str(default)


_TYPE_WORDS: Mapping[object, str] = {
    str: "text",
    int: "integer",
    float: "number",
    bool: "true or false",
    SecretStr: "secret text",
    Path: "path",
}


def _type_words(annotation: Any) -> str:
    """An annotation as words: `SecretStr | None` is "secret text"."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return "one of " + ", ".join(str(choice) for choice in arguments)
    if origin is Annotated:
        return _type_words(arguments[0])
    if origin in (list, tuple, set, frozenset):
        return "JSON list of " + _type_words(arguments[0])
    if origin is dict:
        return "JSON object"
    if arguments:
        return " or ".join(_type_words(part) for part in arguments if part is not type(None))
    return _TYPE_WORDS.get(annotation, getattr(annotation, "__name__", str(annotation)))


def render_markdown(shared: Sequence[SettingDoc], services: Mapping[str, Sequence[SettingDoc]]) -> str:
    """docs/configuration.md: what all services share, then what each adds or presets otherwise."""
    lines = [
        "# Configuration",
        "",
        "Generated from the settings classes; do not edit. Every setting is an environment variable. Mistakes are",
        "reported all at once when a service starts, which then exits with code 2.",
        "",
        "## Every service",
        "",
        *_markdown_table(shared),
    ]
    for service, settings in services.items():
        own = _own(shared, settings)
        if own:
            lines += ["", f"## {service}", "", *_markdown_table(own)]
    return "\n".join(lines) + "\n"


def render_env(shared: Sequence[SettingDoc], services: Mapping[str, Sequence[SettingDoc]]) -> str:
    """.env.example: every setting, commented out at its default, so that copying the file changes nothing."""
    lines = ["# Generated from the settings classes; do not edit. Uncomment what you change.", ""]
    lines += ["# --- every service", "", *_env_lines(shared)]
    for service, settings in services.items():
        own = _own(shared, settings)
        if own:
            lines += [f"# --- {service}", "", *_env_lines(own)]
    return "\n".join(lines).rstrip("\n") + "\n"


def _own(shared: Sequence[SettingDoc], settings: Sequence[SettingDoc]) -> list[SettingDoc]:
    """Those of `settings` that say something `shared` does not."""
    return [setting for setting in settings if setting not in shared]


def _markdown_table(settings: Sequence[SettingDoc]) -> list[str]:
    rows = ["| variable | type | default | meaning |", "|---|---|---|---|"]
    for setting in settings:
        names = " or ".join(f"`{name}`" for name in (setting.env, *setting.also))
        default = "required" if setting.default is None else f"`{setting.default}`" if setting.default else ""
        cells = (names, setting.type, default, setting.description)
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return rows


def _env_lines(settings: Sequence[SettingDoc]) -> list[str]:
    lines = []
    for setting in settings:
        lines.append(f"# {setting.description}")
        facts = [setting.type, *(["required"] if setting.default is None else [])]
        facts += [f"also accepted: {name}" for name in setting.also]
        lines.append(f"# ({'; '.join(facts)})")
        lines += [f"# {setting.env}={setting.default or ''}", ""]
    return lines
