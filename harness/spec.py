"""From a recipe and ``key=value`` words to frozen, validated specs, with every error at once."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic import ValidationError, create_model

from harness.documents import parse_yaml, quoted, read_yaml
from harness.errors import UNSEEN, UsageError, did_you_mean
from harness.paths import configs_dir
from harness.registry import task_info
from harness.schema import Section, Spec

_RANGE = re.compile(r"^(-?\d+)\.\.(-?\d+)$")
_WHOLE = re.compile(r"0|-?[1-9][0-9]{0,15}")
_NEVER_SWEPT = ("data", "data.root", "init", "init.source")  # paths may hold commas
_BUILT_IN = ("task", "preset")
"""Fields of a spec that are no keys; ``preset=`` names the recipe all the same."""
_MOST_RUNS = 100_000
"""Of one sweep; more is a slip of the hand that would fill the memory."""


@cache
def spec_class(task: str) -> type[Spec]:
    """Return ``Spec`` with the task's own sections in place."""
    info = task_info(task)
    sections: dict[str, Any] = {
        "model": (info.model, ...),
        "data": (info.data, info.data()),
        "loss": (info.loss, info.loss()),
    }
    return create_model(f"{task.title()}Spec", __base__=Spec, **sections)


def _section_of(annotation: Any) -> type[Section] | None:
    return annotation if isinstance(annotation, type) and issubclass(annotation, Section) else None


@cache
def keys(task: str) -> dict[str, str]:
    """Return every dotted key of a task with its description (sections included)."""

    def walk(section: type[Section], prefix: str) -> Iterator[tuple[str, str]]:
        for name, field in section.model_fields.items():
            if name in _BUILT_IN:
                continue
            yield prefix + name, field.description or ""
            if inner := _section_of(field.annotation):
                yield from walk(inner, f"{prefix}{name}.")

    return dict(walk(spec_class(task), ""))


def presets(task: str) -> list[str]:
    """Return the names of a task's recipes."""
    return sorted(path.stem for path in (configs_dir() / task).glob("*.yaml"))


@lru_cache(maxsize=64)
def _read_recipe(path: Path, _changed: int) -> dict[str, Any]:
    try:
        content = read_yaml(path)
    except ValueError as error:
        raise UsageError(f"recipe {path}: {error}") from None
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise UsageError(f"recipe {path} is not a mapping of keys to values")
    if named := [key for key in _BUILT_IN if key in content]:
        raise UsageError(f"recipe {path}: {named[0]} is told by the place of its file, not in it")
    return content


def recipe(task: str, preset: str) -> dict[str, Any]:
    """Read ``configs/<task>/<preset>.yaml``, following ``extends``.

    Raises:
        UsageError: if there is no such preset, or its file is no recipe.
    """
    files: list[tuple[Path, int]] = []
    heirs: list[str] = []
    following: str | None = preset
    while following is not None:
        path = _recipe_file(task, following)
        if following in heirs:
            raise UsageError(f"recipe {path} extends itself, by {' and '.join(heirs)}")
        heirs.append(following)
        files.insert(0, (path, path.stat().st_mtime_ns))
        parent = _read_recipe(*files[0]).get("extends")
        following = None if parent is None else str(parent)
    return dict(_laid_on_each_other(task, tuple(files)))


def _recipe_file(task: str, preset: str) -> Path:
    path = configs_dir() / task / f"{preset}.yaml"
    if not re.fullmatch(r"[\w-]+", preset) or not path.is_file():
        known = presets(task)
        raise UsageError(
            f"unknown preset {preset!r} of {task}.{did_you_mean(preset, known)} "
            f"Presets: {', '.join(known)}"
        )
    return path


@lru_cache(maxsize=64)
def _laid_on_each_other(task: str, files: tuple[tuple[Path, int], ...]) -> dict[str, Any]:
    """Merge recipes, each over those before it; nobody may change what comes out."""
    content: dict[str, Any] = {}
    for path, changed in files:
        own = {k: v for k, v in _read_recipe(path, changed).items() if k != "extends"}
        content = _merge(spec_class(task), content, own)
    return content


def _merge(section: type[Section], base: Mapping[str, Any], over: Any) -> dict[str, Any]:
    """Lay ``over`` (a mapping or a shorthand) on ``base``, section by section."""
    over = section.expand(over)
    if not isinstance(over, Mapping):
        raise UsageError(f"{quoted(over)} is not a group of keys")
    merged = dict(base)
    for key, value in over.items():
        field = section.model_fields.get(key)
        inner = _section_of(field.annotation) if field else None
        if inner is None or (not isinstance(value, Mapping) and inner.expand(value) is value):
            merged[key] = value
        else:
            earlier = merged.get(key)  # which may be no group: the later word wins
            merged[key] = _merge(inner, earlier if isinstance(earlier, Mapping) else {}, value)
    return merged


def parse_words(words: Sequence[str]) -> list[tuple[str, str]]:
    """Split ``key=value`` words.

    Raises:
        UsageError: naming the word that has no ``=``, or holds what no record may hold.
    """
    pairs = []
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise UsageError(f"{quoted(word)} is not of the form key=value")
        if UNSEEN.search(word):
            raise UsageError(
                f"{quoted(word)} holds control characters, or is no text in UTF-8: a record could "
                "not tell it; rename what it names"
            )
        pairs.append((key, value))
    return pairs


