from .pairs import (
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
