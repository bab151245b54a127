from .exact import (
    neighbours as neighbours,
)
from .extraction import (
    ColorHistogram as ColorHistogram,
    CropWarning as CropWarning,
    extract as extract,
)
from .metrics import (
    cluster_agreement as cluster_agreement,
    confidence as confidence,
    recall_at_k as recall_at_k,
    score_lists as score_lists,
    score_queries as score_queries,
)
from .retrieval import (
    evaluate_recall as evaluate_recall,
    save_retrieval_pictures as save_retrieval_pictures,
    show_neighbours as show_neighbours,
)
from .store import (
    Features as Features,
)
