from .cfga import (
    CFGA as CFGA,
    LOSSES as LOSSES,
    POOLED as POOLED,
    PROGRAM_NETWORKS as PROGRAM_NETWORKS,
    Describe as Describe,
    activation_mask as activation_mask,
    default_layers as default_layers,
    largest_component as largest_component,
    pool_masked as pool_masked,
    program_descriptor as program_descriptor,
)
from .cgd import (
    GD_CONFIGS as GD_CONFIGS,
    CGDLoss as CGDLoss,
    CGDNet as CGDNet,
    cgd_learner as cgd_learner,
    cgd_prefix as cgd_prefix,
)
from .explain import (
    evidence as evidence,
    explain_match as explain_match,
)
from .fgic import (
    AccuracyEval as AccuracyEval,
    Classifier as Classifier,
    TrainLog as TrainLog,
    accuracy as accuracy,
    check_classes as check_classes,
    class_logits as class_logits,
    classify_image as classify_image,
    closest_classes as closest_classes,
    confusion as confusion,
    epoch_rate as epoch_rate,
    fgic_learner as fgic_learner,
    finish_fgic as finish_fgic,
    is_classifier as is_classifier,
    name_classes as name_classes,
    run_folder as run_folder,
    show_closest as show_closest,
    show_confusion as show_confusion,
    top_k_hits as top_k_hits,
)
from .formats import (
    CFGA_FILES as CFGA_FILES,
    READERS as READERS,
    names_of_files as names_of_files,
    prepare as prepare,
    read_cfga_json as read_cfga_json,
    read_cfga_lists as read_cfga_lists,
    read_cgd_dicts as read_cgd_dicts,
    write_cfga_json as write_cfga_json,
    write_cgd_dicts as write_cgd_dicts,
    write_crops as write_crops,
)
from .gradients import (
    Call as Call,
    Capture as Capture,
    aggregate as aggregate,
    describe_call as describe_call,
    filter_change as filter_change,
    filter_matrices as filter_matrices,
    forward_captured as forward_captured,
    output_gradients as output_gradients,
)
from .programs import (
    cfga_feature_file as cfga_feature_file,
    load_program_model as load_program_model,
    open_classifier as open_classifier,
    read_program_features as read_program_features,
    write_cfga_features as write_cfga_features,
)
