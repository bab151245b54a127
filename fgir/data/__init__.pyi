from .archives import (
    download as download,
)
from .batches import (
    retrieval_dls as retrieval_dls,
    table_dl as table_dl,
)
from .cache import (
    resize_cache as resize_cache,
)
from .csv import (
    read_table as read_table,
    write_table as write_table,
)
from .files import (
    shared_dir as shared_dir,
)
from .fish import (
    synth_dataset as synth_dataset,
)
from .images import (
    check_images as check_images,
    drop_bad as drop_bad,
    load_image as load_image,
    load_row as load_row,
    show_images as show_images,
)
from .readers import (
    read_aircraft as read_aircraft,
    read_cars as read_cars,
    read_cub as read_cub,
    read_folder as read_folder,
    read_inshop as read_inshop,
    read_sop as read_sop,
)
from .table import (
    hold_out_classes as hold_out_classes,
    image_path as image_path,
    make_table as make_table,
)
from .transforms import (
    TRANSFORMS as TRANSFORMS,
    get_transforms as get_transforms,
)
