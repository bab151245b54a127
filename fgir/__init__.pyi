from . import (
    app as app,
    backbones as backbones,
    data as data,
    evaluation as evaluation,
    features as features,
    gallery as gallery,
    losses as losses,
    papers as papers,
    training as training,
)
from .backbones import (
    Pooled as Pooled,
    RetrievalNet as RetrievalNet,
    create_backbone as create_backbone,
    load_model as load_model,
    save_model as save_model,
)
from .data import (
    hold_out_classes as hold_out_classes,
    make_table as make_table,
    read_aircraft as read_aircraft,
    read_cars as read_cars,
    read_cub as read_cub,
    read_folder as read_folder,
    read_inshop as read_inshop,
    read_sop as read_sop,
    read_table as read_table,
    retrieval_dls as retrieval_dls,
    show_images as show_images,
    synth_dataset as synth_dataset,
)
from .evaluation import (
    compare as compare,
    evaluate as evaluate,
    report as report,
)
from .features import (
    ColorHistogram as ColorHistogram,
    Features as Features,
    evaluate_recall as evaluate_recall,
    extract as extract,
    neighbours as neighbours,
    recall_at_k as recall_at_k,
    show_neighbours as show_neighbours,
)
from .gallery import (
    Index as Index,
    show_search as show_search,
)
from .losses import (
    ArcFaceLoss as ArcFaceLoss,
    BatchHardTripletLoss as BatchHardTripletLoss,
    CosFaceLoss as CosFaceLoss,
    DGPCRLoss as DGPCRLoss,
    LabelSmoothingCE as LabelSmoothingCE,
    MovingProxyLoss as MovingProxyLoss,
    MultiSimilarityLoss as MultiSimilarityLoss,
    NormSoftmaxLoss as NormSoftmaxLoss,
    PositiveProxyLoss as PositiveProxyLoss,
    ProxyAnchorLoss as ProxyAnchorLoss,
    ProxyNCALoss as ProxyNCALoss,
)
from .papers import (
    CFGA as CFGA,
    CGDNet as CGDNet,
    Classifier as Classifier,
    cgd_learner as cgd_learner,
    explain_match as explain_match,
    fgic_learner as fgic_learner,
)
from .training import (
    get_recipe as get_recipe,
    learner_from_recipe as learner_from_recipe,
    retrieval_learner as retrieval_learner,
)

__version__: str
