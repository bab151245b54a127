from .comparison import (
    best_and_worst as best_and_worst,
    best_row as best_row,
    caveats as caveats,
    class_recall as class_recall,
    compare as compare,
    content_key as content_key,
    describe_all as describe_all,
    evaluate as evaluate,
    is_measure as is_measure,
    judge as judge,
    recall_columns as recall_columns,
)
from .published import (
    KIND as KIND,
    as_published as as_published,
    differs_in as differs_in,
    known_numbers as known_numbers,
    published_numbers as published_numbers,
)
from .reports import (
    page as page,
    report as report,
    split_protocol as split_protocol,
    table_html as table_html,
    training_charts as training_charts,
)
