# Plain YAML and JSON values have no static types; everything they become is checked at run time.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false
# pyright: reportUnknownParameterType=false
"""From plain mappings to components and back: typed, closed, round-trips, all faults at once.

A component is written as its name ("dpo"), or as a mapping of one name to its parameters ({"dpo": {"beta": 0.1}}). Checking
reads parameters from the source, so that no technique is imported; building imports and constructs.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import typing
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from luthier.core import protocols
from luthier.core.component import Component
from luthier.core.errors import ConfigError, UnknownComponent, sentence, unknown
from luthier.core.registry import Entry, find
from luthier.core.sites import Sites

_REQUIRED = "a value"


@functools.cache
def _namespace() -> dict[str, Any]:
    import annotated_types

    names: dict[str, Any] = {n: getattr(typing, n) for n in ("Annotated", "Any", "Literal", "Optional", "Union")}
    names |= {
        n: getattr(annotated_types, n) for n in ("Gt", "Ge", "Lt", "Le", "MinLen", "MaxLen", "Interval", "MultipleOf")
    }
    names |= {"Mapping": Mapping, "Sequence": Sequence, "Path": Path, "Sites": Sites}
    names |= {k: v for k, v in vars(protocols).items() if isinstance(v, type) and issubclass(v, Component)}
    return names


def annotation_of(text: str) -> Any:
    """Evaluate an annotation in the closed vocabulary that component parameters may use.

    Raises TypeError naming a word outside of it.
    """
    try:
        return eval(text, {"__builtins__": {"int": int, "float": float, "str": str, "bool": bool, "tuple": tuple,
                    "list": list, "dict": dict, "None": None, "True": True, "False": False}}, _namespace())  # fmt: skip
    except NameError as fault:
        raise TypeError(f"parameter annotation {text!r} uses {fault.name!r}, which recipes cannot write") from fault


@functools.cache
def _adapter(text: str) -> Any:
    from pydantic import ConfigDict, TypeAdapter

    hint = annotation_of(text)
    return TypeAdapter(hint, config=ConfigDict(strict=True, arbitrary_types_allowed=True))


def nested_kind(text: str) -> type[Component] | None:
    """The protocol of a parameter that is itself a component, else None."""
    if not any(name in text for name, v in _namespace().items() if isinstance(v, type) and issubclass(v, Component)):
        return None
    hint = annotation_of(text)
    return next((p for p in (hint, *typing.get_args(hint)) if isinstance(p, type) and issubclass(p, Component)), None)


def nested_room(text: str, owner: str = "") -> str | None:
    """The room of a parameter that is itself a component, else None; objectives of images stay in their owner's room."""
    room = getattr(nested_kind(text), "room", None)
    return "diffusion" if (room, owner) == ("objectives", "diffusion") else room


def value_faults(text: str, value: Any, at: str) -> list[str]:
    """Why `value` does not fit the annotation `text`; empty if it does. Strict: "5" is no number, 1 is no truth value."""
    from pydantic import ValidationError

    if isinstance(value, float) and value != value:
        return [f"{at}: requires a number; got nan"]
    try:
        _adapter(text).validate_json(json.dumps(value))
        return []
    except ValidationError as fault:
        first = fault.errors()[0]
        need = first["msg"][0].lower() + first["msg"][1:]
        return [f"{at}: {need}; got {value!r} ({type(value).__name__})"]
    except (TypeError, ValueError):
        return [f"{at}: requires plain YAML or JSON values; got {type(value).__name__}"]


def convert(text: str, value: Any) -> Any:
    """`value` as the annotation's Python type (lists become tuples, whole numbers floats)."""
    return _adapter(text).validate_json(json.dumps(value))


def name_and_parameters(spec: Any, at: str) -> tuple[str, dict[str, Any]]:
    """Split "dpo" or {"dpo": {...}} into name and parameters. Raises ConfigError for any other form."""
    if isinstance(spec, str):
        return spec, {}
    if isinstance(spec, Mapping) and len(spec) == 1:
        name, given = next(iter(spec.items()))
        if given is None:
            return str(name), {}
        if isinstance(given, Mapping):
            return str(name), {str(k): v for k, v in given.items()}
        raise ConfigError(f"{at}.{name}: requires a mapping of parameters; got {given!r}")
    if isinstance(spec, Mapping) and spec:
        listed = ", ".join(map(str, spec))
        raise ConfigError(
            f"{at}: requires one component per entry; got {len(spec)} ({listed}). Write a list, or indent the parameters."
        )
    raise ConfigError(f"{at}: requires a component name or {{name: {{parameters}}}}; got {spec!r}")


