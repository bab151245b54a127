from .catalog import (
    SHORTLIST as SHORTLIST,
    find_backbones as find_backbones,
    list_backbones as list_backbones,
)
from .classic import (
    BNInception as BNInception,
    BVLCGoogLeNet as BVLCGoogLeNet,
    ResponseNorm as ResponseNorm,
)
from .memory import (
    keep_memory as keep_memory,
)
from .nets import (
    MAC as MAC,
    POOLS as POOLS,
    VECTORS as VECTORS,
    AvgMax as AvgMax,
    Concat as Concat,
    GeM as GeM,
    Pooled as Pooled,
    RetrievalNet as RetrievalNet,
    SPoC as SPoC,
    count_operations as count_operations,
    count_parameters as count_parameters,
    create_head as create_head,
    create_pool as create_pool,
)
from .precision import (
    PRECISIONS as PRECISIONS,
    best_precision as best_precision,
    in_layout as in_layout,
    in_precision as in_precision,
    normalized as normalized,
    pick_precision as pick_precision,
    recorded_precision as recorded_precision,
)
from .registry import (
    BACKBONES as BACKBONES,
    PROGRAM_NAMES as PROGRAM_NAMES,
    as_backbone as as_backbone,
    create_backbone as create_backbone,
)
from .saving import (
    build_model as build_model,
    load_model as load_model,
    name_today as name_today,
    read_record as read_record,
    read_tensors as read_tensors,
    save_model as save_model,
    save_tensors as save_tensors,
)
from .towers import (
    as_feature_network as as_feature_network,
    build_headless as build_headless,
    build_timm as build_timm,
    cut_timm as cut_timm,
    is_elsewhere as is_elsewhere,
    tokens_to_map as tokens_to_map,
    with_mean as with_mean,
)
from .weights import (
    HEAD_PREFIXES as HEAD_PREFIXES,
    WEIGHT_FILES as WEIGHT_FILES,
    first_line as first_line,
    is_weight_file as is_weight_file,
    load_weights as load_weights,
    read_weights as read_weights,
)
