from .pairs import (
    ArcFaceLoss as ArcFaceLoss,
)
from .pairs import (
    BatchHardTripletLoss as BatchHardTripletLoss,
)
from .pairs import (
    CosFaceLoss as CosFaceLoss,
)
from .pairs import (
    DGPCRLoss as DGPCRLoss,
)
from .pairs import (
    LabelSmoothingCE as LabelSmoothingCE,
)
from .pairs import (
    MovingProxyLoss as MovingProxyLoss,
)
from .pairs import (
    MultiSimilarityLoss as MultiSimilarityLoss,
)
from .pairs import (
    NormSoftmaxLoss as NormSoftmaxLoss,
)
from .pairs import (
    PositiveProxyLoss as PositiveProxyLoss,
)
from .pairs import (
    ProxyAnchorLoss as ProxyAnchorLoss,
)
from .pairs import (
    ProxyNCALoss as ProxyNCALoss,
)
