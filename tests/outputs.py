"""Make the pictures in the notebooks small: at most 900 pixels wide and 96 colors, so that a cell stays below 200 kB.

Run it after executing notebooks: `python tests/outputs.py nbs/*.ipynb`. Pictures that are small already stay as they are.
"""
import base64
import json
import sys
from io import BytesIO
from pathlib import Path

from PIL import Image

LARGE, WIDTH, COLORS = 60_000, 900, 96


def shrink_picture(png: str) -> str:
    """A PNG in base64, with fewer pixels and colors if it is large."""
    if len(png) < LARGE: return png
    image = Image.open(BytesIO(base64.b64decode(png))).convert('RGB')
    if image.width > WIDTH: image = image.resize((WIDTH, round(image.height*WIDTH/image.width)), Image.Resampling.LANCZOS)
    file = BytesIO()
    image.quantize(COLORS, dither=Image.Dither.NONE).save(file, 'png', optimize=True)
    return min(base64.b64encode(file.getvalue()).decode(), png, key=len)


def shrink(path: Path) -> None:
    """Shrink the pictures of a notebook."""
    notebook = json.loads(path.read_text(encoding='utf-8'))
    outputs = [o['data'] for cell in notebook['cells'] for o in cell.get('outputs', []) if 'image/png' in o.get('data', {})]
    before = [''.join(data['image/png']) for data in outputs]
    for data, png in zip(outputs, before, strict=True): data['image/png'] = shrink_picture(png)
    if before == [data['image/png'] for data in outputs]: return
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + '\n', encoding='utf-8')


if __name__ == '__main__':
    for name in sys.argv[1:]: shrink(Path(name))
