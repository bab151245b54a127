from .cfga import (
    CFGA as CFGA,
)
from .cfga import (
    SEED_MODELS as SEED_MODELS,
)
from .cfga import (
    Describe as Describe,
)
from .cfga import (
    activation_mask as activation_mask,
)
from .cfga import (
    default_layers as default_layers,
)
from .cfga import (
    largest_component as largest_component,
)
from .cfga import (
    seed_descriptor as seed_descriptor,
)
from .cgd import (
    GD_CONFIGS as GD_CONFIGS,
)
from .cgd import (
    CGDLoss as CGDLoss,
)
from .cgd import (
    CGDNet as CGDNet,
)
from .cgd import (
    cgd_learner as cgd_learner,
)
from .explain import (
    evidence as evidence,
)
from .explain import (
    explain_match as explain_match,
)
from .fgic import (
    AccuracyEval as AccuracyEval,
)
from .fgic import (
    Classifier as Classifier,
)
from .fgic import (
    accuracy as accuracy,
)
from .fgic import (
    classify_image as classify_image,
)
from .fgic import (
    closest_classes as closest_classes,
)
from .fgic import (
    confusion as confusion,
)
from .fgic import (
    fgic_learner as fgic_learner,
)
from .fgic import (
    finish_fgic as finish_fgic,
)
from .fgic import (
    show_closest as show_closest,
)
from .fgic import (
    show_confusion as show_confusion,
)
from .formats import (
    READERS as READERS,
)
from .formats import (
    download as download,
)
from .formats import (
    prepare as prepare,
)
from .formats import (
    read_table as read_table,
)
from .formats import (
    write_crops as write_crops,
)
from .formats import (
    write_table as write_table,
)
from .programs import (
    load_seed_model as load_seed_model,
)
from .programs import (
    read_features as read_features,
)
from .programs import (
    write_seed_json as write_seed_json,
)
