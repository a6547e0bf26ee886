"""The house rules that a program can check: import arrows, lazy imports, sizes, docstrings."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("studio", "guidance", "image_tools", "scenes", "renderers")
ALLOWED = {
    "studio": {"guidance", "image_tools", "scenes", "renderers"},
    "guidance": {"image_tools", "renderers"},
    "image_tools": {"renderers"},
    "scenes": {"renderers"},
    "renderers": set(),
}
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 45
"""Of a function's body, without its docstring."""
LONG_BY_INTENT = {"studio/runner.py: step"}
"""The whole method, to be read from top to bottom in one place."""
HEAVY = {
    *("torch", "numba", "scipy", "trimesh", "xatlas", "fast_simplification", "manifold3d"),
    *("diffusers", "transformers", "peft", "accelerate", "imageio", "safetensors", "tokenizers"),
}
SLOW_TO_IMPORT = {"diffusers", "transformers", "peft", "accelerate"}
LIGHT_MODULES = (
    "studio.cli",
    "studio.config",
    "studio.configs",
    "studio.errors",
    "studio.commands.new",
    "studio.commands.explain",
)
IGNORED_FOLDERS = {
    *(".git", ".venv", "node_modules", "runs", "training_runs", "__pycache__", "vendor"),
    *("build", "dist", ".pytest_cache", ".ruff_cache", "text_to_3d_studio.egg-info"),
}


def package_files() -> list[Path]:
    """Every Python file of the packages."""
    return sorted(path for name in PACKAGES for path in (ROOT / name).rglob("*.py"))


def module_name(path: Path) -> str:
    """Dotted name of a file, such as renderers.cameras."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in package_files()}


@cache
def tree_of(path: Path) -> ast.Module:
    """Parsed source of a file."""
    return ast.parse(path.read_text(), filename=str(path))


def is_type_checking(node: ast.AST) -> bool:
    """Whether the node is an ``if TYPE_CHECKING`` block, which never runs."""
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def imports_at_import_time(tree: ast.AST) -> list[ast.Import | ast.ImportFrom]:
    """Import statements that run when the module is imported: not in functions, not for types."""
    found = []
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            found.append(node)
        elif is_type_checking(node):
            found += imports_at_import_time(ast.Module(node.orelse, []))
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            found += imports_at_import_time(node)
    return found


def targets(node: ast.Import | ast.ImportFrom) -> set[str]:
    """Modules an import statement loads; a name taken from a package may itself be a module."""
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names}
    assert node.level == 0, "imports are absolute in this project"
    module = node.module or ""
    children = {f"{module}.{alias.name}" for alias in node.names}
    return {module} | {child for child in children if child in MODULES}


def loaded_by(name: str) -> set[str]:
    """All modules and top-level third parties that importing our module ``name`` loads."""
    todo, seen = [name], set()
    while todo:
        current = todo.pop()
        if current in seen:
            continue
        seen.add(current)
        parents = current.split(".")[:-1]
        todo += [".".join(parents[: k + 1]) for k in range(len(parents))]
        if current in MODULES:
            for node in imports_at_import_time(tree_of(MODULES[current])):
                todo += targets(node)
    return seen


def functions(tree: ast.Module) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    """All functions and methods of a module."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return [node for node in ast.walk(tree) if isinstance(node, kinds)]


def text_files() -> list[Path]:
    """Files that people read: sources, documents, settings."""
    kinds = {".py", ".md", ".toml", ".yaml", ".yml", ".txt", ".json", ".mjs", ".html", ""}
    return [
        path
        for path in ROOT.rglob("*")
        if path.is_file()
        and path.suffix in kinds
        and path.stat().st_size < 1_000_000
        and not IGNORED_FOLDERS & set(path.relative_to(ROOT).parts)
    ]


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_point_down_only(package: str) -> None:
    """Even a lazy import or one for types must follow the arrows of docs/architecture.md."""
    forbidden = set(PACKAGES) - ALLOWED[package] - {package} | {"tests", "benchmarks"}
    wrong = []
    for path in (ROOT / package).rglob("*.py"):
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Import | ast.ImportFrom):
                reached = {target.split(".")[0] for target in targets(node)} & forbidden
                wrong += [f"{path.relative_to(ROOT)}:{node.lineno} imports {r}" for r in reached]
    assert wrong == []


def light_modules() -> list[str]:
    """Modules that must load without torch: the command line's, all configs, all errors."""
    endings = ("configs", "errors", "schedules")
    return sorted({*LIGHT_MODULES, *(name for name in MODULES if name.endswith(endings))})


@pytest.mark.parametrize("name", light_modules())
def test_light_modules_load_nothing_heavy(name: str) -> None:
    """`studio --help`, config errors and editors' completion answer at once."""
    heavy = {module for module in loaded_by(name) if module.split(".")[0] in HEAVY}
    assert heavy == set()


def test_light_modules_load_nothing_heavy_in_a_real_process() -> None:
    """The same as above, asked of Python itself rather than of the syntax trees."""
    code = "import json, sys\n" + "\n".join(f"import {name}" for name in light_modules())
    code += "\nprint(json.dumps(sorted({m.split('.')[0] for m in sys.modules})))"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert HEAVY & set(json.loads(result.stdout)) == set()


def test_diffusers_and_transformers_are_imported_only_inside_functions() -> None:
    """They take seconds to import, which renderers and most tests must not pay."""
    wrong = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in package_files()
        for node in imports_at_import_time(tree_of(path))
        if {target.split(".")[0] for target in targets(node)} & SLOW_TO_IMPORT
    ]
    assert wrong == []


