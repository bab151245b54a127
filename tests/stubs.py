"""Write stubs for modules whose classes get methods by `@patch`, which editors and type checkers do not see.

Run it after `nbdev-export`: `python tests/stubs.py`. A stub has the public names of its module, and each patched method
stands in its class. `test_stubs.py` says when one is out of date.
"""
import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]/'fgir'
MODULES = ('gallery/index', 'gallery/faiss', 'gallery/milvus', 'gallery/segments')
HEAD = '# Written by tests/stubs.py from {name}.py: do not edit.\n# ruff: noqa: E501, I001, UP037\n'


def private(name: str) -> bool: return name.startswith('_') and not name.startswith('__')


def unquoted(annotation: ast.AST | None) -> ast.AST | None:
    """An annotation that is in quotes, without them."""
    quoted = isinstance(annotation, ast.Constant) and isinstance(annotation.value, str)
    return ast.parse(annotation.value, mode='eval').body if quoted else annotation


def bare(f: ast.FunctionDef, decorators: list) -> ast.FunctionDef:
    """A function that has its docstring for a body."""
    doc = ast.get_docstring(f)
    return ast.FunctionDef(f.name, f.args, [ast.Expr(ast.Constant(doc or ...))], decorators, unquoted(f.returns), lineno=0)


def patched(node: ast.AST) -> tuple[str, ast.FunctionDef] | None:
    """The class that `@patch` adds a function to, and the method that it becomes; None for anything else."""
    if not isinstance(node, ast.FunctionDef) or not node.decorator_list: return None
    patch = node.decorator_list[0]
    if ast.unparse(patch).partition('(')[0] != 'patch': return None
    owner, node.args.args[0].annotation = ast.unparse(node.args.args[0].annotation), None
    return owner, bare(node, [ast.Name('classmethod')] if isinstance(patch, ast.Call) else [])


def attributes(init: ast.FunctionDef) -> Iterator[ast.AnnAssign]:
    """What `__init__` keeps of its arguments under their names."""
    types = {a.arg: a.annotation for a in init.args.args}
    for name in [name for name in types if f'self.{name} = {name}' in ast.unparse(init)]:
        yield ast.AnnAssign(ast.Name(name), types[name] or ast.Name('object'), simple=1)


def members(node: ast.ClassDef) -> Iterator[ast.AST]:
    """What others see of a class."""
    for part in node.body:
        if isinstance(part, ast.FunctionDef) and not private(part.name):
            if part.name == '__init__': yield from attributes(part)
            yield bare(part, part.decorator_list)
        elif isinstance(part, ast.AnnAssign): yield ast.AnnAssign(part.target, part.annotation, part.value and ast.Constant(...), 1)
        elif isinstance(part, ast.Expr): yield part


def public(node: ast.AST) -> ast.AST | None:
    """A statement as a stub has it, None if nobody outside sees it."""
    if isinstance(node, ast.FunctionDef) and not private(node.name): return bare(node, node.decorator_list)
    if isinstance(node, ast.ClassDef) and not private(node.name):
        return ast.ClassDef(node.name, node.bases, node.keywords, list(members(node)), node.decorator_list)
    if isinstance(node, ast.Assign) and not node.targets[0].id.startswith('_'):
        return ast.AnnAssign(node.targets[0], ast.Name(type(eval(ast.unparse(node.value), {})).__name__), simple=1)


def stub(path: Path) -> str:
    """The stub of a module."""
    body = ast.parse(path.read_text(encoding='utf-8')).body
    pairs = [(node, patched(node)) for node in body]
    seen = [kept for node, method in pairs if not method and (kept := public(node))]
    for c in (node for node in seen if isinstance(node, ast.ClassDef)):
        c.body += [method[1] for _, method in pairs if method and method[0] == c.name and not private(method[1].name)]
    used = {n.id for node in seen for n in ast.walk(node) if isinstance(n, ast.Name)}
    lazy = [n for part in body if isinstance(part, ast.If) for n in part.body]
    imports = [n for n in [*body, *lazy] if isinstance(n, ast.Import | ast.ImportFrom)]
    for n in imports: n.names = [a for a in n.names if (a.asname or a.name) in used]
    lines = [ast.unparse(ast.fix_missing_locations(n)) for n in [*(n for n in imports if n.names), *seen]]
    return HEAD.format(name=path.stem) + '\n'.join(lines) + '\n'


if __name__ == '__main__':
    for module in MODULES: (ROOT/f'{module}.pyi').write_text(stub(ROOT/f'{module}.py'), encoding='utf-8')
