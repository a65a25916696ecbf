"""Measure the structure of the source: `python -m tests.house` prints a table and ends with one JSON line."""

from __future__ import annotations

import ast
import io
import json
import re
import tokenize
from collections.abc import Iterator, Mapping
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import grimp
from importlinter import api

ROOT = Path(__file__).parent.parent
ASSETS = ROOT / "curation_assets"
RESOURCES = ROOT / "resources" / "curation_resources"
PACKAGES = ("curation_assets", "curation_resources")
ODD = re.compile(r"(What|Whether|Whose|Who|Of|By which|How|Where|Nobody|No )\b")
NOT_CODE = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENCODING}

Graph = Mapping[str, frozenset[str]]


def sources() -> list[Path]:
    """Return every module of both packages."""
    return sorted([*ASSETS.rglob("*.py"), *RESOURCES.rglob("*.py")])


@cache
def imports() -> Graph:
    """Return the modules that each module imports, including lazy imports and those under TYPE_CHECKING."""
    graph = grimp.build_graph(*PACKAGES, cache_dir=None)
    return {name: frozenset(graph.find_modules_directly_imported_by(name)) for name in graph.modules}


def components(graph: Graph) -> list[list[str]]:
    """Return the strongly connected components of a graph, imported modules first (Tarjan's algorithm)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in sorted(graph[node]):
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            position = stack.index(node)
            found.append(stack[position:])
            del stack[position:]

    for node in sorted(graph):
        if node not in index:
            visit(node)
    return found


def circles(graph: Graph) -> list[list[str]]:
    """Return the groups of modules that import one another in a circle."""
    return [sorted(group) for group in components(graph) if len(group) > 1]


def longest_chain(graph: Graph) -> list[str]:
    """Return the longest chain of imports, importing module first. Modules of a circle count as one."""
    groups = components(graph)
    of = {module: number for number, group in enumerate(groups) for module in group}
    below = {n: {of[other] for module in group for other in graph[module]} - {n} for n, group in enumerate(groups)}
    chains: dict[int, list[int]] = {}
    for number in TopologicalSorter(below).static_order():
        best = max((chains[other] for other in below[number]), key=len, default=[])
        chains[number] = [number, *best]
    return [groups[number][0] for number in max(chains.values(), key=len)]


def upward_imports() -> int:
    """Return the number of imports that break the layers of pyproject.toml."""
    configuration = api.read_configuration(str(ROOT / "pyproject.toml"))
    layers = next(contract for contract in configuration["contracts_options"] if contract["type"] == "layers")["layers"]
    order: dict[str, tuple[int, str]] = {}
    siblings: dict[int, bool] = {}
    for number, layer in enumerate(layers):
        siblings[number] = ":" in layer
        for name in re.split(r"\s*[|:]\s*", layer):
            order[name] = (number, name)

    def place(module: str) -> tuple[int, str] | None:
        return next((order[name] for name in order if module == name or module.startswith(f"{name}.")), None)

    count = 0
    for module, others in imports().items():
        here = place(module)
        for other in others:
            there = place(other)
            if here is None or there is None or here == there:
                continue
            same = here[0] == there[0] and not siblings[here[0]]
            count += there[0] < here[0] or same
    return count


def code_lines(text: str) -> int:
    """Return the number of lines with code: neither blank, comment nor docstring."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in NOT_CODE and token.type != tokenize.ENDMARKER:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            lines -= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(lines)


def odd_docstrings() -> Iterator[str]:
    """Yield the place of every docstring that starts neither with a verb nor with a name."""
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                docstring = ast.get_docstring(node) or ""
                if ODD.match(docstring):
                    yield f"{path.relative_to(ROOT)}:{node.lineno} {docstring.splitlines()[0]}"


def files_for_new() -> dict[str, int]:
    """Return the number of places that a new signal, method, ... touches, by the table of CONTRIBUTING.md.

    Raises:
        FileNotFoundError: the table names a place that does not exist.
    """
    counts = {}
    for line in (ROOT / "CONTRIBUTING.md").read_text().splitlines():
        kind, _, rest = line.removeprefix("| ").partition(" | ")
        if kind in ("signal", "method", "selector", "format", "export"):
            places = [name for name in re.findall(r"`([^`]+)`", rest.split(" | ")[0]) if "/" in name]
            for place in places:
                if not (ROOT / place).exists():
                    raise FileNotFoundError(place)
            counts[kind] = len(places)
    return counts


def measure() -> dict[str, Any]:
    """Return the figures that the JSON line holds."""
    graph = imports()
    texts = [path.read_text() for path in sources()]
    return {
        "top_modules": len(list(ASSETS.glob("*.py"))),
        "top_folders": len([path for path in ASSETS.iterdir() if (path / "__init__.py").exists()]),
        "longest_chain": len(longest_chain(graph)),
        "circles": len(circles(graph)),
        "upward_imports": upward_imports(),
        "modules": len(texts),
        "source_lines": sum(text.count("\n") for text in texts),
        "code_lines": sum(code_lines(text) for text in texts),
        "odd_docstrings": len(list(odd_docstrings())),
        "files_for_new": files_for_new(),
    }


def main() -> None:
    """Print the figures as a table and as JSON."""
    graph = imports()
    figures = measure()
    print("longest chain of imports:", " -> ".join(longest_chain(graph)))
    for circle in circles(graph):
        print("circle:", ", ".join(circle))
    for place in odd_docstrings():
        print("odd docstring:", place)
    for name, value in figures.items():
        print(f"{name:16} {value:>8,}" if isinstance(value, int) else f"{name:16} {value}")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
