"""Each rule of tests/pages.py: a miniature page that keeps it, and one that breaks it."""
import json

import pages
import pytest
import yaml

FRONT = '---\ntitle: Fish\ndescription: Drawn\noutput-file: fish.html\n---'
PNG, HTML = {'image/png': 'iVBORw0KGgo='}, '<img src="table.csv"{}>'


def text(source): return dict(cell_type='markdown', id='text', source=source)


def cell(source, *outputs):
    return dict(cell_type='code', id='cell', source=source, outputs=list(outputs))


def drawn(**data): return dict(output_type='display_data', data=data)


def printed(said): return dict(output_type='stream', text=said)


def documented(name): return drawn(**{'text/markdown': f'---\n\n### {name}\n\n```python\ndef {name}()\n```'})


SEA = [text('## Deep `Sea`: *waves*!'), cell('show_doc(Net.fit)', documented('Net.fit'))]


def write(file, cells):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(dict(cells=cells)), encoding='utf-8')


@pytest.fixture
def found(tmp_path):
    """What is found on a page that begins with good front matter, beside another page."""
    def look(*cells, front=FRONT, module='', notebook=(), sidebar=('10_fish.ipynb', 'more/11_sea.ipynb')):
        sea = FRONT.replace('fish.html', 'sea.html')
        for path, head, body in [('10_fish.ipynb', front, cells),
                                 ('more/11_sea.ipynb', sea, SEA)]:
            write(tmp_path/'_proc'/path, [dict(cell_type='raw', id='head', source=head), *body])
        (tmp_path/'_proc/table.csv').touch()
        settings = {'nbdev.yml': {'site-url': 'https://fish.org/fgir'}, 'sidebar.yml': dict(sidebar=dict(contents=[
            sidebar[0], dict(section='More', contents=[*sidebar[1:]])]))}
        for name, values in settings.items():
            (tmp_path/'_proc'/name).write_text(yaml.safe_dump(dict(website=values)), encoding='utf-8')
        if notebook: write(tmp_path/'nbs/10_fish.ipynb', notebook)
        (tmp_path/'fgir').mkdir(exist_ok=True)
        (tmp_path/'fgir/fish.py').write_text(f'# File to edit: ../nbs/10_fish.ipynb.\n{module}', encoding='utf-8')
        return [what for _, _, what in pages.check_site(pages.read_site(tmp_path/'_proc', tmp_path/'fgir'))]
    return look


def test_nothing_to_find(found):
    assert found(text('Plain text.'), cell('1 + 1', drawn(**{'text/plain': '2'}))) == []


@pytest.mark.parametrize('front, what', [
    ('Fish', 'no front matter that parses'),
    ('---\ntitle: a: b\n---', 'no front matter that parses'),
    ('---\ntitle: Fish\noutput-file: fish.html\n---', 'no description in the front matter')])
def test_front_matter(found, front, what):
    assert found(front=front) == [what]


def test_two_pages_of_one_address(found):
    front = FRONT.replace('fish.html', 'more/sea.html')
    assert found(front=front) == ['another page is more/sea.html too']


@pytest.mark.parametrize('source, lost', [
    ('# Fish\n\n> Drawn', None), ('# Fish\n\n> Drawn\n\n- toc: false', None), ('# Fish', None),
    ('# Fish\n\n> Drawn\n\nHow they are drawn.', 'How they are drawn.'),
    ('# Fish\n\n> Drawn\n> by hand', '> by hand'), ('# Fish\n\nDrawn.', 'Drawn.')])
def test_text_with_the_title(found, source, lost):
    notebook = [cell('#| default_exp fish'), text(source), text('# Another\n\nis a heading')]
    assert found(notebook=notebook) == [f'lost with the title, needs its own cell: {lost}']*bool(lost)


def test_options(found):
    assert found(cell('#| fig-alt: "Fish: two"\n#| echo: false\nplot()')) == []
    assert 'options do not parse' in found(cell('#| fig-alt: Fish: two\nplot()'))[0]


@pytest.mark.parametrize('link', [
    '[a](more/11_sea.ipynb)', '[a](more/sea.html)', '[a](more/sea.html.md)', '[a](/more/sea.html)', '[a](table.csv)',
    '[a](more/sea.html#deep-sea-waves)', '[a](more/11_sea.ipynb#net.fit)', '[a](#here)', '[a](#here-1)', '[a](#named)',
    '[a](https://fish.org/fgir/more/sea.html#net.fit)', '[a](https://fish.org/fgir)', '[a](https://fish.org/fgir/#here)', '[a](https://elsewhere.org/x)',
    '[a][1]\n\n[1]: more/sea.html', '<a href="more/sea.html">a</a>', '`[a](nowhere.html)`', '```\n[a](nowhere.html)\n```'])
def test_link(found, link):
    front = text('---\ntitle: Home\ndescription: Home\noutput-file: index.html\n---')['source']
    assert found(text(f'## Here\n\n{link}\n\n## Here\n\n## Other {{#named}}'), front=front) == []


@pytest.mark.parametrize('link, what', [
    ('[a](nowhere.html)', 'nowhere.html: no such page or file'),
    ('[a](11_sea.ipynb)', '11_sea.ipynb: no such page or file'),
    ('[a](more/sea.html#shallow)', 'more/sea.html#shallow: no such place on more/11_sea.ipynb'),
    ('[a](#here-1)', '#here-1: no such place on 10_fish.ipynb'),
    ('[`Net`](https://fish.org/fgir/more/sea.html#net)',
     'https://fish.org/fgir/more/sea.html#net: no such place on more/11_sea.ipynb'),
    ('[a][1]\n\n[1]: nowhere.html', 'nowhere.html: no such page or file'),
    ('<a href="nowhere.html">a</a>', 'nowhere.html: no such page or file'),
    ('![fish](fish.png)', 'fish.png: no such page or file')])
