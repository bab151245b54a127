"""What a user of one of the five source programs has on disk: data sets, checkpoints, features; read here, and told apart."""
import miniature
import pandas as pd
import pytest

from fgir.cli import detect_layout, read_data
from fgir.formats import READERS, prepare

@pytest.mark.parametrize('annotations', ['.', 'devkit', 'car_devkit/devkit'])
@pytest.mark.parametrize('photographs', ['car_ims', 'car_ims/car_ims'])
def test_cars_wherever_the_archives_were_unpacked(tmp_path, photographs, annotations):
    "The joint release and the layout of CFGA's instructions are one table, found without being named."
    joint = READERS['cars'](miniature.cars(tmp_path/'joint'))
    root = miniature.cars(tmp_path/'root', photographs, annotations)
    assert detect_layout(root) == 'cars'
    for split in ('zero-shot', 'official'):
        table = read_data(root, split=split)
        pd.testing.assert_frame_equal(table.drop(columns='path'), READERS['cars'](tmp_path/'joint', split).drop(columns='path'))
    assert list(table['path']) == [f'{photographs}/{i:06}.jpg' for i in range(1, 9)] and len(joint) == 8


def test_cars_of_the_cfga_program_become_its_json(tmp_path):
    "The data preparation of CFGA on its own layout: rows in the order of the file, first half of the classes trains."
    made = prepare('cars', miniature.cars_cfga(tmp_path/'cars'), tmp_path/'datafile', format='cfga', progress=False)
    again = READERS['cars'](tmp_path/'cars')
    assert list(made['label']) == list(again['label']) == [0, 2, 1, 3, 3, 0, 2, 1]
    assert list(made['split']) == ['train', 'test', 'train', 'test', 'test', 'train', 'test', 'train']
