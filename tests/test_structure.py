"""Rooms and who may know whom, sizes, names, and constructs that the package does without."""

import ast
import re
from collections import defaultdict
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "pyannote_prune"
MODULES = sorted(PACKAGE.rglob("*.py"))

# from the highest to the lowest: a room knows those that follow it
ROOMS = [
    *("cli", "reports", "training", "evaluation", "corpora", "pipelines", "tasks", "simulation", "inference", "models"),
    *("checkpoints", "pruning", "wavlm"),
]
# modules of no room: those that all may import, and those that hand names of rooms on
LEAVES = {"errors", "protocols", "upstream"}
FACADES = {"__init__", "interop"}


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def room_of(module: list[str]) -> str | None:
    """Room of a module, given by its parts within the package; None of those that are not in a room."""
    return module[0] if module and (PACKAGE / module[0]).is_dir() else None


def imports_of(path: Path) -> set[tuple[str, ...]]:
    """Modules of the package that one imports anywhere, as parts within the package."""
    parts = ("pyannote_prune", *path.relative_to(PACKAGE).parent.parts)
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = parts[: len(parts) + 1 - node.level] if node.level else ()
            module = [*above, *(node.module.split(".") if node.module else ())]
            names = [[*module, alias.name] for alias in node.names]
        found |= {tuple(name[1:]) for name in names if name[0] == "pyannote_prune"}
    return found


def arrows() -> list[tuple[str, str, str]]:
    """Module, its room, and the room of a module that it imports."""
    found = []
    for path in MODULES:
        own = path.relative_to(PACKAGE).parts
        for imported in imports_of(path):
            target = room_of(list(imported))
            if target is not None and len(own) > 1:
                found.append((name_of(path), own[0], target))
    return found


def test_every_room_has_a_level():
    assert {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").is_file()} <= set(ROOMS)


def test_imports_run_downwards():
    found = arrows()
    assert len(found) > 50
    upwards = {
        f"{module} imports {target}" for module, room, target in found if ROOMS.index(target) < ROOMS.index(room)
    }
    assert sorted(upwards) == []


def test_page_has_the_same_rooms():
    page = (PACKAGE.parent / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `(\w+)/` \|", page, re.MULTILINE) == ROOMS
    assert re.search(r"    cli -->[-> \w\n]+", page).group().replace("-->", " ").split() == ROOMS
    assert set(re.findall(r"^\| `(\w+)\.py` \|", page, re.MULTILINE)) == LEAVES


def test_leaves_know_no_room():
    for name in LEAVES:
        path = PACKAGE / f"{name}.py"
        if path.is_file():
            rooms = {room_of(list(imported)) for imported in imports_of(path)} - {None}
            assert rooms == set(), name
    at_root = {path.stem for path in PACKAGE.glob("*.py")}
    assert at_root <= LEAVES | FACADES


def test_the_backbone_and_pruning_know_no_pyannote():
    for path in MODULES:
        if path.relative_to(PACKAGE).parts[0] in ("wavlm", "pruning"):
            text = path.read_text(encoding="utf-8")
            assert not re.search(r"^ *(import|from) (pyannote|lightning|torchaudio)\b", text, re.MULTILINE), name_of(
                path
            )


def test_modules_are_short():
    lines = {name_of(path): len(path.read_text(encoding="utf-8").splitlines()) for path in MODULES}
    assert {name: count for name, count in lines.items() if count > 400} == {}


def test_file_names_are_distinct():
    paths = defaultdict(list)
    for path in MODULES:
        if path.stem not in ("__init__", "__main__"):
            paths[path.stem].append(name_of(path))
    assert [names for names in paths.values() if len(names) > 1] == []


def constructs(tree: ast.AST) -> set[str]:
    """Names of forbidden constructs in a module."""
    found = set()
    for node in ast.walk(tree):
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        for target in targets:
            if isinstance(target, ast.Attribute) and target.attr == "__class__":
                found.add("__class__ is assigned")
            if isinstance(target, ast.Attribute) and target.attr == "forward":
                found.add("forward is patched")
        if isinstance(node, (ast.Attribute, ast.Name, ast.alias)):
            name = (
                node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else node.name
            )
            if name in ("FunctionType", "_forward_hooks", "_version", "data_ptr"):
                found.add(name)
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "setattr" and len(node.args) > 1:
            name = node.args[1]
            if isinstance(name, ast.Constant) and name.value in ("__class__", "forward"):
                found.add(f"{name.value} is set")
    return found


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_forbidden_constructs(path):
    assert constructs(ast.parse(path.read_text(encoding="utf-8"))) == set()


@pytest.mark.parametrize(
    "code",
    [
        "module.__class__ = Other",
        "module.forward = run",
        "setattr(module, 'forward', run)",
        "from types import FunctionType",
        "types.FunctionType(code, {})",
        "if module._forward_hooks: pass",
        "key = tensor._version",
        "cache[tensor.data_ptr()] = 1",
    ],
)
def test_forbidden_constructs_are_found(code):
    assert len(constructs(ast.parse(code))) == 1