def test_broken_link(found, link, what):
    assert found(text(f'## Here\n\n{link}')) == [what]


def test_links_of_outputs(found):
    assert found(cell('x', drawn(**{'text/markdown': '[a](nowhere.html)'}))) == ['nowhere.html: no such page or file']
    assert found(cell('x', drawn(**{'text/html': '<a href="nowhere.html">a</a>'}))) == ['nowhere.html: no such page or file']
    assert found(cell('#| output: false\nx', drawn(**{'text/markdown': '[a](nowhere.html)'}))) == []


@pytest.mark.parametrize('picture', [
    cell('#| fig-alt: two fish\nplot()', drawn(**PNG)), cell('#| output: false\nplot()', drawn(**PNG)),
    cell('x', drawn(**{'text/html': HTML.format(' alt="two fish"')})),
    text('![two fish](table.csv)'), text('![](table.csv){fig-alt="two fish"}'), text('`![](table.csv)`')])
def test_picture_with_text(found, picture):
    assert found(picture) == []


@pytest.mark.parametrize('picture, what', [
    (cell('plot()', drawn(**PNG)), 'a picture without `#| fig-alt: text`'),
    (cell('#| fig-alt: ""\nplot()', drawn(**PNG)), 'a picture without `#| fig-alt: text`'),
    (cell('#| fig-alt: [a, b]\nplot()', drawn(**PNG)), 'a picture without `#| fig-alt: text`'),
    (cell('x', drawn(**{'text/html': HTML.format('')})), '<img src="table.csv"> has no alt'),
    (cell('x', drawn(**{'text/html': HTML.format(' alt=""')})), '<img src="table.csv" alt=""> has no alt'),
    (text('![](table.csv)'), '![](table.csv) has no text')])
def test_picture_without_text(found, picture, what):
    assert found(picture) == [what]


MODULE = '__all__ = ["draw", "Pond", "KINDS"]\nKINDS = 3\ndef draw(): pass\nclass Pond: pass\n'


def test_names(found):
    cells = [cell('#| echo: false\nshow_doc(draw)', documented('draw')), text('### Pond\n\nof `KINDS` fish')]
    assert found(*cells, module=MODULE) == []
    assert found(cells[0], cell('Pond(KINDS)'), module=MODULE) == ['Pond has no heading (show_doc)']
    assert found(cells[0], text('### Pond\n\nof `SUBKINDS`'), module=MODULE) == ['KINDS is public and nowhere on the page']


@pytest.mark.parametrize('path', ['/home/ann/fish', '/tmp/tmpx1/fish.png', '/Users/ann/fish', r'C:\fish'])
def test_path_of_a_machine(found, path):
    assert found(cell('x', printed(f'read {path}'))) == [f'a path of a machine: {path}']
    assert found(cell('x', drawn(**{'text/plain': f"Path('{path}')"}))) == [f'a path of a machine: {path}']
    assert found(text(f'Say `{path}`.'), cell(f'open("{path}")', printed('fish/tmp/1.png https://a.org/home/x'))) == []


def test_large_output(found):
    assert found(cell('x', printed('fish '*39_000))) == []
    assert found(cell('x', printed('fish '*41_000)))[0].startswith('205 kB of output')


def test_wide_code(found):
    line = 'x = "' + 'fish'*20 + '"'
    assert found(cell(line + '  '), cell(f'#| fig-alt: {line}\nx'), cell(f'#| echo: false\n{line*2}'), text(line*2)) == []
    assert found(cell(line + '; y'))[0].startswith('89 columns: x = "fish')
    assert found(text(f'```python\n{line*2}\n```'))[0].startswith('172 columns')


def test_sidebar(found):
    assert found(sidebar=['10_fish.ipynb', 'more/11_sea.ipynb', dict(text='a', href='https://a.org')]) == []
    assert found(sidebar=['10_fish.ipynb']) == ['0 times in sidebar.yml']
    assert found(sidebar=['10_fish.ipynb', 'more/11_sea.ipynb', '12_gone.ipynb']) == ['12_gone.ipynb: no such page']


def test_what_is_printed(found, tmp_path, capsys):
    found(text('[a](nowhere.html)'))
    assert pages.main(tmp_path/'_proc') == 1
    assert capsys.readouterr().out == '10_fish.ipynb: text: nowhere.html: no such page or file\n'
    found(text('Plain text.'))
    assert pages.main(tmp_path/'_proc') == 0
    assert pages.main(tmp_path/'empty') == 1


def test_files_of_the_site():
    "What _quarto.yml names lies beside the notebooks, where the builder reads it."
    site = yaml.safe_load((pages.ROOT/'nbs/_quarto.yml').read_text(encoding='utf-8'))
    theme = site['format']['html']['theme']
    names = {*theme['light'], *theme['dark'], site['website']['favicon'], site['website']['navbar']['logo']} - {'cosmo'}
    for name in names: assert (pages.ROOT/'nbs'/name).is_file()
    assert (pages.ROOT/'nbs/_quarto.yml').resolve() == pages.ROOT/'_quarto.yml'
