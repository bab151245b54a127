from .index import (
    Index as Index,
    features_of as features_of,
    show_search as show_search,
)
from .rerank import (
    Views as Views,
    database_augmentation as database_augmentation,
    diffusion as diffusion,
    evaluate_rerank as evaluate_rerank,
    expand as expand,
    fit_pca as fit_pca,
    fit_whitening as fit_whitening,
    k_reciprocal as k_reciprocal,
    query_expansion as query_expansion,
)
