"""The five lessons have one form, and every command that they name is a command of fgir that takes these options."""
import json
import re
import shlex
from functools import cache
from pathlib import Path

import pytest
import typer

from fgir.app.cli import app, commands as app_commands
from fgir.training.recipes import RECIPES, get_recipe

LESSONS = Path(__file__).parent.parent/'nbs/tutorials'
HEADINGS = ['The idea in one picture', 'The recipe and its quirks', 'Its commands beside ours', 'Its published numbers',
            'Ours on two subsets', 'What differs, and why', 'What to take today instead']
OPTIONS = {  # of the programs, as their READMEs give them
    'cfga_training': 'files_cars196.py --datasetdir --annotationsdir --targetdatasetdir train_msloss.py train_cosface.py '
                     'train_arcface.py train_DGPCRL.py train_msloss_1024.py train_cosface_1024.py train_arcface_1024.py',
    'cfga': 'files.py files_cars196.py --datasetdir --annotationsdir --targetdatasetdir --dataset_name --model_name '
            'WACD_R50.py step2_re_imagenet_res.py cfga_with_dmls.py WACD_proxy_anchor_trained.py WACD_DGCRL_batch_2.py '
            'step3_compute_recall_at_k.py compute_recall_as_ms.py',
    'cgd': 'data_utils.py train.py --data_path --data_name --crop_type --backbone_type --gd_config --feature_dim '
           '--smoothing --temperature --margin --recalls --batch_size --num_epochs test.py --query_img_name --data_base '
           '--retrieval_num',
    'pp': 'data_utils.py --data_path --data_name --backbone_type --loss_name --feature_dim --batch_size --num_epochs '
          '--warm_up --recalls test.py --query_img_name --data_base --retrieval_num',
    'fgic': 'train.py -d -b -g -w -s -a -n'}


def markdown(lesson: str) -> str:
    cells = json.loads((LESSONS/f'{lesson}.ipynb').read_text(encoding='utf-8'))['cells']
    return '\n\n'.join(''.join(c['source']) for c in cells if c['cell_type'] == 'markdown')


def rows(lesson: str) -> list[list[str]]:
    "Program's words and ours, of the table of commands."
    section = markdown(lesson).split(f'## {HEADINGS[2]}\n')[1].split('\n## ')[0]
    table = [line.strip('| ').split(' | ') for line in section.splitlines() if line.startswith('| ')]
    return table[1:]


def commands(lesson: str) -> list[str]:
    "Every command of the table, of a block of a shell, or in backticks with its arguments."
    text = markdown(lesson)
    found = [c for row in rows(lesson) for c in re.findall(r'`(fgir [^`]+)`', row[1])]
    found += re.findall(r'`(fgir [^`]*\b[A-Z]{3,}\b[^`]*)`', ' '.join(text.split()))
    for block in re.findall(r'```bash\n(.*?)```', text, re.S):
        found += block.replace('\\\n', ' ').strip().splitlines()
    return list(dict.fromkeys(found))


@cache
def fgir():
    app_commands()  # all families join
    return typer.main.get_command(app)


def parse(command: str):
    "The command and what it would be called with; an error for a command or an option that there is not."
    name, *words = shlex.split(command)
    place, context = fgir(), None
    while hasattr(place, 'commands'):
        context = place.make_context(name, words[:1], parent=context)
        name, place, words = place.resolve_command(context, words)
    return name, place.make_context(name, [*words], parent=context)


def settings(words: list[str]) -> dict:
    "What `--set NAME=VALUE` says, as `get_recipe` takes it."
    found = {}
    for word in words:
        name, value = word.split('=', 1)
        name, _, part = name.partition('.')
        try: value = json.loads(value)
        except ValueError: pass
        if part: found.setdefault(name, {})[part] = value
        else: found[name] = value
    return found


@pytest.mark.parametrize('lesson', OPTIONS)
def test_a_lesson_has_the_form_of_all(lesson):
    assert re.findall(r'^## (.+)$', markdown(lesson), re.M) == HEADINGS


@pytest.mark.parametrize('lesson', OPTIONS)
def test_a_lesson_names_every_option_of_its_program(lesson):
    theirs = ' '.join(row[0] for row in rows(lesson))
    assert not [word for word in OPTIONS[lesson].split() if not re.search(rf'(?<![\w-]){re.escape(word)}(?!\w)', theirs)]


@pytest.mark.parametrize('lesson', OPTIONS)
def test_each_row_has_a_command_or_says_that_there_is_none(lesson):
    for row in rows(lesson):
        assert len(row) == 2 and (row[1].startswith(('`fgir ', 'none: '))), row


@pytest.mark.parametrize('lesson', OPTIONS)
def test_every_command_is_one_and_takes_its_options(lesson):
    for command in commands(lesson):
        name, context = parse(command)
        if name != 'train': continue
        name = context.params['recipe']
        assert name in RECIPES, command
        undo = (context.params.get('undo') or '').split(',')
        get_recipe(name, [q for q in undo if q], **settings(context.params.get('settings') or ()))


@pytest.mark.parametrize('wrong', ['fgir trian cgd ROOT', 'fgir train cgd ROOT --no-such-option 1', 'fgir extract ROOT',
                                   'fgir train cgd ROOT --batch-size many', 'fgir index bild ROOT FILE'])
def test_a_wrong_command_is_found(wrong):
    with pytest.raises(Exception, match=r'(?i)no such|missing|valid integer'): parse(wrong)
