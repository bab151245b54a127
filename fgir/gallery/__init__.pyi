from .index import (
    Index as Index,
)
from .index import (
    show_search as show_search,
)
from .rerank import (
    Views as Views,
)
from .rerank import (
    database_augmentation as database_augmentation,
)
from .rerank import (
    diffusion as diffusion,
)
from .rerank import (
    evaluate_rerank as evaluate_rerank,
)
from .rerank import (
    expand as expand,
)
from .rerank import (
    fit_pca as fit_pca,
)
from .rerank import (
    fit_whitening as fit_whitening,
)
from .rerank import (
    k_reciprocal as k_reciprocal,
)
from .rerank import (
    query_expansion as query_expansion,
)
