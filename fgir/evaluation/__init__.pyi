from .comparison import (
    compare as compare,
    describe_all as describe_all,
    evaluate as evaluate,
    report as report,
)
from .published import (
    known_numbers as known_numbers,
)