def check_component(spec: Any, room: str | None, at: str, extra: Sequence[str] = ()) -> tuple[Entry | None, list[str]]:
    """Find a component and check its parameters without importing it.

    extra: keys that the slot itself takes (weight, sites, ...). Returns the entry, or None if unknown, and all faults.
    """
    try:
        name, given = name_and_parameters(spec, at)
        entry = find(name, room)
    except UnknownComponent as fault:
        return None, [f"{at}: {fault}"]
    except ConfigError as fault:
        return None, list(fault.faults)
    known = {p.name: p for p in entry.parameters}
    faults: list[str] = []
    for key, value in given.items():
        if key in extra:
            continue
        if key not in known:
            faults.append(f"{at}.{entry.short}: {unknown('parameter', key, [*known, *extra])}")
            continue
        text, where = known[key].annotation, f"{at}.{entry.short}.{key}"
        inner = nested_room(text, entry.room)
        if inner is None:
            faults += value_faults(text, value, where)
        elif not (value is None and "None" in text):
            faults += check_component(value, inner, where)[1]
    missing = [p.name for p in known.values() if p.default is None and p.name not in given]
    faults += [f"{at}.{entry.short}: requires the parameter {m!r}, which is not given" for m in missing]
    return entry, faults


def build_component(spec: Any, room: str | None, at: str, extra: Sequence[str] = ()) -> Any:
    """Check, import and construct a component; an instance passes through. Raises ConfigError with all faults."""
    if isinstance(spec, Component):
        return spec
    entry, faults = check_component(spec, room, at, extra)
    if faults or entry is None:
        raise ConfigError(faults)
    _, given = name_and_parameters(spec, at)
    values: dict[str, Any] = {}
    for parameter in entry.parameters:
        if parameter.name not in given:
            continue
        inner, kind = nested_room(parameter.annotation, entry.room), nested_kind(parameter.annotation)
        value = given[parameter.name]
        if kind is None:
            values[parameter.name] = convert(parameter.annotation, value)
        elif value is not None:
            where = f"{at}.{entry.short}.{parameter.name}"
            made = values[parameter.name] = build_component(value, inner, where)
            if not isinstance(made, kind):
                came = f"{made.id!r}, a part of another kind"
                raise ConfigError(
                    sentence(where, f"a component that is a {kind.__name__}", came, "See `luthier methods`")
                )
        else:
            values[parameter.name] = None
    try:
        return entry.load()(**values)
    except ConfigError as fault:
        raise ConfigError(f"{at}.{entry.short}: {f}" for f in fault.faults) from fault
    except (ValueError, TypeError) as fault:
        raise ConfigError(f"{at}.{entry.short}: {fault}") from fault


