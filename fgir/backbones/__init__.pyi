from .nets import (
    POOLS as POOLS,
    Pooled as Pooled,
    RetrievalNet as RetrievalNet,
    count_operations as count_operations,
    count_parameters as count_parameters,
    create_pool as create_pool,
)
from .registry import (
    BACKBONES as BACKBONES,
    as_backbone as as_backbone,
    create_backbone as create_backbone,
)
from .saving import (
    load_model as load_model,
    save_model as save_model,
)
