from .nets import (
    BACKBONES as BACKBONES,
)
from .nets import (
    POOLS as POOLS,
)
from .nets import (
    Pooled as Pooled,
)
from .nets import (
    RetrievalNet as RetrievalNet,
)
from .nets import (
    as_backbone as as_backbone,
)
from .nets import (
    count_operations as count_operations,
)
from .nets import (
    count_parameters as count_parameters,
)
from .nets import (
    create_backbone as create_backbone,
)
from .nets import (
    create_pool as create_pool,
)
from .nets import (
    load_model as load_model,
)
from .nets import (
    save_model as save_model,
)
