"""Checks the pages that nbdev's builder left in `_proc`: `python tests/pages.py`.

Prints a line a finding (page, cell, what) and exits 1 if there is one.
A cell that draws has `#| fig-alt: what is seen`, one line for all its pictures.
"""
import ast
import json
import posixpath
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from urllib.parse import unquote

import yaml

ROOT = Path(__file__).resolve().parent.parent
COLUMNS, KILOBYTES = 88, 200

FENCE = re.compile(r'^ *(```+|~~~+)[^\n]*\n(.*?)^ *\1[^\n]*$', re.M | re.S)
LINK = re.compile(r'(?P<picture>!?)\[(?P<text>(?:[^\[\]]|\[[^\[\]]*\])*)\]'
                  r'\(\s*<?(?P<target>[^)\s>]*)>?(?:\s+"[^"]*")?\s*\)'
                  r'(?P<more>\{[^}]*\})?')
HEADING = re.compile(r'^#{1,6}\s+(.+?)\s*#*$', re.M)
REFERENCE = re.compile(r'^\[[^\]^]+\]:\s*(\S+)', re.M)
MACHINE = re.compile(r'(?<![\w./:~-])([A-Z]:\\|/(home|root|tmp|work|mnt|Users|var|'
                     r'private|usr|opt)/)[^\s"\'<>,)\]]+')

Finding = tuple[str, str, str]  # page, cell, what
Found = Iterator[tuple[dict | None, str]]  # cell, what


# Cells

def source(cell: dict) -> str: return ''.join(cell['source'])


def split_options(cell: dict) -> tuple[str, str]:
    """The lines `#| …` at the head of a code cell, as YAML, and its code."""
    lines = source(cell).splitlines()
    n = next((i for i, line in enumerate(lines) if line[:2] != '#|'), len(lines))
    return '\n'.join(line[2:] for line in lines[:n]), '\n'.join(lines[n:])


def options(cell: dict) -> dict:
    """The options of a code cell, none if they do not parse."""
    if cell['cell_type'] != 'code': return {}
    try: return dict(yaml.safe_load(split_options(cell)[0]) or {})
    except (yaml.YAMLError, ValueError, TypeError): return {}


def is_shown(cell: dict, part: str) -> bool:
    """Whether a page shows the code (`echo`) or the `output` of a code cell."""
    chosen = options(cell)
    is_off = chosen.get(part) is False or chosen.get('include') is False
    return cell['cell_type'] == 'code' and not is_off


def code(cell: dict) -> str:
    return split_options(cell)[1] if is_shown(cell, 'echo') else ''


def outputs(cell: dict) -> list[dict]:
    return cell.get('outputs', []) if is_shown(cell, 'output') else []


def output_texts(cell: dict, kind: str) -> list[str]:
    """What the outputs of a cell have of one kind, such as `text/html`."""
    data = [o.get('data', {}) for o in outputs(cell)]
    return [''.join(d[kind]) for d in data if kind in d]


def texts(cell: dict) -> list[str]:
    """The Markdown of a cell: its own, or that of its outputs."""
    if cell['cell_type'] == 'markdown': return [source(cell)]
    return output_texts(cell, 'text/markdown')


def without_fences(text: str) -> str:
    """Markdown without comments and fenced blocks."""
    return FENCE.sub('', re.sub(r'<!--.*?-->', '', text, flags=re.S))


def without_code(text: str) -> str:
    """Markdown without comments, fenced blocks and code in backticks."""
    return re.sub(r'(?<!`)(`+)(?!`).*?(?<!`)\1(?!`)', '', without_fences(text))


# Pages

@dataclass
class Page:
    """A notebook as the builder leaves it."""
    path: str
    cells: list[dict]
    front: dict = field(default_factory=dict)

    @property
    def url(self) -> str:
        """Where the site has it, relative to the front page."""
        name = self.front.get('output-file') or f'{Path(self.path).stem}.html'
        return posixpath.join(posixpath.dirname(self.path), name)

    @cached_property
    def ids(self) -> set[str]:
        """All that a link can name: headings, labels of cells, ids in the text."""
        found, count = {options(cell).get('label') for cell in self.cells}, {}
        for text in (t for cell in self.cells for t in texts(cell)):
            prose = without_code(text)
            found.update(re.findall(r'\bid="([^"]+)"', prose))
            found.update(re.findall(r'\{#([\w.:-]+)', prose))
            for heading in HEADING.findall(without_fences(text)):
                name = heading_id(heading)
                count[name] = count.get(name, -1) + 1
                found.add(f'{name}-{count[name]}' if count[name] else name)
        return found


def heading_id(heading: str) -> str:
    """The anchor that Pandoc gives a heading."""
    if m := re.search(r'\{[^}]*#([\w.:-]+)[^}]*\}$', heading): return m[1]
    text = re.sub(r'\{[^}]*\}$', '', heading)
    text = LINK.sub(lambda m: m['text'], text).lower()
    text = re.sub(r'\s+', '-', re.sub(r'[^\w\s.-]', '', text).strip())
    return re.sub(r'^[\W\d_]+', '', text) or 'section'


