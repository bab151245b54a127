from .learner import (
    ClipValue as ClipValue,
)
from .learner import (
    FreezeBN as FreezeBN,
)
from .learner import (
    KeepState as KeepState,
)
from .learner import (
    RetrievalEval as RetrievalEval,
)
from .learner import (
    RetrievalLearner as RetrievalLearner,
)
from .learner import (
    SaveBest as SaveBest,
)
from .learner import (
    Statistics as Statistics,
)
from .learner import (
    StopAfter as StopAfter,
)
from .learner import (
    WarmUp as WarmUp,
)
from .learner import (
    retrieval_learner as retrieval_learner,
)
from .recipes import (
    describe_test as describe_test,
)
from .recipes import (
    get_recipe as get_recipe,
)
from .recipes import (
    hold_out_images as hold_out_images,
)
from .recipes import (
    learner_from_recipe as learner_from_recipe,
)
from .recipes import (
    read_recipe as read_recipe,
)
from .recipes import (
    run_seeds as run_seeds,
)
from .recipes import (
    save_results as save_results,
)
