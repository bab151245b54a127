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
from .proxies import (
    PROXY_INITS as PROXY_INITS,
    MovingProxyLoss as MovingProxyLoss,
    NormSoftmaxLoss as NormSoftmaxLoss,
    PositiveProxyLoss as PositiveProxyLoss,
    ProxyAnchorLoss as ProxyAnchorLoss,
    ProxyLoss as ProxyLoss,
    ProxyNCALoss as ProxyNCALoss,
    init_proxies as init_proxies,
)
