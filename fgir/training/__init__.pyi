from .callbacks import (
    ClipValue as ClipValue,
    FreezeBN as FreezeBN,
    KeepState as KeepState,
    RetrievalEval as RetrievalEval,
    SaveBest as SaveBest,
    SeedEpoch as SeedEpoch,
    Statistics as Statistics,
    StopAfter as StopAfter,
    WarmUp as WarmUp,
    embedding_of as embedding_of,
    held_out as held_out,
    pick_epoch as pick_epoch,
    table_recall as table_recall,
    too_few as too_few,
)
from .checkpoints import (
    Resumable as Resumable,
    pack as pack,
    unpack as unpack,
)
from .fitting import (
    how_trained as how_trained,
    per_group as per_group,
    read_recipe as read_recipe,
)
from .holdout import (
    choose_valid as choose_valid,
    hold_out_images as hold_out_images,
)
from .learner import (
    RetrievalLearner as RetrievalLearner,
    retrieval_learner as retrieval_learner,
    split_groups as split_groups,
)
from .loop import (
    RetrievalLoop as RetrievalLoop,
    RetrievalRecorder as RetrievalRecorder,
    TrainOnlyLoss as TrainOnlyLoss,
)
from .processes import (
    AnyDevicePrecision as AnyDevicePrecision,
    GlobalBatch as GlobalBatch,
    join_processes as join_processes,
)
from .recipes import (
    DEFAULTS as DEFAULTS,
    QUIRKS as QUIRKS,
    RECIPES as RECIPES,
    Quirk as Quirk,
    get_recipe as get_recipe,
    has_strides as has_strides,
    list_recipes as list_recipes,
)
from .runs import (
    default_prefix as default_prefix,
    describe_test as describe_test,
    learner_from_recipe as learner_from_recipe,
    run_seeds as run_seeds,
    save_results as save_results,
)
from .settings import (
    CHECKS as CHECKS,
    GROUPS as GROUPS,
    OPTIMIZERS as OPTIMIZERS,
    SCHEDULES as SCHEDULES,
    build as build,
    by_group as by_group,
    check_known as check_known,
    check_values as check_values,
    class_named as class_named,
    is_number as is_number,
    is_text as is_text,
    is_whole as is_whole,
    list_of as list_of,
    schedule_factor as schedule_factor,
    try_build as try_build,
    try_optimizer as try_optimizer,
)
