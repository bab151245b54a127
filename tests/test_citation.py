"""CITATION.cff says what the package says, and every paper that it names is in the README."""
import re
from importlib.metadata import metadata

import yaml
from readme import README, ROOT

def test_citation():
    citation = yaml.safe_load((ROOT/'CITATION.cff').read_text(encoding='utf-8'))
    package = metadata('fgir')
    assert citation['title'] == package['Name']
    assert [a['name'] for a in citation['authors']] == [package['Author']]
    assert f'Repository, {citation["repository-code"]}' in package.get_all('Project-URL')
    readme = re.sub(r'\s+', ' ', README.read_text(encoding='utf-8'))
    for paper in citation['references']: assert f'[{paper["title"]}]({paper["url"]})' in readme