def front_matter(cells: list[dict]) -> dict:
    """What the first cell says of a page, nothing if it does not parse."""
    text = source(cells[0]).strip() if cells else ''
    m = re.fullmatch(r'---\n(.*?)\n?---', text, re.S)
    try: return dict(yaml.safe_load(m[1])) if m else {}
    except (yaml.YAMLError, ValueError, TypeError): return {}


@dataclass
class Site:
    """All pages, and the package that they document; notebooks lie beside it in nbs."""
    folder: Path
    library: Path
    pages: list[Page]
    address: str = ''

    @cached_property
    def named(self) -> dict[str, Page]:
        """Pages by every name that a link may have for them."""
        return {name: page for page in self.pages
                for name in (page.path, page.url, f'{page.url}.md')}

    @cached_property
    def modules(self) -> dict[Path, ast.Module]:
        """The module that a notebook exports to, by the notebook."""
        found = {}
        for file in self.library.rglob('*.py'):
            text = file.read_text(encoding='utf-8')
            m = re.search(r'File to edit: (\S+\.ipynb)', text)
            if m: found[(file.parent/m[1]).resolve()] = ast.parse(text)
        return found

    def notebook(self, page: Page) -> Path:
        """What a page was made from."""
        return (self.library.parent/'nbs'/page.path).resolve()


def read_cells(file: Path) -> list[dict]:
    return json.loads(file.read_text(encoding='utf-8'))['cells']


def read_yaml(file: Path) -> dict:
    return yaml.safe_load(file.read_text(encoding='utf-8')) if file.is_file() else {}


def read_site(folder: Path, library: Path = ROOT/'fgir') -> Site:
    """The pages in a folder."""
    pages = []
    for file in sorted(folder.rglob('*.ipynb')):
        path, cells = file.relative_to(folder), read_cells(file)
        if path.parts[0][0] not in '._':
            pages.append(Page(path.as_posix(), cells, front_matter(cells)))
    address = read_yaml(folder/'nbdev.yml').get('website', {}).get('site-url', '')
    return Site(folder, library, pages, address.rstrip('/'))


# Checks of a page

def check_front_matter(page: Page, site: Site) -> Found:
    """It parses and says what it must; no other page has the same address."""
    if not page.front: yield None, 'no front matter that parses'
    for key in ('title', 'description', 'output-file'):
        if page.front and not isinstance(page.front.get(key), str):
            yield None, f'no {key} in the front matter'
    if site.named[page.url] is not page: yield None, f'another page is {page.url} too'


def check_title(page: Page, site: Site) -> Found:
    """The builder makes front matter of the cell with the title and drops the rest."""
    notebook = site.notebook(page)
    for cell in read_cells(notebook) if notebook.is_file() else ():
        text, is_code = source(cell), cell['cell_type'] != 'markdown'
        if is_code or not re.search(r'^# ', text, re.M): continue
        lines = [s for s in text.splitlines() if not re.match(r'# |- .+:|\s*$', s)]
        lost = lines[1:] if lines and lines[0].startswith('> ') else lines
        if lost: yield cell, f'lost with the title, needs its own cell: {lost[0][:50]}'
        return


def check_options(page: Page, site: Site) -> Found:
    """Options of cells parse."""
    for cell in page.cells:
        if cell['cell_type'] != 'code': continue
        try: yaml.safe_load(split_options(cell)[0])
        except yaml.YAMLError as e: yield cell, f'options do not parse: {e.problem}'


def check_links(page: Page, site: Site) -> Found:
    """What a page points to within the site is there."""
    for cell in page.cells:
        for target in links(cell):
            problem = broken(target, page, site)
            if problem: yield cell, f'{target}: {problem}'


def links(cell: dict) -> list[str]:
    """Where the Markdown and the HTML of a cell point to."""
    prose = '\n\n'.join(map(without_code, texts(cell)))
    html = '\n'.join([prose, *output_texts(cell, 'text/html')])
    return [*(m['target'] for m in LINK.finditer(prose)), *REFERENCE.findall(prose),
            *re.findall(r'<(?:a|img)\b[^>]*?\b(?:href|src)="([^"]*)"', html)]


def broken(target: str, page: Page, site: Site) -> str | None:
    """What is wrong with a link; nothing if it leaves the site."""
    base, target = posixpath.dirname(page.url), unquote(target)
    if site.address and (target + '/').startswith(site.address + '/'):
        base, target = '', target[len(site.address):].lstrip('/')
        if target[:1] in ('', '#'): target = f'index.html{target}'
    if re.match(r'[a-z][a-z0-9+.-]*:|//', target, re.I): return None
    path, _, anchor = target.partition('#')
    path = path.lstrip('/') if path[:1] == '/' else posixpath.join(base, path)
    path = posixpath.normpath(path) if target[:1] != '#' else page.path
    to = site.named.get(path)
    if to is None and not (site.folder/path).exists(): return 'no such page or file'
    if to and anchor and anchor not in to.ids: return f'no such place on {to.path}'


