from .batches import (
    TRANSFORMS as TRANSFORMS,
    get_transforms as get_transforms,
    resize_cache as resize_cache,
    retrieval_dls as retrieval_dls,
    table_dl as table_dl,
)
from .fish import (
    synth_dataset as synth_dataset,
)
from .table import (
    check_images as check_images,
    drop_bad as drop_bad,
    hold_out_classes as hold_out_classes,
    image_path as image_path,
    load_image as load_image,
    load_row as load_row,
    make_table as make_table,
    read_aircraft as read_aircraft,
    read_cars as read_cars,
    read_cub as read_cub,
    read_folder as read_folder,
    read_inshop as read_inshop,
    read_sop as read_sop,
    shared_dir as shared_dir,
    show_images as show_images,
)
