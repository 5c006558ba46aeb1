"""JSON Schemas of the files that people write, made of the specs: for editors, and to look up.

A schema takes every file that the readers take, and a few more: rules between fields, names that
`define` gives and the content of a `base` are checked by `recipe-ray plan`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from recipe_ray.base.catalog import Catalog
from recipe_ray.cli.options import registries
from recipe_ray.experiment.search import Search
from recipe_ray.experiment.spec import Experiment, grid_class
from recipe_ray.schedule.resources import ClusterSpec
from recipe_ray.stages.stage import kinds

if TYPE_CHECKING:
    from recipe_ray.base.registry import Registry
    from recipe_ray.base.spec import Spec

Schema = dict[str, Any]
DIALECT = "https://json-schema.org/draft/2020-12/schema"
# what a class of components is called in the schema that pydantic makes
_BASES = {
    "Attack": "attacks",
    "Defense": "defenses",
    "ModelRef": "models",
    "Corpus": "corpora",
    "Task": "tasks",
    "Detector": "detectors",
}
# what `experiment/files.py` reads besides the fields
_OF_FILES: Schema = {
    "base": {
        "type": "string",
        "description": "a file next to this one, to take values from",
    },
    "catalog": {
        "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}],
        "description": "files that list more corpora and tasks",
    },
    "define": {
        "type": "object",
        "additionalProperties": {"type": "object"},
        "description": "components by a name of your own, which every field of one then takes",
    },
}


_OWN = {"type": "string", "description": "a name that `define` gives"}
_SPECS: dict[str, type[Spec]] = {
    "experiment": Experiment,
    "search": Search,
    "cluster": ClusterSpec,
}


def file_schema(kind: str) -> Schema:
    """Return the schema of an experiment, a search, a catalogue or a cluster file."""
    made = _Made()
    whole = made.of_file(_SPECS[kind]) if kind in _SPECS else made.catalogue()
    known = made.definitions()
    used = {name: known[name] for name in sorted(_used(whole, known))}
    schema = {"$schema": DIALECT, "title": f"recipe-ray {kind}", **whole, "$defs": used}
    for node in _nodes(schema):
        node.pop("hashed", None)
    return schema


def _used(part: Schema, known: Schema) -> set[str]:
    """Return the names of the definitions that a part refers to, and so on."""
    found: set[str] = set()
    todo = [part]
    while todo:
        names = {_referred(node) for node in _nodes(todo.pop())} & known.keys()
        todo += [known[name] for name in names - found]
        found |= names
    return found


def _referred(node: Schema) -> str:
    return str(node.get("$ref", "")).removeprefix(_DEFINED)


_DEFINED = "#/$defs/"


class _Made:
    """The definitions that schemas share, gathered as classes are read."""

    def __init__(self) -> None:
        self._known: Schema = {}

    def of(self, spec: type[Spec]) -> Schema:
        """Return the schema of a spec; what it refers to becomes known."""
        schema = spec.model_json_schema()
        schema.pop("title", None)
        for name, inner in schema.pop("$defs", {}).items():
            self._known.setdefault(name, inner)
        return schema

    def of_file(self, spec: type[Spec]) -> Schema:
        """Return the schema of a file; one that has a base, or is one, needs not be whole."""
        schema = self.of(spec)
        if spec is ClusterSpec:
            return schema
        needed = schema.pop("required")
        partial = [{"required": ["base"]}, {"not": {"required": ["name"]}}]
        schema["properties"] |= _OF_FILES
        return {**schema, "anyOf": [{"required": needed}, *partial]}

    def catalogue(self) -> Schema:
        """Return the schema of a user's catalogue."""
        from recipe_ray.data.corpora import CATALOG as CORPORA
        from recipe_ray.tasks.catalog import CATALOG as TASKS

        sections = {"corpora": self._entries(CORPORA), "tasks": self._entries(TASKS)}
        return {
            "type": "object",
            "minProperties": 1,
            "additionalProperties": False,
            "properties": {
                name: {"type": "object", "additionalProperties": entry}
                for name, entry in sections.items()
            },
        }

    def _entries(self, catalog: Catalog[Any]) -> Schema:
        """Return what an entry may say: by its kind."""
        kinds = {}
        for kind, fields in catalog.fields().items():
            properties: Schema = {}
            needed: list[str] = []
            for spec, names in fields.items():
                schema = self.of(spec)
                properties |= {n: one for n, one in schema["properties"].items() if n in names}
                needed += [name for name in schema.get("required", ()) if name in names]
            kinds[kind] = {
                "properties": properties,
                "required": needed,
                "additionalProperties": False,
            }
        return _by("kind", kinds)

    def definitions(self) -> Schema:
        """Return all that was referred to: components as what each plugin takes."""
        block = self._known["Block"] = self.of(grid_class())
        for field in {name for kind in kinds() for name in (*kind.axes, kind.cells) if name}:
            several = block["properties"][field]
            several["items"] = {"anyOf": [_OWN, several["items"]]}
        for base, kind in _BASES.items():
            self._known[base] = self._components(kind, registries()[kind])
        for node in _nodes(self._known):
            inner = _referred(node)
            is_spec = inner in self._known and inner not in _BASES
            if is_spec and isinstance(node.get("default"), dict):
                self._known[inner].pop("required", None)  # what is left out is the default's
        return self._known

    def _components(self, kind: str, registry: Registry[Any]) -> Schema:
        plugins = {}
        for name in registry:
            schema = self.of(registry.get(name))
            schema["properties"]["name"] = {"const": name}
            self._known[f"{kind}.{name}"] = schema
            plugins[name] = {"$ref": f"#/$defs/{kind}.{name}"}
        return {"anyOf": [{"enum": list(plugins)}, _OWN, _by("name", plugins)]}


def _by(field: str, kinds: Schema) -> Schema:
    """Return the schema of a mapping that one field decides, so that errors are about its kind."""
    return {
        "type": "object",
        "required": [field],
        "properties": {field: {"enum": list(kinds)}},
        "allOf": [
            {"if": {"properties": {field: {"const": kind}}}, "then": schema}
            for kind, schema in kinds.items()
        ],
    }


def _nodes(schema: Any) -> Iterator[Schema]:
    if isinstance(schema, dict):
        yield schema
        for inner in list(schema.values()):
            yield from _nodes(inner)
    elif isinstance(schema, list):
        for inner in schema:
            yield from _nodes(inner)


def in_words(schema: Schema) -> str:
    """Return what a field may hold, in a few words."""
    if "$ref" in schema:
        name = _referred(schema)
        return registries()[_BASES[name]].kind if name in _BASES else name
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(map(in_words, schema["anyOf"])))
    if "enum" in schema or "const" in schema:
        return " | ".join(map(str, schema.get("enum", [schema.get("const")])))
    kind = str(schema.get("type", "anything"))
    if kind == "array":
        return f"list of {in_words(schema.get('items', {}))}"
    if kind == "object" and isinstance(schema.get("additionalProperties"), dict):
        return f"names with {in_words(schema['additionalProperties'])}"
    bounds = [f"{sign} {schema[key]:g}" for key, sign in _BOUNDS.items() if key in schema]
    words = {"null": "nothing", "string": "text"}
    return " ".join([words.get(kind, str(kind)), *bounds])


_BOUNDS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
