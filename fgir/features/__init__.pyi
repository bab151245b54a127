from .exact import (
    neighbours as neighbours,
)
from .metrics import (
    cluster_agreement as cluster_agreement,
)
from .metrics import (
    confidence as confidence,
)
from .metrics import (
    recall_at_k as recall_at_k,
)
from .metrics import (
    score_lists as score_lists,
)
from .metrics import (
    score_queries as score_queries,
)
from .store import (
    ColorHistogram as ColorHistogram,
)
from .store import (
    CropWarning as CropWarning,
)
from .store import (
    Features as Features,
)
from .store import (
    evaluate_recall as evaluate_recall,
)
from .store import (
    extract as extract,
)
from .store import (
    save_retrieval_pictures as save_retrieval_pictures,
)
from .store import (
    show_neighbours as show_neighbours,
)
