"Data sets of a few images each, in the original layouts and file formats."

from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

def photograph(path: Path, seed: int = 0, size: tuple[int, int] = (40, 30)) -> None:
    "Write a smooth random image, `size` = (width, height)."
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize(size).save(path, quality=95)


def cub(root: Path, repeat_names: bool = False) -> Path:
    "Four classes of two images with boxes; file names repeat between classes if asked."
    rows = [(c, i) for c in range(1, 5) for i in range(2)]
    paths = [f'{c:03}.Bird_{c}/' + (f'{i:04}.jpg' if repeat_names else f'Bird_{c}_{i:04}.jpg') for c, i in rows]
    for k, p in enumerate(paths):
        photograph(root/'images'/p, k)
    lines = {
        'images': [f'{k} {p}' for k, p in enumerate(paths, 1)],
        'image_class_labels': [f'{k} {c}' for k, (c, _) in enumerate(rows, 1)],
        'bounding_boxes': [f'{k} 3.9 2.0 {20 + k}.7 15.0' for k in range(1, len(rows) + 1)],
        'train_test_split': [f'{k} {k % 2}' for k in range(1, len(rows) + 1)],
        'classes': [f'{c} {c:03}.Bird_{c}' for c in range(1, 5)]}
    for name, text in lines.items():
        (root/f'{name}.txt').write_text('\n'.join(text) + '\n')
    return root


CAR_CLASSES = ['AM General Hummer SUV 2000', 'Acura RL Sedan 2012', 'Acura TL Sedan 2012', 'Ram C/V Cargo Van 2012']


def _records(rows: list[tuple], fields: str) -> np.ndarray:
    return np.array(rows, [(f, object) for f in fields.split()])[None]


def _class_names() -> np.ndarray:
    return np.array(CAR_CLASSES, object)[None]


def cars(root: Path, photographs: str = 'car_ims', annotations: str = '.') -> Path:
    "Eight cars of four classes as in the joint release; the classes do not come in order."
    rows = []
    for k, c in enumerate([1, 3, 2, 4, 4, 1, 3, 2], 1):
        photograph(root/photographs/f'{k:06}.jpg', k)
        rows.append((f'car_ims/{k:06}.jpg', 2, 3, 38, 29, c, k % 2))
    fields = 'relative_im_path bbox_x1 bbox_y1 bbox_x2 bbox_y2 class test'
    (root/annotations).mkdir(parents=True, exist_ok=True)
    savemat(root/annotations/'cars_annos.mat', {'annotations': _records(rows, fields), 'class_names': _class_names()})
    return root


def cars_cfga(root: Path) -> Path:
    "The same cars where the CFGA program has them: each archive unpacked in a folder of its own name."
    return cars(root, 'car_ims/car_ims', 'car_devkit/devkit')


def cars_devkit(root: Path, folder: str = 'devkit') -> Path:
    "The same number of cars in two folders, with the development kit."
    (root/folder).mkdir(parents=True, exist_ok=True)
    for part, kit in {'train': 'cars_train_annos', 'test': 'cars_test_annos_withlabels'}.items():
        rows = []
        for k, c in enumerate([4, 2, 1, 3], 1):
            photograph(root/f'cars_{part}/{k:05}.jpg', 10*(part == 'test') + k)
            rows.append((2, 3, 38, 29, c, f'{k:05}.jpg'))
        fields = 'bbox_x1 bbox_y1 bbox_x2 bbox_y2 class fname'
        savemat(root/f'{folder}/{kit}.mat', {'annotations': _records(rows, fields)})
    savemat(root/f'{folder}/cars_meta.mat', {'class_names': _class_names()})
    return root


def sop(root: Path) -> Path:
    "Two training and two test products of two photographs."
    for part, ids in {'train': (1, 2), 'test': (11319, 11320)}.items():
        lines = ['image_id class_id super_class_id path']
        for c in ids:
            for i in range(2):
                path = f'bicycle_final/{111085122871 + c}_{i}.JPG'
                photograph(root/path, 2*c + i)
                lines.append(f'{len(lines)} {c} 1 {path}')
        (root/f'Ebay_{part}.txt').write_text('\n'.join(lines) + '\n')
    return root


def inshop(root: Path) -> Path:
    "Two training items, and two whose photographs are queries and gallery."
    parts = {1: ('train', 'train'), 2: ('query', 'gallery'), 5: ('train', 'train'), 7: ('gallery', 'query')}
    lines = []
    for item, statuses in parts.items():
        for i, status in enumerate(statuses):
            path = f'img/WOMEN/Dresses/id_{item:08}/02_{i + 1}_front.jpg'
            photograph(root/'Img'/path, 2*item + i)
            lines.append(f'{path}   id_{item:08}  {status}')
    (root/'Eval').mkdir(parents=True)
    head = [str(len(lines)), 'image_name item_id evaluation_status']
    (root/'Eval/list_eval_partition.txt').write_text('\n'.join(head + lines) + '\n')
    return root


def aircraft(root: Path) -> Path:
    "Four variants of two aircraft each."
    variants = ['707-320', '727-200', 'A310', 'DC-3']
    root.mkdir(parents=True)
    (root/'variants.txt').write_text('\n'.join(variants) + '\n')
    for part in ('trainval', 'test'):
        lines = [f'{1000000 + 10*k + (part == "test")} {v}' for k, v in enumerate(variants)]
        (root/f'images_variant_{part}.txt').write_text('\n'.join(lines) + '\n')
        for line in lines:
            photograph(root/f'images/{line.split()[0]}.jpg', int(line.split()[0]) % 97)
    return root


def folder(root: Path) -> Path:
    "Four class folders of two images."
    for c in ('ash', 'beech', 'NA', 'oak, red'):
        for i in range(2):
            photograph(root/c/f'{c[:2]}{i}.png', i)
    return root


SETS = {'cub': cub, 'cars': cars, 'sop': sop, 'inshop': inshop, 'aircraft': aircraft, 'folder': folder}
