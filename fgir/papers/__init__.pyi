from .cfga import (
    CFGA as CFGA,
    SEED_MODELS as SEED_MODELS,
    Describe as Describe,
    activation_mask as activation_mask,
    default_layers as default_layers,
    largest_component as largest_component,
    seed_descriptor as seed_descriptor,
)
from .cgd import (
    GD_CONFIGS as GD_CONFIGS,
    CGDLoss as CGDLoss,
    CGDNet as CGDNet,
    cgd_learner as cgd_learner,
)
from .explain import (
    evidence as evidence,
    explain_match as explain_match,
)
from .fgic import (
    AccuracyEval as AccuracyEval,
    Classifier as Classifier,
    accuracy as accuracy,
    classify_image as classify_image,
    closest_classes as closest_classes,
    confusion as confusion,
    fgic_learner as fgic_learner,
    finish_fgic as finish_fgic,
    show_closest as show_closest,
    show_confusion as show_confusion,
)
from .formats import (
    READERS as READERS,
    prepare as prepare,
    write_crops as write_crops,
)
from .programs import (
    load_seed_model as load_seed_model,
    write_seed_json as write_seed_json,
)