def sweep(words: Sequence[str]) -> list[list[tuple[str, str]]]:
    """Expand ``norm=bn,gn_ws seed=0..2`` into one list of pairs a run, first key slowest.

    Raises:
        UsageError: if a word is none, a range is empty, or there are far too many runs.
    """
    axes = []
    for key, value in parse_words(words):
        axes.append([(key, choice) for choice in _choices(key, value)])
    if math.prod(map(len, axes)) > _MOST_RUNS:
        raise UsageError(f"{' '.join(words)}: more than {_MOST_RUNS:,} runs at once")
    return [list(combination) for combination in itertools.product(*axes)]


def _choices(key: str, value: str) -> list[str]:
    if key in _NEVER_SWEPT or value.startswith(("[", "{", '"', "'")):
        return [value]
    choices: list[str] = []
    for part in value.split(","):
        if match := _RANGE.match(part):
            first, last = int(match[1]), int(match[2])
            if last < first:
                raise UsageError(f"{key}={value}: the range {part} is empty")
            if last - first >= _MOST_RUNS:
                raise UsageError(f"{key}={value}: more than {_MOST_RUNS:,} runs at once")
            choices.extend(str(n) for n in range(first, last + 1))
        else:
            choices.append(part)
    return choices


def _check_keys(task: str, pairs: Sequence[tuple[str, str]]) -> list[str]:
    known = keys(task)
    return [
        f"unknown key {quoted(key)}.{did_you_mean(key, known) or _near_leaf(key, known)} "
        f"(all keys: normbench ls keys {task})"
        for key, _ in pairs
        if key not in known and key != "preset"
    ]


def _near_leaf(key: str, known: Mapping[str, str]) -> str:
    """Find ``optim.lr`` for ``lr``."""
    same = [name for name in known if name.rpartition(".")[2] == key.rpartition(".")[2]]
    return f" Did you mean {' or '.join(map(repr, same[:3]))}?" if same else ""


def _value(key: str, text: str) -> Any:
    if key in _NEVER_SWEPT:
        return text if text not in ("", "null") else None
    try:
        value = _scalar(text)
        return parse_yaml(text) if isinstance(value, list | dict) else value
    except ValueError as error:
        raise UsageError(f"{key}={text}: the value is {error}") from None


@lru_cache(maxsize=4096)
def _scalar(text: str) -> Any:
    """Read a value once for the thousands of runs of a sweep that have it.

    A seed differs in each of them, and YAML takes a while to see that it is a number.
    """
    return int(text) if _WHOLE.fullmatch(text) else parse_yaml(text)


def build(task: str, pairs: Sequence[tuple[str, str]]) -> Spec:
    """Build one spec from the recipe that ``preset`` names and the overriding pairs.

    Raises:
        UsageError: with one line for each thing that is wrong.
    """
    problems = _check_keys(task, pairs)
    if problems:
        raise UsageError("\n".join(problems))
    preset = dict(pairs).get("preset", "mini")
    content = recipe(task, preset)
    cls = spec_class(task)
    for key, text in pairs:
        if key == "preset":
            continue
        over: Any = _value(key, text)
        for name in reversed(key.split(".")):
            over = {name: over}
        content = _merge(cls, content, over)
    try:
        return cls(task=task, preset=preset, **content)
    except ValidationError as error:
        raise UsageError("\n".join(_sentences(task, error))) from None


def _sentences(task: str, error: ValidationError) -> Iterator[str]:
    cls = spec_class(task)
    for item in error.errors(include_url=False):
        path = ".".join(str(part) for part in item["loc"] if not isinstance(part, int))
        shown = f"{path}={quoted(item['input'])}" if path else ""
        match item["type"]:
            case "value_error":
                message = str(item["ctx"]["error"])
                yield f"{path}: {message}" if path else message
            case "literal_error":
                allowed = _literals(cls, path)
                near = did_you_mean(str(item["input"]), allowed)
                yield f"{shown} is not known.{near} Allowed: {', '.join(allowed)}"
            case "extra_forbidden":
                yield f"unknown key {quoted(path)}.{did_you_mean(path, keys(task))}"
            case "model_type" if item["input"] is not None:
                yield f"{shown} is not a group of keys"
            case _ if item["input"] is None or item["type"] == "missing":
                yield f"{path} has no value: give {path}=..."
            case _:
                yield f"{shown}: {item['msg'][0].lower()}{item['msg'][1:]}"


def allowed(task: str, key: str) -> list[str]:
    """Return the values that a dotted key allows, where its type lists them; else nothing."""
    return _literals(spec_class(task), key) if key in keys(task) else []


def _literals(section: type[Section], path: str) -> list[str]:
    name, _, rest = path.partition(".")
    annotation = section.model_fields[name].annotation
    inner = _section_of(annotation)
    if rest and inner:
        return _literals(inner, rest)
    options = [annotation, *get_args(annotation)]
    if bool in options:
        return ["true", "false"]
    return [str(x) for one in options if get_origin(one) is Literal for x in get_args(one)]


def load_spec(path: Path) -> Spec:
    """Read a stored ``spec.yaml`` back.

    Raises:
        UsageError: if it is not a spec of this version.
    """
    try:
        content = read_yaml(path)
        return spec_class(content["task"])(**content)
    except (KeyError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UsageError(f"{path} is not a spec that this version can read: {reason}") from None


def dump_spec(spec: Spec) -> str:
    """Write a spec as YAML that ``load_spec`` reads back."""
    return yaml.safe_dump(spec.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
