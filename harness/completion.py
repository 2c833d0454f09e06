"""What a shell offers for the next word: tasks, tables, keys, and the values that a key allows.

Called at each press of TAB, so it imports neither torch nor pandas, and errors offer nothing.
"""

from __future__ import annotations

from collections.abc import Iterator

from typer import Context

from harness.errors import UsageError

LISTS = ("tasks", "norms", "ws", "presets", "keys")
"""What ``normbench ls`` lists."""
_SHORT = {"norm", "init"}
"""Groups of keys that are words by themselves."""


def tasks(incomplete: str) -> list[str]:
    """Return the tasks that begin so."""
    from harness.registry import task_names

    return [name for name in task_names() if name.startswith(incomplete)]


def lists(incomplete: str) -> list[str]:
    """Return the listings that begin so."""
    return [name for name in LISTS if name.startswith(incomplete)]


def words(ctx: Context, incomplete: str) -> list[str]:
    """Return the ``key=value`` words of a task that begin so."""
    task = ctx.params.get("task")
    return _offered(str(task), incomplete, _before(ctx)) if task else []


def table_words(ctx: Context, incomplete: str) -> list[str]:
    """Return tables and ``key=value`` words that begin so; tasks where the command takes one."""
    before = _before(ctx)
    named = [word for word in before if word in tasks("")]
    if named:
        return _offered(named[0], incomplete, before)
    own = ("preset=", "seed=", "data=", "init=", "devices=")
    names = [*_tables(), *own, *(tasks("") if ctx.info_name == "plan" else ())]
    return [name for name in names if name.startswith(incomplete)]


def _before(ctx: Context) -> list[str]:
    return [str(word) for word in ctx.params.get("words") or ()]


def _tables() -> list[str]:
    from harness.report.definition import definitions, tables_file

    try:
        return list(definitions(tables_file()))
    except UsageError:
        return []


def _offered(task: str, incomplete: str, before: list[str]) -> list[str]:
    from harness.spec import keys

    try:
        known = keys(task)
    except UsageError:
        return []
    # bash takes `norm=g` for three words.
    if before[-1:] == ["="] and len(before) > 1:
        return [value for value in _values(task, before[-2]) if value.startswith(incomplete)]
    key, equals, start = incomplete.partition("=")
    if equals:
        return [f"{key}={value}" for value in _values(task, key) if value.startswith(start)]
    found = [name for name in ("preset", *known) if name.startswith(key)]
    if len(found) == 1 and (values := list(_values(task, found[0]))):
        return [f"{found[0]}={value}" for value in values]
    groups = {k.rpartition(".")[0] for k in known} - _SHORT
    return [f"{name}=" for name in found if name not in groups]


def _values(task: str, key: str) -> Iterator[str]:
    """Yield the values that a key allows, where there are finitely many."""
    from harness.norm.catalogue import NORMS, WS_VARIANTS
    from harness.spec import allowed, presets

    match key:
        case "preset":
            yield from presets(task)
        case "norm":
            yield from (f"{name}{end}" for name in NORMS for end in ("", "_ws"))
        case "norm.layer":
            yield from NORMS
        case "norm.ws":
            yield from WS_VARIANTS
        case _:
            yield from allowed(task, key)
