from .nets import (
    BACKBONES as BACKBONES,
    POOLS as POOLS,
    Pooled as Pooled,
    RetrievalNet as RetrievalNet,
    as_backbone as as_backbone,
    count_operations as count_operations,
    count_parameters as count_parameters,
    create_backbone as create_backbone,
    create_pool as create_pool,
    load_model as load_model,
    save_model as save_model,
)
