from .callbacks import (
    ClipValue as ClipValue,
    FreezeBN as FreezeBN,
    KeepState as KeepState,
    RetrievalEval as RetrievalEval,
    SaveBest as SaveBest,
    Statistics as Statistics,
    StopAfter as StopAfter,
    WarmUp as WarmUp,
)
from .learner import (
    RetrievalLearner as RetrievalLearner,
    retrieval_learner as retrieval_learner,
)
from .recipes import (
    get_recipe as get_recipe,
)
from .runs import (
    describe_test as describe_test,
    hold_out_images as hold_out_images,
    learner_from_recipe as learner_from_recipe,
    read_recipe as read_recipe,
    run_seeds as run_seeds,
    save_results as save_results,
)
