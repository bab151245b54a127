from .comparison import (
    compare as compare,
)
from .comparison import (
    describe_all as describe_all,
)
from .comparison import (
    evaluate as evaluate,
)
from .comparison import (
    report as report,
)
from .published import (
    known_numbers as known_numbers,
)