def attention_setters(tree: ast.AST) -> list[ast.Call]:
    """Calls that replace how layers compute attention."""
    names = {"set_attn_processor", "set_processor", "set_default_attn_processor"}
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [
        call for call in calls if isinstance(call.func, ast.Attribute) and call.func.attr in names
    ]


def test_attention_is_replaced_in_one_place() -> None:
    """Tools that each put their own processors in place would overwrite each other's."""
    found = {
        str(path.relative_to(ROOT)) for path in package_files() if attention_setters(tree_of(path))
    }
    assert found == {"image_tools/diffusion/attention.py"}
    assert len(attention_setters(ast.parse("unet.set_attn_processor({})\nf(x.set_processor)"))) == 1


def test_package_files_hold_only_a_docstring() -> None:
    """Importing a package must not load its modules."""
    wrong = []
    for path in package_files():
        body = tree_of(path).body
        bare = len(body) == 1 and isinstance(body[0], ast.Expr)
        # The one package of alternatives defines what chooses between them.
        if path.name == "__init__.py" and not bare and module_name(path) != "renderers.backends":
            wrong.append(str(path.relative_to(ROOT)))
    assert wrong == []


def test_every_module_has_a_docstring() -> None:
    """Packages, tests and benchmarks alike say what they are for."""
    files = [
        *package_files(),
        *(ROOT / "tests").rglob("*.py"),
        *(ROOT / "benchmarks").rglob("*.py"),
    ]
    missing = [str(p.relative_to(ROOT)) for p in files if not ast.get_docstring(tree_of(p))]
    assert missing == []


def test_every_public_name_exists_and_has_a_docstring() -> None:
    """``__all__`` names things that the module defines, each with a docstring."""
    wrong = []
    for path in package_files():
        tree = tree_of(path)
        defined = {node.name: node for node in tree.body if hasattr(node, "name")}
        for name in public_names(tree):
            node = defined.get(name)
            if node is not None and not ast.get_docstring(node):
                wrong.append(f"{path.relative_to(ROOT)}: {name} has no docstring")
            if node is None and name not in assigned_or_imported(tree):
                wrong.append(f"{path.relative_to(ROOT)}: {name} is not defined")
    assert wrong == []


def public_names(tree: ast.Module) -> list[str]:
    """The strings of ``__all__``."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return ast.literal_eval(node.value)
    return []


def assigned_or_imported(tree: ast.Module) -> set[str]:
    """Names that the module binds other than by def and class."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        if isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
    return names


def test_public_functions_are_annotated() -> None:
    """Every argument and the result of a function that ``__all__`` names."""
    wrong = []
    for path in package_files():
        tree = tree_of(path)
        public = set(public_names(tree))
        for node in tree.body:
            if isinstance(node, ast.FunctionDef) and node.name in public:
                arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                bare = [a.arg for a in arguments if a.annotation is None]
                bare += ["return"] if node.returns is None else []
                wrong += [f"{path.relative_to(ROOT)}: {node.name}({b})" for b in bare]
    assert wrong == []


def test_files_and_functions_stay_short() -> None:
    """Split by noun what grows beyond one idea."""
    wrong = []
    for path in package_files():
        lines = len(path.read_text().splitlines())
        if lines > MAX_FILE_LINES:
            wrong.append(f"{path.relative_to(ROOT)} has {lines} lines")
        for node in functions(tree_of(path)):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            length = (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0
            name = f"{path.relative_to(ROOT)}: {node.name}"
            if length > MAX_FUNCTION_LINES and name not in LONG_BY_INTENT:
                wrong.append(f"{name} has {length} lines")
    assert wrong == []


def test_no_module_is_a_drawer_for_odds_and_ends() -> None:
    """A file is named after what it holds."""
    drawers = {"utils", "util", "helpers", "helper", "misc", "common"}
    assert [name for name in MODULES if name.split(".")[-1] in drawers] == []


def test_no_text_names_a_machine_path_or_a_package_registry() -> None:
    """The project runs anywhere, so it never says where it was written."""
    words = [f"/{name}/" for name in ("work", "root", "opt/pypi", "opt/wheels")]
    words += ["pypi" + ".org", "npmjs" + ".org", "npmjs" + ".com"]
    wrong = [
        f"{path.relative_to(ROOT)}: {word}"
        for path in text_files()
        for word in words
        if word in path.read_text(errors="replace")
    ]
    assert wrong == []


def test_every_data_file_of_the_packages_is_installed_with_them() -> None:
    """Presets, weights and the vendored viewer must be in the wheel, not only in the checkout."""
    settings = (ROOT / "pyproject.toml").read_text()
    packaged = set(re.findall(r'"\*\*/\*?([\w.]+)"', settings))
    data = {
        path.suffix or path.name
        for name in PACKAGES
        for path in (ROOT / name).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".py"
    }
    assert {".yaml", ".js", "LICENSE"} <= packaged
    assert data <= packaged


def test_the_import_rule_sees_lazy_and_typed_imports() -> None:
    """The checks above would be worthless if their reading of the syntax tree were wrong."""
    source = (
        "import a\nif TYPE_CHECKING:\n    import b\nelse:\n    import c\n"
        "try:\n    import d\nexcept ImportError:\n    pass\ndef f():\n    import e\n"
        "class C:\n    import g\n"
    )
    tree = ast.parse(source)
    names = {alias.name for node in imports_at_import_time(tree) for alias in node.names}
    assert names == {"a", "c", "d", "g"}
    everywhere = [node for node in ast.walk(tree) if isinstance(node, ast.Import)]
    assert {alias.name for node in everywhere for alias in node.names} == set("abcdeg")
