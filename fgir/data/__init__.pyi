from .archives import (
    ARCHIVES as ARCHIVES,
    SOURCES as SOURCES,
    download as download,
    extract_archive as extract_archive,
    has_devkit as has_devkit,
    read_cars_devkit as read_cars_devkit,
)
from .batches import (
    SAMPLERS as SAMPLERS,
    RetrievalDL as RetrievalDL,
    TableImages as TableImages,
    group_rows as group_rows,
    own_share as own_share,
    pk_rows as pk_rows,
    retrieval_dls as retrieval_dls,
    seeded as seeded,
    table_dl as table_dl,
)
from .cache import (
    ImageCache as ImageCache,
    open_cache as open_cache,
    resize_cache as resize_cache,
    resize_name as resize_name,
)
from .csv import (
    read_json as read_json,
    read_table as read_table,
    write_table as write_table,
)
from .files import (
    OpenFile as OpenFile,
    alone_with as alone_with,
    check as check,
    check_choice as check_choice,
    check_free as check_free,
    existing_folder as existing_folder,
    finish as finish,
    first_file as first_file,
    in_use as in_use,
    lay_out as lay_out,
    load_pth as load_pth,
    lock_of as lock_of,
    locked as locked,
    naming as naming,
    parse_json as parse_json,
    say as say,
    shared_dir as shared_dir,
    write_atomic as write_atomic,
    write_folder_atomic as write_folder_atomic,
)
from .fish import (
    SYNTH_TRAITS as SYNTH_TRAITS,
    draw_fish as draw_fish,
    synth_classes as synth_classes,
    synth_dataset as synth_dataset,
)
from .images import (
    BadImage as BadImage,
    BadImages as BadImages,
    check_images as check_images,
    drop_bad as drop_bad,
    load_image as load_image,
    load_row as load_row,
    open_image as open_image,
    show_images as show_images,
)
from .readers import (
    FORMATS as FORMATS,
    load_mat as load_mat,
    mat_classes as mat_classes,
    mat_records as mat_records,
    read_aircraft as read_aircraft,
    read_cars as read_cars,
    read_cub as read_cub,
    read_folder as read_folder,
    read_inshop as read_inshop,
    read_sop as read_sop,
)
from .table import (
    BOX as BOX,
    SPLITS as SPLITS,
    check_boxes as check_boxes,
    check_files as check_files,
    class_names as class_names,
    hold_out_classes as hold_out_classes,
    image_path as image_path,
    make_table as make_table,
    refuse_rows as refuse_rows,
    zero_shot_split as zero_shot_split,
)
from .transforms import (
    IMAGENET_MEAN as IMAGENET_MEAN,
    IMAGENET_STD as IMAGENET_STD,
    TRANSFORMS as TRANSFORMS,
    CenterCrop as CenterCrop,
    Resize as Resize,
    Shrink as Shrink,
    Steps as Steps,
    get_transforms as get_transforms,
    transform_to_test as transform_to_test,
)