def check_pictures(page: Page, site: Site) -> Found:
    """Every picture has a text."""
    for cell in page.cells:
        text = options(cell).get('fig-alt')
        kinds = [kind for o in outputs(cell) for kind in o.get('data', {})]
        has_text = isinstance(text, str) and text.strip()
        if any(kind.startswith('image/') for kind in kinds) and not has_text:
            yield cell, 'a picture without `#| fig-alt: text`'
        prose = '\n\n'.join(map(without_code, texts(cell)))
        for m in LINK.finditer(prose):
            has_text = m['text'].strip() or 'fig-alt=' in (m['more'] or '')
            if m['picture'] and not has_text: yield cell, f'{m[0][:50]} has no text'
        html = '\n'.join([prose, *output_texts(cell, 'text/html')])
        for tag in re.findall(r'<img\b[^>]*>', html):
            has_text = re.search(r'\balt=["\']\s*[^"\'\s]', tag)
            if not has_text: yield cell, f'{tag[:50]} has no alt'


def check_names(page: Page, site: Site) -> Found:
    """Public functions and classes have a heading, other public names a mention."""
    module = site.modules.get(site.notebook(page), ast.Module([], []))
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    defined = {node.name for node in module.body if isinstance(node, kinds)}
    shown = '\n'.join(s for cell in page.cells for s in [code(cell), *texts(cell)])
    for name in public_names(module):
        if name in defined and heading_id(name) not in page.ids:
            yield None, f'{name} has no heading (show_doc)'
        elif not re.search(rf'(?<!\w){re.escape(name)}(?!\w)', shown):
            yield None, f'{name} is public and nowhere on the page'


def public_names(module: ast.Module) -> list[str]:
    """`__all__` of a module."""
    for node in module.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == '__all__':
            return ast.literal_eval(node.value)
    return []


def check_outputs(page: Page, site: Site) -> Found:
    """Outputs name no path of the machine that made them, and load fast."""
    for cell in page.cells:
        for o in outputs(cell):
            said = [t for k, t in o.get('data', {}).items() if k.startswith('text/')]
            said += [o.get('text', ''), o.get('traceback', '')]
            m = MACHINE.search('\n'.join(map(''.join, said)))
            if m: yield cell, f'a path of a machine: {m[0][:60]}'
        size = sum(len(json.dumps(o, ensure_ascii=False)) for o in outputs(cell))/1000
        if size > KILOBYTES: yield cell, f'{size:.0f} kB of output: tests/outputs.py'


def check_width(page: Page, site: Site) -> Found:
    """Code fits. Signatures do not count: the builder makes and the site wraps them."""
    for cell in page.cells:
        blocks = [m[2] for m in FENCE.finditer(source(cell))]
        if cell['cell_type'] == 'code': blocks = [code(cell)]
        for line in '\n'.join(blocks).splitlines():
            n = len(line)
            if n > COLUMNS: yield cell, f'{n} columns: {line.strip()[:50]}'


CHECKS = [check_front_matter, check_title, check_options, check_links, check_pictures,
          check_names, check_outputs, check_width]


# The whole

def sidebar_entries(items: list) -> Iterator[str]:
    """The pages of a sidebar, in order."""
    for item in items:
        if isinstance(item, str): item = dict(href=item)
        if '://' not in item.get('href', '://'): yield item['href']
        yield from sidebar_entries(item.get('contents', []))


def check_sidebar(site: Site) -> Iterator[Finding]:
    """The sidebar has every page once and nothing else."""
    sidebar = read_yaml(site.folder/'sidebar.yml').get('website', {}).get('sidebar', {})
    listed = [*sidebar_entries(sidebar.get('contents', []))]
    paths = [page.path for page in site.pages]
    for name in listed:
        if name not in paths: yield 'sidebar.yml', '', f'{name}: no such page'
    for path in paths:
        n = listed.count(path)
        if n != 1: yield path, '', f'{n} times in sidebar.yml'


def check_site(site: Site) -> Iterator[Finding]:
    """All findings."""
    yield from check_sidebar(site)
    for page in site.pages:
        for check in CHECKS:
            for cell, what in check(page, site):
                yield page.path, cell.get('id', '') if cell else '', what


def main(folder: str | Path = ROOT/'_proc') -> int:
    site = read_site(Path(folder))
    findings = [*check_site(site)] if site.pages else [(str(folder), '', 'no pages')]
    for finding in findings: print(': '.join(filter(None, finding)))
    return int(bool(findings))


if __name__ == '__main__': sys.exit(main(*sys.argv[1:]))
