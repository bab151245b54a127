from .exact import (
    neighbours as neighbours,
)
from .metrics import (
    cluster_agreement as cluster_agreement,
    confidence as confidence,
    recall_at_k as recall_at_k,
    score_lists as score_lists,
    score_queries as score_queries,
)
from .store import (
    ColorHistogram as ColorHistogram,
    CropWarning as CropWarning,
    Features as Features,
    evaluate_recall as evaluate_recall,
    extract as extract,
    save_retrieval_pictures as save_retrieval_pictures,
    show_neighbours as show_neighbours,
)