def as_dict(value: Any) -> Any:
    """A component, or any value made of plain parts, as YAML/JSON can hold it; `build_component` reads it back."""
    if isinstance(value, Component):
        plain: Any = value
        return {value.id: {f.name: as_dict(getattr(value, f.name)) for f in dataclasses.fields(plain)}}
    if isinstance(value, Sites):
        return value.pattern
    if isinstance(value, Mapping):
        return {str(k): as_dict(v) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return [as_dict(v) for v in value]
    if isinstance(value, Path):
        return str(value)
    if value is None or isinstance(value, str | int | float | bool):
        return value
    raise TypeError(f"a recipe cannot hold {type(value).__name__}")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a key is given twice")
    return dict(pairs)


MOST_VALUES = 1_000_000


def _spread(value: Any, known: dict[int, int]) -> int:
    """How many values a document has once its aliases are written out; a part that is shared is counted once and added up."""
    if not isinstance(value, (dict, list)):
        return 1
    found = typing.cast("dict[Any, Any] | list[Any]", value)
    if id(value) not in known:
        known[id(found)] = 1 + sum(_spread(v, known) for v in (found.values() if isinstance(found, dict) else found))
    return known[id(found)]


_YAML_ADVICE = (
    (
        "mapping values",
        "Put a colon and a space behind each key, quotes around a value that holds a colon, and keys of one "
        "level at the same indent",
    ),
    ("'\\t' that cannot", "Indent with spaces"),
    ("that cannot start", "Put the value in quotes"),
    ("unexpected end", "Close the quote that opens at {opened}"),
    ("expected ',' or", "Close the bracket that opens at {opened}"),
    (
        "expected <block end>",
        "Give keys of one level the same indent, and put a value that holds quotes or brackets in quotes",
    ),
    ("undefined alias", "Put a value that begins with * in quotes"),
    ("duplicate key", "Keep one of them"),
    ("a constructor for the tag", "Leave the tag out, or put the value in quotes"),
    ("another document", "Leave the line --- out"),
)
"""Part of the parser's words -> what to do."""


def _yaml_fault(fault: Any, text: str, where: str) -> str:
    """Place, the parser's words, what to do, and the line that it stopped at."""
    mark = fault.problem_mark
    if mark is None:
        return f"{where}: requires valid YAML; {fault.problem}"
    opened = fault.context_mark or mark
    said = next((advice for words, advice in _YAML_ADVICE if words in fault.problem), "")
    said = said.format(opened=f"{opened.line + 1}:{opened.column + 1}")
    line = "".join(text.splitlines()[mark.line : mark.line + 1]).strip()
    shown = f" in {line[:60]!r}" if line else ""
    return (
        f"{where}:{mark.line + 1}:{mark.column + 1}: requires valid YAML; {fault.problem}{shown}{said and '. ' + said}."
    )


def load_yaml(text: str, where: str) -> Any:
    """Parse YAML or JSON safely: duplicate keys are faults, 2e-4 is a number, 010 is ten, on/off/yes/no stay words.

    Raises ConfigError naming file, line and column.
    """
    import yaml

    if text.lstrip().startswith("{"):  # JSON's tabs and pairs of surrogates are none of YAML's
        with suppress(ValueError, RecursionError):
            return json.loads(text, object_pairs_hook=_unique)
    try:
        value = yaml.load(text, Loader=_loader())
        if (size := _spread(value, {})) > MOST_VALUES:
            raise ConfigError(
                f"{where}: requires at most {MOST_VALUES:,} values; its aliases spread to {size:,}. Use fewer aliases."
            )
        return value
    except yaml.MarkedYAMLError as fault:
        raise ConfigError(_yaml_fault(fault, text, where)) from fault
    except (TypeError, RecursionError) as fault:
        raise ConfigError(f"{where}: requires plain words as keys, nested a few levels deep; {fault}") from fault
    except yaml.YAMLError as fault:
        raise ConfigError(f"{where}: requires valid YAML; {' '.join(str(fault).split())}") from fault
    except (ValueError, KeyError, AttributeError) as fault:  # from the constructors of tagged values
        raise ConfigError(
            f"{where}: requires values that fit their tags, and numbers of a sane size; {fault}"
        ) from fault


def dump_yaml(value: Any) -> str:
    """Plain values as YAML that `load_yaml` reads back: a text that any reader could take for a number, such as 0e0, is quoted."""
    import yaml

    class Dumper(yaml.SafeDumper):
        """Quotes what readers of YAML 1.1 or 1.2 would take for something else than text."""

    reader = _loader()("")

    def text(dumper: Any, words: str) -> Any:
        other = reader.resolve(yaml.ScalarNode, words, (True, False)) != reader.DEFAULT_SCALAR_TAG
        style = "'" if other else None
        return dumper.represent_scalar("tag:yaml.org,2002:str", words, style=style if words.isprintable() else '"')

    Dumper.add_representer(str, text)
    return yaml.dump(value, Dumper=Dumper, sort_keys=False, allow_unicode=True)


@functools.cache
def _loader() -> Any:
    import re

    import yaml

    class Loader(yaml.SafeLoader):
        """YAML 1.2 numbers and truth values; duplicate keys and anchors inside themselves refused."""

        yaml_implicit_resolvers: typing.ClassVar = {
            first: [(tag, rx) for tag, rx in pairs if not tag.endswith((":bool", ":float", ":int", ":timestamp"))]
            for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
        }

        def construct_document(self, node: Any) -> Any:
            self.deep_construct = True
            return super().construct_document(node)

        def construct_yaml_int(self, node: Any) -> int:
            text = self.construct_scalar(node).replace("_", "").lower()
            return int(text, 16 if text.startswith("0x") else 8 if text.startswith("0o") else 10)

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            seen: set[Any] = set()
            for key, _ in node.value:
                name = self.construct_object(key, deep=True)
                if name in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"duplicate key {name!r}", key.start_mark)
                seen.add(name)
            return super().construct_mapping(node, deep)

    number = re.compile(
        r"^[-+]?(?:\d[\d_]*\.?\d*|\.\d+)(?:[eE][-+]?\d+)?$|^[-+]?\.(?:inf|Inf|INF)$|^\.(?:nan|NaN|NAN)$"
    )
    whole = re.compile(r"^[-+]?\d[\d_]*$|^0o[0-7]+$|^0x[\da-fA-F]+$")
    Loader.add_implicit_resolver("tag:yaml.org,2002:int", whole, list("-+0123456789"))
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+0123456789."))
    Loader.add_constructor("tag:yaml.org,2002:int", Loader.construct_yaml_int)
    Loader.add_implicit_resolver(
        "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
    )
    return Loader


def section_faults(cls: type[Any], data: Any, at: str, skip: Sequence[str] = ()) -> list[str]:
    """Faults of a mapping for a section dataclass: unknown keys with nearest names, missing and mistyped values.

    skip: fields that the caller checks itself (components, nested sections).
    """
    if not isinstance(data, Mapping):
        return [f"{at}: requires a mapping; got {data!r}"]
    fields = {f.name: f for f in dataclasses.fields(cls)}
    prefix = f"{at}." if at else ""
    faults: list[str] = []
    for key, value in data.items():
        if key not in fields:
            faults.append(f"{at or 'recipe'}: {unknown('key', str(key), list(fields))}")
        elif key not in skip:
            faults += value_faults(str(fields[key].type), value, f"{prefix}{key}")
    required = [f.name for f in fields.values() if f.default is f.default_factory is dataclasses.MISSING]
    faults += [f"{at or 'recipe'}: requires the key {k!r}, which is not given" for k in required if k not in data]
    return faults


def build_section(cls: type[Any], data: Mapping[str, Any]) -> Any:
    """A section dataclass from a mapping that has no faults."""
    types_of = {f.name: str(f.type) for f in dataclasses.fields(cls)}
    return cls(**{k: convert(types_of[k], v) for k, v in data.items()})
