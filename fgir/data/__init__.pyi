from .batches import (
    TRANSFORMS as TRANSFORMS,
)
from .batches import (
    get_transforms as get_transforms,
)
from .batches import (
    resize_cache as resize_cache,
)
from .batches import (
    retrieval_dls as retrieval_dls,
)
from .batches import (
    table_dl as table_dl,
)
from .fish import (
    synth_dataset as synth_dataset,
)
from .table import (
    check_images as check_images,
)
from .table import (
    drop_bad as drop_bad,
)
from .table import (
    hold_out_classes as hold_out_classes,
)
from .table import (
    image_path as image_path,
)
from .table import (
    load_image as load_image,
)
from .table import (
    load_row as load_row,
)
from .table import (
    make_table as make_table,
)
from .table import (
    read_aircraft as read_aircraft,
)
from .table import (
    read_cars as read_cars,
)
from .table import (
    read_cub as read_cub,
)
from .table import (
    read_folder as read_folder,
)
from .table import (
    read_inshop as read_inshop,
)
from .table import (
    read_sop as read_sop,
)
from .table import (
    shared_dir as shared_dir,
)
from .table import (
    show_images as show_images,
)
