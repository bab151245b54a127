from .classes import (
    ArcFaceLoss as ArcFaceLoss,
    CosFaceLoss as CosFaceLoss,
    DGPCRLoss as DGPCRLoss,
    LabelSmoothingCE as LabelSmoothingCE,
)
from .pairs import (
    BatchHardTripletLoss as BatchHardTripletLoss,
    MultiSimilarityLoss as MultiSimilarityLoss,
)
from .proxies import (
    MovingProxyLoss as MovingProxyLoss,
    NormSoftmaxLoss as NormSoftmaxLoss,
    PositiveProxyLoss as PositiveProxyLoss,
    ProxyAnchorLoss as ProxyAnchorLoss,
    ProxyNCALoss as ProxyNCALoss,
)
