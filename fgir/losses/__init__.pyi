from .circle import (
    KINDS as KINDS,
    POINTS as POINTS,
    PROXIES as PROXIES,
    on_circle as on_circle,
    show_descent as show_descent,
    show_turn as show_turn,
)
from .classes import (
    ArcFaceLoss as ArcFaceLoss,
    CosFaceLoss as CosFaceLoss,
    DGPCRLoss as DGPCRLoss,
    LabelSmoothingCE as LabelSmoothingCE,
)
from .pairs import (
    BatchHardTripletLoss as BatchHardTripletLoss,
    MultiSimilarityLoss as MultiSimilarityLoss,
    as_rows as as_rows,
    check_above_0 as check_above_0,
    hardest_pairs as hardest_pairs,
    log1p_sum_exp as log1p_sum_exp,
    multi_similarity_pairs as multi_similarity_pairs,
    without_autocast as without_autocast,
)
from .positive import (
    MovingProxyLoss as MovingProxyLoss,
    PositiveProxyLoss as PositiveProxyLoss,
)
from .proxies import (
    PROXY_INITS as PROXY_INITS,
    NormSoftmaxLoss as NormSoftmaxLoss,
    ProxyAnchorLoss as ProxyAnchorLoss,
    ProxyLoss as ProxyLoss,
    ProxyNCALoss as ProxyNCALoss,
    anchor_loss as anchor_loss,
    anchor_pull as anchor_pull,
    init_proxies as init_proxies,
)
